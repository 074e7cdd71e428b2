"""Blocks and stages: counted on networks whose blocks are known, and found in hand-made ones."""

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convwright import zoo
from convwright.architecture import create, read
from convwright.architecture.blocks import find_blocks
from convwright.architecture.stages import find_stages

from . import networks


@functools.cache
def meta_reading(source, side=64):
    """Read a network on the meta device: shapes are all that blocks need."""
    if source.startswith("torchvision:regnet"):  # its constructor computes widths with tensors
        return read(source, (3, side, side))
    with torch.device("meta"):
        model, _, _ = create(source)
        return read(model, torch.zeros(1, 3, side, side))


def summary(arch):
    residual = [b for b in arch.blocks if b.kind == "residual"]
    plain = [b for b in arch.blocks if b.kind == "plain"]
    return len(residual), sum(b.identity for b in residual), len(plain)


def check_consistent(arch):
    """What must hold of any network's blocks and stages."""
    layers = {layer.name: layer for layer in arch.layers}
    nodes = {node.name: node for node in arch.capture.graph.nodes}
    assert len({b.name for b in arch.blocks}) == len(arch.blocks)
    for block in arch.blocks:
        assert block.kind in ("residual", "plain")
        assert block.layers
        assert set(block.layers) <= set(layers)
        assert {block.entry, block.exit} <= set(nodes)
        assert block.output_shape == tuple(nodes[block.exit].meta["val"].shape)
        assert block.input_shape == tuple(nodes[block.entry].meta["val"].shape)
        assert bool(block.join) == (block.kind == "residual")
        assert set(block.branch) <= set(block.layers)
        assert not set(block.branch) & set(block.shortcut)
        if block.identity:
            assert block.shortcut == ()
    for stages in (arch.stages, find_stages(arch.flow, split_by_width=True)):
        placed = [name for stage in stages for name in stage.layers]
        assert len(set(placed)) == len(placed)
        assert set(placed) <= set(layers)
        assert [s.name for s in stages] == [f"stage{i + 1}" for i in range(len(stages))]
        in_stages = [name for stage in stages for name in stage.blocks]
        assert len(set(in_stages)) == len(in_stages)


# ------------------------------------------------------------------ known networks

KNOWN = {  # residual blocks, those with an identity shortcut, plain units
    "torchvision:resnet18": (8, 5, 0),
    "torchvision:mobilenet_v2": (10, 10, 7),
    "torchvision:convnext_tiny": (18, 18, 0),
    "torchvision:shufflenet_v2_x1_0": (0, 0, 16),
    "torchvision:vgg11": (0, 0, 8),
    "torchvision:squeezenet1_1": (0, 0, 8),
    "timm:resnet26d": (8, 4, 3),
    "timm:resnest14d": (4, 0, 3),
    "timm:ghostnet_100": (16, 11, 0),
}
SLOW = {
    "timm:nfnet_l0": (12, 8, 4),
    "timm:resnetv2_50": (16, 12, 0),
    "torchvision:googlenet": (0, 0, 9),
    "torchvision:resnet50": (16, 12, 0),
    "torchvision:resnet152": (50, 46, 0),
    "torchvision:mobilenet_v3_small": (6, 6, 5),
    "torchvision:mobilenet_v3_large": (10, 10, 5),
    "torchvision:efficientnet_b0": (9, 9, 7),
    "torchvision:regnet_y_400mf": (16, 12, 0),
    "torchvision:densenet121": (0, 0, 58),
    "torchvision:mnasnet1_0": (10, 10, 10),
    "timm:cspresnet50": (13, 13, 0),
    "timm:convnext_atto": (12, 12, 0),
    "timm:dla34": (12, 8, 0),
    "timm:res2net50_26w_4s": (16, 12, 0),
    "timm:skresnet18": (8, 5, 0),
    "timm:mobilevit_xxs": (21, 21, 4),
}


@pytest.mark.few(4)
@pytest.mark.parametrize("source", [*KNOWN, *(pytest.param(source, marks=pytest.mark.slow) for source in SLOW)])
def test_blocks_of_known_networks(source):
    arch = meta_reading(source)
    assert summary(arch) == {**KNOWN, **SLOW}[source]
    check_consistent(arch)


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.names())
def test_the_zoo_is_consistent(name):
    with torch.device("meta"):
        check_consistent(read(zoo.create(name), torch.zeros(1, *zoo.entry(name).input_shape)))


