"""Branch sparsity: the proximal step against its definition, and what a training with it leaves behind."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import convwright as cw
from convwright.edits import RemoveBlock
from convwright.techniques import branch_scales, shrink_groups, zero_branches
from convwright.training import Recipe, train
from convwright.training.preflight import prepare

QUIET = {"progress": False, "accelerator": "cpu"}


class Block(nn.Module):
    """A residual block; `norm` ends its branch."""

    def __init__(self, channels: int, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = norm or nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)) + x)


def net(*blocks: nn.Module, channels: int = 5, classes: int = 3, colours: int = 1) -> nn.Sequential:
    stem = nn.Conv2d(colours, channels, 3, 2, padding=1), nn.BatchNorm2d(channels), nn.ReLU()
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


@given(
    seed=st.integers(0, 2**31), sizes=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    threshold=st.floats(0, 3, allow_subnormal=False),
)  # fmt: skip
def test_the_step_minimises_distance_plus_penalty(seed, sizes, threshold):
    """The result x of the proximal step of v satisfies v - x = t * x / |x|, or is 0 where |v| <= t."""
    generator = torch.Generator().manual_seed(seed)
    before = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    after = [each.clone() for each in before]
    shrink_groups([after], threshold)
    v, x, t = torch.cat(before), torch.cat(after), threshold * math.sqrt(sum(sizes))
    if v.norm() <= t:
        assert not x.any()
    else:
        torch.testing.assert_close(v - x, t * x / x.norm())


def test_groups_are_shortened_each_by_itself_and_parameters_keep_their_gradients():
    long, short = nn.Parameter(torch.full((3,), 5.0)), nn.Parameter(torch.full((2,), 0.1))
    long.grad = torch.ones(3)
    shrink_groups([(long,), (short,)], 1.0)
    assert torch.equal(long, torch.full((3,), 4.0))
    assert not short.any()
    assert long.grad is not None


@pytest.mark.parametrize("norm", [None, nn.GroupNorm(1, 5)])
def test_blocks_at_zero_are_removed_without_a_change_to_the_function(norm):
    torch.manual_seed(0)
    model = net(Block(5), Block(5, norm), Block(5))
    for parameter in model[4].norm.parameters():
        nn.init.zeros_(parameter)
    arch = cw.read(model.eval(), (1, 1, 13, 11))
    assert zero_branches(arch) == ("4",)
    smaller = arch.apply(*(RemoveBlock(name) for name in zero_branches(arch)))
    images = torch.randn(3, 1, 13, 11)
    torch.testing.assert_close(smaller.model(images), arch.model(images))


def test_a_training_that_is_pulled_hard_loses_all_branches_and_one_without_keeps_them(small_data):
    def trained(**options):
        torch.manual_seed(1)
        recipe = Recipe(epochs=1, max_steps=8, batch_size=16, lr=0.1, precision="fp32", techniques=options)
        shape = (1, *small_data.shape)
        found = train(net(Block(5), Block(5), colours=small_data.shape[0]), small_data, recipe, **QUIET)
        return zero_branches(found.model, shape)

    assert trained(branch_sparsity={"strength": 5.0}) == ("3", "4")
    assert trained(branch_sparsity={"strength": 1e-4}) == ()
    assert trained() == ()


def test_scales_are_the_networks_own():
    model = net(Block(5), Block(5))
    scales = branch_scales(model, (1, 1, 13, 11))
    assert list(scales) == ["3", "4"]
    assert scales["3"][0] is model[3].norm.weight


def test_what_is_frozen_stays_and_is_named(small_data):
    """Frozen scales leave their branch alone, a frozen shift only itself; branches at 0 are found all the same."""
    model = net(Block(5), Block(5), Block(5), colours=small_data.shape[0])
    model[3].norm.weight.requires_grad_(False)
    model[4].norm.bias.requires_grad_(False)
    nn.init.constant_(model[4].norm.bias, 0.5)
    nn.init.zeros_(model[5].norm.weight)
    model[5].norm.requires_grad_(False)
    recipe = Recipe(
        epochs=1, max_steps=4, batch_size=16, precision="fp32", techniques={"branch_sparsity": {"strength": 9.0}}
    )
    with pytest.warns(cw.errors.RecipeWarning, match=r"branch_sparsity leaves 2 of 3: 3 \("):
        found = train(model, small_data, recipe, **QUIET)
    assert bool(found.model[3].norm.weight.all())
    assert not found.model[4].norm.weight.any()
    assert torch.equal(found.model[4].norm.bias, torch.full((5,), 0.5))
    assert zero_branches(found.model, (1, *small_data.shape)) == ("5",)


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ((nn.ReLU(),), "has no effect: the network has no residual block"),
        ((Block(5, nn.Conv2d(5, 5, 1)),), r"has no effect: 3 \(its branch ends in 3.norm, which has no scales"),
        ((Block(5), Block(5, nn.BatchNorm2d(5, affine=False))), r"leaves 1 of 2: 4 \("),
    ],
)
def test_branches_that_it_cannot_shorten_are_named(small_data, blocks, said):
    recipe = Recipe(batch_size=16, techniques={"branch_sparsity": {}})
    (warning,) = prepare(net(*blocks, colours=small_data.shape[0]), small_data, recipe).warnings
    assert re.match(f"techniques.branch_sparsity {said}", warning)


@pytest.mark.parametrize("strength", [0, -1, "much"])
def test_a_strength_out_of_range_is_refused(strength):
    with pytest.raises(cw.RecipeError, match=r"techniques\.branch_sparsity\.strength="):
        Recipe(techniques={"branch_sparsity": {"strength": strength}})


# ------------------------------------------------------------------ when it pulls


def weights(small_data, techniques, *, reestimate=True, **fields):
    torch.manual_seed(1)
    given = {"epochs": 3, "batch_size": 16, "lr": 0.1, "precision": "fp32", "techniques": techniques, **fields}
    model = net(Block(5), Block(5), colours=small_data.shape[0])
    return train(model, small_data, Recipe(**given), reestimate=reestimate, **QUIET).model


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_a_pull_over_the_whole_training_is_the_pull_without_a_schedule(small_data):
    whole, written = ({"branch_sparsity": {"strength": 0.2, **o}} for o in ({}, {"since": 0.0, "until": 1.0}))
    assert Recipe(techniques=whole) == Recipe(techniques=written)
    assert same(weights(small_data, whole), weights(small_data, written))


@pytest.mark.parametrize("window", [{"since": 0.99}, {"until": 0.01}])
def test_a_pull_over_no_step_is_plain_training(small_data, window):
    """Of 12 steps the window holds none; what it would hold at 0 there is not at 0."""
    pulled = weights(small_data, {"branch_sparsity": {"strength": 9.0, **window}}, max_steps=12)
    assert same(pulled, weights(small_data, {}, max_steps=12))


def test_after_the_pull_zeros_stay_and_other_branches_grow(small_data, monkeypatch):
    """The first block is at 0 when the pull ends, by hand; the second is not, and goes on without any pull."""
    seen = []

    def shrink(groups, threshold):
        (group,) = groups
        seen.append(len(group))
        if len(seen) % 2:  # the first of the two blocks
            with torch.no_grad():
                [each.zero_() for each in group]

    monkeypatch.setattr("convwright.training.techniques.branch_sparsity.shrink_groups", shrink)
    model = weights(small_data, {"branch_sparsity": {"strength": 0.1, "until": 0.5}}, max_steps=12)
    assert len(seen) == 2 * 6
    assert zero_branches(model, (1, *small_data.shape)) == ("3",)


@pytest.mark.parametrize(("enough", "pulls"), [(0.5, 1), (1.0, 1), (None, 12)])
def test_enough_branches_at_zero_end_the_pull(small_data, monkeypatch, enough, pulls):
    seen = []

    def shrink(groups, threshold):
        seen.append(threshold)
        shrink_groups(groups, math.inf)

    monkeypatch.setattr("convwright.training.techniques.branch_sparsity.shrink_groups", shrink)
    model = weights(small_data, {"branch_sparsity": {"enough": enough}}, max_steps=12)
    assert len(seen) == 2 * pulls
    assert zero_branches(model, (1, *small_data.shape)) == ("3", "4")


@pytest.mark.parametrize("options", [{"until": 0.5}, {"enough": 0.5}])
def test_a_resumed_training_holds_the_same_branches(small_data, tmp_path, options):
    class KilledError(Exception):
        pass

    def killed(record):
        if record.epoch == 2:
            raise KilledError

    techniques = {"branch_sparsity": {"strength": 2.5, **options}}
    recipe = Recipe(epochs=3, batch_size=16, lr=0.1, precision="fp32", techniques=techniques)

    def trained(**how):
        torch.manual_seed(1)
        return train(net(Block(5), Block(5), colours=small_data.shape[0]), small_data, recipe, **QUIET, **how).model

    whole = trained()
    assert zero_branches(whole, (1, *small_data.shape))
    with pytest.raises(KilledError):
        trained(out=tmp_path, on_epoch=killed)
    assert same(whole, trained(out=tmp_path, resume=True))


def test_a_window_without_a_length_is_refused():
    with pytest.raises(cw.RecipeError, match=r"since=0.5 is not before until=0.5"):
        Recipe(techniques={"branch_sparsity": {"since": 0.5, "until": 0.5}})


# ------------------------------------------------------------------ decay instead


def test_decay_of_nothing_is_plain_training(small_data):
    assert same(weights(small_data, {"branch_decay": {"strength": 0}}), weights(small_data, {}))


def test_decay_is_on_the_last_scales_alone(small_data):
    """A first step at rate lr leaves scales that are 1 - strength * lr of the plain ones, and all else as it is."""
    # Statistics are those of the step, too: estimated anew, they would be of the decayed weights.
    fields = {"max_steps": 1, "epochs": 1, "schedule": "constant", "warmup": 0.0, "reestimate": False}
    plain, decayed = (weights(small_data, each, **fields) for each in ({}, {"branch_decay": {"strength": 3.0}}))
    for name, value in plain.named_parameters():
        factor = 1 - 3.0 * 0.1 if name in ("3.norm.weight", "4.norm.weight") else 1
        torch.testing.assert_close(decayed.state_dict()[name], factor * value, msg=name)


@pytest.mark.parametrize("blocks", [(nn.ReLU(),), (Block(5, nn.BatchNorm2d(5, affine=False)), Block(5))])
def test_branches_that_do_not_decay_are_named(small_data, blocks):
    recipe = Recipe(batch_size=16, techniques={"branch_decay": {}})
    (warning,) = prepare(net(*blocks, colours=small_data.shape[0]), small_data, recipe).warnings
    assert re.match(r"techniques\.branch_decay (has no effect: the network|leaves 1 of 2: 3 \()", warning)
