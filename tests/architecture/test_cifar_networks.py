"""Networks as repositories for CIFAR write them: read as by export, halved with the proof, trained by one step."""

import warnings

import pytest
import torch

from convwright.architecture import read
from convwright.cost.recount import count_by_torch
from convwright.edits.execution_check import scale_widths
from convwright.edits.proportional import proportional_widths

from .cifar_networks import NETWORKS

QUICK = ("DPN", "ShuffleNetV2", "WideResNet")
WRITTEN = {  # network -> the layers whose width ``view`` has written down
    "AlexNet": {"features.6"},
    "InceptionV4": {"reduce.b2.0", *(f"stage.inception_1.b{k}" for k in ("1.0", "2.1.0", "3.1.0"))},
    "InceptionResNet": {"blocks.1.reduction1x1"},
}
PADDED = ("ResNetOptionA",)  # zeros beside the channels, by numbers written down


def facts(arch):
    groups = [(g.name, g.size, g.step, g.frozen, g.members, g.tied) for g in arch.groups]
    return groups, arch.profile().macs, [block.name for block in arch.blocks]


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.breadth) for n in NETWORKS])
def test_read_halved_and_trained(name):
    model = NETWORKS[name]().eval()
    arch = read(model, (3, 32, 32))
    assert facts(arch) == facts(read(model, (3, 32, 32), capture="export"))
    assert arch.profile().macs == count_by_torch(model, arch.inputs)
    others = [g.reason for g in arch.groups if g.frozen and "the network's" not in g.reason]
    assert all("padded by a constant" in reason for reason in others)
    assert bool(others) == (name in PADDED)
    edits = proportional_widths(arch, 0.5)
    if name in WRITTEN:
        with pytest.warns(UserWarning, match="left as they are, because the network's code fixes them"):
            edits = scale_widths(arch, 0.5)
        assert {e.target for e in proportional_widths(arch, 0.5)} - {e.target for e in edits} == WRITTEN[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # inexact ones warn
        small = arch.apply(*edits)
    assert small.profile().macs < 0.55 * arch.profile().macs
    network = small.model.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    output = network(torch.randn(4, 3, 32, 32))
    assert output.shape == (4, 10)
    output.square().mean().backward()
    optimizer.step()
