"""Resolution: the same bits at another size; what fixes the size is named."""

from __future__ import annotations

import pytest
import torch
from edit_checks import check_edited, check_plan, outputs, refused
from random_networks import randomised
from torch import Tensor, nn

from convwright.architecture import Architecture, read
from convwright.edits import Kernel, Plan, Resolution, Width, apply
from convwright.errors import EditError


class Free(nn.Module):
    """Pooled to one pixel: any size goes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Conv2d(3, 7, 3, 2, 1), nn.BatchNorm2d(7), nn.Conv2d(7, 5, 3, padding=1)
        self.fc = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(self.bn(self.a(x)).relu()).mean((2, 3)))


class Flat(Free):
    """A flatten into a linear layer, twice deep in the module tree."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(5 * 5 * 6, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x)))


class Positions(Free):
    """A table of positions is added."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1, 7, 5, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(self.a(x) + self.table).mean((2, 3)))


class Written(Free):
    """A size that the forward writes down."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.fc(self.b(x.view(-1, 7, 5, 6)).mean((2, 3)))


class Small(Free):
    """Five poolings: small inputs vanish."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(nn.functional.max_pool2d(self.b(self.a(x)), 4).mean((2, 3)))


def reading(kind: type[nn.Module], seed: int = 1) -> Architecture:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return read(randomised(kind(), seed), torch.zeros(2, 3, 9, 11, dtype=torch.float64))


@pytest.mark.parametrize("size", [(9, 11), (18, 22), (5, 4), (1, 1), (13, 7), 8])
def test_every_bit_stays(size: int | tuple[int, int]) -> None:
    arch = reading(Free)
    new = arch.apply(Resolution(size))
    sides = (size, size) if isinstance(size, int) else size
    assert tuple(new.example_input.shape) == (2, 3, *sides)
    assert new.changes[0].exact
    assert new.changes[0].max_difference == 0
    assert all(torch.equal(t, new.model.state_dict()[n]) for n, t in arch.model.state_dict().items())
    x = torch.randn(2, 3, *sides, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip(outputs(new.model, x), outputs(arch.model, x), strict=True))
    assert [(g.name, g.size) for g in new.groups] == [(g.name, g.size) for g in arch.groups]
    check_edited(arch, new, 1)
    check_plan(arch, new, randomised(Free(), 2), x)


def test_costs_follow_by_hand() -> None:
    new = reading(Free).apply(Resolution((18, 22)))
    assert new.changes[0].macs == (27 * 7 * 30 + 63 * 5 * 30 + 10, 27 * 7 * 99 + 63 * 5 * 99 + 10)
    assert new.changes[0].params[0] == new.changes[0].params[1]


@pytest.mark.parametrize(("kind", "shape", "size"), [(nn.Conv1d, (17,), 9), (nn.Conv3d, (5, 6, 7), (7, 4, 5))])
def test_other_dimensions(kind: type[nn.Module], shape: tuple[int, ...], size: object) -> None:
    model = nn.Sequential(kind(3, 5, 3, padding=1), nn.ReLU(), kind(5, 2, 1))
    arch = read(model, torch.zeros(2, 3, *shape))
    new = arch.apply(Resolution(size))  # type: ignore[arg-type]
    assert tuple(new.example_input.shape[2:]) == ((size,) if isinstance(size, int) else size)
    check_edited(arch, new, 1)


@pytest.mark.parametrize(
    ("kind", "message"), [(Flat, r"head\.1\.0"), (Positions, "self.table"), (Written, r"view\(-1, 7, 5, 6\)")]
)
def test_what_fixes_the_size_is_named(kind: type[nn.Module], message: str) -> None:
    arch = reading(kind)
    said = refused(arch, Resolution((18, 22)), match=message)
    assert "3x18x22" in said
    assert arch.apply(Resolution((9, 11))).changes[0].exact


def test_an_input_that_vanishes_is_refused() -> None:
    refused(reading(Small), Resolution(3), match="3x3x3")


@pytest.mark.parametrize(
    "size",
    [0, -8, True, False, 8.0, "8", None, (), (8,), (8, 8, 8), (8, -1), (8, True), (8, "8"), [[8], 8]],
)
def test_sizes_that_are_none_are_refused(size: object) -> None:
    refused(reading(Free), Resolution(size), match="the resolution must be a whole number")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [10**9, 10**30, (8, 10**9), 16_385])
def test_absurd_sizes_are_refused_at_once(size: object) -> None:
    refused(reading(Free), Resolution(size), match="resolution of")  # type: ignore[arg-type]


def test_a_size_as_row_survives_json() -> None:
    plan = reading(Free).apply(Resolution([8, 9])).plan
    assert Plan.from_json(plan.to_json()) == plan
    assert hash(plan.edits[0]) == hash(Resolution((8, 9)))


def test_it_goes_with_other_edits_in_any_order() -> None:
    arch = reading(Free)
    edits = [Resolution((12, 10)), Width("a", 3), Kernel("b", 5)]
    results = [arch.apply(*order) for order in (edits, edits[::-1], [edits[1], edits[0], edits[2]])]
    assert len({(r.profile().macs, r.profile().params) for r in results}) == 1
    for result in results:
        again = apply(Plan.from_json(result.plan.to_json()), arch.model)
        assert tuple(again.example_input.shape) == (2, 3, 12, 10)
        assert again.plan == result.plan


def test_one_that_fails_takes_the_other_with_it() -> None:
    refused(reading(Flat), Width("a", 3), Resolution(20), match=r"head\.1\.0")
    with pytest.raises(EditError):
        reading(Flat).apply(Resolution(20), Width("a", 3))
