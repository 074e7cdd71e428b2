"""Conflict removal and the conflict map end to end, on generated pictures."""

import json

import pytest

from convwright.cli import main
from convwright.diagnose.conflict_map import conflict_map, conflict_tables, shade
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


def test_map(deep, pictures, plain, capsys):
    found = conflict_map(deep, pictures, recipe="fast-cpu", progress=False)
    assert found["times"][0] == {"event": "start", "epoch": 0, "step": 0}
    assert found["times"][-1]["event"] == "epoch"
    assert {p["block"] for p in found["points"]} == {f"body.{n}" for n in range(5)}
    assert found["excess"][0][-1] > found["excess"][0][0] == 0
    from rich.console import Console

    console = Console(width=120)
    for part in conflict_tables(found):
        console.print(part)
    shown = capsys.readouterr().out
    assert "body.4" in shown
    assert "of 5 blocks conflicted" in shown


def code_of(*arguments):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return left.value.code


def test_command_line(deep, pictures, capsys):
    assert code_of("analyze", deep, "--data", pictures, "--conflicts", "--recipe", "fast-cpu", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["own"]) == 5
    assert code_of("analyze", deep, "--conflicts") == 2
    assert "give --data" in capsys.readouterr().err
    assert code_of("analyze", deep, "--data", pictures) == 2
    assert "--conflicts" in capsys.readouterr().err


def test_shades():
    assert [shade(x) for x in (None, 0.0, 0.01, 0.26, 0.5, 0.99, 1.0)] == ["!", "·", "░", "▒", "▓", "█", "█"]