def test_names_are_module_paths():
    blocks = {b.name: b for b in meta_reading("torchvision:resnet18").blocks}
    assert list(blocks) == [f"layer{i}.{j}" for i in range(1, 5) for j in range(2)]
    first, second = blocks["layer2.0"], blocks["layer2.1"]
    assert first.layers == (
        "layer2.0.conv1", "layer2.0.bn1", "layer2.0.relu", "layer2.0.conv2", "layer2.0.bn2",
        "layer2.0.downsample.0", "layer2.0.downsample.1", "layer2.0.add", "layer2.0.relu#2",
    )  # fmt: skip
    assert first.branch == first.layers[:5]
    assert first.shortcut == first.layers[5:7]
    assert not first.identity
    assert not first.keeps_shape
    assert first.input_shape == (1, 64, 16, 16)
    assert first.output_shape == (1, 128, 8, 8)
    assert second.identity
    assert second.keeps_shape
    assert second.entry == first.exit


@pytest.mark.parametrize(
    ("source", "sizes", "parts"),
    [
        ("torchvision:resnet18", [32, 16, 8, 4, 2], 5),
        ("torchvision:mobilenet_v2", [32, 16, 8, 4, 2], 7),
        ("torchvision:vgg11", [64, 32, 16, 8, 4, 2, 7], 7),  # its adaptive pooling enlarges 2x2 to 7x7
        ("torchvision:convnext_tiny", [16, 8, 4, 2], 4),
        ("timm:ghostnet_100", [32, 16, 8, 4, 2], 6),
        pytest.param("timm:ghostnetv2_100", [32, 16, 8, 4, 2], 6, marks=pytest.mark.slow),
        pytest.param("timm:skresnet18", [32, 16, 8, 4, 2], 5, marks=pytest.mark.slow),
    ],
)
def test_stages_of_known_networks(source, sizes, parts):
    arch = meta_reading(source)
    assert [stage.size for stage in arch.stages] == [(s, s) for s in sizes]
    assert len(find_stages(arch.flow, split_by_width=True)) == parts
    check_consistent(arch)


def test_side_branches_stay_and_the_head_belongs_to_no_stage():
    arch = meta_reading("torchvision:mobilenet_v3_small")
    stage_of = {name: stage.size for stage in arch.stages for name in stage.layers}
    gates = [layer for layer in arch.layers if ".fc1" in layer.name or ".fc2" in layer.name]
    assert gates
    assert all(layer.output_shape[2:] == (1, 1) for layer in gates)
    assert all(stage_of[layer.name] != (1, 1) for layer in gates)
    homeless = [layer.name for layer in arch.layers if layer.name not in stage_of]
    assert homeless == ["avgpool", "classifier.0", "classifier.1", "classifier.3"]


def test_stages_hold_the_blocks_that_end_in_them():
    arch = meta_reading("torchvision:resnet18")
    assert [stage.blocks for stage in arch.stages] == [
        (),
        ("layer1.0", "layer1.1"),
        ("layer2.0", "layer2.1"),
        ("layer3.0", "layer3.1"),
        ("layer4.0", "layer4.1"),
    ]


# ------------------------------------------------------------------ hand-made networks


