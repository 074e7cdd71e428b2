"""Operators in a layer's place: same shapes, few parameters, the nearest weights, and clear refusals."""

from __future__ import annotations

import copy
import itertools
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import convwright as cw
from convwright.cost import count_by_torch
from convwright.edits.operators import OPERATORS, Site, build, operator
from convwright.edits.operators.convolutions import nearest_separable
from convwright.layers import RollingPointwiseConv2d

# Said by torch once per process, of the first padding="same" with an even kernel: what is drawn decides where.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

DENSE = ("dw_separable", "dw_rpw", "rpw", "grouped", "ghost")
OURS = sorted(n for n, e in OPERATORS.items() if e.function.__module__.startswith("convwright."))
IN_MAPS = [name for name in OURS if name != "global_pool"]  # that one replaces linear layers: test_global_pool.py


def site_of(old: nn.Module, x: Tensor, layer: str = "stage.conv") -> Site:
    training = old.training
    with torch.no_grad():
        shape = tuple(old.eval()(x).shape)
    old.train(training)
    return Site(layer, tuple(x.shape), shape, dtype=x.dtype)


def replaced(name: str, old: nn.Module, x: Tensor, **options: Any) -> nn.Module:
    return build(name, old, site_of(old, x), options)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def dense_weight(new: nn.Module) -> Tensor:
    """Return the weight of the one dense convolution that a module of linear layers amounts to."""
    if isinstance(new, RollingPointwiseConv2d):
        return new.dense_weight()
    if isinstance(new, nn.Sequential):
        depthwise, pointwise = new
        return dense_weight(pointwise) * depthwise.weight.transpose(0, 1)
    if isinstance(new, nn.Conv2d):
        rows = new.weight.chunk(new.groups)
        whole = torch.zeros(new.out_channels, new.in_channels, *new.kernel_size, dtype=new.weight.dtype)
        for block, row in enumerate(rows):
            o, i = block * row.shape[0], block * row.shape[1]
            whole[o : o + row.shape[0], i : i + row.shape[1]] = row
        return whole
    primary, cheap = new.primary.weight, new.cheap.weight
    assert (cheap.flatten(2) != 0).sum(2).max() <= 1
    times = cheap.shape[0] // primary.shape[0]
    return torch.cat([primary, cheap.sum((1, 2, 3))[:, None, None, None] * primary.repeat_interleave(times, 0)])


