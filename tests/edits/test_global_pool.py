"""Global pooling in a head that flattened: what it computes, what it costs, and what can be changed afterwards."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
import torch
from edit_checks import apply_quietly, check_edited, check_plan, refused, untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import convwright as cw
from convwright.edits.operators import Site, build
from convwright.layers import PooledLinear


def convolutions() -> list[nn.Module]:
    return [nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 7, 3), nn.ReLU()]


def one_layer() -> nn.Module:
    return nn.Sequential(*convolutions(), nn.Flatten(), nn.Linear(7 * 11 * 4, 6))


def hidden_layers() -> nn.Module:
    return nn.Sequential(
        *convolutions(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(308, 13), nn.ReLU(), nn.Linear(13, 6, bias=False)
    )


class OwnForward(nn.Module):
    """Flattens by a view in its own code, with an activation behind it, and drops by function."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*convolutions()[:-1])
        self.fc = nn.Linear(308, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        y = torch.relu(y.view(y.shape[0], -1))
        return self.fc(nn.functional.dropout(y, 0.3, self.training))


NETS = {"one layer": (one_layer, "7"), "hidden layers": (hidden_layers, "8"), "own forward": (OwnForward, "fc")}
SHAPE = (1, 3, 26, 12)  # a map of 7 x 11 x 4 is flattened


@pytest.fixture(params=NETS, ids=lambda name: name.replace(" ", "-"))
def net(request: pytest.FixtureRequest) -> tuple[Callable[[], nn.Module], str]:
    torch.manual_seed(0)
    return NETS[request.param]


def pooled(net: tuple[Callable[[], nn.Module], str]) -> tuple[cw.Architecture, cw.Architecture]:
    arch = cw.read(net[0](), SHAPE)
    with untouched(arch):
        return arch, apply_quietly(arch, cw.Replace(net[1], "global_pool"))


# ------------------------------------------------------------------ what it computes


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 7), st.integers(1, 5), st.integers(2, 5), st.booleans(), st.integers(0, 10**6))
def test_it_is_exact_on_constant_maps_and_sees_only_means(c: int, h: int, w: int, bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    old = nn.Linear(c * h * w, 3, bias=bias, dtype=torch.float64)
    site = Site("fc", (2, c * h * w), (2, 3), dtype=torch.float64, map_shape=(2, c, h, w))
    new = build("global_pool", old, site)
    flat = torch.randn(2, c, 1, 1, dtype=torch.float64).expand(2, c, h, w)
    torch.testing.assert_close(new(flat.flatten(1)), old(flat.flatten(1)), rtol=1e-12, atol=1e-12)
    noise = torch.randn(2, c, h, w, dtype=torch.float64)
    shifted = flat + noise - noise.mean((2, 3), keepdim=True)
    torch.testing.assert_close(new(shifted.flatten(1)), new(flat.flatten(1)), rtol=1e-12, atol=1e-12)


def test_no_weight_that_treats_positions_alike_is_nearer() -> None:
    torch.manual_seed(0)
    old = nn.Linear(5 * 6, 7, dtype=torch.float64)
    new = build("global_pool", old, Site("fc", (2, 30), (2, 7), dtype=torch.float64, map_shape=(2, 5, 3, 2)))

    def error(weight: Tensor) -> float:
        return float((weight.repeat_interleave(6, 1) / 6 - old.weight.detach()).square().sum())

    weight = new.weight.detach()
    best = error(weight)
    assert all(error(weight + scale * torch.randn(7, 5)) > best for scale in (1e-4, 1e-2, 1.0) for _ in range(20))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_type_mode_and_frozen_weights_are_kept_and_nothing_is_shared(dtype: torch.dtype, bias: bool) -> None:
    old = nn.Linear(12, 3, bias=bias, dtype=dtype).eval()
    old.weight.requires_grad_(False)
    before = copy.deepcopy(old.state_dict())
    site = Site("fc", (2, 12), (2, 3), dtype=dtype, map_shape=(2, 3, 2, 2))
    new = build("global_pool", old, site)
    assert {p.dtype for p in new.parameters()} == {dtype}
    assert not new.training
    assert {n: p.requires_grad for n, p in new.named_parameters()} == {
        "weight": False,
        **({"bias": True} if bias else {}),
    }
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[n], t) for n, t in old.state_dict().items())


def test_fresh_weights_follow_the_layers_name_alone() -> None:
    old = nn.Linear(12, 3)
    sites = [Site(name, (2, 12), (2, 3), map_shape=(2, 3, 2, 2)) for name in ("fc", "fc", "head")]
    first, again, other = (build("global_pool", old, site, {"init": "fresh"}).weight for site in sites)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# ------------------------------------------------------------------ in a network


def test_costs_reading_training_and_plans(net: tuple[Callable[[], nn.Module], str]) -> None:
    arch, new = pooled(net)
    check_edited(arch, new, 1)
    check_plan(arch, new, net[0](), torch.randn(2, *SHAPE[1:]))
    layer = new.model.get_submodule(net[1])
    old = arch.model.get_submodule(net[1])
    assert isinstance(layer, PooledLinear)
    assert layer.in_features == 7
    assert arch.profile().params - new.profile().params == (308 - 7) * old.out_features
    assert arch.profile().macs - new.profile().macs == (308 - 7) * old.out_features
    assert new.profile().complete


