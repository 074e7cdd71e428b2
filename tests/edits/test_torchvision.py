"""Width edits, both ways, on networks that we did not write."""

from __future__ import annotations

import warnings

import pytest
import torch
from torchvision import models

from convwright.architecture import read
from convwright.edits import InexactEditWarning, scale_widths

NAMES = [n for n in models.list_models(module=models) if not n.startswith(("vit", "swin", "maxvit"))]
HUGE = {"regnet_y_128gf", "convnext_large", "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19",
        "vgg19_bn", "wide_resnet101_2", "regnet_y_32gf", "regnet_x_32gf", "efficientnet_v2_l"}  # fmt: skip
SIDES = {"inception_v3": 299, "googlenet": 96}  # the auxiliary heads need theirs


def check(name: str, ratio: float) -> None:
    side = SIDES.get(name, 64)
    arch = read(f"torchvision:{name}", (3, side, side))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InexactEditWarning)
        new = arch.apply(*scale_widths(arch, ratio))
    statistic = any(group.across for group in arch.free_groups)
    assert all(c.exact for c in new.changes) or (statistic and ratio != int(ratio))
    if ratio == 0.5:
        assert new.profile().params < 0.6 * arch.profile().params
    optimizer = torch.optim.SGD(new.model.parameters(), lr=1e-3)
    outputs = new.model.train()(torch.randn(2, 3, side, side))
    tensors = [outputs] if isinstance(outputs, torch.Tensor) else [t for t in outputs if t is not None]
    sum(t.square().mean() for t in tensors).backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("name", "ratio"),  # by half more: with the slow ones
    [
        ("shufflenet_v2_x0_5", 0.5),
        pytest.param("mobilenet_v3_small", 2.0, marks=pytest.mark.breadth),
        pytest.param("squeezenet1_1", 0.5, marks=pytest.mark.breadth),
        pytest.param("shufflenet_v2_x0_5", 2.0, marks=pytest.mark.breadth),
        pytest.param("mobilenet_v3_small", 0.5, marks=pytest.mark.breadth),
        pytest.param("squeezenet1_1", 2.0, marks=pytest.mark.breadth),
    ],
)
def test_promises_hold(name: str, ratio: float) -> None:
    check(name, ratio)


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.5, 1.5, 2.0])
@pytest.mark.parametrize("name", [n for n in NAMES if n not in HUGE])
def test_promises_hold_on_all_that_fit_in_memory(name: str, ratio: float) -> None:
    check(name, ratio)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(HUGE))
def test_promises_hold_when_huge_networks_are_halved(name: str) -> None:
    check(name, 0.5)
