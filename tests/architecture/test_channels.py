"""Channel groups: which parameter axes belong together, on hand-made and on well-known networks."""

import pytest
import torch
from torch import nn

from convwright import zoo
from convwright.architecture import read
from convwright.edits import Width

from . import networks
from .laws import check_all, check_bookkeeping, read_random, roles

OUT, IN, ALONG = ("out", 1), ("in", 1), ("along", 1)
STEM = {("stem.weight", 0): OUT, ("stem.bias", 0): ALONG}
FC = {("fc.weight", 1): IN}

SHAPES = {"Conv1d": (2, 3, 17), "Conv3d": (2, 3, 9, 9, 9)}
NETWORKS = [
    "Chain", "Residual", "Concat", "Split", "Chunk", "Gated", "Shuffle", "Flatten", "Grouped", "Depthwise",
    "Multiplier", "SqueezeExcite", "SplitAttention", "SelectiveKernel", "WeightStandardised", "WeightNorm", "Shared",
    "LayerScale", "ViewedScale", "BlurPool", "ChannelsLast", "GroupNorm", "PReLU", "PixelShuffle", "Transposed",
    "Stacked", "Unbound", "OptionA", "NoRule", "Recurrent", "Conv1d", "Conv3d", "Returns",
]  # fmt: skip


def reading(name):
    return read_random(getattr(networks, name)(), SHAPES.get(name, (2, 3, 8, 8)))


def sizes(arch):
    return {g.name: (g.size, g.step) for g in arch.free_groups}


@pytest.mark.parametrize("name", NETWORKS)
def test_laws_hold(name):
    check_all(reading(name), removal=name != "Split")  # its sizes are written in its forward


@pytest.mark.parametrize("name", NETWORKS)
def test_input_and_output_are_frozen_and_say_so(name):
    groups = reading(name).groups
    assert groups[0].name == "input"
    assert groups[0].size == 3
    assert "network's input" in groups[0].reason
    (last,) = [g for g in groups if g.name == "fc"]
    assert "network's output" in last.reason


# ------------------------------------------------------------------ members, one way of coupling after another


def test_a_chain_ties_conv_norm_and_consumer():
    arch = reading("Chain")
    assert sizes(arch) == {"stem": (5, 1), "conv": (7, 1)}
    assert roles(arch, "stem") == {**STEM, ("conv.weight", 1): IN}
    norm = [(f"bn.{n}", 0) for n in ("weight", "bias", "running_mean", "running_var")]
    assert roles(arch, "conv") == {("conv.weight", 0): OUT, **FC, **dict.fromkeys(norm, ALONG)}


def test_a_residual_add_ties_both_producers():
    arch = reading("Residual")
    expected = {("a.weight", 1): IN, ("b.weight", 0): OUT, ("b.bias", 0): ALONG}
    assert roles(arch, "stem") == {**STEM, **expected, **FC}
    assert arch.group("b") is arch.group("stem")
    assert sizes(arch) == {"stem": (5, 1), "a": (7, 1)}


def test_a_concat_keeps_its_parts_apart():
    arch = reading("Concat")
    assert sizes(arch) == {"stem": (5, 1), "a": (7, 1), "b": (11, 1)}
    assert roles(arch, "stem") == {**STEM, ("a.weight", 1): IN, ("b.weight", 1): IN}
    assert roles(arch, "a") == {("a.weight", 0): OUT, ("a.bias", 0): ALONG, ("b.weight", 1): IN}


def test_unequal_parts_of_a_split_are_free_of_each_other():
    arch = reading("Split")
    assert sizes(arch) == {"stem": (5, 1), "wide[0:3]": (3, 1), "wide[3:10]": (7, 1), "a": (11, 1)}
    assert all(g.tied == () for g in arch.groups)


def test_equal_parts_of_a_chunk_stay_equal():
    arch = reading("Chunk")
    assert sizes(arch) == {"stem": (5, 1), "wide[0:7]": (7, 1), "wide[7:14]": (7, 1), "a": (11, 1)}
    assert arch.group("wide[0:7]").tied == ("wide[7:14]",)
    assert arch.group("wide[7:14]").tied == ("wide[0:7]",)
    assert arch.group("stem").tied == ()


