"""Stochastic depth: what it does in training mode, and that nothing of it is left anywhere else."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import convwright as cw
from convwright.training import Recipe
from convwright.training.preflight import prepare
from convwright.training.techniques.stochastic_depth import (
    DroppedBranches,
    StochasticDepthWarning,
    stochastic_depth,
)


class Block(nn.Module):
    """A branch that ends in a module, with an activation behind it by function."""

    def __init__(self, channels: int, scale: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.5)) if scale else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv(x))
        return x + (y if self.scale is None else y * self.scale)


class Projected(nn.Module):
    """The shortcut is a convolution of its own; one ReLU is called twice, once behind the addition."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)
        self.short = nn.Conv2d(before, after, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv2(self.relu(self.conv1(x))) + self.short(x))


class Unnamed(nn.Module):
    """The branch is computed by functions alone: there is no module to hold on to."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels, 3, 3) / 9)

    def forward(self, x: Tensor) -> Tensor:
        return x + nn.functional.conv2d(x, self.weight, padding=1)


class Twice(nn.Module):
    """One convolution is called twice, so that a hook on it could not tell the calls apart."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(torch.sigmoid(self.conv(x)))


def net(*blocks: nn.Module, channels: int = 5, last: int = 5) -> nn.Module:
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, 3)
    return nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), *blocks, *head)


def four() -> nn.Module:
    torch.manual_seed(3)
    return net(Block(5), Block(5, scale=True), Projected(5, 7), Block(7), last=7)


SHAPE = (1, 3, 11, 13)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_rates_rise_linearly_over_the_blocks() -> None:
    with stochastic_depth(four(), SHAPE, 0.4) as dropped:
        assert dropped.rates == pytest.approx({"1.conv": 0.1, "2.conv": 0.2, "3.conv2": 0.3, "4.conv": 0.4})


def test_eval_mode_and_state_are_untouched_and_no_hook_is_left() -> None:
    model = four()
    x = torch.randn(2, *SHAPE[1:])
    before, names = model.eval()(x), copy.deepcopy(model.state_dict())
    dropped = stochastic_depth(model, SHAPE, 0.9)
    assert hooks(model) == 4
    assert torch.equal(model.eval()(x), before)
    model.train()(x)
    assert not torch.equal(model(x), before)
    assert list(model.state_dict()) == list(names)
    assert all(torch.equal(names[n], t) for n, t in model.state_dict().items())
    dropped.close()
    dropped.close()
    assert hooks(model) == 0
    assert torch.equal(model(x), before)
    with pytest.raises(ZeroDivisionError), stochastic_depth(model, SHAPE, 0.9):
        raise ZeroDivisionError
    assert hooks(model) == 0


def without(model: nn.Module, x: Tensor, kept: tuple[bool, ...], rates: list[float]) -> Tensor:
    """Compute four()'s scores by hand, with the branches that are kept divided by 1 - rate."""
    scale = [keep / (1 - rate) for keep, rate in zip(kept, rates, strict=True)]
    y = model[0](x)
    y = y + scale[0] * torch.relu(model[1].conv(y))
    y = y + scale[1] * torch.relu(model[2].conv(y)) * model[2].scale
    branch = model[3].conv2(torch.relu(model[3].conv1(y)))
    y = torch.relu(scale[2] * branch + model[3].short(y))
    y = y + scale[3] * torch.relu(model[4].conv(y))
    return model[7](model[6](model[5](y)))


def test_each_image_goes_one_of_all_ways_as_often_as_the_rates_say() -> None:
    """Every row is the network with some branches left out and the others divided by their survival rate."""
    model, count = four().double().train(), 2000
    image = torch.randn(1, *SHAPE[1:], dtype=torch.float64)[..., :5, :3]
    rates = [0.15, 0.3, 0.45, 0.6]
    ways = [tuple(bool(number >> i & 1) for i in range(4)) for number in range(16)]
    with torch.no_grad():
        expected = torch.cat([without(model, image, way, rates) for way in ways])
        with stochastic_depth(model, SHAPE, 0.6) as dropped:
            assert list(dropped.rates.values()) == pytest.approx(rates)
            torch.manual_seed(0)
            found = model(image.expand(count, -1, -1, -1))
    distance, way = (found[:, None] - expected).abs().sum(-1).min(1)
    assert float(distance.max()) < 1e-10
    kept = torch.tensor(ways)[way].double().mean(0)
    assert (kept - 1 + torch.tensor(rates, dtype=torch.float64)).abs().max() < 4 * 0.5 / count**0.5


