"""Budgets of time that no widths keep: methods that change more than widths measure their designs one by one."""

import json

import pytest
from test_latency_budget import numbers

from convwright.architecture import read
from convwright.cost.budget import parse_budget
from convwright.edits import Plan, RemoveBlock
from convwright.errors import BudgetError
from convwright.experiments.designs.design import DesignContext
from convwright.experiments.designs.search_design import Searched
from convwright.runs import Evaluator, optimize
from convwright.runs.evaluate import reshaped
from convwright.runs.latency import MARGIN, fingerprint, measured_latency
from convwright.training import Recipe

DEEP = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.a, self.b = nn.Conv2d(width, hidden, 3, padding=1), nn.Conv2d(hidden, width, 3, padding=1)

    def forward(self, x):
        return x + self.b(torch.relu(self.a(x)))


class Deep(nn.Module):
    def __init__(self, num_classes=3, in_channels=1):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 7, 3, padding=1)
        self.one = nn.Sequential(Block(7, 5), Block(7, 11), Block(7, 7))
        self.down = nn.Conv2d(7, 13, 3, stride=2, padding=1)
        self.two = nn.Sequential(Block(13, 11), Block(13, 17), Block(13, 7))
        self.fc = nn.Linear(13, num_classes)

    def forward(self, x):
        return self.fc(self.two(self.down(self.one(self.stem(x)))).mean((2, 3)))
"""
PER_CALL = 0.02  # seconds: most of the time of a network on this machine


@pytest.fixture
def deep(tmp_path):
    (tmp_path / "deep.py").write_text(DEEP)
    return "deep.py:Deep"


@pytest.fixture
def go(world, deep, pictures, plain):
    world.per_call = PER_CALL

    def run(out, **changes):
        usual = {"model": deep, "data": pictures, "budget": "latency<=50%", "recipe": plain, "progress": False}
        usual |= {"method": "auto", "epochs": 1, "tune_epochs": 1, "options": {"search_epochs": 4, "rounds": 1}}
        return optimize(**{**usual, "out": out, **changes})

    return run


@pytest.mark.breadth
def test_blocks_go_where_widths_do_not_do_it(go, world, tmp_path):
    said = []
    result = go(tmp_path / "run", say=said.append)
    assert any("widths alone do not do it" in line for line in said)
    assert any(isinstance(edit, RemoveBlock) for edit in result.best.candidate.plan.edits)
    met = result.data["budget_met"]["latency"]
    assert met["met"]
    assert met["measured"] > 0.8 * met["limit"]  # the budget is used
    aim = (1 - MARGIN) * result.data["limits"]["latency"]
    candidates = [t for t in result.trials if t.candidate.role == "candidate"]
    assert len(candidates) > 1
    for trial in candidates:  # a design's cost is what was measured of it, not an estimate
        arch = reshaped(read("deep.py:Deep", (1, 1, 8, 8)), trial.candidate.plan)
        assert trial.costs["latency"] == pytest.approx(1e9 * world.seconds(arch.model, arch.example_input), rel=1e-6)
        assert trial.costs["latency"] <= aim + 1


@pytest.mark.breadth
def test_a_method_that_changes_widths_only_says_that_it_cannot(go, tmp_path):
    with pytest.raises(BudgetError, match=r"no common ratio of widths meets latency|cannot be met: by width alone"):
        go(tmp_path / "run", method="uniform", options={})
    with pytest.raises(BudgetError, match="no proposal meets latency"):
        go(tmp_path / "run", budget="latency<=15%")
    assert not (tmp_path / "run").exists()


@pytest.mark.breadth
def test_a_resumed_run_decides_as_it_did(go, world, tmp_path, monkeypatch):
    short = {"options": {"search_epochs": 4, "rounds": 0}}
    whole = go(tmp_path / "whole", **short)
    honest = Evaluator.__call__

    def evaluate(self, n, candidate, parents):
        if n == 2:
            raise KeyboardInterrupt
        return honest(self, n, candidate, parents)

    monkeypatch.setattr(Evaluator, "__call__", evaluate)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "run", **short)
    monkeypatch.setattr(Evaluator, "__call__", honest)
    # Now another machine. What decisions rest on is in the run directory: nothing of it is measured again.
    world.folder, world.asked, world.turns = tmp_path / "elsewhere", [], 0
    resumed = go(tmp_path / "run", resume=True, **short)
    first = json.loads((tmp_path / "whole" / "latency.json").read_text())
    again = json.loads((tmp_path / "run" / "latency.json").read_text())
    assert first == again
    assert numbers(resumed) == numbers(whole)


def test_networks_that_run_the_same_have_one_fingerprint(deep, world):
    arch = read(deep, (1, 1, 8, 8))
    cut = Plan.empty(arch).with_edits(RemoveBlock("one.1"))
    assert fingerprint(arch) == fingerprint(reshaped(arch, Plan.empty(arch)))
    assert fingerprint(reshaped(arch, cut)) == fingerprint(arch.apply(RemoveBlock("one.1")))
    assert fingerprint(arch) != fingerprint(reshaped(arch, cut))


def test_a_design_is_measured_at_its_own_resolution(deep, world):
    world.per_call = PER_CALL
    arch = read(deep, (1, 1, 8, 8))
    known = measured_latency(arch, lambda text: None)
    larger = read(deep, (1, 1, 16, 16))
    expected = world.seconds(larger.model, larger.example_input) / world.seconds(arch.model, arch.example_input)
    assert known.ratio(larger) == pytest.approx(expected)


def test_limits_without_a_measurement_of_other_networks_refuse_them(deep, world):
    arch = read(deep, (1, 1, 8, 8))
    limits = parse_budget("latency<=50%").resolve(arch.profile(), 1000)
    with pytest.raises(BudgetError, match="present layers and inputs only"):
        limits.fitted(arch, lambda within: (arch, {}))
    counted = parse_budget("macs<=50%").resolve(arch.profile())
    assert counted.fitted(arch, lambda within: (arch, {})) is counted
    assert limits.counted.limits == {}


@pytest.mark.breadth
def test_a_row_of_an_experiment_may_have_a_budget_of_time(deep, world, pictures, tmp_path):
    world.per_call = PER_CALL
    fields = Recipe(batch_size=32, lr=0.05, crop_padding=1, precision="fp32", memory_format="contiguous")
    recipe = {**fields.model_dump(mode="json", exclude_unset=True), "val_fraction": 0.2}
    search = Searched("auto", {"epochs": 1, "search_epochs": 4}, "latency<=50%", recipe)
    setting = DesignContext((1, 8, 8), searches=tmp_path / "searches", data=pictures)
    form = search.resolve(deep, setting.start, setting)
    arch = read(deep, (1, 1, 8, 8))
    found = reshaped(arch, Plan.empty(arch).with_edits(*form.edits))
    share = world.seconds(found.model, found.example_input) / world.seconds(arch.model, arch.example_input)
    assert 0.4 < share <= 0.5
    turns = world.turns
    assert search.resolve(deep, setting.start, setting) == form
    assert world.turns == turns