def test_parts_that_are_multiplied_are_one_group_of_pairs():
    arch = reading("Gated")
    assert sizes(arch)["wide"] == (14, 2)
    assert roles(arch, "wide") == {("wide.weight", 0): ("out", 2), ("wide.bias", 0): ("along", 2), **FC}


def test_a_shuffle_sends_labels_where_values_go():
    arch = reading("Shuffle")
    assert sizes(arch) == {
        "stem": (5, 1), "wide[0:7]": (7, 1), "wide[7:14]": (7, 1), "a": (7, 1), "b": (11, 1),
    }  # fmt: skip
    assert set(arch.group("a").tied) == {"wide[0:7]", "wide[7:14]"}
    graph = arch.channels
    arriving = graph.group_of[graph.channels_of(graph.axis_labels(("b.weight", 1)))]
    left, right = graph.index["wide[0:7]"], graph.index["a"]
    assert arriving.tolist() == [left, right] * 7  # interleaved


def test_a_flatten_brings_a_block_of_positions_per_channel():
    arch = reading("Flatten")
    assert roles(arch, "conv") == {("conv.weight", 0): OUT, ("conv.bias", 0): ALONG, ("fc.weight", 1): ("in", 9)}


def test_a_grouped_convolution_ties_the_same_place_in_its_groups():
    arch = reading("Grouped")
    assert sizes(arch) == {"stem": (5, 1), "wide": (9, 3), "conv": (15, 3)}
    assert roles(arch, "wide")["conv.weight", 1] == IN
    assert roles(arch, "conv")["fc.weight", 1] == ("in", 3)


def test_a_depthwise_convolution_carries_its_input():
    arch = reading("Depthwise")
    assert sizes(arch) == {"stem": (5, 1)}
    assert roles(arch, "conv") == {**STEM, ("conv.weight", 0): ALONG, ("conv.bias", 0): ALONG, **FC}


def test_a_depthwise_multiplier_repeats_each_channel():
    arch = reading("Multiplier")
    assert sizes(arch) == {"stem": (5, 1)}
    assert roles(arch, "stem")["conv.weight", 0] == ("along", 3)
    assert roles(arch, "stem")["fc.weight", 1] == ("in", 3)


def test_squeeze_and_excitation_follows_what_it_scales():
    arch = reading("SqueezeExcite")
    gate = {("down.weight", 1): IN, ("up.weight", 0): OUT, ("up.bias", 0): ALONG}
    assert roles(arch, "stem") == {**STEM, **gate, **FC}
    assert sizes(arch) == {"stem": (5, 1), "down": (3, 1)}


@pytest.mark.parametrize(("name", "producer"), [("SplitAttention", "wide"), ("SelectiveKernel", "a")])
def test_attention_between_parts_ties_the_parts(name, producer):
    arch = reading(name)
    group = arch.group(producer)
    assert group.units == 7
    assert group.across == ()  # the softmax runs between parts of one channel
    assert roles(arch, producer)["up.weight", 0] == ("out", 2)
    assert arch.group("up") is group


def test_a_standardised_weight_keeps_its_axes():
    arch = reading("WeightStandardised")
    assert sizes(arch) == {"stem": (5, 1), "conv": (7, 1)}
    assert arch.group("stem").across  # the consumer's statistic runs across these channels
    assert not arch.group("conv").across


def test_weight_norm_keeps_gain_and_direction_together():
    arch = reading("WeightNorm")
    weight = "conv.parametrizations.weight.original"
    assert sizes(arch) == {"stem": (5, 1), "conv": (7, 1)}
    assert roles(arch, "conv") == {(f"{weight}0", 0): ALONG, (f"{weight}1", 0): OUT, ("conv.bias", 0): ALONG, **FC}
    assert arch.group("stem").across


def test_a_shared_module_ties_its_input_to_its_output():
    arch = reading("Shared")
    assert sizes(arch) == {"stem": (5, 1)}
    both = {("conv.weight", 0): OUT, ("conv.weight", 1): IN, ("conv.bias", 0): ALONG}
    assert roles(arch, "stem") == {**STEM, **both, **FC}


