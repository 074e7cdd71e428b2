"""First parts of trainings in the record, side by side, and why a search found nothing."""

import optuna
import pytest
import torch
from small_pictures import pictures

import convwright as cw
from convwright.cost.budget import Limits
from convwright.edits import Plan
from convwright.errors import RecipeError
from convwright.experiments.designs.design import DesignContext, NetworkSpec
from convwright.experiments.designs.search_design import Searched, why_none
from convwright.methods import METHODS, Candidate, Evidence, GreedyEnlarging, Method
from convwright.runs import Evaluator, Study, search
from convwright.runs.directory.files import save_weights
from convwright.runs.executors import InProcess
from convwright.runs.executors.worker import Processes, Setup
from convwright.training import ImageData

PLAN = Plan((), "zoo:x", (1, 3, 8, 8), 100, 1000)
STATE = optuna.trial.TrialState


class Two(Method):
    """Asks for a first part, a whole training, and a first part that fails."""

    def __init__(self):
        self.results = []

    def ask(self):
        whole = Candidate(PLAN, None, 1, 3)
        return (Candidate(PLAN, None, 1, 3, short=True), whole, Candidate(PLAN, None, 1, 4, short=True))[
            len(self.results) :
        ]

    def tell(self, evidence):
        self.results.append(evidence)

    def best(self):
        return self.results[1]


def test_first_parts_are_recorded_as_pruned(tmp_path):
    def evaluate(number, candidate, parents):
        if number == 2:
            return Evidence(candidate, number, float("nan"), 0.0, {}, status="failed", message="no")
        save_weights(torch.nn.Linear(1, 1), study.weights(number))
        return Evidence(candidate, number, 0.4 + number / 10, 0.0, {})

    with Study(tmp_path / "run", {}) as study:
        first = search(Two(), study, evaluate)
        short, whole, failed = study.study.get_trials()
        assert (short.state, short.value, short.intermediate_values) == (STATE.PRUNED, 0.4, {1: 0.4})
        assert (whole.state, whole.value) == (STATE.COMPLETE, 0.5)
        assert failed.state is STATE.FAIL
        assert study.study.best_trial.number == 1  # a first part is never the best one of a dashboard
    with Study(tmp_path / "run", {}, resume=True) as study:
        assert [e.score for e in search(Two(), study, None)][:2] == [e.score for e in first][:2]


# ------------------------------------------------------------------ side by side


NETWORK = """
import torch
from torch import nn


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.down = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.down(x + torch.relu(self.one(x))))
        return self.fc((x + torch.relu(self.two(x))).mean((2, 3)))
"""


class Backwards:
    """Works on a batch from its end, in this process."""

    def __init__(self, evaluator):
        self.evaluator = evaluator

    def carry_out(self, tasks):
        for task in reversed(list(tasks)):
            yield self.evaluator(task.number, task.candidate, task.parents)

    def close(self):
        pass


@pytest.mark.few(1)
@pytest.mark.parametrize("options", [{}, {"halving": 3, "trial_epochs": 3}])
@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])  # two workers that load torch
def test_the_same_decisions_whoever_works_on_a_level_and_when(plain, tmp_path, options, jobs):
    (tmp_path / "small.py").write_text(NETWORK)
    arch = cw.read("small.py:Small", (1, 8, 8))
    data = ImageData("pictures", pictures(60, 1), pictures(30, 2), ("a", "b", "c"))
    limits, found = Limits({"macs": 2 * arch.profile().macs}), []
    for place in ("here", "elsewhere"):
        method = GreedyEnlarging(arch, limits, steps=2, resolution_step=2, tolerance=0.2, **options)
        with Study(tmp_path / place, {}) as study:
            initial = study.folder / "initial.safetensors"
            save_weights(arch.model, initial)
            evaluator = Evaluator(arch, data, plain, study, progress=False)
            executor = InProcess(evaluator, 1) if place == "here" else Backwards(evaluator)
            if place == "elsewhere" and jobs == 2:
                executor = Processes(2, Setup.of(evaluator, "small.py:Small", initial, 1), study)
            try:
                trials = search(method, study, executor)
            finally:
                executor.close()
            weights = [study.weights(e.trial).read_bytes() for e in trials]
        assert not [t.message for t in trials if not t.usable]
        assert max(len(level["candidates"]) for level in method.history[1:-1]) > 1  # one batch: side by side
        assert any(t.candidate.short for t in trials) is bool(options)
        found.append((method.log, method.history, [t.score for t in trials], weights))
    assert found[0] == found[1]


# ------------------------------------------------------------------ a search that found nothing


def trial(number, message=""):
    status = "failed" if message else "done"
    return Evidence(Candidate(PLAN, None, 1, 0), number, 0.5, 0.0, {}, status=status, message=message)


@pytest.mark.parametrize(
    ("log", "trials", "why"),
    [
        ((), (), ""),
        (("a: b", "end: no room"), (trial(0),), " (end: no room)"),
        ((), (trial(0, "too deep"), trial(1), trial(2, "out of memory")), " (trial 2 failed: out of memory)"),
        (("end: none",), (trial(0, "too deep"), trial(1)), " (end: none; trial 0 failed: too deep)"),
    ],
)
def test_why_a_search_found_nothing(log, trials, why):
    assert why_none(log, trials) == why


def test_the_error_of_a_search_without_a_result_says_why(tiny, pictures, plain, tmp_path, monkeypatch):
    class Hopeless:
        log = ("end: nothing came near the budget",)

        def __init__(self, arch, limits, **options):
            self.left = [Candidate(Plan.empty(arch), None, 1, 0)]

        def ask(self):
            return tuple(self.left)

        def tell(self, evidence):
            self.left.clear()

        def best(self):
            return None

    monkeypatch.setitem(METHODS, "hopeless", Hopeless)
    fields = plain.updated(batch_size=1000, val_fraction=0.2).model_dump(mode="json", exclude={"epochs"})
    message = (
        r"ended without a result: it asked for no final network \(end: nothing came near the budget; "
        r"trial 0 failed: .*a cycle of one step"
    )
    form = NetworkSpec({})
    setting = DesignContext((1, 8, 8), form, tmp_path / "searches", pictures)
    with pytest.raises(RecipeError, match=message):
        Searched("hopeless", {}, "", fields).resolve(tiny, form, setting)
