"""S-GhostNet: the released configurations, and the rule of their generator."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from convwright import zoo
from convwright.errors import ReadError
from convwright.zoo.ghostnet import large_layers

BASE = ((16, 24, 40, 80, 112, 160), (1, 2, 2, 4, 2, 5))
B4 = ((36, 60, 108, 168, 232, 336), (3, 5, 5, 12, 6, 14))


def build(name, **options):
    with torch.device("meta"):
        return zoo.create(name, **options).eval()


def macs(model, side):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, side, side, device="meta"))
    return counter.get_total_flops() // 2


def params(model):
    return sum(p.numel() for p in model.parameters())


# Image side, M MACs with the printed digits, M parameters.
RELEASED = [
    ("s-ghostnet-b1", {240: 582.8}, 11.94),
    ("s-ghostnet-eval-b1", {248: 663.2}, 15.38),
    pytest.param("s-ghostnet-b4", {384: 4499.0, 380: 4480.0, 368: 4250.0}, 31.99, marks=pytest.mark.slow),
    pytest.param("s-ghostnet-eval-b1", {240: 631.9, 224: 518.0}, 15.38, marks=pytest.mark.slow),
    pytest.param("s-ghostnet-example", {384: 4275.0}, 31.35, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "printed", "millions"), RELEASED)
def test_released_configurations(name, printed, millions):
    model = build(name)
    assert round(params(model) / 1e6, 2) == millions
    for side, count in printed.items():
        # Billions are printed with two or three digits behind the point, millions with one.
        unit = 0.05 if count < 1000 else 5 if count % 10 == 0 else 0.5
        assert macs(model, side) / 1e6 == pytest.approx(count, abs=unit)


def test_the_published_table_and_the_generator_at_the_base():
    assert (macs(build("ghostnet"), 224), params(build("ghostnet"))) == (141_150_512, 5_182_508)
    large = build("ghostnet-large", widths=BASE[0], depths=BASE[1])
    assert (macs(large, 224), params(large)) == (141_184_432, 4_691_824)


@pytest.mark.parametrize(("width", "millions", "parameters"), [(0.5, 42.3, 2.587), (1.3, 227.0, 7.359)])
def test_other_widths_of_the_published_table(width, millions, parameters):
    model = build("ghostnet", width=width)
    assert round(macs(model, 224) / 1e6, 1) == millions
    assert round(params(model) / 1e6, 3) == parameters


@pytest.mark.parametrize(("widths", "depths"), [BASE, B4, ((20, 28, 76, 132, 172, 292), (2, 1, 3, 2, 1, 2))])
def test_the_rule_of_the_generator_is_what_it_builds(widths, depths):
    model = build("ghostnet-large", widths=widths, depths=depths)
    built = {name: m.out_channels for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    rule = large_layers(widths, depths)
    assert rule == {name: built[name] for name in rule}
    # What it leaves out has the channels of something else: depthwise layers, gates and shortcuts.
    assert all("depthwise" in n or "fc2" in n or "shortcut" in n for n in built.keys() - rule.keys())


@pytest.mark.slow
@pytest.mark.parametrize(("side", "more"), [(232, 16.7), (240, 19.2), (256, 29.7)])
def test_resolution_is_lumpy(side, more):
    assert 100 * (macs(build("ghostnet"), side) / 141_150_512 - 1) == pytest.approx(more, abs=0.06)


def test_small_images_keep_their_maps():
    options = {
        "width": 0.5,
        "depths": (1, 2, 2, 2, 2, 2),
        "stem_stride": 1,
        "strides": (1, 2, 2, 2, 1, 1),
        "head_width": 64,
    }
    with torch.no_grad():
        model = zoo.create("ghostnet-large", num_classes=10, **options).eval()
        maps = {}
        for name in ("stem", "stage4", "stage6"):
            getattr(model, name).register_forward_hook(lambda m, i, out, name=name: maps.update({name: out.shape[-1]}))
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert maps == {"stem": 32, "stage4": 4, "stage6": 4}
    assert model.hidden.out_channels == 5 * 80  # five times the last stage, which is more than 64
    narrow = build("ghostnet-large", width=0.1, head_width=7)
    assert narrow.hidden.out_channels == 5 * 16
    published = build("ghostnet-large", stem_stride=2, strides=(1, 2, 2, 2, 1, 2), head_width=1280)
    assert params(published) == 4_691_824
    with pytest.raises(ReadError, match="strides"):
        build("ghostnet-large", strides=(1, 2))


@pytest.mark.parametrize("head_width", [7, 99, 1280, 2000])
def test_the_rule_follows_the_least_width_of_the_head(head_width):
    widths, depths = (8, 12, 16, 20, 24, 28), (1, 1, 2, 1, 1, 1)
    model = build("ghostnet-large", widths=widths, depths=depths, head_width=head_width)
    built = {name: m.out_channels for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert large_layers(widths, depths, head_width) == {
        name: built[name] for name in large_layers(widths, depths, head_width)
    }
