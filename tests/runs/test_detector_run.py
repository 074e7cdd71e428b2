"""A whole run of a task that is not classification: a detector of torchvision, cut, repaired, distilled and proved."""

import numpy as np
import pytest
from torch import nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD

import convwright as cw


class Backbone(nn.Module):
    out_channels = (16,)

    def __init__(self):
        super().__init__()
        sizes = zip((3, 8, 16), (8, 16, 16), strict=True)
        self.body = nn.Sequential(*(layer for a, b in sizes for layer in (nn.Conv2d(a, b, 3, 2, 1), nn.ReLU())))

    def forward(self, images):
        return self.body(images)


@pytest.mark.breadth
@pytest.mark.filterwarnings("ignore::FutureWarning")  # torchvision's nms on fake tensors
def test_a_detector_is_compressed(tmp_path):
    rng = np.random.default_rng(0)
    samples = []
    for place in range(20):
        image, (x, y) = rng.integers(0, 90, (32, 32, 3), dtype=np.uint8), rng.integers(0, 20, 2)
        image[y : y + 10, x : x + 10] = 250
        samples.append((image, {"boxes": [[x, y, x + 10, y + 10]], "labels": [1 + place % 2]}))
    task = cw.tasks.Detection(samples, classes=3, rank="mAP50")
    model = SSD(Backbone(), DefaultBoxGenerator([[2]], scales=[0.3, 0.5]), (32, 32), 3)
    recipe = cw.Recipe(epochs=1, batch_size=4, lr=0.001, precision="fp32", techniques={"distill": {}})
    result = cw.compress(model, task, "macs<=60%", tmp_path / "run", recipe=recipe, progress=False, calibration=8)
    assert result.metrics["macs"] <= 0.6 * cw.read(model, [task.example_inputs()[0]]).profile().macs