@pytest.mark.parametrize("name", ["LayerScale", "ViewedScale"])
def test_a_scale_parameter_follows_the_channels(name):
    assert roles(reading(name), "stem") == {**STEM, ("scale", 0): ALONG, **FC}


def test_a_filter_in_a_buffer_is_no_member():
    assert roles(reading("BlurPool"), "stem") == {**STEM, **FC}


def test_channels_last_layers_follow():
    arch = reading("ChannelsLast")
    assert sizes(arch) == {"stem": (5, 1), "up": (11, 1)}
    carried = ["gamma", "depthwise.weight", "depthwise.bias", "norm.weight", "norm.bias", "down.bias"]
    expected = {**dict.fromkeys([(c, 0) for c in carried], ALONG), ("up.weight", 1): IN, ("down.weight", 0): OUT}
    assert roles(arch, "stem") == {**STEM, **expected, **FC}
    assert any("layer_norm" in operator for operator in arch.group("stem").across)


def test_group_norm_keeps_its_groups_equal():
    arch = reading("GroupNorm")
    assert sizes(arch)["conv"] == (15, 3)
    assert any("group_norm" in operator for operator in arch.group("conv").across)


def test_prelu_slopes_follow():
    assert roles(reading("PReLU"), "stem") == {**STEM, ("act.weight", 0): ALONG, **FC}


def test_pixel_shuffle_takes_its_channels_in_fours():
    arch = reading("PixelShuffle")
    assert sizes(arch)["conv"] == (28, 4)
    assert roles(arch, "conv")["fc.weight", 1] == IN


def test_a_transposed_convolution_has_its_axes_the_other_way_round():
    arch = reading("Transposed")
    assert roles(arch, "stem") == {**STEM, ("conv.weight", 0): IN}
    assert roles(arch, "conv") == {("conv.weight", 1): OUT, ("conv.bias", 0): ALONG, **FC}


@pytest.mark.parametrize("name", ["Stacked", "Unbound"])
def test_stacking_side_by_side_ties_once_the_sides_meet(name):
    arch = reading(name)
    assert sizes(arch) == {"stem": (5, 1), "a": (7, 1)}
    assert arch.group("b") is arch.group("a")


@pytest.mark.parametrize("name", ["Conv1d", "Conv3d"])
def test_other_ranks_work_the_same(name):
    arch = reading(name)
    assert sizes(arch) == {"a": (5, 1), "b": (7, 1)}
    assert roles(arch, "a") == {("a.weight", 0): OUT, ("a.bias", 0): ALONG, ("b.weight", 1): IN}


# ------------------------------------------------------------------ what cannot change says why


def test_numbers_written_by_masks_and_patches_leave_channels_free():
    arch = reading("Masked")
    assert sizes(arch) == {"stem": (5, 1)}
    check_all(arch)


def test_a_hidden_channel_has_one_row_in_each_gate_of_each_cell():
    arch = reading("Recurrent")
    assert (arch.group("rnn").size, arch.group("rnn").step) == (8, 2)
    assert ("rnn.weight_hh_l1_reverse", 0, 4) in {(m.tensor, m.axis, m.per_channel) for m in arch.group("rnn").members}
    new = arch.apply(Width("rnn", 12), Width("gru", 3))
    assert all(change.exact for change in new.changes)
    assert (new.model.rnn.hidden_size, new.model.gru.hidden_size) == (6, 3)


def test_channels_padded_by_a_constant_are_frozen():
    arch = reading("OptionA")
    for name in ("stem", "conv[0:11]"):
        group = arch.channels.group(name)
        assert group.frozen
        assert "padded by a constant" in group.reason
    assert arch.free_groups == ()


def test_an_operator_without_a_rule_is_named_with_module_and_line():
    arch = reading("NoRule")
    reason = arch.group("stem").reason
    assert "no rule for cumprod in inner" in reason
    assert "networks.py:" in reason
    assert "return torch.cumprod(x, 1)  # the line that the reason names" in reason
    (unknown,) = arch.channels.follower.unknown
    assert "cumprod" in str(unknown.target)