def test_a_network_with_constant_maps_keeps_its_scores(net: tuple[Callable[[], nn.Module], str]) -> None:
    """Without padding, a constant image gives constant maps."""
    model = net[0]().eval()
    next(m for m in model.modules() if isinstance(m, nn.Conv2d)).padding_mode = "replicate"
    new = apply_quietly(cw.read(model, SHAPE), cw.Replace(net[1], "global_pool"))
    x = torch.randn(2, 3, 1, 1).expand(2, *SHAPE[1:])
    torch.testing.assert_close(new.model(x), model(x), rtol=1e-4, atol=1e-5)


def test_widths_change_exactly_afterwards(net: tuple[Callable[[], nn.Module], str]) -> None:
    _, new = pooled(net)
    again = cw.read(new.model, SHAPE)
    last = next(layer.name for layer in reversed(again.layers) if layer.kind == "conv")
    assert not again.group(last).frozen
    for size in (3, 14):
        narrowed = again.apply(cw.Width(last, size))
        check_edited(again, narrowed, 1)
        assert narrowed.changes[0].exact
        assert narrowed.model.get_submodule(net[1]).in_features == size
    halved = again.apply(*(cw.Width(group.name, group.size // 2) for group in again.free_groups))
    check_edited(again, halved, len(again.free_groups))


def test_other_resolutions_work_afterwards(net: tuple[Callable[[], nn.Module], str]) -> None:
    arch, new = pooled(net)
    refused(arch, cw.Resolution((30, 20)), match="global pooling")
    larger = new.apply(cw.Resolution((30, 20)))
    check_edited(new, larger, 1)
    assert tuple(larger.model(torch.randn(2, 3, 30, 20)).shape) == (2, 6)


def test_hidden_layers_are_narrowed_by_width_edits() -> None:
    _, new = pooled(NETS["hidden layers"])
    narrowed = new.apply(cw.Width("8", 5))
    assert [(m.in_features, m.out_features) for m in narrowed.model if isinstance(m, nn.Linear)] == [(7, 5), (5, 6)]


def test_torchvisions_vgg() -> None:
    from torchvision.models import vgg11

    model = vgg11(num_classes=3)
    model.classifier[0], model.classifier[3] = nn.Linear(512 * 49, 31), nn.Linear(31, 4096)
    arch = cw.read(model, (1, 3, 32, 32))
    new = arch.apply(cw.Replace("classifier.0", "global_pool"), verify=False)
    assert new.model.classifier[0].in_features == 512
    assert arch.profile().params - new.profile().params == 512 * 48 * 31
    assert new.profile().macs == arch.profile().macs - 512 * 48 * 31


# ------------------------------------------------------------------ refusals


class ChannelsLast(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return self[1](self[0](x).permute(0, 2, 3, 1).flatten(1))


class TwoMaps(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        y = self[0](x)
        return self[1](torch.cat([y.flatten(1), y.mean((2, 3))], 1))


class Mean(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return self[1](self[0](x).mean((2, 3)))


CONV = nn.Conv2d(3, 7, 3)
NO_MAP = "1 cannot become 'global_pool': its input is not a map"


@pytest.mark.parametrize(
    ("model", "target", "message"),
    [
        (
            nn.Sequential(CONV, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 2)),
            "3",
            "its input is pooled already",
        ),
        (Mean(CONV, nn.Linear(7, 2)), "1", "or it is pooled already"),
        (ChannelsLast(CONV, nn.Linear(7 * 15, 2)), "1", NO_MAP),
        (TwoMaps(CONV, nn.Linear(7 * 16, 2)), "1", NO_MAP),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 35, 2)), "1", NO_MAP),
        (nn.Sequential(CONV, nn.Flatten(), nn.BatchNorm1d(105), nn.Linear(105, 2)), "3", "its input is not a map"),
        (nn.Sequential(CONV, nn.Flatten(2), nn.Linear(15, 2), nn.Flatten()), "2", "its input is not a map"),
        (nn.Sequential(CONV, nn.Flatten()), "0", "it is a Conv2d, not a Linear"),
    ],
    ids=["pooled", "mean", "channels last", "two maps", "the image", "norm per position", "per channel", "conv"],
)
def test_refusals(model: nn.Module, target: str, message: str) -> None:
    arch = cw.read(model, (1, 3, 7, 5))
    said = refused(arch, cw.Replace(target, "global_pool"), match=re.escape(message))
    assert said.startswith(f"{target} cannot become 'global_pool'")


def test_a_layer_of_another_size_is_refused() -> None:
    with pytest.raises(cw.EditError, match="it reads 12 values, not a map of 5x2x2"):
        build("global_pool", nn.Linear(12, 3), Site("fc", (2, 12), (2, 3), map_shape=(2, 5, 2, 2)))
