"""On real networks the count equals torch's own, exactly."""

import pytest
import torch
from torchvision.models import get_model, list_models

from convwright.architecture import read
from convwright.cost import costs_of, count_by_torch, profile

FEW = [
    "torchvision:shufflenet_v2_x0_5", "torchvision:mobilenet_v3_small",
    "torchvision:convnext_tiny", "torchvision:vgg11", "torchvision:squeezenet1_1",
    "torchvision:resnext50_32x4d", "timm:resnest14d", "timm:skresnet18", "timm:nfnet_l0", "timm:mobilevitv2_050",
    *(pytest.param(name, marks=pytest.mark.breadth) for name in ("torchvision:densenet121", "torchvision:googlenet")),
]  # fmt: skip


def build(name, side):
    """Make a network without weights, and its input (where its class allows; else with weights)."""
    library, _, model = name.partition(":")
    if library == "timm":
        import timm

        with torch.device("meta"):
            return timm.create_model(model), torch.zeros(1, 3, side, side, device="meta")
    options = {"init_weights": False} if model in ("googlenet", "inception_v3") else {}
    try:
        with torch.device("meta"):
            return get_model(model, **options), torch.zeros(1, 3, side, side, device="meta")
    except NotImplementedError:
        return get_model(model, **options), torch.zeros(1, 3, side, side)


def check(name, side):
    model, image = build(name, side)
    arch = read(model, image)
    costs = profile(arch)
    assert costs.macs == count_by_torch(model, image)
    assert costs.params == sum(p.numel() for p in model.parameters())
    assert costs.complete, costs.uncounted
    assert arch.cost_model().costs({}) == costs_of(costs)


@pytest.mark.few(4)
@pytest.mark.parametrize("name", FEW)
def test_equals_torch(name):
    check(name, 96 if "googlenet" in name else 64)


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models(module=__import__("torchvision").models))
def test_equals_torch_on_all_of_torchvision(name):
    check(f"torchvision:{name}", 299 if name == "inception_v3" else 224)
