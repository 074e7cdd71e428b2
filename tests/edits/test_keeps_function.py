"""`Change.keeps_function` against the original's own outputs, measured here."""

import copy

import pytest
import torch
from torch import nn

import convwright as cw

EDITS = {
    "wider": (cw.Width("layer1.0.conv1", 24),),
    "much wider": (cw.Width("layer1.0.conv1", 35), cw.Width("layer2.0.conv1", 64)),
    "narrower": (cw.Width("layer1.0.conv1", 12),),
    "both": (cw.Width("layer1.0.conv1", 24), cw.Width("layer2.0.conv1", 20)),
    "same": (cw.Width("layer1.0.conv1", 16),),
    "added": (cw.AddBlock("layer2.1"),),
    "removed": (cw.RemoveBlock("layer2.1"),),
    "larger": (cw.Kernel("layer1.0.conv1", 5),),
    "smaller": (cw.Kernel("layer1.0.conv1", 1),),
    "replaced": (cw.Replace("layer2.1.conv2", "dw_separable"),),
    "resolution": (cw.Resolution(24),),
    "in turn": (cw.Width("layer1.0.conv1", 24), cw.AddBlock("layer2.1"), cw.Kernel("layer1.0.conv2", 5)),
}
KEEP = {"wider", "much wider", "same", "added", "larger", "in turn"}


def randomised(name):
    """A network with random weights and statistics, in eval mode."""
    torch.manual_seed(1)
    arch = cw.read(name)
    for module in arch.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.3, 0.9)
            for tensor in (module.bias, module.running_mean):
                nn.init.uniform_(tensor, -0.3, 0.3)
    return arch


def difference(before, after):
    x = torch.randn(3, *before.example_input.shape[1:], dtype=torch.float64)
    with torch.no_grad():
        outputs = [copy.deepcopy(arch.model).double().eval()(x) for arch in (before, after)]
    return float((outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max().clamp(min=1))


@pytest.mark.parametrize("name", EDITS)
def test_a_change_keeps_the_function_or_does_not_say_so(name):
    arch = randomised("zoo:resnet20")
    new = arch.apply(*EDITS[name])
    keeps = [change.keeps_function for change in new.changes]
    assert all(keeps) is (name in KEEP)
    assert (difference(arch, new) < 1e-6) is (name in KEEP or name == "resolution")
    if name == "both":
        assert keeps == [True, False]


@pytest.mark.parametrize("name", ["zoo:mnist-a", "zoo:cifar-3x3", "zoo:cifar-a"])
@pytest.mark.parametrize("factor", [2, 1.5, 0.75])
def test_networks_whose_groups_all_change(name, factor):
    arch = randomised(name)
    edits = [cw.Width(group.name, max(1, int(group.size * factor))) for group in arch.free_groups[:3]]
    new = arch.apply(*edits)
    if all(change.keeps_function for change in new.changes):
        assert difference(arch, new) < 1e-6
    assert any(change.keeps_function for change in new.changes) <= (factor > 1)


def test_what_was_not_measured_is_not_promised():
    arch = cw.read("zoo:resnet20").apply(*EDITS["wider"], verify=False)
    assert [change.keeps_function for change in arch.changes] == [False]