@st.composite
def convolutions(draw: st.DrawFn, kernels: tuple[int, ...] = (2, 3, 5)) -> tuple[nn.Conv2d, Tensor]:
    """Draw a dense convolution and an input; widths divide by 1, 2 and more."""
    kernel = draw(st.tuples(st.sampled_from(kernels), st.sampled_from(kernels)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.integers(1, 2))
    same = stride == (1, 1) and draw(st.booleans())
    padding: Any = "same" if same else draw(st.integers(0, 2))
    mode = draw(st.sampled_from(["zeros", "reflect", "circular", "replicate"]))
    torch.manual_seed(draw(st.integers(0, 10**6)))
    conv = nn.Conv2d(
        draw(st.sampled_from([2, 6, 12])), draw(st.sampled_from([2, 4, 8, 14])), kernel, stride, padding, dilation,
        bias=draw(st.booleans()), padding_mode=mode, dtype=torch.float64,
    )  # fmt: skip
    size = draw(st.tuples(st.integers(9, 14), st.integers(9, 14)))
    return conv, torch.randn(2, conv.in_channels, *size, dtype=torch.float64)


# ------------------------------------------------------------------ shapes, counts, bookkeeping


def expected_parameters(name: str, old: nn.Conv2d, options: dict[str, Any]) -> int:
    k, c, o = old.kernel_size[0] * old.kernel_size[1], old.in_channels, old.out_channels
    g = options.get("groups", 2)
    return {
        "dw_separable": k * c + c * o,
        "dw_rpw": k * c + c * o // g,
        "rpw": c * o // g,
        "grouped": k * c * o // g,
        "ghost": k * c * o // 2 + 9 * o // 2,
    }[name] + (o if old.bias is not None else 0)


@pytest.mark.parametrize("init", ["least_squares", "fresh"])
@pytest.mark.parametrize("name", ["dw_separable", "dw_rpw", "grouped", "ghost"])
@settings(max_examples=25, deadline=None)
@given(drawn=convolutions())
def test_shapes_and_parameters_with_any_geometry(name: str, init: str, drawn: tuple[nn.Conv2d, Tensor]) -> None:
    old, x = drawn
    new = replaced(name, old, x, init=init)
    assert new(x).shape == old(x).shape
    assert count(new) == expected_parameters(name, old, {})
    assert all(p.dtype == torch.float64 for p in new.parameters())


@settings(max_examples=25, deadline=None)
@given(drawn=convolutions(kernels=(1,)), groups=st.sampled_from([1, 2]), overlap=st.sampled_from([0, 0.5, 0.75]))
def test_rolling_keeps_shape_and_stride(drawn: tuple[nn.Conv2d, Tensor], groups: int, overlap: float) -> None:
    old, x = drawn
    assume(old.padding in ((0, 0), "same"))
    new = replaced("rpw", old, x, groups=groups, overlap=overlap)
    assert new(x).shape == old(x).shape
    assert count(new) == expected_parameters("rpw", old, {"groups": groups})
    if groups == 1:
        torch.testing.assert_close(new(x), old(x))


@pytest.mark.parametrize("size", [(7, 11), (8, 12), (9, 10)])
@pytest.mark.parametrize("kernel", range(2, 8))
@pytest.mark.parametrize(
    "old",
    [
        nn.Conv2d(5, 7, 3, 2, 1), nn.Conv2d(5, 7, 4, 2), nn.Conv2d(5, 7, 3, 4, 1), nn.Conv2d(5, 5, 5, 2, 2, groups=5),
        nn.Conv2d(5, 7, 1, 2), nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1, 2), nn.AvgPool2d(2),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.MaxPool2d((3, 2), (2, 2)),
    ],
    ids=lambda layer: str(layer).replace(" ", ""),
)  # fmt: skip
def test_blur_keeps_odd_and_even_sizes(old: nn.Module, kernel: int, size: tuple[int, int]) -> None:
    x = torch.randn(2, 5, *size)
    for padding in ("constant", "replicate", "reflect"):
        if padding == "reflect" and kernel // 2 >= min(old(x).shape[2:]):
            continue  # torch mirrors at most the whole map
        new = replaced("blurpool", old, x, kernel=kernel, padding=padding)
        assert new(x).shape == old(x).shape
        assert count(new) == count(old)


@pytest.mark.parametrize("size", [(7, 11), (8, 12), (9, 10)])
@pytest.mark.parametrize("kernel", range(2, 8))
@pytest.mark.parametrize(
    "old",
    [
        nn.Conv2d(5, 7, 3, 2, 1), nn.Conv2d(5, 7, 4, 2), nn.Conv2d(5, 7, 3, 3), nn.Conv2d(5, 7, 3, (1, 2)),
        nn.Conv2d(5, 5, 5, 2, 2, groups=5), nn.Conv2d(5, 7, 1, 2),
    ],
    ids=lambda layer: str(layer).replace(" ", ""),
)  # fmt: skip
def test_a_blur_before_a_convolution_keeps_shapes_and_the_convolutions_work(
    old: nn.Conv2d, kernel: int, size: tuple[int, int]
) -> None:
    x = torch.randn(2, 5, *size)
    new = replaced("blurpool", old, x, kernel=kernel, order="before", padding="replicate")
    assert new(x).shape == old(x).shape
    blur = 5 * kernel**2 * size[0] * size[1]
    assert count_by_torch(new, x[:1]) == count_by_torch(old, x[:1]) + blur


@pytest.mark.parametrize(("size", "after"), [(24, 12), (8, 4)])  # the maps of the 1.5K network of the MNIST paper
@pytest.mark.parametrize("kernel", range(2, 8))
def test_a_pool_of_two_becomes_a_dense_maximum_and_a_blur(size: int, after: int, kernel: int) -> None:
    x = torch.randn(1, 2, size, size)
    new = replaced("blurpool", nn.MaxPool2d(2), x, kernel=kernel)
    assert new.dense(x).shape[2:] == (size - 1, size - 1)
    assert new(x).shape[2:] == (after, after)


def example(name: str, bias: bool = True) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    kernel, stride = (1, 1) if name == "rpw" else (3, 2 if name == "blurpool" else 1)
    return nn.Conv2d(12, 20, kernel, stride, bias=bias), torch.randn(2, 12, 9, 8)


