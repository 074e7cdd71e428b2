"""Detectors and backbones, cut and grown as a whole, with the losses and the sizes that their classes hold."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

import convwright as cw
from convwright.edits import scale_widths
from convwright.edits.surgery import tensors_in

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import support_edits
from support_families import own_loss

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # torchvision's nms on fake tensors
IMAGE = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))]


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.out_channels = 12
        sizes = zip((3, 8, 10), (8, 10, 12), strict=True)
        self.body = nn.Sequential(*(part for a, b in sizes for part in (nn.Conv2d(a, b, 3, 2, 1), nn.ReLU())))

    def forward(self, images):
        return self.body(images)


def detector(kind):
    torch.manual_seed(0)
    anchors = AnchorGenerator(((16, 32),), ((0.5, 1.0),))
    name = "rpn_anchor_generator" if kind is FasterRCNN else "anchor_generator"
    return kind(Backbone(), num_classes=4, min_size=64, max_size=64, **{name: anchors}).eval()


@pytest.mark.parametrize("kind", [FasterRCNN, RetinaNet])
def test_a_detector_is_scaled_as_a_whole(kind):
    arch = cw.read(detector(kind), IMAGE)
    for ratio in (0.5, 2.0):
        edits = scale_widths(arch, ratio)
        assert {"backbone.body.0", "backbone.body.2"} <= {edit.target for edit in edits}
        new = arch.apply(*edits)
        assert all(change.exact for change in new.changes)
        assert type(new.model) is kind
        width = new.model.backbone(torch.zeros(1, 3, 64, 64)).shape[1]
        assert new.model.backbone.out_channels == width
        loss = own_loss("detection:faster", new.model, new.inputs)
        loss.backward()
        assert loss.isfinite()
        assert all(parameter.grad is not None for parameter in new.model.parameters())
        assert new.model.eval()(IMAGE)[0].keys() == {"boxes", "labels", "scores"}


def test_a_score_beside_those_that_the_values_choose_from_is_kept():
    """The background's score is dropped after the softmax; another one would take of what is shared out."""
    arch = cw.read(detector(FasterRCNN), IMAGE)
    scores = [group for group in arch.groups if group.name.startswith("roi_heads.box_predictor.cls_score")]
    assert sum(group.size for group in scores) == 4
    assert all(group.frozen for group in scores)


class Pyramid(nn.Module):
    def __init__(self):
        super().__init__()
        self._out_channels = [6, 8]
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3)

    def forward(self, x):
        y = self.a(x)
        return {"maps": [y, self.b(F.relu(y))]}


@pytest.mark.parametrize("sizes", [(3, 4), (9, 16)])
def test_what_leaves_a_backbone_is_compared_channel_by_channel(sizes):
    arch = cw.read(Pyramid(), (3, 9, 9), free_outputs=True)
    new = arch.apply(cw.Width("a", sizes[0]), cw.Width("b", sizes[1]))
    assert all(change.exact for change in new.changes)
    assert tuple(t.shape[1] for t in tensors_in(new.model(torch.zeros(1, 3, 9, 9)))) == sizes
    assert new.model._out_channels == list(sizes)


class Twice(Pyramid):
    def forward(self, x):
        maps = super().forward(x)["maps"]
        return {"maps": maps, "again": maps[0]}


def test_a_map_that_is_returned_twice_is_measured_twice():
    arch = cw.read(Twice(), (3, 9, 9), free_outputs=True)
    assert arch.apply(cw.Width("a", 4)).changes[0].exact
    assert arch.apply(cw.Kernel("b", 5)).changes[0].exact


class ToItsInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 4, 1)
        self.branch = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        y = self.stem(x)
        return F.interpolate(y + self.branch(y), size=x.shape[-2:])


def test_a_map_brought_to_the_size_of_the_input_is_measured_at_that_size():
    arch = cw.read(ToItsInput(), (3, 64, 64))
    assert arch.apply(cw.RemoveBlock(arch.blocks[0].name)).changes[0].exact


WIDE = ["ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn", "retinanet_resnet50_fpn"]


@pytest.mark.breadth
@pytest.mark.parametrize("name", WIDE)
def test_detectors_of_torchvision_keep_their_losses_and_outputs(name):
    subject, facts = support_edits.read(f"detection:{name}")
    assert facts["free_macs"] > 0.99
    for kind, cell in support_edits.measure(subject, ("shrink", "loss", "outputs")):
        assert cell["status"] in ("exact", "done"), (kind, cell)
