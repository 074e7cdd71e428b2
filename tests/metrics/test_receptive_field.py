"""Receptive fields of layers and stages: hand-computed values, and laws over the ways in which networks are built."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import convwright as cw
from convwright.layers import RollingPointwiseConv2d
from convwright.metrics import score

from .dependence import Lambda, compare


def conv(width, out, kernel=3, stride=1, **options):
    same = [k // 2 for k in kernel] if isinstance(kernel, tuple) else kernel // 2
    return nn.Conv2d(width, out, kernel, stride, options.pop("padding", same), **options)


def read(shape, *layers, head=True):
    modules = [layer if isinstance(layer, nn.Module) else Lambda(layer) for layer in layers]
    width = nn.Sequential(*modules).eval()(torch.zeros(2, *shape)).shape[1] if head else 0
    last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)] if head else []
    return cw.read(nn.Sequential(*modules, *last).eval(), torch.zeros(2, *shape))


def fields(shape, *layers, clip=True, head=True):
    return cw.receptive_field(read(shape, *layers, head=head), clip)


def convs(found):
    return [layer for layer in found.layers if layer.kind == "conv"]


# ------------------------------------------------------------------ values computed by hand


def test_a_dense_chain():
    found = convs(fields((3, 8, 8), conv(3, 8), *(conv(8, 8) for _ in range(4))))
    assert [layer.value for layer in found] == [27, 75, 147, 192, 192]
    assert [layer.gain for layer in found] == [26, 48, 72, 45, 0]
    assert [layer.share for layer in found[:2]] == [0.140625, 0.390625]
    assert [layer.seen for layer in found] == [(3, 3), (5, 5), (7, 7), (8, 8), (8, 8)]
    assert [layer.size for layer in found] == [(n, n) for n in (3, 5, 7, 9, 11)]
    assert [layer.wasted for layer in found] == [False] * 4 + [True]
    assert [layer.channels for layer in found] == [3] * 5


def test_strides():
    layers = [conv(4, 4, stride=2), conv(4, 4), conv(4, 4), conv(4, 4)]
    found = convs(fields((4, 8, 8), *layers))
    assert [layer.value for layer in found] == [36, 196, 256, 256]
    assert [layer.gain for layer in found] == [35, 160, 60, 0]
    assert [layer.share for layer in found[:3]] == [0.140625, 0.765625, 1]
    wider = convs(fields((4, 16, 16), *layers, conv(4, 4)))
    assert [layer.size[0] for layer in wider] == [3, 7, 11, 15, 19]
    assert [layer.seen[1] for layer in wider] == [3, 7, 11, 15, 16]
    assert [layer.stride for layer in wider] == [(2, 2)] * 5


def rolling(order, implementation):
    return lambda: RollingPointwiseConv2d(8, 8, groups=2, overlap=0.5, order=order, implementation=implementation)


POINTWISE = {
    "PW": (lambda: nn.Conv2d(8, 8, 1), [72, 200, 392]),
    "GPW": (lambda: nn.Conv2d(8, 8, 1, groups=2), [36, 100, 196]),
    "RPW interleaved, windows": (rolling("interleaved", "windows"), [36, 200, 392]),
    "RPW interleaved, dense": (rolling("interleaved", "dense"), [36, 200, 392]),
    "RPW blocked, windows": (rolling("blocked", "windows"), [36, 150, 392]),
    "RPW blocked, dense": (rolling("blocked", "dense"), [36, 150, 392]),
}


@pytest.mark.parametrize("name", POINTWISE)
def test_depthwise_blocks(name):
    pointwise, expected = POINTWISE[name]
    blocks = [layer for _ in range(3) for layer in (conv(8, 8, groups=8), nn.BatchNorm2d(8), pointwise())]
    arch = read((8, 16, 16), *blocks)
    found = cw.receptive_field(arch)
    assert not found.skipped
    second = [layer.value for layer in found.layers if layer.kind in ("conv", "matmul")][1::2]
    assert second == expected
    assert all(one.holds for one in compare(arch, count=4))


@pytest.mark.parametrize(
    ("groups", "overlap", "order", "reach"),
    [(2, 0.5, "interleaved", [32, 64]), (2, 0.5, "blocked", [32, 48, 64]), (4, 0.5, "interleaved", [16, 64]),
     (4, 0.5, "blocked", [16, 24, 32, 40]), (8, 0.5, "interleaved", [8, 36, 64]), (8, 0.5, "blocked", [8, 12, 16, 20]),
     (4, 0.25, "blocked", [16, 52, 64])],
)  # fmt: skip
def test_reach_of_stacked_rolling_convolutions(groups, overlap, order, reach):
    layers = [RollingPointwiseConv2d(64, 64, groups, overlap, order) for _ in reach]
    found = fields((64, 2, 2), *layers)
    assert [layer.channels for layer in found.layers if layer.kind in ("conv", "matmul")] == reach


MOBILENET = [(5, 32), (7, 32), (7, 16), (23, 8), (7, 4)]


def test_stages_of_mobilenet():
    found = cw.receptive_field(cw.read("zoo:mobilenet-v1"))
    assert [(stage.size[0], stage.shape[1]) for stage in found.stages] == MOBILENET
    assert [stage.share for stage in found.stages] == [(min(r, h) / h) ** 2 for r, h in MOBILENET]
    assert found.score() == pytest.approx(2.264, abs=5e-4)
    depthwise = [layer for layer in convs(found) if "depthwise" in layer.name]
    # From the 8th depthwise convolution on, what it reads covers the image.
    assert [layer.wasted for layer in depthwise] == [False] * 7 + [True] * 6
    assert [layer.entered[0] for layer in depthwise[:8]] == [3, 5, 7, 11, 15, 23, 31, 47]
    assert list(found.wasted) == depthwise[7:]
    assert depthwise[7].useful_from == (48, 48)


@pytest.mark.parametrize(("name", "q"), [("vgg16-bn", 2.888), ("resnet18_cifar", 2.217), ("resnet34_cifar", 3.158)])
def test_scores_of_the_zoo(name, q):
    found = cw.receptive_field(cw.read(f"zoo:{name}"))
    assert found.score() == pytest.approx(q, abs=6e-4)
    shares = [stage.share for stage in found.stages]
    assert found.score("mean") == pytest.approx(math.fsum(shares) / len(shares))
    assert found.score("log") == pytest.approx(sum(map(math.log, shares)))
    sides = [32, 16, 8, 4, 2][: len(shares)]
    assert [stage.positions for stage in found.stages] == [side**2 for side in sides]
    weighted = sum(side**2 * math.log(share) for side, share in zip(sides, shares, strict=True))
    assert found.score("positions") == pytest.approx(weighted / sum(side**2 for side in sides))
    assert all(stage.exact for stage in found.stages)


def test_score_of_resnet50_on_small_images():
    resnet = pytest.importorskip("torchvision").models.resnet
    with torch.device("meta"):
        model = resnet.ResNet(resnet.Bottleneck, [3, 4, 6, 3], num_classes=10)
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1), nn.Identity()
        arch = cw.read(model.eval(), torch.zeros(1, 3, 32, 32))
    assert cw.receptive_field(arch).score() == pytest.approx(2.299, abs=5e-4)


def test_an_unknown_score_is_refused():
    with pytest.raises(ValueError, match=r"'log' or 'positions', not 'max'"):
        score([0.5], "max")
    with pytest.raises(ValueError, match="zip"):
        score([0.5, 0.5], "positions", [3])


# ------------------------------------------------------------------ laws


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("widths", [(2, 3, 5, 7), (7, 2, 2, 5)])
def test_gains_are_not_negative_and_sum_up(clip, widths):
    kernels, layers, width = [(3, 1), (5, 3), (1, 7), (3, 3)], [], 3
    for kernel, out in zip(kernels, widths, strict=True):
        layers += [conv(width, out, kernel), nn.ReLU()]
        width = out
    found = convs(fields((3, 11, 7), *layers, clip=clip))
    gains = [layer.gain for layer in found]
    assert all(gain >= 0 for gain in gains)
    assert sum(gains) == found[-1].value - 1
    assert sum(layer.share_gain for layer in found) == pytest.approx(found[-1].share - 1 / (3 * 11 * 7))
    assert found[-1].seen == ((9, 7) if clip else (9, 11))
    assert (found[-1].share > 1) != clip


def test_rows_and_columns_are_kept_apart():
    found = convs(fields((2, 13, 29), conv(2, 3, (3, 5), (2, 1)), conv(3, 5, (1, 7), (1, 3)), conv(5, 2, (5, 1))))
    assert [layer.size for layer in found] == [(3, 5), (3, 11), (11, 11)]
    assert [layer.stride for layer in found] == [(2, 1), (2, 3), (2, 3)]
    assert [layer.padding for layer in found] == [(1, 2), (1, 5), (5, 5)]
    assert [layer.value for layer in found] == [2 * 15, 2 * 33, 2 * 121]


def test_weights_do_not_matter():
    arch = read((3, 13, 11), conv(3, 5), conv(5, 5, groups=5), conv(5, 7, 1))
    before = cw.receptive_field(arch)
    with torch.no_grad():
        for tensor in arch.model.parameters():
            tensor.zero_()
    assert cw.receptive_field(arch) == before


def test_dilation_leaves_holes():
    found = convs(fields((1, 31, 31), conv(1, 1, dilation=3, padding=3), conv(1, 1, dilation=3, padding=3), conv(1, 1)))
    assert [layer.size for layer in found] == [(7, 7), (13, 13), (15, 15)]
    assert [layer.seen for layer in found] == [(3, 3), (5, 5), (15, 15)]


def test_a_field_with_holes_does_not_saturate():
    found = convs(fields((1, 7, 7), conv(1, 1, dilation=3, padding=3), conv(1, 1, dilation=3, padding=3), conv(1, 1)))
    assert found[1].size == (13, 13)
    assert found[2].saturation == ""
    assert found[2].gain > 0


def test_one_dimensional_networks():
    model = nn.Sequential(nn.Conv1d(2, 3, 5, 2), nn.MaxPool1d(3, 2), nn.Conv1d(3, 7, 3), nn.Flatten(), nn.Linear(49, 2))
    found = cw.receptive_field(cw.read(model, torch.zeros(2, 2, 41)))
    assert [layer.size for layer in found.layers[:3]] == [(5,), (9,), (17,)]
    assert found.layers[2].value == 34
    assert found.layers[2].stride == (4,)
    assert list(found.overall) == [found.layers[-1].name]


def test_a_network_without_positions():
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    found = cw.receptive_field(cw.read(model, torch.zeros(2, 5)))
    assert [(layer.value, layer.share, layer.wasted) for layer in found.layers] == [(5, 1, False)] * 2
    assert found.stages == ()


def test_flattening_into_a_linear_layer_is_global():
    found = fields((1, 6, 6), conv(1, 3), nn.Flatten(), nn.Linear(108, 5), head=False)
    assert list(found.overall.values()) == ["all positions flattened into one layer"]
    assert found.layers[-1].value == 36


def test_an_unknown_layer_is_named_with_the_nearest():
    found = fields((1, 6, 6), conv(1, 3))
    with pytest.raises(cw.EditError, match="no layer '00' with a receptive field"):
        found.layer("00")


def test_costs_stand_beside_fields():
    layer = convs(fields((2, 8, 8), conv(2, 3, bias=False)))[0]
    assert (layer.macs, layer.params) == (64 * 54, 54)


# ------------------------------------------------------------------ global operators apart


class Excite(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.down, self.up = nn.Conv2d(width, 2, 1), nn.Conv2d(2, width, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.width = width
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).chunk(3, -1)
        seen = (q @ k.transpose(1, 2)).softmax(-1) @ v
        return x + seen.transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize("make", [Excite, Attention])
def test_global_operators_are_listed_and_local_values_stay_local(make):
    with_it = fields((3, 17, 13), conv(3, 5), make(5), conv(5, 5))
    without = fields((3, 17, 13), conv(3, 5), conv(5, 5))
    assert with_it.layer("2").value == without.layer("1").value == 75
    assert [name.partition(".")[0] for name in with_it.returning] == ["1"]
    assert any(name.startswith("1") for name in with_it.overall)
    assert not with_it.skipped
    assert not without.returning
    assert list(without.overall.values()) == ["global pooling"]


def test_a_norm_over_positions_is_listed():
    found = fields((3, 9, 7), conv(3, 4), nn.GroupNorm(2, 4), conv(4, 4))
    assert found.statistics == ("1",)
    assert found.layer("2").seen == (5, 5)


@pytest.mark.parametrize(("kernel", "padding", "whole"), [(4, 0, True), (5, 2, False)])
def test_a_pool_is_global_if_one_position_is_left(kernel, padding, whole):
    found = fields((2, 4, 4), conv(2, 3, 1), nn.MaxPool2d(kernel, 1, padding), conv(3, 3))
    assert ("1" in found.overall) == whole
    assert found.layer("2").size == ((4, 4) if whole else (7, 7))


# ------------------------------------------------------------------ what cannot be followed is listed


def swapped(x):
    return x + x.transpose(2, 3)


def rolled(x):
    return torch.roll(x, 1, 2)


def sorted_(x):
    return x.sort(2).values


def spread(x):
    return x + x[:, :, :1, :1]


def turned(x):
    return x.flip(2)


def glued(x):
    return torch.cat([x[:, :, 4:], x[:, :, :4]], 2)


@pytest.mark.parametrize("function", [swapped, rolled, sorted_, spread, turned, glued], ids=lambda f: f.__name__)
def test_what_cannot_be_followed_is_listed_and_sees_everything(function):
    found = fields((2, 9, 9), conv(2, 3), function, conv(3, 3))
    assert len(found.skipped) == 1
    assert found.layer("2").value == 162
    assert found.layer("0").value == 18


def test_a_skipped_operator_is_named_with_its_reason():
    found = fields((2, 9, 9), conv(2, 3), sorted_, conv(3, 3))
    ((name, reason),) = found.skipped.items()
    assert name == "1.sort"
    assert "sort in 1" in reason
    assert "no rule" in reason


# ------------------------------------------------------------------ rearranged channels and positions


def shuffle(x):
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def test_channel_shuffle_lets_groups_meet():
    grouped = [conv(8, 8, 1, groups=2), conv(8, 8, 1, groups=2)]
    plain = fields((8, 3, 3), grouped[0], grouped[1])
    shuffled = fields((8, 3, 3), grouped[0], shuffle, grouped[1])
    assert [layer.channels for layer in convs(plain)] == [4, 4]
    assert [layer.channels for layer in convs(shuffled)] == [4, 8]


class Two(nn.Module):
    """Two layers side by side, joined."""

    def __init__(self, one, other, how):
        super().__init__()
        self.one, self.other, self.how = one, other, how

    def forward(self, x):
        a, b = self.one(x), self.other(x)
        return torch.cat([a, b], 1) if self.how == "cat" else a + b


def test_concatenated_branches_keep_their_fields():
    arch = read((2, 13, 13), Two(conv(2, 3, 1), conv(2, 5, 5), "cat"), conv(8, 8, groups=8), conv(8, 3, 1))
    found = cw.receptive_field(arch)
    depthwise = found.layer("1")
    assert (depthwise.smallest, depthwise.largest) == (18, 98)
    assert depthwise.value == (3 * 18 + 5 * 98) / 8
    assert depthwise.least == (3, 3)
    assert found.layer("2").value == 98
    assert found.layer("2").exact
    assert all(one.holds for one in compare(arch))


def test_strips_join_to_no_box():
    arch = read((2, 17, 17), Two(conv(2, 3, (1, 7)), conv(2, 3, (5, 1)), "add"), conv(3, 3))
    found = cw.receptive_field(arch)
    assert not found.layer("1").exact
    assert found.layer("1").value == 2 * 7 * 9
    (one,) = (one for one in compare(arch) if one.layer == "1")
    assert one.oracle == 2 * (3 * 9 + 7 * 3 - 3 * 3)
    assert one.holds


def test_branches_of_shifted_centres_are_not_aligned():
    found = fields((2, 17, 17), Two(conv(2, 3), nn.Sequential(nn.ZeroPad2d((2, 0, 2, 0)), nn.Conv2d(2, 3, 3)), "add"))
    arch = read((2, 17, 17), Two(conv(2, 3), nn.Sequential(nn.ZeroPad2d((2, 0, 2, 0)), nn.Conv2d(2, 3, 3)), "add"),
                conv(3, 3))  # fmt: skip
    assert not found.skipped
    last = cw.receptive_field(arch).layer("1")
    assert not last.aligned
    assert last.size == (6, 6)
    assert all(one.holds for one in compare(arch))


class OptionA(nn.Module):
    """A shortcut without parameters: every other position, zeros for the new channels."""

    def __init__(self, width, out):
        super().__init__()
        self.conv, self.more = conv(width, out, stride=2), out - width

    def forward(self, x):
        return self.conv(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.more))


def test_a_shortcut_of_padded_zeros_adds_nothing():
    arch = read((3, 21, 21), conv(3, 4), OptionA(4, 7), conv(7, 5, groups=1))
    found = cw.receptive_field(arch)
    assert not found.skipped
    last = found.layer("2")
    assert (last.size, last.stride, last.exact, last.aligned) == ((9, 9), (2, 2), True, True)
    assert all(one.holds and one.field.exact for one in compare(arch))


def test_padded_channels_see_nothing():
    found = fields((3, 9, 9), lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)), conv(5, 5, groups=5), conv(5, 2, 1))
    depthwise = found.layer("1")
    assert (depthwise.smallest, depthwise.largest, depthwise.channels) == (0, 9, 3 / 5)
    assert found.layer("2").value == 27


def space_to_depth(x):
    n, c, h, w = x.shape
    return x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(n, 4 * c, h // 2, w // 2)


def focus(x):
    return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)


def unshuffle(x):
    return F.pixel_unshuffle(x, 2)


@pytest.mark.parametrize("function", [space_to_depth, focus, unshuffle], ids=lambda f: f.__name__)
def test_space_to_depth(function):
    arch = read((3, 20, 24), function, conv(12, 5), conv(5, 5))
    found = cw.receptive_field(arch)
    assert not found.skipped
    assert [layer.size for layer in convs(found)] == [(6, 6), (10, 10)]
    assert [layer.stride for layer in convs(found)] == [(2, 2)] * 2
    assert convs(found)[-1].value == 300
    assert all(one.holds and one.field.exact for one in compare(arch))


def test_space_to_depth_before_a_depthwise_convolution():
    arch = read((2, 20, 24), space_to_depth, conv(8, 8, groups=8), conv(8, 3, 1))
    assert all(one.holds for one in compare(arch))
    assert convs(cw.receptive_field(arch))[0].value == 9  # every other position


def test_a_crop_moves_the_field():
    arch = read((2, 17, 19), lambda x: x[:, :, 3:, 2:-1], conv(2, 3), lambda x: F.pad(x, (-2, -1, -1, 0)), conv(3, 3))
    found = convs(cw.receptive_field(arch))
    assert [layer.padding for layer in found] == [(-2, -1), (-2, -2)]
    assert all(one.holds for one in compare(arch))


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (5, 1, 0), (2, 2, 0), (4, 2, 1)])
def test_transposed_convolutions(kernel, stride, padding):
    layer = nn.ConvTranspose2d(3, 5, kernel, stride, padding)
    arch = read((2, 15, 13), conv(2, 3), layer, conv(5, 5))
    found = cw.receptive_field(arch)
    assert found.layer("2").exact == (stride == 1)
    if stride == 1:
        assert found.layer("2").size == (kernel + 4, kernel + 4)
    assert all(one.holds for one in compare(arch))


def test_a_running_sum_over_channels():
    found = fields((5, 3, 3), lambda x: x.cumsum(1), conv(5, 5, groups=5))
    layer = convs(found)[0]
    assert (layer.smallest, layer.largest, layer.channels) == (9, 45, 3)


def test_what_all_channels_see_is_exactly_everything():
    """Shares are whole numbers over whole numbers: three kinds of channels do not round to 0.9999."""
    branches = Two(conv(3, 3, 5), Two(conv(3, 4, 7), conv(3, 4, 9), "cat"), "cat")
    found = fields((3, 3, 3), branches, conv(11, 11, 3, groups=11))
    assert [stage.share for stage in found.stages] == [1]


def test_least_is_that_of_the_narrowest_branch():
    found = fields((2, 7, 7), Two(conv(2, 3, 1), conv(2, 3, 7), "cat"), conv(6, 2), conv(2, 2))
    assert [found.layer(name).least for name in ("1", "2")] == [(3, 3), (5, 5)]
    assert [found.layer(name).saturation for name in ("1", "2")] == ["some", "some"]


@pytest.mark.parametrize("joined", ["add", "cat"])
def test_a_map_of_one_position_may_be_turned_and_joined(joined: str) -> None:
    """Turning a 1x1 map loses its axes of one position; that is no reason to lose its fields."""

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Conv2d(3, 5, 3, stride=3)
            self.mix = nn.Linear(5, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.down(x)
            turned = self.mix(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            return x + turned if joined == "add" else torch.cat([turned, x], 1)

    field = cw.receptive_field(cw.read(Turned(), (1, 3, 3, 3)))
    assert not field.skipped
    assert field.stages[-1].seen == (3, 3)
