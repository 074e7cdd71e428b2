"""Greedy enlarging in a run: candidates at other resolutions see images of that size, and runs are resumed."""

import pytest
import torch
from small_pictures import pictures
from torch import nn

import convwright as cw
from convwright.cost.budget import Limits
from convwright.edits import Plan, Resolution
from convwright.methods import Candidate, GreedyEnlarging
from convwright.runs import Evaluator, Study, search
from convwright.training import ImageData

SETTINGS = {"model": "own", "seed": 0}


class Block(nn.Module):
    def __init__(self, width, seen):
        super().__init__()
        self.conv, self.seen = nn.Conv2d(width, width, 3, padding=1), seen

    def forward(self, x):
        self.seen.add(tuple(x.shape[-2:]))
        return x + torch.relu(self.conv(x))


class Sized(nn.Module):
    """Two residual stages; it notes the sizes that it is given."""

    def __init__(self):
        super().__init__()
        self.seen = set()
        self.stem, self.one = nn.Conv2d(1, 4, 3, padding=1), Block(4, self.seen)
        self.down, self.two = nn.Conv2d(4, 8, 3, stride=2, padding=1), Block(8, self.seen)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.down(self.one(torch.relu(self.stem(x)))))
        return self.fc(self.two(x).mean((2, 3)))


@pytest.fixture(scope="module")
def arch():
    torch.manual_seed(0)
    return cw.read(Sized(), (1, 8, 8))


@pytest.fixture
def data():
    return ImageData("pictures", pictures(60, 1), pictures(30, 2), ("a", "b", "c"), lambda: pictures(20, 3))


def test_a_candidate_is_trained_and_judged_at_its_resolution(arch, data, plain, tmp_path, monkeypatch):
    sizes = set()
    original = Block.forward

    def noted(self, x):
        sizes.add(x.shape[-1])
        return original(self, x)

    plan = Plan.empty(arch).with_edits(Resolution(12))
    with Study(tmp_path / "run", SETTINGS) as study:
        evaluator = Evaluator(arch, data, plain, study, progress=False)
        build = evaluator.build(Candidate(plan, None, 1, 0), {})
        monkeypatch.setattr(Block, "forward", noted)
        monkeypatch.setattr(Evaluator, "build", lambda *_: build)
        found = evaluator(0, Candidate(plan, None, 1, 0), {})
    assert found.status == "done", found.message
    assert {12, 6} <= sizes
    assert 8 not in sizes


@pytest.mark.parametrize("weights", [pytest.param("fresh", marks=pytest.mark.breadth), "inherit"])
def test_a_run_ends_within_its_budget_and_is_resumed(arch, data, plain, tmp_path, weights):
    limits = Limits({"macs": 2 * arch.profile().macs})

    def made():
        return GreedyEnlarging(
            arch, limits, steps=2, weights=weights, epochs=1, tune_epochs=1, resolution_step=2, tolerance=0.12
        )

    with Study(tmp_path / "run", SETTINGS) as study:
        method = made()
        trials = search(method, study, Evaluator(arch, data, plain, study, progress=False))
        assert not [t.message for t in trials if t.status == "failed"]
        best = method.best()
        assert 0.95 * limits.limits["macs"] <= best.costs["macs"] <= limits.limits["macs"]
        for member in method.family:
            assert trials[member.trial].costs["macs"] == member.costs["macs"]
            assert trials[member.trial].costs["params"] == member.costs["params"]
        again = made()
        repeated = search(again, study, _refuse)
        assert [t.candidate for t in repeated] == [t.candidate for t in trials]
        assert again.log == method.log


def _refuse(*_):
    raise AssertionError("a finished run asks for nothing")
