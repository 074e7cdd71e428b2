"""Conflict removal end to end, on generated pictures."""

import pytest

from convwright.runs import optimize

NETWORK = """
from torch import nn


class Unit(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.reset_parameters()

    def reset_parameters(self):
        for conv in (self.conv1, self.conv2):  # so weak that a few units make all images one
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)

    def forward(self, x):
        return self.conv2(self.conv1(x).relu()).relu()


class Deep(nn.Module):
    def __init__(self, num_classes=3, in_channels=1):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.body = nn.Sequential(*[Unit(4) for _ in range(5)])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.head(self.pool(self.body(self.stem(x))).flatten(1))
"""


@pytest.fixture
def deep(tmp_path):
    (tmp_path / "deep.py").write_text(NETWORK)
    return "deep.py:Deep"


@pytest.mark.breadth
def test_conflicting_units_are_removed_and_a_run_is_resumed(deep, pictures, plain, tmp_path):
    options = {"check": "before", "window": 2, "rule": "truncate"}
    given = {"recipe": plain, "epochs": 2, "options": options, "progress": False}
    result = optimize(deep, pictures, "params<=100%", "conflicts", tmp_path / "run", **given)
    decisions = result.data["decisions"]
    assert decisions[0]["removed"]
    assert decisions[0]["conflicts"]
    assert decisions[-1]["phase"] == "end"
    assert len(result.best.candidate.plan.edits) == sum(len(d.get("removed", ())) for d in decisions) > 0
    again = optimize(deep, pictures, "params<=100%", "conflicts", tmp_path / "run", resume=True, **given)
    assert again.data["decisions"] == decisions
