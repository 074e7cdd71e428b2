"""Depth: blocks go and come on networks written in many styles; what cannot be done is refused, and named."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from depth_networks import REMOVABLE, Lines, Listed, ListedSilu, OuterAddition, Timm, Vgg, built, shape_for
from edit_checks import apply_quietly, attempt, check_edited, check_plan, distance, refused, untouched
from random_networks import Last, Net, Residual, Shared, randomised
from torch import Tensor, nn
from torch.nn import functional as F

from convwright.architecture import Architecture, read
from convwright.edits import AddBlock, RemoveBlock, Width
from convwright.errors import EditError

REMOVALS = [pytest.param(kind, block, id=f"{kind.__name__}-{block}") for kind in REMOVABLE for block in REMOVABLE[kind]]
ADDITIONS = [
    pytest.param(kind, block, keeps, id=f"{kind.__name__}-{block}")
    for kind, blocks in REMOVABLE.items()
    for block, keeps in blocks.items()
    if keeps is not None
]


def random_input(kind: type[nn.Module], batch: int = 2) -> Tensor:
    return torch.randn(batch, *shape_for(kind), dtype=torch.float64, generator=torch.Generator().manual_seed(7))


@functools.cache
def reading(kind: type[nn.Module], seed: int = 3) -> Architecture:
    """Read a network once: edits leave it as it is."""
    return read(randomised(built(kind), seed), random_input(kind))


# ------------------------------------------------------------------ removing


@pytest.mark.few(4)
@pytest.mark.parametrize(("kind", "block"), REMOVALS)
def test_a_removed_block_is_left_out(kind: type[nn.Module], block: str) -> None:
    arch = reading(kind)
    with untouched(arch):
        new = arch.apply(RemoveBlock(block))
    x = random_input(kind)
    assert new.changes[0].exact
    assert distance(new.model, arch.model.without(block), x) <= 1e-12
    assert new.changes[0].macs[1] < new.changes[0].macs[0]
    assert new.changes[0].params[1] < new.changes[0].params[0]
    check_edited(arch, new, 1)
    check_plan(arch, new, randomised(built(kind), 4), x)


@pytest.mark.few(3)
@pytest.mark.parametrize("kind", REMOVABLE)
def test_all_blocks_that_can_go_go_together(kind: type[nn.Module]) -> None:
    arch = reading(kind)
    names = list(REMOVABLE[kind])
    new = arch.apply(*(RemoveBlock(name) for name in names))
    assert all(change.exact for change in new.changes)
    check_edited(arch, new, len(names))
    in_turn = arch
    for name in names:
        in_turn = in_turn.apply(RemoveBlock(name))
    assert distance(in_turn.model, new.model, random_input(kind)) == 0
    assert in_turn.plan == new.plan


def test_other_modules_keep_their_names_and_bits() -> None:
    arch = reading(Timm)
    new = arch.apply(RemoveBlock("layer1.0"))
    before, after = arch.model.state_dict(), new.model.state_dict()
    assert set(before) - set(after) == {name for name in before if name.startswith("layer1.0.")}
    assert all(torch.equal(after[name], before[name]) for name in after)
    with pytest.raises(EditError, match=r"layer1\.0"):
        new.apply(RemoveBlock("layer1.0"))


class Twice(nn.Module):
    """One block called twice: removing it removes both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 5, 1), nn.Sequential(nn.Conv2d(5, 5, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(F.relu(self.block(self.stem(x)))).mean((2, 3)))


def test_a_block_called_twice_is_not_removed_once() -> None:
    arch = read(randomised(Twice(), 1), torch.zeros(2, 3, 6, 7, dtype=torch.float64))
    for edit in (RemoveBlock("block"), AddBlock("block")):
        refused(arch, edit, match="block")


# ------------------------------------------------------------------ adding


@pytest.mark.few(4)
@pytest.mark.parametrize(("kind", "block", "keeps"), ADDITIONS)
def test_added_blocks_are_the_identity_or_say_that_they_are_not(kind: type[nn.Module], block: str, keeps: bool) -> None:
    arch, copies = reading(kind), 2
    new = apply_quietly(arch, AddBlock(block, copies))
    x = random_input(kind)
    (edit,) = new.plan.edits
    assert (new.changes[0].exact, edit.approximate) == (keeps, not keeps)
    assert (distance(new.model, arch.model, x) <= 1e-12) is keeps
    each = sum(p.numel() for name, p in arch.model.named_parameters() if name.startswith(f"{block}."))
    if kind is not Vgg:  # there a block is a row of modules
        assert new.changes[0].params == (new.changes[0].params[0], new.changes[0].params[0] + copies * each)
    check_edited(arch, new, 1)
    if keeps:
        check_plan(arch, new, randomised(built(kind), 4), x)


def test_a_replayed_addition_stays_marked_approximate() -> None:
    arch = reading(ListedSilu)
    new = apply_quietly(arch, AddBlock("units.1"))
    check_plan(arch, new, randomised(built(ListedSilu), 4), random_input(ListedSilu))


def test_copies_learn_from_the_first_step_on() -> None:
    arch = reading(Timm)
    new = arch.apply(AddBlock("layer1.1", 2))
    before = copy.deepcopy(new.model.state_dict())
    optimizer = torch.optim.SGD(new.model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        new.model.train()(random_input(Timm)).square().sum().backward()
        optimizer.step()
    after = new.model.state_dict()
    copies = [name for name in after if name not in arch.model.state_dict() and name.endswith("weight")]
    assert len(copies) >= 8
    assert not [name for name in copies if torch.equal(after[name], before[name])]


def test_copies_share_nothing_with_the_block() -> None:
    new = reading(Timm).apply(AddBlock("layer1.1", 3))
    pointers = [p.data_ptr() for p in new.model.parameters()]
    assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize(("kind", "block"), [(Timm, "layer1.1"), (Lines, "blocks.0"), (Listed, "units.1")])
def test_a_block_can_be_added_to_again_and_its_copy_too(kind: type[nn.Module], block: str) -> None:
    arch = reading(kind)
    there = arch.apply(AddBlock(block))
    new = there.apply(AddBlock(added(arch, there)[0]))
    third = new.apply(AddBlock(added(there, new)[0], 2))
    assert there.profile().params < new.profile().params < third.profile().params
    assert distance(third.model, arch.model, random_input(kind)) <= 1e-10
    check_plan(arch, third, randomised(built(kind), 5), random_input(kind))


def added(before: Architecture, after: Architecture) -> list[str]:
    """Return blocks that were not there before, the last first."""
    old = {block.name for block in before.blocks}
    return [block.name for block in reversed(after.blocks) if block.name not in old]


@pytest.mark.parametrize(("kind", "block"), [(Timm, "layer2.1"), (Lines, "blocks.1"), (Listed, "units.2")])
def test_what_was_added_can_be_removed(kind: type[nn.Module], block: str) -> None:
    arch = reading(kind)
    there = arch.apply(AddBlock(block))
    back = there.apply(RemoveBlock(added(arch, there)[0]))
    assert back.profile().params == arch.profile().params
    assert distance(back.model, arch.model, random_input(kind)) == 0
    check_plan(arch, back, randomised(built(kind), 5), random_input(kind))


@pytest.mark.parametrize("steps", [(Last(), Last()), (Residual(7, 3, act="none", pre=False), Shared())])
def test_a_sequential_that_is_walked_by_position_keeps_its_positions(steps: tuple) -> None:
    net = Net(steps=steps, output="tuple")
    arch = read(net.randomised(), net.input())
    new = arch.apply(AddBlock("steps.0"))
    assert new.changes[0].exact
    assert distance(new.model, arch.model, net.input(seed=1)) <= 1e-12


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize("edit", [RemoveBlock, AddBlock])
@pytest.mark.parametrize("name", ["layer9.0", "layer1.0.conv9", "", "fc", "layer1.0 ", ".", "layer1.0#2", "__class__"])
def test_names_of_no_block_are_refused(edit: type, name: str) -> None:
    refused(reading(Timm), edit(name), match=name.replace(".", r"\.") or "no block")


@pytest.mark.parametrize("edit", [RemoveBlock, AddBlock])
@pytest.mark.parametrize("name", [None, 5, ["layer1.0"], {}, True])
def test_targets_of_another_type_are_refused(edit: type, name: object) -> None:
    with pytest.raises(EditError):
        reading(Timm).apply(edit(name))


def test_a_near_name_is_offered() -> None:
    refused(reading(Timm), RemoveBlock("layer1.2"), match=r"Did you mean layer1\.")


@pytest.mark.parametrize("copies", [0, -1, True, False, 1.0, 2.5, "2", None, 10**9, 10**30, float("nan"), [1]])
def test_impossible_numbers_of_copies_are_refused_at_once(copies: object) -> None:
    refused(reading(Timm), AddBlock("layer1.0", copies), match=r"copies of layer1\.0")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([RemoveBlock("layer1.0"), RemoveBlock("layer1.0")], r"layer1\.0 is named by two"),
        ([AddBlock("layer1.0"), AddBlock("layer1.0", 2)], r"layer1\.0 is named by two"),
        ([RemoveBlock("layer1.0"), AddBlock("layer1.0")], r"layer1\.0"),
        ([RemoveBlock("layer1"), RemoveBlock("layer1.0")], r"layer1"),
        ([RemoveBlock("layer1.0"), RemoveBlock("layer1")], r"layer1"),
        ([AddBlock("layer1.0"), AddBlock("layer1")], r"layer1"),
        ([RemoveBlock("layer1.0"), Width("layer1.0.conv1", 3)], r"layer1\.0\.conv1"),
        ([Width("layer1.0.conv1", 3), RemoveBlock("layer2.0")], r"layer2\.0"),
    ],
)
def test_edits_that_contradict_each_other_are_refused_as_a_whole(edits: list, message: str) -> None:
    refused(reading(Timm), *edits, match=message)


