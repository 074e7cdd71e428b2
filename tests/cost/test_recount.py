"""The independent count."""

import torch

from convwright.cost.recount import count_by_torch


class Keeps(torch.nn.Module):
    """Keeps what it makes of each pass, as torchvision's anchors do."""

    def __init__(self):
        super().__init__()
        self.layer, self.kept = torch.nn.Conv2d(3, 4, 3), torch.zeros(3)

    def forward(self, x):
        self.kept = self.kept.to(x.device) + x.mean((0, 2, 3))
        return self.layer(x)


def test_what_a_network_keeps_of_a_pass_is_not_left_empty():
    """A detector's anchors were, and it ran no more."""
    model = Keeps().eval()
    count_by_torch(model, torch.randn(1, 3, 8, 8))
    assert model.kept.device.type == "cpu"
    model(torch.randn(1, 3, 8, 8))
