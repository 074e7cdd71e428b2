"""Techniques that edit the network: their sites on any network, what is skipped and why, and no effect said."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import convwright as cw
from convwright.cost import count_by_torch
from convwright.training.techniques.replaced_layers import (
    BlurPool,
    DepthwiseSeparable,
    GlobalPool,
    SqueezeExcite,
    squeeze_excite,
)
from convwright.training.techniques.structural import Structural

KINDS = (BlurPool, DepthwiseSeparable, GlobalPool, SqueezeExcite)


class Functional(nn.Module):
    """Pools by function; its first layer is strided; its head flattens."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.second = nn.Conv2d(16, 17, 3, stride=2, padding=1)
        self.third = nn.Conv2d(17, 34, 3, padding=1, groups=17)
        self.odd = nn.Conv2d(34, 19, (1, 3), padding=(0, 1))
        self.head = nn.Linear(19 * 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.second(torch.relu(self.first(x))))
        y = nn.functional.max_pool2d(y, 2)
        return self.head(self.odd(torch.relu(self.third(y))).flatten(1))


def resnet18() -> nn.Module:
    from torchvision.models import resnet18 as build

    return build(num_classes=3)


def timm_net(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=3)

    return build


def zoo(name: str) -> Callable[[], nn.Module]:
    return lambda: cw.read(f"zoo:{name}").model


# Network -> (input, sites of blurpool, of squeeze_excite per convolution and per block, of depthwise_separable,
# of global_pool), counted by hand from their code.
NETS = {
    "functional": (Functional, (3, 17, 18), 1, 3, 0, 2, 1),
    "resnet20": (zoo("resnet20"), (3, 32, 32), 4, 20, 9, 18, 0),
    "resnet18": (resnet18, (3, 64, 64), 7, 19, 8, 16, 0),
    "mnist-m3": (zoo("mnist-m3"), (1, 28, 28), 2, 0, 0, 0, 0),
    "convnext": (timm_net("convnext_atto"), (3, 64, 64), 3, None, 0, 3, 0),
}


@pytest.fixture(scope="module")
def archs() -> dict[str, cw.Architecture]:
    torch.manual_seed(0)
    return {name: cw.read(build(), (1, *shape)) for name, (build, shape, *_) in NETS.items()}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ["resnet20", "resnet18", "mnist-m3", "convnext"])
def test_sites(name: str, archs: dict[str, cw.Architecture]) -> None:
    arch = archs[name]
    kinds = (BlurPool(), SqueezeExcite(), SqueezeExcite(per="block"), DepthwiseSeparable(), GlobalPool())
    for kind, expected in zip(kinds, NETS[name][2:], strict=True):
        edits, skipped = kind.sites(arch)
        if expected is not None:
            assert len(edits) == expected, (kind, edits)
        assert not {edit.target for edit in edits} & set(skipped)
        assert all(skipped.values())
        assert kind.edits(arch) == edits


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", ["functional", "mnist-m3", pytest.param("resnet20", marks=pytest.mark.breadth)])
def test_a_technique_is_applied_once(kind: type[Structural], archs: dict[str, cw.Architecture], name: str) -> None:
    """Networks that have it already are left as they are."""
    for options in ({}, {"order": "after"}) if kind is BlurPool else ({},):
        once = kind(**options).applied(archs[name])
        again = kind(**options).applied(cw.read(once.model, once.example_input))
        assert again.plan.edits == ()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", ["functional", pytest.param("resnet20", marks=pytest.mark.breadth)])
def test_the_changed_network_is_counted_replayed_and_trains(
    kind: type[Structural], name: str, archs: dict[str, cw.Architecture]
) -> None:
    arch = archs[name]
    before = copy.deepcopy(arch.model.state_dict())
    new = kind().applied(arch)
    assert all(torch.equal(before[n], t) for n, t in arch.model.state_dict().items())
    assert new.profile().macs == count_by_torch(new.model, new.example_input)
    assert type(new.model) is type(arch.model)
    again = cw.apply(cw.Plan.from_json(new.plan.to_json()), arch.model, arch.example_input, verify=False)
    again.model.load_state_dict(new.model.state_dict())
    trained = copy.deepcopy(new.model).train()
    trained(torch.randn(2, *arch.example_input.shape[1:])).square().sum().backward()
    assert all(p.grad is not None for p in trained.parameters())


# ------------------------------------------------------------------ options


def test_squeeze_excite_as_in_the_paper_adds_460_parameters() -> None:
    """Paper notes 1.3: ten convolutions of together 115 channels, 4 parameters per channel, 2030 in all."""
    arch = cw.read("zoo:mnist-m3")
    new = squeeze_excite(arch, latent_channels=2, min_channels=5, bias=False)
    assert len(new.plan.edits) == 10
    assert new.profile().params - arch.profile().params == 460
    assert all(change.exact for change in new.changes)
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(new.model.eval()(x), arch.model.eval()(x))


def test_blurpool_options(archs: dict[str, cw.Architecture]) -> None:
    arch = archs["resnet18"]

    def targets(**options: object) -> set[str]:
        return {edit.target for edit in BlurPool(**options).edits(arch)}

    strided = {f"layer{i}.0.{name}" for i in (2, 3, 4) for name in ("conv1", "downsample.0")}
    assert targets() == strided | {"maxpool"}
    assert targets(max_pools=False) == strided
    assert targets(convolutions=False) == {"maxpool"}
    assert targets(min_channels=3) == strided | {"maxpool", "conv1"}
    assert targets(min_channels=65) == {t for t in strided if "layer2" not in t} | {"maxpool"}
    cheap, costly = (BlurPool(order=order, max_pools=False).applied(arch) for order in ("before", "after"))
    assert arch.profile().macs < cheap.profile().macs < costly.profile().macs
    assert {e.options["order"] for e in BlurPool(order="before").edits(arch)} == {"before", "after"}  # the pool: after