@pytest.mark.parametrize(
    ("operator", "call"),
    [
        ("sort", lambda x: torch.sort(x, 1).values),
        ("fft_fft", lambda x: torch.fft.fft(x, dim=1).abs()),
        ("cdist", lambda x: torch.cdist(x.flatten(2), x.flatten(2)).unsqueeze(-1)),
    ],
)
def test_no_operator_is_guessed(operator, call):
    class Odd(networks.Net):
        def middle(self, x):
            return call(x)

    group = read_random(Odd(), (2, 3, 8, 8)).group("stem")
    assert group.frozen
    assert operator in group.reason


def test_what_is_returned_is_frozen_wherever_it_hides():
    arch = reading("Returns")
    assert set(sizes(arch)) == {"stem"}
    assert "network's output" in arch.group("conv").reason


def test_a_parameterless_network_has_no_free_groups():
    arch = read(nn.Sequential(nn.ReLU(), nn.AvgPool2d(2)), (3, 8, 8))
    assert arch.free_groups == ()
    assert [g.name for g in arch.groups] in ([], ["input"])


# ------------------------------------------------------------------ well-known networks

RESNET34 = """
0out 3in 9in 6out 15in 12out 21in 18out 27in | 3out 6in | 9out 12in | 15out 18in | 21out 24in |
24out 30in 36in 27out 33out 42in 39out 48in 45out 54in | 30out 33in | 36out 39in | 42out 45in | 48out 51in |
51out 57in 63in 54out 60out 69in 66out 75in 72out 81in 78out 87in 84out 93in | 57out 60in | 63out 66in | 69out 72in |
75out 78in | 81out 84in | 87out 90in | 90out 96in 102in 93out 99out 105out | 96out 99in | 102out 105in
"""  # members: position in ``model.parameters()`` and side, as the published code of CONetV2 prints them


def test_the_twenty_groups_of_resnet34_member_by_member():
    with torch.device("meta"):
        model = zoo.create("resnet34-cifar")
        arch = read(model, torch.zeros(1, 3, 32, 32))
    position = {name: i for i, (name, _) in enumerate(model.named_parameters())}
    convolutions = {name for name, p in model.named_parameters() if p.ndim == 4}
    found = set()
    for group in arch.free_groups:
        members = {f"{position[m.tensor]}{m.role}" for m in group.members if m.tensor in convolutions}
        found.add(frozenset(members))
    assert len(arch.free_groups) == 20
    assert found == {frozenset(group.split()) for group in RESNET34.split("|")}
    assert [g.name for g in arch.groups if g.frozen] == ["input", arch.groups[-1].name]


def frozen_convolutions(arch):
    """Convolutions whose output is frozen though the network does not return it."""
    found = {}
    for layer in arch.layers:
        if layer.kind == "conv":
            for name in layer.groups:
                group = arch.channels.group(name)
                if group.frozen and "network's output" not in group.reason:
                    found[layer.name] = group.reason
    return found


def meta_reading(source):
    from convwright.architecture import create

    with torch.device("meta"):
        model, _, _ = create(source)
        side = 75 if "inception" in source else 64
        return read(model, torch.zeros(1, 3, side, side))


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "source",
    [
        "torchvision:shufflenet_v2_x1_0", "timm:ghostnet_100", "timm:skresnet18", "timm:mixnet_s", "torchvision:vgg11",
        *(pytest.param(source, marks=pytest.mark.slow) for source in (
            "torchvision:densenet121", "timm:rexnet_100", "timm:nfnet_l0", "timm:resnest50d",
        )),
    ],
)  # fmt: skip
def test_no_convolution_is_frozen(source):
    arch = meta_reading(source)
    assert frozen_convolutions(arch) == {}
    check_bookkeeping(arch)


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.names())
def test_the_whole_zoo_is_read(name):
    with torch.device("meta"):
        arch = read(zoo.create(name), torch.zeros(1, *zoo.entry(name).input_shape))
    assert frozen_convolutions(arch) == {}
    check_bookkeeping(arch)


def torchvision_networks():
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    return [n for n in names if not n.startswith(("vit", "swin", "maxvit", "regnet"))]


@pytest.mark.slow
@pytest.mark.parametrize("name", torchvision_networks())
def test_every_torchvision_convnet_is_read(name):
    arch = meta_reading(f"torchvision:{name}")
    assert frozen_convolutions(arch) == {}
    assert arch.channels.follower.unknown == []
    check_bookkeeping(arch)