def test_blocks_that_change_the_shape_stay() -> None:
    arch = reading(Timm)
    refused(
        arch, RemoveBlock("layer2.0"), match=r"layer2\.0 cannot be removed: it changes the shape from 5x8x9 to 7x4x5"
    )
    refused(arch, AddBlock("layer2.0"), match=r"layer2\.0 cannot be repeated.*layer2\.1")
    refused(reading(Vgg), RemoveBlock("features.0"), match=r"features\.0 cannot be removed: it changes the shape")


class Projecting(nn.Module):
    """A block of equal shapes with a convolution on its shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 5, 1), nn.Linear(5, 3)
        self.block = Projected()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(self.stem(x)).mean((2, 3)))


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.short = nn.Conv2d(5, 7, 3, padding=1), nn.Conv2d(7, 5, 3, padding=1), nn.Conv2d(5, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.short(x) + self.b(F.relu(self.a(x)))


def test_a_block_with_a_projection_goes_as_a_whole_or_stays() -> None:
    arch = read(randomised(Projecting(), 2), torch.zeros(2, 3, 6, 7, dtype=torch.float64))
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    new = attempt(arch, RemoveBlock("block"))
    if new is not None:
        skipped = copy.deepcopy(arch.model)
        skipped.block.register_forward_hook(lambda _, args, result: args[0])
        assert distance(new.model, skipped, x) == 0
    added = attempt(arch, AddBlock("block"))
    if added is not None:
        exact = distance(added.model, arch.model, x) <= 1e-10
        assert (added.changes[0].exact, added.plan.edits[0].approximate) == (exact, not exact)


@pytest.mark.parametrize("block", ["first", "second"])
def test_a_branch_added_elsewhere_is_repeated_with_its_difference_said_or_refused(block: str) -> None:
    arch = reading(OuterAddition)
    try:
        new = apply_quietly(arch, AddBlock(block))
    except EditError as error:
        message = str(error)
    else:
        exact = distance(new.model, arch.model, random_input(OuterAddition)) <= 1e-10
        assert (new.changes[0].exact, new.plan.edits[0].approximate) == (exact, not exact)
        check_edited(arch, new, 1)
        return
    assert block in message
    assert f"add the module that holds it: {block}." not in message


def test_an_activation_that_spoils_the_identity_is_named() -> None:
    change = apply_quietly(reading(ListedSilu), AddBlock("units.1")).changes[0]
    assert "activation" in change.notes[0]