def test_a_copy_asks_for_its_own_mode() -> None:
    """Averaged weights live in a copy, which is judged while the network is in training mode."""
    model = four().train()
    x = torch.randn(32, *SHAPE[1:])
    with stochastic_depth(model, SHAPE, 0.9):
        twin = copy.deepcopy(model).eval()
        assert torch.equal(twin(x), twin(x))
        model.eval()
        twin.train()
        assert not torch.equal(twin(x), twin(x))
        assert torch.equal(model(x), model(x))


def test_gradients_flow_through_the_branches_that_stay() -> None:
    model = four().train()
    with stochastic_depth(model, SHAPE, 0.5):
        model(torch.randn(16, *SHAPE[1:])).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "timm:resnetv2_50", "timm:regnety_002"])
def test_all_residual_blocks_of_known_networks(name: str) -> None:
    arch = cw.read(name if ":" in name else f"torchvision:{name}", (1, 3, 32, 32))
    blocks = [block for block in arch.blocks if block.join]
    x = torch.randn(2, 3, 32, 32)
    arch.model.eval()
    before = arch.model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with stochastic_depth(arch, rate=0.5) as dropped:
            assert len(dropped.rates) == len(blocks)
            assert torch.equal(arch.model(x), before)
            arch.model.train()
            assert torch.isfinite(arch.model(x)).all()
    assert hooks(arch.model) == 0


# ------------------------------------------------------------------ what cannot be done is said


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (net(Unnamed(5)), "no effect: 1"),
        (net(Twice(5)), "no effect: 1"),
        (net(nn.ReLU()), "no effect: the network has no residual block"),
        (net(Block(5), Unnamed(5)), "leaves 1 of 2 branches: 2 "),
    ],
    ids=["unnamed", "twice", "plain", "one of two"],
)
def test_blocks_without_a_place_are_named(model: nn.Module, message: str) -> None:
    with pytest.warns(StochasticDepthWarning, match=message):
        stochastic_depth(model, SHAPE).close()
    assert hooks(model) == 0


def test_drop_paths_of_the_networks_own_are_said() -> None:
    from timm.layers import DropPath

    for rate, warned in ((0.3, True), (0.0, False)):
        block = Block(5)
        block.drop_path = DropPath(rate)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            stochastic_depth(net(block), SHAPE).close()
        assert [("1.drop_path" in str(w.message)) for w in caught] == [True] * warned


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, float("nan")])
def test_rates_out_of_range_are_refused(rate: float) -> None:
    with pytest.raises(cw.RecipeError, match="stochastic_depth: rate="):
        stochastic_depth(four(), SHAPE, rate)
    with pytest.raises(cw.RecipeError, match=r"techniques\.stochastic_depth\.rate="):
        Recipe(techniques={"stochastic_depth": {"rate": rate}})


# ------------------------------------------------------------------ in a recipe


def test_training_with_it_leaves_no_hook_and_differs(small_data, small_recipe) -> None:
    def trained(**techniques: object) -> nn.Module:
        result = cw.train(four(), small_data, small_recipe.updated(epochs=1, techniques=techniques), progress=False)
        assert hooks(result.model) == 0
        assert result.warnings == ()
        return result.model

    plain, one, again = trained(), trained(stochastic_depth={"rate": 0.5}), trained(stochastic_depth={"rate": 0.5})
    weights = [torch.cat([p.detach().flatten() for p in model.parameters()]) for model in (plain, one, again)]
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[0], weights[1])


def test_no_block_is_a_warning_in_a_recipe(small_data) -> None:
    (warning,) = prepare(
        net(nn.ReLU()), small_data, Recipe(batch_size=16, techniques={"stochastic_depth": {}})
    ).warnings
    assert warning == "techniques.stochastic_depth has no effect: the network has no residual block"


def test_rates_that_rise_begin_as_plain_training_and_end_as_they_are(small_data, small_recipe, monkeypatch) -> None:
    seen: list[float] = []
    scale = DroppedBranches.scale

    def scaled(self: DroppedBranches, share: float) -> None:
        seen.append(share)
        scale(self, share)

    monkeypatch.setattr(DroppedBranches, "scale", scaled)

    def trained(steps: int, **techniques: object) -> torch.Tensor:
        recipe = small_recipe.updated(max_steps=steps, schedule="constant", warmup=0.0, techniques=techniques)
        model = cw.train(four(), small_data, recipe, progress=False).model
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    rising = trained(10, stochastic_depth={"rate": 0.5, "rise": 0.5})
    assert seen == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1])
    assert not torch.equal(rising, trained(10))
    assert not torch.equal(rising, trained(10, stochastic_depth={"rate": 0.5}))
    assert torch.equal(trained(1, stochastic_depth={"rate": 0.5, "rise": 1.0}), trained(1))
    seen.clear()
    trained(3, stochastic_depth={"rate": 0.5})
    assert seen == [1, 1, 1]
