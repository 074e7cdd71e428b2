"""`optimize` with the receptive-field methods, from end to end."""

import json

import pytest

from convwright.cli import app
from convwright.cli.leaving import run
from convwright.errors import BudgetError
from convwright.runs import optimize

NETWORK = """
import torch
from torch import nn


class Unit(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Net(nn.Module):
    def __init__(self, num_classes=10, in_channels=1):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 8, 3, padding=1, stride=2)
        self.early = nn.Sequential(Unit(8), Unit(8))
        self.down = nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.late = nn.Sequential(Unit(16), Unit(16), Unit(16))
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x):
        x = self.early(torch.relu(self.stem(x)))
        return self.fc(self.late(torch.relu(self.down(x))).mean((2, 3)))
"""


@pytest.fixture
def network(tmp_path):
    (tmp_path / "staged.py").write_text(NETWORK)
    return "staged.py:Net"


@pytest.mark.parametrize(
    ("method", "budget", "phase"),
    [
        ("receptive-field", "params<=80%", "stage-level organizer"),
        pytest.param("kernel", "macs<=80%", "kernel-level optimizer", marks=pytest.mark.breadth),
    ],
)
def test_a_run_from_end_to_end_and_resumed(method, budget, phase, network, plain, tmp_path, monkeypatch):
    recipe = plain.updated(epochs=1, max_steps=2)
    usual = {"recipe": recipe, "tune_epochs": 1, "progress": False}
    result = optimize(network, "fashion-mini", budget, method, tmp_path / "run", **usual)
    data = json.loads((tmp_path / "run" / "result.json").read_text())
    metric = budget.partition("<")[0]
    assert data["budget_met"][metric]["met"]
    assert data["result"]["costs"][metric] <= 0.8 * data["baseline"]["costs"][metric]
    (decision,) = data["decisions"]
    assert (decision["phase"], decision["kept"]) == (phase, 2)
    assert decision["reason"]
    assert [t.candidate.role for t in result.trials] == ["base", "baseline", "candidate"]

    monkeypatch.setattr("convwright.runs.evaluate.train", None)
    again = optimize(network, "fashion-mini", budget, method, tmp_path / "run", resume=True, **usual)
    assert again.data == data


@pytest.mark.parametrize("method", ["receptive-field", "kernel"])
@pytest.mark.parametrize(
    ("budget", "message"),
    [("activations<=60%", "budgets of macs and params, not of activations"), ("params<=2%", "Give a larger budget")],
)
def test_budgets_that_cannot_be_met_end_before_training(method, budget, message, network, plain, tmp_path):
    with pytest.raises(BudgetError, match=message):
        optimize(network, "fashion-mini", budget, method, tmp_path / "run", recipe=plain, progress=False)
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("method", ["receptive-field", "kernel"])
def test_the_command_line_says_it_in_one_line(method, network, tmp_path, capsys):
    arguments = ["optimize", network, "--data", "fashion-mini", "--budget", "params<=2%", "--method", method]
    assert run(app, [*arguments, "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert "larger budget" in told.replace("\n", " ")
    assert "Traceback" not in told