@pytest.mark.parametrize("name", IN_MAPS)
def test_the_old_layer_is_left_alone_and_shares_nothing(name: str) -> None:
    old, x = example(name)
    before = copy.deepcopy(old.state_dict())
    new = replaced(name, old, x)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[n], t) for n, t in old.state_dict().items())
    assert old.training


@pytest.mark.parametrize("name", IN_MAPS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_type_mode_and_frozen_weights_are_kept(name: str, dtype: torch.dtype) -> None:
    old, x = example(name)
    old = old.to(dtype).eval()
    old.weight.requires_grad_(False)
    new = replaced(name, old, x.to(dtype))
    tensors = [*new.parameters(), *new.buffers()]
    assert {t.dtype for t in tensors} == {dtype}
    assert not any(module.training for module in new.modules())
    trained = {n: p.requires_grad for n, p in new.named_parameters() if not n.startswith("excite.")}
    assert trained == {n: n.endswith("bias") for n in trained}
    assert new(x.to(dtype)).shape == old(x.to(dtype)).shape


@pytest.mark.parametrize("name", IN_MAPS)
def test_networks_without_memory_can_be_edited(name: str) -> None:
    old, x = example(name)
    new = build(name, old.to("meta"), site_of(old, x.to("meta")))
    assert {t.device.type for t in [*new.parameters(), *new.buffers()] if t.device.type != "meta"} == set()


def test_pools_take_device_and_type_from_the_site() -> None:
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    new = replaced("blurpool", nn.MaxPool2d(2), x)
    assert new(x).dtype == torch.float64


@pytest.mark.parametrize("name", IN_MAPS)
def test_weights_are_drawn_from_the_layers_name_alone(name: str) -> None:
    old, x = example(name)
    fresh = {"init": "fresh"} if "init" in OPERATORS[name].options else {}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    site = site_of(old, x)
    first = build(name, old, site, fresh).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    again = build(name, old, site, fresh).state_dict()
    assert all(torch.equal(first[n], again[n]) for n in first)
    other = build(name, old, Site("another", site.input_shape, site.output_shape), fresh).state_dict()
    assert name == "blurpool" or any(not torch.equal(first[n], other[n]) for n in first)


@pytest.mark.parametrize("name", IN_MAPS)
def test_networks_with_it_are_read_counted_and_saved(name: str) -> None:
    old, x = example(name)
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), replaced(name, old, x), nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 5, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    image = torch.randn(2, 3, 12, 11)
    arch = cw.read(net, image)
    profile = arch.profile()
    assert profile.complete
    assert profile.macs == count_by_torch(net, image)
    assert profile.params == count(net)
    widths = {g.name: g.size for g in arch.free_groups}
    assert widths.get("0") == 12, arch.group("0").reason
    other = copy.deepcopy(net)
    other[2] = build(name, old, Site("other", tuple(x.shape), site_of(old, x).output_shape))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.eval()(image), net.eval()(image))
    net.train()(image).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


# ------------------------------------------------------------------ least squares


