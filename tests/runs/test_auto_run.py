"""`optimize` with the default method, from end to end: on pictures and on the embedded data, killed and resumed."""

import pytest

from convwright.errors import BudgetError
from convwright.runs import optimize
from convwright.runs.evaluate import Evaluator

FEW = {"search_epochs": 5, "rounds": 1}
RESIDUAL = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Small(nn.Module):
    def __init__(self, num_classes=10, in_channels=1):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 7, 3, stride=4, padding=1)
        self.one, self.down = nn.Sequential(Block(7), Block(7)), nn.Conv2d(7, 11, 3, stride=2, padding=1)
        self.fc = nn.Linear(11, num_classes)

    def forward(self, x):
        return self.fc(torch.relu(self.down(self.one(self.stem(x)))).mean((2, 3)))
"""


@pytest.mark.breadth
def test_a_killed_race_resumes_to_the_same_result(tiny, pictures, plain, tmp_path, monkeypatch):
    usual = {"recipe": plain.updated(epochs=1), "tune_epochs": 1, "progress": False, "options": FEW, "seed": 3}
    whole = optimize(tiny, pictures, "macs<=50%", out=tmp_path / "whole", **usual)
    evaluate, calls = Evaluator.__call__, []

    def killed(self, number, candidate, parents):
        calls.append(number)
        if number == 2 and calls.count(2) == 1:
            raise KeyboardInterrupt
        return evaluate(self, number, candidate, parents)

    monkeypatch.setattr(Evaluator, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        optimize(tiny, pictures, "macs<=50%", out=tmp_path / "run", **usual)
    resumed = optimize(tiny, pictures, "macs<=50%", out=tmp_path / "run", resume=True, **usual)
    assert resumed.data["method"] == "auto"
    assert [t.candidate for t in resumed.trials] == [t.candidate for t in whole.trials]
    assert [t.score for t in resumed.trials] == [t.score for t in whole.trials]
    assert resumed.data["decisions"] == whole.data["decisions"]
    assert resumed.data["budget_met"]["macs"]["met"]
    assert resumed.best.candidate.parent is not None


@pytest.mark.breadth
def test_on_embedded_data_every_decision_is_said(plain, tmp_path):
    (tmp_path / "small.py").write_text(RESIDUAL)
    said = []
    recipe = plain.updated(epochs=1, max_steps=3, lr=0.02)
    found = optimize(
        "small.py:Small", "fashion-mini", "macs<=50%", out=tmp_path / "run", recipe=recipe, tune_epochs=1,
        progress=True, say=said.append, options={"search_epochs": 6, "rounds": 1},
    )  # fmt: skip
    phases = [d["phase"] for d in found.data["decisions"]]
    assert phases[:2] == ["network", "proposals"]
    assert phases[-1] == "end"
    for decision in found.data["decisions"]:
        assert f"{decision['phase']}: {decision['reason']}" in said
    assert "layers see nothing new" in found.data["decisions"][0]["reason"]
    assert "bundles" in found.trials[0].probes
    assert found.best.candidate.role == "candidate"
    spent = {t.trial: t.candidate.epochs for t in found.trials}
    line, at = [], found.best
    while at.candidate.parent is not None:
        line.append(at.trial)
        at = found.trials[at.candidate.parent]
    if at.candidate.role == "candidate":  # it began with new weights
        line.append(at.trial)
    assert spent[found.baseline.trial] == sum(spent[number] for number in line)
    counts = found.data["result"]["counts"]["macs"]
    assert counts["convwright"] == counts["torch"] <= found.data["limits"]["macs"]


def test_what_cannot_be_met_ends_before_any_training(tiny, pictures, plain, tmp_path):
    with pytest.raises(BudgetError, match="cannot be met"):
        optimize(tiny, pictures, "macs<=3", out=tmp_path / "run", recipe=plain, progress=False)
    assert not (tmp_path / "run").exists()