def conv(inside, outside, kernel=3, stride=1):
    return nn.Conv2d(inside, outside, kernel, stride, kernel // 2)


class Loop(networks.Net):
    """Residual additions in a loop of the network's own forward."""

    def build(self):
        units = [nn.Sequential(conv(5, 7), nn.ReLU(), conv(7, 5)) for _ in range(3)]
        self.units = nn.ModuleList(units)

    def middle(self, x):
        for unit in self.units:
            x = x + unit(x)
        return x


def test_additions_in_a_loop_are_named_by_their_branch():
    arch = read(Loop(), (3, 9, 9))
    assert [(b.name, b.kind, b.identity) for b in arch.blocks] == [(f"units.{i}", "residual", True) for i in range(3)]
    assert arch.blocks[0].branch == ("units.0.0", "units.0.1", "units.0.2")
    check_consistent(arch)


class PreActivation(networks.Net):
    head = 11

    def build(self):
        self.bn1, self.bn2 = nn.BatchNorm2d(5), nn.BatchNorm2d(7)
        self.a, self.b = conv(5, 7, 3, 2), conv(7, 11)
        self.short = conv(5, 11, 1, 2)
        self.c = conv(11, 11)

    def middle(self, x):
        y = F.relu(self.bn1(x))
        x = self.short(y) + self.b(F.relu(self.bn2(self.a(y))))
        return x + self.c(F.relu(x))


def test_a_preactivation_block_with_projection():
    first, second = read(PreActivation(), (3, 9, 9)).blocks
    assert first.shortcut == ("short",)
    assert not first.identity
    assert first.branch == ("a", "bn2", "relu#2", "b")
    assert second.identity
    assert second.branch == ("relu#3", "c")


class SeveralBranches(networks.Net):
    """x + f(x) + g(x) is one block."""

    def build(self):
        self.a, self.b = conv(5, 5), conv(5, 5, 1)

    def middle(self, x):
        return F.relu(x + self.a(x) + self.b(x))


def test_branches_added_in_one_chain_are_one_block():
    (block,) = read(SeveralBranches(), (3, 9, 9)).blocks
    assert block.identity
    assert set(block.branch) == {"a", "b"}


class Parallel(networks.Net):
    """Two equal branches added: neither is the other's shortcut."""

    def build(self):
        self.a, self.b = conv(5, 7), conv(5, 7, 1)
        self.fc_in = conv(7, 5)

    def middle(self, x):
        return self.fc_in(self.a(x) + self.b(x))


def test_parallel_branches_are_no_residual_block():
    assert read(Parallel(), (3, 9, 9)).blocks == ()


class Scaled(networks.Net):
    """No convolution lies between the sum's operands."""

    def build(self):
        self.scale = nn.Parameter(torch.ones(5, 1, 1))

    def middle(self, x):
        return x + self.scale * F.relu(x) + 1


def test_an_addition_without_layers_between_is_no_block():
    assert read(Scaled(), (3, 9, 9)).blocks == ()


class Nested(networks.Net):
    """A long skip around two blocks."""

    def build(self):
        self.body = Loop()
        self.body.fc = nn.Identity()
        self.last = conv(5, 5)

    def middle(self, x):
        return x + self.last(self.body.middle(x))


def test_blocks_nest():
    blocks = read(Nested(), (3, 9, 9)).blocks
    assert len(blocks) == 4
    outer = max(blocks, key=lambda b: len(b.layers))
    assert all(set(b.branch) < set(outer.branch) for b in blocks if b is not outer)


class UNet(networks.Net):
    def build(self):
        self.down1, self.down2 = conv(5, 7, 3, 2), conv(7, 11, 3, 2)
        self.up1, self.up2 = conv(18, 7), conv(12, 5)

    def middle(self, x):
        a = F.relu(self.down1(x))
        b = F.relu(self.down2(a))
        a = self.up1(torch.cat([F.interpolate(b, scale_factor=2), a], 1))
        return self.up2(torch.cat([F.interpolate(a, scale_factor=2), x], 1))


def test_stages_go_down_and_up_again():
    arch = read(UNet(), (3, 16, 16))
    assert [s.size[0] for s in arch.stages] == [16, 8, 4, 8, 16]
    assert "up1" in arch.stages[3].layers


class Branching(networks.Net):
    """A reduction whose branches halve the map at different places."""

    head = 12

    def build(self):
        self.a, self.b1, self.b2 = conv(5, 5, 3, 2), conv(5, 7), conv(7, 7, 3, 2)

    def middle(self, x):
        return torch.cat([self.a(x), self.b2(self.b1(x))], 1)


def test_parallel_branches_do_not_break_a_stage():
    arch = read(Branching(), (3, 16, 16))
    assert [(s.size[0], s.layers) for s in arch.stages] == [(16, ("stem", "b1")), (8, ("a", "b2"))]


def test_a_flat_sequential_falls_into_runs():
    model = nn.Sequential(
        conv(3, 5), nn.BatchNorm2d(5), nn.ReLU(), conv(5, 7), nn.ReLU(), nn.MaxPool2d(2), conv(7, 7),
        nn.Flatten(), nn.Linear(7 * 16, 3),
    )  # fmt: skip
    arch = read(model, (3, 8, 8))
    assert [(b.name, b.layers) for b in arch.blocks] == [
        ("0", ("0", "1", "2")),
        ("3", ("3", "4")),
        ("6", ("6",)),
    ]
    assert [b.keeps_shape for b in arch.blocks] == [False, False, True]
    check_consistent(arch)


@pytest.mark.parametrize("name", ["Conv1d", "Conv3d", "Returns", "NoRule", "Shared", "Flatten", "Unbound"])
def test_odd_networks_give_no_error(name):
    shape = {"Conv1d": (1, 3, 17), "Conv3d": (1, 3, 9, 9, 9)}.get(name, (1, 3, 8, 8))
    arch = read(getattr(networks, name)(), torch.zeros(shape))
    check_consistent(arch)
    assert arch.stages


def test_networks_without_layers_or_maps_give_no_error():
    for model, shape in [(nn.Identity(), (3, 8, 8)), (nn.Linear(8, 3), (1, 8)), (nn.Flatten(), (3, 8, 8))]:
        arch = read(model, torch.zeros(shape) if len(shape) == 2 else shape)
        assert find_blocks(arch.flow) == ()
        check_consistent(arch)