def error(new: nn.Module, old: nn.Conv2d) -> float:
    return (dense_weight(new) - old.weight).square().sum().item()


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("seed", range(4))
def test_no_change_of_the_weights_comes_nearer(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    old = nn.Conv2d(6, 10, 1 if name == "rpw" else 3, dtype=torch.float64)
    new = replaced(name, old, torch.randn(1, 6, 7, 7, dtype=torch.float64))
    best = error(new, old)
    free = [p for n, p in new.named_parameters() if n.endswith("weight")]
    if name == "ghost":  # its primary filters are kept by definition
        free = [new.cheap.weight]
    for scale in (1e-4, 1e-2, 1.0):
        for _ in range(20):
            other = copy.deepcopy(new)
            chosen = dict(zip(map(id, new.parameters()), other.parameters(), strict=True))
            with torch.no_grad():
                for parameter in free:
                    moved = chosen[id(parameter)]
                    mask = (moved != 0) if name == "ghost" else torch.ones_like(moved)
                    moved.add_(scale * torch.randn_like(moved) * mask)
            assert error(other, old) > best


@pytest.mark.parametrize("options", [{}, {"groups": 3}, {"overlap": 0.75}, {"groups": 1}, {"order": "blocked"}])
def test_the_depthwise_start_is_the_best_of_rank_one_in_each_window(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    old = nn.Conv2d(12, 24, 3, dtype=torch.float64)
    new = replaced("dw_rpw", old, torch.randn(1, 12, 7, 7, dtype=torch.float64), **options)
    weight, expected = old.weight.detach(), 0.0
    for i in range(12):
        readers = (new.pointwise.channels() == i).any(1)
        tail = torch.linalg.svdvals(weight[readers, i].flatten(1))[1:].square().sum()
        expected += float(tail + weight[~readers, i].square().sum())
    assert error(new, old) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("init", ["least_squares", "fresh"])
@settings(max_examples=25, deadline=None)
@given(drawn=convolutions(), groups=st.sampled_from([1, 2]))
def test_the_bias_of_the_related_code_is_the_depthwise_ones(
    init: str, drawn: tuple[nn.Conv2d, Tensor], groups: int
) -> None:
    old, x = drawn
    new = replaced("dw_rpw", old, x, groups=groups, bias="depthwise", init=init)
    assert (new.depthwise.bias is not None, new.pointwise.bias) == (True, None)
    c, o, k = old.in_channels, old.out_channels, old.kernel_size[0] * old.kernel_size[1]
    assert count(new) == k * c + c + c * o // groups
    assert new(x).shape == old(x).shape
    if init == "least_squares":  # the nearest bias: what is left over cannot be made by the pointwise convolution
        mixing = new.pointwise.dense_weight().flatten(1)
        wanted = old.bias if old.bias is not None else torch.zeros(o, dtype=torch.float64)
        left = wanted - mixing @ new.depthwise.bias
        torch.testing.assert_close(mixing.T @ left, torch.zeros(c, dtype=torch.float64))


def test_a_depthwise_bias_keeps_the_old_one_where_channels_suffice() -> None:
    torch.manual_seed(0)
    old, x = nn.Conv2d(10, 6, 3, bias=True).double(), torch.randn(2, 10, 7, 5, dtype=torch.float64)
    kinds = [replaced("dw_rpw", old, x, groups=2, bias=bias) for bias in ("like", "depthwise")]
    torch.testing.assert_close(kinds[0](x), kinds[1](x))


@pytest.mark.parametrize("name", ["dw_separable", "dw_rpw", "rpw", "grouped", "ghost"])
@pytest.mark.parametrize("bias", [False, True])
def test_what_can_be_expressed_is_kept(name: str, bias: bool) -> None:
    """An old layer that is of the new kind in disguise keeps its function."""
    old, x = example(name, bias)
    old, x = old.double(), x.double()
    kind = replaced(name, old, x, **({} if name == "ghost" else {"init": "fresh"}))
    with torch.no_grad():
        old.weight.copy_(dense_weight(kind))
    new = replaced(name, old, x)
    torch.testing.assert_close(new(x), old(x), rtol=1e-12, atol=1e-12)


def test_zero_filters_can_still_learn() -> None:
    old, x = nn.Conv2d(4, 6, 3), torch.randn(2, 4, 5, 5)
    nn.init.zeros_(old.weight)
    new = replaced("dw_separable", old, x)
    torch.testing.assert_close(new(x), old(x))
    new(x).sum().backward()
    assert all((new.pointwise.weight.grad != 0).any(0))


def test_zero_primary_filters_give_finite_ghosts() -> None:
    old, x = nn.Conv2d(4, 6, 3), torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        old.weight[0].zero_()
    assert replaced("ghost", old, x)(x).isfinite().all()


def test_more_ghosts_per_filter() -> None:
    old, x = nn.Conv2d(4, 12, 3, padding=1), torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        old.weight[4:] = old.weight[:4].repeat_interleave(2, 0) * torch.randn(8, 1, 1, 1)
    torch.testing.assert_close(replaced("ghost", old, x, ratio=3)(x), old(x), rtol=1e-4, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 4), st.integers(0, 10**6))
def test_the_nearest_product_does_not_depend_on_the_size_of_the_kernel(o: int, i: int, k: int, seed: int) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(o, i, k, 3, dtype=torch.float64)
    depthwise, pointwise = nearest_separable(weight)
    assert depthwise.shape == (i, k, 3)
    tails = sum(torch.linalg.svdvals(weight[:, c].flatten(1))[1:].square().sum() for c in range(i))
    left = (pointwise[:, :, None, None] * depthwise - weight).square().sum()
    torch.testing.assert_close(left, torch.as_tensor(tails, dtype=torch.float64), rtol=1e-8, atol=1e-12)


# ------------------------------------------------------------------ blur, squeeze and excite


def test_a_blur_averages_what_the_dense_layer_gives() -> None:
    old, x = nn.Conv2d(3, 4, 3, 2, 1), torch.randn(1, 3, 8, 8)
    dense = copy.deepcopy(old)
    dense.stride = (1, 1)
    y = nn.functional.pad(dense(x), (1, 1, 1, 1))
    filt = torch.tensor([1.0, 2.0, 1.0])
    filt = (filt[:, None] * filt / 16).expand(4, 1, 3, 3)
    torch.testing.assert_close(replaced("blurpool", old, x)(x), nn.functional.conv2d(y, filt, stride=2, groups=4))


@pytest.mark.parametrize("order", ["after", "before"])
@pytest.mark.parametrize("kernel", range(2, 8))
def test_a_blur_weighs_by_binomial_numbers_and_keeps_its_place(kernel: int, order: str) -> None:
    """A single point becomes the blur's filter; even ones are half a position off."""
    old = nn.Conv2d(1, 1, 1, 2, bias=False)
    nn.init.ones_(old.weight)
    row = torch.tensor([math.comb(kernel - 1, k) / 2 ** (kernel - 1) for k in range(kernel)])
    found = torch.zeros(16, 16)
    for i, j in itertools.product(range(2), repeat=2):  # each shift shows every second element of the filter
        x = torch.zeros(1, 1, 16, 16)
        x[0, 0, 8 + i, 8 + j] = 1
        y = replaced("blurpool", old, x, kernel=kernel, order=order)(x)[0, 0]
        found[i::2, j::2] = y.flip(0, 1)
    where = found.nonzero().min(0).values
    area = found[where[0] : where[0] + kernel, where[1] : where[1] + kernel]
    torch.testing.assert_close(area, row[:, None] * row)
    assert found.sum() == 1


@pytest.mark.parametrize("padding", ["reflect", "replicate"])
@pytest.mark.parametrize("kernel", range(2, 8))
def test_a_blur_of_a_constant_map_is_constant(padding: str, kernel: int) -> None:
    x = torch.full((1, 3, 8, 8), 2.0)
    new = replaced("blurpool", nn.MaxPool2d(2), x, padding=padding, kernel=kernel)
    assert torch.equal(new(x), torch.full((1, 3, 4, 4), 2.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "old",
    [nn.Conv2d(6, 7, 3), nn.Conv2d(6, 7, 3, bias=False), nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6)],
    ids=["conv", "no bias", "depthwise", "norm"],
)
def test_squeeze_and_excitation_changes_no_bit(old: nn.Module, training: bool, gate: str, dtype: torch.dtype) -> None:
    torch.manual_seed(7)
    old = copy.deepcopy(old).to(dtype)
    if isinstance(old, nn.BatchNorm2d):
        for tensor in (old.weight, old.bias, old.running_mean, old.running_var):
            nn.init.uniform_(tensor, 0.3, 1.7)
    x = torch.randn(5, 6, 9, 7).to(dtype)
    new = replaced("squeeze_excite", old.train(training), x, gate=gate, ratio=0.5)
    assert torch.equal(new(x), old(x))
    assert not OPERATORS["squeeze_excite"].approximate
    channels = new.excite.fc2.out_channels
    assert count(new) - count(old) == 2 * channels * round(channels / 2) + round(channels / 2) + channels
    bare = replaced("squeeze_excite", old, x, gate=gate, latent_channels=2, bias=False)
    assert torch.equal(bare(x), old(x))
    assert count(bare) - count(old) == 4 * channels


def test_the_gate_learns() -> None:
    old, x = nn.Conv2d(3, 8, 3), torch.randn(2, 3, 5, 5)
    new = replaced("squeeze_excite", old, x)
    new(x).square().sum().backward()
    assert (new.excite.fc2.weight.grad != 0).any()


# ------------------------------------------------------------------ refusals


class OwnForward(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def hooked() -> nn.Module:
    conv = nn.Conv2d(6, 8, 3)
    conv.register_forward_hook(lambda *_: None)
    return conv


@pytest.mark.parametrize(
    ("name", "old", "options", "message"),
    [
        ("dw_separable", nn.Linear(6, 8), {}, "it is a Linear, not a Conv2d. Name a two-dimensional"),
        ("dw_separable", nn.Conv3d(6, 8, 3), {}, "it is a Conv3d, not a Conv2d"),
        ("dw_separable", nn.Conv1d(6, 8, 3), {}, "it is a Conv1d, not a Conv2d"),
        ("grouped", nn.ConvTranspose2d(6, 8, 3), {}, "it is a ConvTranspose2d, not a Conv2d"),
        ("dw_separable", nn.Conv2d(6, 8, 1), {}, "its kernel is 1x1, so there is nothing to do per channel"),
        ("dw_rpw", nn.Conv2d(6, 8, 1), {}, "Use 'rpw', 'grouped' or 'ghost'"),
        ("rpw", nn.Conv2d(6, 8, 3), {}, "its kernel is 3x3, not 1x1. Use 'dw_rpw' for larger kernels"),
        ("rpw", nn.Conv2d(6, 8, 1, padding=1), {}, "it pads by (1, 1)"),
        ("ghost", nn.Conv2d(6, 6, 3, groups=6), {}, "it is depthwise. Name a convolution with groups=1"),
        ("grouped", nn.Conv2d(6, 8, 3, groups=2), {}, "it is grouped already (2 groups)"),
        ("grouped", nn.Conv2d(6, 8, 3), {"groups": 4}, "its 6 input channels do not divide into 4. Possible are 2"),
        ("grouped", nn.Conv2d(7, 8, 3), {}, "Change the width first"),
        ("grouped", nn.Conv2d(6, 8, 3), {"groups": 0}, "0 is not a number of parts"),
        ("dw_rpw", nn.Conv2d(7, 8, 3), {}, "its 7 input channels do not divide into 2. Possible are 7"),
        ("dw_rpw", nn.Conv2d(6, 7, 3), {"order": "blocked"}, "needs output channels in multiples of its 3 windows"),
        ("dw_rpw", nn.Conv2d(6, 8, 3), {"overlap": 1}, "overlap is at least 0 and less than 1, not 1. Choose other"),
        ("dw_rpw", nn.Conv2d(6, 8, 3), {"order": "rolling"}, "is one of 'interleaved', 'blocked', not 'rolling'"),
        ("dw_rpw", nn.Conv2d(6, 8, 3), {"bias": "none"}, "option 'bias' of 'dw_rpw' is one of 'like', 'depthwise'"),
        ("dw_rpw", nn.Conv2d(6, 8, 3), {"groups": 2.0}, "option 'groups' of 'dw_rpw' is a whole number, not 2.0"),
        ("dw_rpw", nn.Conv2d(6, 8, 3), {"groups": True}, "option 'groups' of 'dw_rpw' is a whole number, not True"),
        ("dw_rpw", nn.Conv2d(6, 8, 3), {"overlap": "half"}, "option 'overlap' of 'dw_rpw' is a number, not 'half'"),
        ("dw_rpw", nn.Conv2d(6, 8, 3), {"overlap": float("nan")}, "is a number, not nan"),
        ("dw_rpw", nn.Conv2d(6, 8, 3), {"group": 2}, "has no option 'group'. Did you mean groups?"),
        ("grouped", nn.Conv2d(6, 8, 3), {"zzz": 2}, "has no option 'zzz'. It has groups, init."),
        ("dw_rwp", nn.Conv2d(6, 8, 3), {}, "there is no operator 'dw_rwp'. Did you mean dw_rpw?"),
        ("zzz", nn.Conv2d(6, 8, 3), {}, "there is no operator 'zzz'. There are blurpool, "),
        ("ghost", nn.Conv2d(6, 9, 3), {}, "its 9 output channels do not divide into 2. Possible are 3, 9"),
        ("ghost", nn.Conv2d(6, 8, 3), {"ratio": 1}, "ratio is at least 2 and cheap_kernel odd"),
        ("ghost", nn.Conv2d(6, 8, 3), {"cheap_kernel": 2}, "ratio is at least 2 and cheap_kernel odd"),
        ("blurpool", nn.Conv2d(6, 8, 3), {}, "its stride is 1x1. Name a layer whose stride is 2, or 4"),
        ("blurpool", nn.Conv2d(6, 8, 3, (2, 1)), {}, "its stride is 2x1"),
        ("blurpool", nn.MaxPool2d(3), {}, "its stride is 3x3"),
        ("blurpool", nn.MaxPool2d(2, return_indices=True), {}, "its indices would be those of the dense maximum"),
        ("blurpool", nn.Conv2d(6, 8, 3, 2), {"kernel": 1}, "there is no blur of 1x1. Use kernel=2 to 7"),
        ("blurpool", nn.Conv2d(6, 8, 3, 2), {"kernel": 8}, "there is no blur of 8x8"),
        ("blurpool", nn.Conv2d(6, 8, 3), {"order": "before"}, "its stride is 1x1. Name a layer with a larger"),
        ("blurpool", nn.MaxPool2d(2), {"order": "before"}, "before a MaxPool2d smooths nothing that it makes"),
        ("blurpool", nn.BatchNorm2d(6), {}, "it is a BatchNorm2d. Name a strided"),
        ("blurpool", nn.MaxPool2d(2, ceil_mode=True), {}, "the shape (1, 6, 4, 4) instead of (1, 6, 5, 5)"),
        ("squeeze_excite", nn.BatchNorm2d(6, affine=False), {}, "it has no scale that could make up for the gate"),
        ("squeeze_excite", nn.ReLU(), {}, "it is a ReLU. Name a Conv2d or BatchNorm2d"),
        ("squeeze_excite", nn.Conv2d(6, 8, 3), {"ratio": 0.0}, "the ratio is 0.0. Use more than 0"),
        ("squeeze_excite", nn.Conv2d(6, 8, 3), {"latent_channels": -1}, "-1 is no number of channels"),
        ("dw_separable", OwnForward(6, 8, 3), {}, "its class OwnForward computes more than Conv2d"),
        ("dw_separable", parametrizations.weight_norm(nn.Conv2d(6, 8, 3)), {}, "computes more than Conv2d"),
        ("dw_separable", hooked(), {}, "it has hooks, which would be lost"),
    ],
)  # fmt: skip
def test_refusals_name_layer_reason_and_remedy(
    name: str, old: nn.Module, options: dict[str, Any], message: str
) -> None:
    before = copy.deepcopy(old.state_dict())
    output = (1, 6, 5, 5) if isinstance(old, nn.MaxPool2d) and old.ceil_mode else (1, 8, 7, 7)
    with pytest.raises(cw.EditError, match=re.escape(message)) as caught:
        build(name, old, Site("stage.conv", (1, 6, 9, 9), output), options)
    assert str(caught.value).startswith("stage.conv")
    assert str(caught.value).endswith(("?", "."))
    assert all(torch.equal(before[n], t) for n, t in old.state_dict().items())


def test_an_input_that_the_layer_cannot_take_is_refused() -> None:
    with pytest.raises(cw.EditError, match=r"stage.conv cannot become 'grouped' on an input of shape \(1, 5, 9, 9\)"):
        build("grouped", nn.Conv2d(6, 8, 3), Site("stage.conv", (1, 5, 9, 9), (1, 8, 7, 7)))


# ------------------------------------------------------------------ the registry and its page


def test_registering_is_all_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convwright.edits.operators.registry.OPERATORS", {})

    @operator("nothing", source="a test")
    def nothing(old: nn.Module, site: Site, *, loud: bool = False) -> nn.Module:
        """Nothing at all.

        More text.
        """
        return nn.Identity()

    site = Site("a", (1, 2, 3, 3), (1, 2, 3, 3))
    assert isinstance(build("nothing", nn.ReLU(), site), nn.Identity)
    from convwright.edits.operators.registry import OPERATORS as REGISTERED

    entry = REGISTERED["nothing"]
    assert (entry.doc, dict(entry.options), entry.approximate) == ("Nothing at all.", {"loud": False}, True)
    with pytest.raises(cw.EditError, match="option 'loud' of 'nothing' is true or false, not 1"):
        build("nothing", nn.ReLU(), site, {"loud": 1})


def test_every_operator_says_what_it_inserts() -> None:
    for name in OURS:
        entry = OPERATORS[name]
        assert entry.doc.endswith(".")
        assert entry.source
        assert entry.options


def test_the_page_lists_the_registry() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operators.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    expected = []
    for name in OURS:
        entry = OPERATORS[name]
        options = ", ".join(f"`{k}={v!r}`" for k, v in entry.options.items()).replace("'", '"')
        kind = "approximate" if entry.approximate else "exact"
        expected.append(f"| `{name}` | {entry.doc} | {options} | {kind} | {entry.source} |")
    assert rows == expected
