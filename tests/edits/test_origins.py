"""The composed channel map: every entry of an edited network is where the map says, in the network that was read."""

import random
import warnings

import depth_networks
import networks
import numpy as np
import pytest
import torch
from torch import fx

import convwright as cw
from convwright.edits import AddBlock, Kernel, RemoveBlock, Replace, Width, kept_channels, kept_entries, origin_of
from convwright.edits.surgery import named_tensors
from convwright.errors import EditError

ZOO = [
    "zoo:resnet20", "zoo:ghostnet", "zoo:mnist-m2d", "timm:ghostnet_050", "timm:tf_efficientnet_lite0",
    "timm:regnetx_002", "timm:dla46_c", "torchvision:mobilenet_v2", "torchvision:shufflenet_v2_x0_5",
    "torchvision:densenet121", "torchvision:googlenet",
]  # fmt: skip


def randomly(arch, draw, least=0.4, most=1.0):
    """Other widths for some groups, and other channels than the strongest."""
    free = [group for group in arch.free_groups if not group.tied and group.units > 2]
    edits = []
    for group in draw.sample(free, min(len(free), 6)):
        size = max(1, int(group.units * draw.uniform(least, most))) * group.step
        if size != group.size:
            edits.append(Width(group.name, size))
    scores = {group.name: [draw.random() for _ in range(group.units)] for group in arch.groups}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return arch.apply(*edits, importance=scores, verify=False)


def at_origins(original, edited, name):
    old = named_tensors(original.model)[origin_of(edited, name)].detach()
    return old[np.ix_(*(kept_entries(edited, name, axis) for axis in range(old.ndim)))] if old.ndim else old


def check_cut(original, edited):
    for name, tensor in named_tensors(edited.model).items():
        torch.testing.assert_close(tensor.detach(), at_origins(original, edited, name), rtol=0, atol=0, msg=name)


def read(name):
    return cw.read(name, (3, 64, 64)) if name.startswith(("timm", "torch")) else cw.read(name)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ZOO)
def test_what_is_only_cut_is_where_the_map_says_after_three_rounds_and_a_block_less(name):
    draw, arch = random.Random(0), read(name)
    new = randomly(randomly(arch, draw), draw)
    block = next((b for b in new.blocks if b.keeps_shape and b.identity and b.modules), None)
    new = randomly(new if block is None else new.apply(RemoveBlock(block.name), verify=False), draw)
    assert new.origins.entries
    check_cut(arch, new)
    assert not arch.origins.entries


@pytest.mark.parametrize("make", networks.EXACT)
def test_a_grown_network_repeats_the_entries_it_comes_from(make):
    arch = cw.read(make(), (3, 16, 16))
    new = randomly(arch, random.Random(1), 1.2, 2.0)
    inner = {(m.tensor, m.axis) for group in new.groups for m in group.members if m.role == "in"}
    for name, tensor in named_tensors(new.model).items():
        expected = at_origins(arch, new, name)
        for axis in range(tensor.ndim):
            index = kept_entries(new, name, axis)
            shares = torch.from_numpy(np.bincount(index)[index] if (name, axis) in inner else np.ones(len(index)))
            expected = expected / shares.reshape([-1 if a == axis else 1 for a in range(tensor.ndim)]).float()
        torch.testing.assert_close(tensor.detach(), expected, msg=name)


class Recorder(fx.Interpreter):
    """Keeps the value of every node."""

    def __init__(self, arch, model):
        super().__init__(torch.nn.Module(), garbage_collect_values=False, graph=arch.capture.graph)
        self.found, tensors = {}, named_tensors(model)
        places = [node.name for node in arch.capture.graph.nodes if node.op == "placeholder"]
        held = {name: tensors[arch.capture.tensors[name]] for name in places if name in arch.capture.tensors}
        torch.manual_seed(3)
        self.run(*(held.get(name, torch.randn(arch.example_input.shape)) for name in places))

    def run_node(self, n):
        if n.op == "call_function" and n.meta.get("val") is None:
            return None
        self.found[n.name] = super().run_node(n)
        return self.found[n.name]


@pytest.mark.parametrize("make", networks.EXACT)
def test_features_of_a_cut_network_are_channels_of_the_original(make):
    arch = cw.read(make().eval(), (3, 16, 16))
    new = randomly(randomly(arch, random.Random(2)), random.Random(3), 0.6)
    silent = {name: tensor.detach().clone() for name, tensor in named_tensors(arch.model).items()}
    for group in arch.groups:
        for member in (m for m in group.members if m.role == "in"):
            kept = kept_entries(new, member.tensor, member.axis)
            gone = np.setdiff1d(np.arange(silent[member.tensor].shape[member.axis]), kept)
            silent[member.tensor].index_fill_(member.axis, torch.from_numpy(gone), 0)
    holder = torch.nn.Module()
    holder.named_parameters = lambda remove_duplicate: silent.items()
    before, after = Recorder(arch, holder).found, Recorder(new, new.model).found
    compared = 0
    for layer in new.layers:
        if layer.groups:
            kept = kept_channels(arch, new, layer.name)
            old, got = before[arch.layer(layer.name).node], after[layer.node]
            axis = next(a for a in range(1, got.ndim) if got.shape[a] == len(kept))
            torch.testing.assert_close(got, old.index_select(axis, torch.from_numpy(kept)), msg=layer.name)
            compared += 1
    assert compared > 2


def test_a_block_that_goes_leaves_the_features_at_its_ends_and_names_that_move_are_followed():
    arch = cw.read(depth_networks.Timm(), (3, 16, 16))
    keep = {"conv1": [1, 3, 4]}
    new = arch.apply(RemoveBlock("layer1.0"), Width("conv1", 3, keep), AddBlock("layer2.1"), verify=False)
    for name in ("act", "layer1.1"):
        assert kept_channels(arch, new, name).tolist() == keep["conv1"]
    tensors = named_tensors(new.model)
    assert {origin_of(new, name) for name in tensors} - {""} <= named_tensors(arch.model).keys()
    added = [name for name in tensors if not origin_of(new, name)]
    assert added == [name for name in tensors if name.startswith("layer2.1.1.")]
    assert origin_of(new, "layer2.1.0.conv1.weight") == "layer2.1.conv1.weight"
    assert set(kept_entries(new, next(n for n in added if n.endswith("conv1.weight")), 0)) == {-1}
    check_cut(arch, arch.apply(RemoveBlock("layer1.0"), Width("conv1", 3, keep), verify=False))


def test_other_kernels_and_operators():
    arch = cw.read(depth_networks.Timm(), (3, 16, 16))
    larger = arch.apply(Kernel("layer1.0.conv1", 5), Width("layer1.0.conv1", 3), verify=False)
    assert kept_entries(larger, "layer1.0.conv1.weight", 2).tolist() == [-1, 0, 1, 2, -1]
    check_cut(arch, larger.apply(Kernel("layer1.0.conv1", 1), verify=False))
    other = arch.apply(Replace("layer2.1.conv2", "dw_rpw", groups=1), Width("conv1", 4), verify=False)
    new = [name for name in named_tensors(other.model) if not origin_of(other, name)]
    assert new
    assert all(name.startswith("layer2.1.conv2.") for name in new)
    with pytest.raises(EditError, match="no parameter or buffer nowhere"):
        kept_entries(arch, "nowhere", 0)
    with pytest.raises(EditError, match="nowhere"):
        kept_channels(arch, arch, "nowhere")
