"""Layers that edits insert: what they compute, what they cost, and how the channel analysis sees them."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import convwright as cw
from convwright.cost import count_by_torch
from convwright.layers import GhostConv2d, RollingPointwiseConv2d
from convwright.layers.rolling_pointwise import window_plan

ORDERS = ("interleaved", "blocked")


def ones(*args, **kwargs):
    layer = RollingPointwiseConv2d(*args, **kwargs, bias=False)
    nn.init.ones_(layer.weight)
    return layer


def by_definition(layer, x):
    """Sum window by window, channel by channel, straight from the definition."""
    c, w = layer.in_channels, layer.in_channels // layer.channel_groups
    shift = w - math.floor(layer.overlap * w + 1e-9) if layer.channel_groups > 1 else w
    distinct = c // math.gcd(c, shift)
    outputs = []
    for o in range(layer.out_channels):
        k = o % distinct if layer.order == "interleaved" else o * distinct // layer.out_channels
        reads = [(k * shift + i) % c for i in range(w)]
        y = sum(layer.weight[o, i, 0, 0] * x[:, reads[i]] for i in range(w))
        outputs.append(y + (0 if layer.bias is None else layer.bias[o]))
    rows, columns = layer.stride
    return torch.stack(outputs, 1)[:, :, ::rows, ::columns]


@st.composite
def layers(draw):
    groups, window = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    channels, overlap = groups * window, draw(st.sampled_from([0, 0.25, 1 / 3, 0.5, 0.6, 0.75, 0.9]))
    order = draw(st.sampled_from(ORDERS))
    _, windows = window_plan(channels, 1, groups, overlap, "interleaved")
    outputs = draw(st.integers(1, 3)) * windows if order == "blocked" else draw(st.integers(1, 23))
    stride = draw(st.sampled_from([1, 2, (1, 3)]))
    torch.manual_seed(draw(st.integers(0, 10**6)))
    return RollingPointwiseConv2d(
        channels, outputs, groups, overlap, order, draw(st.booleans()), stride, dtype=torch.float64
    )


# ------------------------------------------------------------------ the definition, worked out by hand


@pytest.mark.parametrize("implementation", ["windows", "dense"])
@pytest.mark.parametrize(
    ("sizes", "x", "expected"),
    [
        ((8, 8, 2), range(8), [6, 14, 22, 14, 6, 14, 22, 14]),
        ((4, 7, 2), range(1, 5), [3, 5, 7, 5, 3, 5, 7]),
        ((8, 8, 4), range(8), [1, 3, 5, 7, 9, 11, 13, 7]),
        ((8, 8, 2, 0.5, "blocked"), range(8), [6, 6, 14, 14, 22, 22, 14, 14]),
    ],
)
def test_sums_worked_out_by_hand(sizes, x, expected, implementation):
    layer = ones(*sizes, implementation=implementation)
    image = torch.tensor([float(v) for v in x]).view(1, -1, 1, 1)
    assert layer(image).flatten().tolist() == expected


def test_windows_roll_and_wrap_around():
    layer = ones(8, 8)
    assert (layer.window, layer.shift, layer.windows) == (4, 2, 4)
    assert layer.channels()[:4].tolist() == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [6, 7, 0, 1]]


def test_shifts_are_whole_numbers():
    """A shift is rounded once, not window by window; a third of 6 is 2 in spite of floating point."""
    assert (ones(8, 8, 2, 0.33).channels()[:, 0]).tolist() == [0, 3, 6, 1, 4, 7, 2, 5]
    assert ones(12, 12, 2, 1 / 3).shift == 4
    assert ones(12, 12, 2, 0.33).shift == 5


def test_every_channel_is_read_equally_often():
    used = torch.bincount(ones(8, 8).channels().flatten())
    assert used.tolist() == [4] * 8


@settings(max_examples=60, deadline=None)
@given(layers(), st.integers(1, 3), st.integers(1, 6), st.integers(1, 5))
def test_all_implementations_follow_the_definition(layer, batch, height, width):
    x = torch.randn(batch, layer.in_channels, height, width, dtype=torch.float64)
    expected = by_definition(layer, x)
    for layer.implementation in ("windows", "dense", "auto"):
        torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    assert layer.weight.shape == (layer.out_channels, layer.in_channels // layer.channel_groups, 1, 1)


@pytest.mark.few(4)
@pytest.mark.parametrize("implementation", ["windows", "dense"])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.33, 0.5, 0.75, 0.9])
def test_gradients_are_exact_for_every_overlap(implementation, overlap):
    torch.manual_seed(3)
    layer = RollingPointwiseConv2d(12, 17, 3, overlap, implementation=implementation, dtype=torch.float64)
    x = torch.randn(2, 12, 2, 3, dtype=torch.float64, requires_grad=True)

    def run(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    weight, bias = (p.detach().clone().requires_grad_() for p in (layer.weight, layer.bias))
    assert torch.autograd.gradcheck(run, (x, weight, bias))


def test_one_group_is_a_plain_pointwise_convolution():
    layer, x = RollingPointwiseConv2d(7, 5, 1, 0.5), torch.randn(2, 7, 3, 3)
    assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias))


def test_without_overlap_it_is_a_grouped_convolution_in_another_order():
    layer, x = RollingPointwiseConv2d(12, 20, 4, 0.0, bias=False).eval(), torch.randn(2, 12, 3, 3)
    by_window = torch.arange(20).view(5, 4).T.flatten()
    torch.testing.assert_close(layer(x)[:, by_window], F.conv2d(x, layer.weight[by_window], groups=4))


def test_two_interleaved_layers_reach_further_than_grouped_ones():
    def reach(overlap, order, depth):
        net = nn.Sequential(*(ones(64, 64, 4, overlap, order) for _ in range(depth)))
        x = torch.ones(1, 64, 1, 1, requires_grad=True)
        net(x)[0, 0].sum().backward()
        return int((x.grad != 0).sum())

    assert [reach(0.5, "interleaved", n) for n in (1, 2)] == [16, 64]
    assert [reach(0.5, "blocked", n) for n in (1, 2, 3, 4)] == [16, 24, 32, 40]
    assert [reach(0.25, "interleaved", n) for n in (1, 2)] == [16, 64]


@pytest.mark.parametrize(
    ("overlap", "order", "expected"),
    [(0.5, "interleaved", [36, 200, 392]), (0.5, "blocked", [36, 150, 392]), (0.0, "blocked", [36, 100, 196])],
)
def test_how_many_inputs_one_output_sees_behind_depthwise_convolutions(overlap, order, expected):
    """Without overlap in blocked order, a grouped convolution, 4 of 8 channels stay out of reach."""

    def seen(depth):
        blocks = []
        for _ in range(depth):
            depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
            nn.init.ones_(depthwise.weight)
            blocks += [depthwise, ones(8, 8, 2, overlap, order)]
        x = torch.zeros(1, 8, 16, 16, requires_grad=True)
        nn.Sequential(*blocks)(x)[0, 0, 8, 8].backward()
        return int((x.grad != 0).sum())

    assert [seen(depth) for depth in (1, 2, 3)] == expected


# ------------------------------------------------------------------ costs, choice, bookkeeping


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("outputs", [5, 32, 48])
def test_eval_mode_executes_what_the_layer_is_meant_to_cost(overlap, outputs):
    layer = RollingPointwiseConv2d(32, outputs, 4, overlap, bias=False)
    assert sum(p.numel() for p in layer.parameters()) == 32 * outputs // 4
    assert count_by_torch(layer, torch.zeros(1, 32, 6, 7)) == 6 * 7 * 32 * outputs // 4


def chosen(channels, overlap=0.5, training=True, groups=2):
    return RollingPointwiseConv2d(channels, channels, groups, overlap).train(training)._chosen()


def test_the_implementation_depends_on_mode_width_and_copies():
    assert chosen(64) == "dense"
    assert chosen(512) == chosen(64, training=False) == chosen(512, training=False) == "windows"
    assert chosen(64, 0.9, training=False) == "dense"


def test_the_choice_is_the_measured_one():
    """In every measured row, the rule of today takes what it took when it was measured, and pays."""
    results = Path(__file__).parents[1] / "benchmarks" / "results" / "rolling_pointwise.json"
    record = json.loads(results.read_text(encoding="utf-8"))
    for row in record["rows"]:
        assert chosen(row["channels"], row["overlap"], True, row["groups"]) == row["auto"], row
    summary = record["summary"]
    for name in ("windows", "dense"):
        assert summary["train_auto_over_best"] <= summary[f"train_{name}_over_best"]


@pytest.mark.parametrize(("outputs", "overlap"), [(16, 0.5), (13, 0.5), (16, 0.33), (16, 0.9)])
@pytest.mark.parametrize("training", [False, True])
def test_it_is_exported_for_any_batch_and_resolution(outputs, overlap, training):
    layer = RollingPointwiseConv2d(8, outputs, 2, overlap, stride=2).train(training)
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(layer, (torch.randn(2, 8, 6, 6),), dynamic_shapes=(free,))
    x = torch.randn(3, 8, 9, 10)
    torch.testing.assert_close(program.module()(x), layer(x))


def test_the_state_dict_holds_weight_and_bias_only():
    layer = RollingPointwiseConv2d(8, 8)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert not list(layer.buffers())
    other = RollingPointwiseConv2d(8, 8)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, 8, 3, 3)
    assert torch.equal(other(x), layer(x))


def test_weights_are_drawn_within_one_over_the_root_of_the_window():
    torch.manual_seed(0)
    layer = RollingPointwiseConv2d(64, 512, 4)
    for tensor in (layer.weight, layer.bias):
        assert 0.24 < tensor.abs().max() <= 0.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((7, 8, 2), "7 input channels do not divide into 2 groups"),
        ((8, 8, 2, 1.0), "overlap is at least 0 and less than 1"),
        ((8, 8, 2, -0.1), "overlap is at least 0 and less than 1"),
        ((8, 8, 0), "at least 1"),
        ((8, 8, 2, 0.5, "rolled"), "order is one of interleaved, blocked"),
        ((8, 6, 2, 0.5, "blocked"), "multiples of its 4 windows, not 6"),
        ((8, 8, 2, 0.5, "blocked", True, 1, "fast"), "implementation is one of"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RollingPointwiseConv2d(*arguments)


def test_an_input_of_another_width_is_refused():
    with pytest.raises(ValueError, match=r"expected an input of shape \(N, 8, H, W\), not \(1, 7, 3, 3\)"):
        RollingPointwiseConv2d(8, 8)(torch.zeros(1, 7, 3, 3))


def test_an_overlap_of_nearly_one_still_moves_on():
    assert ones(8, 8, 2, 1 - 1e-12).shift == 1


def test_it_prints_its_sizes():
    assert str(RollingPointwiseConv2d(8, 12)) == (
        "RollingPointwiseConv2d(8, 12, groups=2, overlap=0.5, order='interleaved', bias=True, stride=(1, 1))"
    )


# ------------------------------------------------------------------ channels


def around(layer, width):
    return nn.Sequential(
        nn.Conv2d(3, layer.in_channels, 3), layer, nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


@pytest.mark.few(2)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("overlap", "windows"), [(0, 2), (0.5, 4), (0.75, 8)])
def test_width_edits_change_both_sides_in_multiples_of_the_windows(overlap, windows, order):
    net = around(RollingPointwiseConv2d(24, 40, 2, overlap, order, stride=2 if windows == 4 else 1), 40)
    arch = cw.read(net, torch.randn(2, 3, 9, 9))
    assert {g.name: (g.size, g.step) for g in arch.free_groups} == {"0": (24, windows), "1": (40, windows)}
    for name, width in (("0", 24 - windows), ("0", 48), ("1", 40 - windows), ("1", 40 + windows)):
        new = arch.apply(cw.Width(name, width))
        assert new.changes[0].exact
        layer, x = new.model[1], torch.randn(2, 3, 9, 9)
        layer.implementation = "windows"
        y = new.model.eval()(x)
        layer.implementation = "dense"  # the two compute window starts differently: sizes must still agree
        torch.testing.assert_close(new.model(x), y)
        torch.testing.assert_close(by_definition(layer, torch.eye(layer.in_channels)[..., None, None]),
                                   layer(torch.eye(layer.in_channels)[..., None, None]))  # fmt: skip


@pytest.mark.parametrize(
    ("outputs", "overlap", "free"), [(42, 0.5, ["0"]), (3, 0.5, ["0"]), (24, 0.33, ["1"]), (24, 0.9, [])]
)
def test_other_channels_are_frozen_with_a_reason(outputs, overlap, free):
    net = around(RollingPointwiseConv2d(24, outputs, 2, overlap), outputs)
    arch = cw.read(net, torch.randn(2, 3, 9, 9))
    assert [g.name for g in arch.free_groups] == free
    assert ("0" in free) is not bool(re.search("no rule|by their numbers", arch.group("0").reason))
    assert arch.profile().macs == count_by_torch(net, torch.zeros(1, 3, 9, 9))
    assert arch.profile().complete
    for name in free:
        assert arch.apply(cw.Width(name, 16)).changes[0].exact
        assert arch.apply(cw.Width(name, 32)).changes[0].exact


# ------------------------------------------------------------------ ghosts


def test_a_ghost_convolution_appends_cheap_copies():
    layer = GhostConv2d(nn.Conv2d(3, 5, 3, stride=2, bias=False), ratio=3, cheap_kernel=5)
    y = layer(torch.randn(2, 3, 9, 10))
    assert y.shape == (2, 15, 4, 4)
    assert torch.equal(y[:, 5:], layer.cheap(y[:, :5]))
    assert sum(p.numel() for p in layer.parameters()) == 9 * 3 * 5 + 25 * 10


@pytest.mark.parametrize(("ratio", "kernel"), [(1, 3), (2, 2), (2, -1)])
def test_ghosts_that_cannot_be_are_refused(ratio, kernel):
    with pytest.raises(ValueError, match="ratio is at least 2 and cheap_kernel odd"):
        GhostConv2d(nn.Conv2d(3, 5, 3), ratio, kernel)
