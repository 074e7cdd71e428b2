"""A run that goes on with another budget or time: what was tried already is found by its content."""

import json
import random
import sqlite3

import pytest
import torch

from convwright.edits import Plan, Width
from convwright.errors import RunError
from convwright.methods import Candidate, Decision, Evidence, Method
from convwright.runs import Study, search
from convwright.runs.directory.files import save_weights
from convwright.runs.directory.study import DECISIONS
from convwright.runs.directory.trial_index import key_of

PLAN = Plan((), "zoo:x", (1, 3, 8, 8), 100, 1000)


def settings(budget, **more):
    return {"model": "zoo:x", "budget": [budget], "limits": {"macs": budget}, **more}


class Asking(Method):
    """Asks for the candidates that it is given, in batches."""

    def __init__(self, *batches):
        self.batches, self.results = batches, []

    def ask(self):
        first = 0
        for batch in self.batches:
            if first == len(self.results):
                return batch
            first += len(batch)
        return ()

    def tell(self, evidence):
        self.results.append(evidence)

    def best(self):
        return self.results[-1]


def grown(budget, seed=0):
    """A line of candidates, each from a random earlier one; those with many edits depend on the budget."""
    draw, plans, batches = random.Random(seed), [PLAN], [(Candidate(PLAN, None, 1, 0, role="base"),)]
    for step in range(1, 9):
        parent = draw.randrange(len(plans))
        width = step if step < 5 else step * budget
        plans.append(plans[parent].with_edits(Width(f"layer{step}", width)))
        batches.append((Candidate(plans[-1], parent, 1, step),))
    return batches


def content(candidate, parents):
    """What the result of a candidate may depend on, as text."""
    return candidate.plan.to_json() + (
        content(parents[candidate.parent], parents) if candidate.parent is not None else ""
    )


def carried(folder, budget, resume, stop_at=None, seed=0, **more):
    """Search; return scores and what was worked on."""
    done = []
    with Study(folder, settings(budget, **more), resume=resume) as study:

        def evaluate(number, candidate, parents):
            if len(done) == stop_at:
                raise KeyboardInterrupt
            done.append(number)
            if candidate.parent is not None:
                assert study.weights(candidate.parent).is_file()
            save_weights(torch.nn.Linear(1, 1), study.weights(number))
            score = random.Random(content(candidate, parents)).random()
            return Evidence(candidate, number, score, 0.0, {})

        try:
            found = search(Asking(*grown(budget, seed)), study, evaluate)
        except KeyboardInterrupt:
            return None, done
    assert [e.trial for e in found] == list(range(9))
    return [e.score for e in found], done


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.breadth)])
def test_another_budget_reuses_what_is_alike(tmp_path, seed):
    alone = {budget: carried(tmp_path / f"alone{budget}", budget, False, seed=seed)[0] for budget in (2, 3)}
    first, done = carried(tmp_path / "run", 2, False, seed=seed)
    assert (first, done) == (alone[2], list(range(9)))
    second, done = carried(tmp_path / "run", 3, True, seed=seed)
    assert second == alone[3]
    assert set(done) <= {5, 6, 7, 8}  # the first five are the same for both
    assert carried(tmp_path / "run", 2, True, seed=seed) == (alone[2], [])
    assert carried(tmp_path / "run", 3, True, seed=seed) == (alone[3], [])


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.breadth)])
def test_killed_and_turned_back_and_forth(tmp_path, seed):
    draw = random.Random(seed)
    alone = {budget: carried(tmp_path / f"alone{budget}", budget, False, seed=seed)[0] for budget in (2, 3)}
    count, folder = 0, tmp_path / "run"
    for turn in range(8):
        budget = draw.choice((2, 3))
        found, done = carried(folder, budget, turn > 0, stop_at=draw.randrange(4), seed=seed)
        count += len(done)
        assert found in (None, alone[budget])
    for budget in (2, 3):
        found, done = carried(folder, budget, True, seed=seed)
        count += len(done)
        assert found == alone[budget]
    assert count <= 9 + 4  # nothing was done twice


def test_a_trial_that_was_begun_for_another_budget_is_gone_on_with(tmp_path):
    carried(tmp_path / "run", 2, False, stop_at=3)
    folder = tmp_path / "run" / "trials" / "0003"
    folder.mkdir()
    (folder / "checkpoint.pt").touch()
    _, done = carried(tmp_path / "run", 3, True)
    assert done == [3, 4, 5, 6, 7, 8]
    assert not (folder / "checkpoint.pt").exists()
    assert (folder / "model.safetensors").exists()


def test_the_same_candidate_twice_in_one_search_is_two_trials(tmp_path):
    twice = Candidate(PLAN, None, 1, 0)
    done = []
    with Study(tmp_path / "run", {}) as study:

        def evaluate(number, candidate, parents):
            done.append(number)
            save_weights(torch.nn.Linear(1, 1), study.weights(number))
            return Evidence(candidate, number, number / 10, 0.0, {})

        assert [e.score for e in search(Asking((twice, twice)), study, evaluate)] == [0.0, 0.1]
    assert done == [0, 1]


def test_the_result_for_another_budget_is_kept_aside(tmp_path):
    carried(tmp_path / "run", 2, False)
    (tmp_path / "run" / "result.json").write_text("two")
    (tmp_path / "run" / "plan.json").write_text("two")
    carried(tmp_path / "run", 2, True)
    assert (tmp_path / "run" / "result.json").read_text() == "two"
    carried(tmp_path / "run", 3, True)
    assert not (tmp_path / "run" / "result.json").exists()
    assert (tmp_path / "run" / "earlier" / "0" / "result.json").read_text() == "two"
    (tmp_path / "run" / "result.json").write_text("three")
    carried(tmp_path / "run", 2, True, time="30m")
    assert (tmp_path / "run" / "earlier" / "1" / "result.json").read_text() == "three"
    stored = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [course["budget"] for course in stored["courses"]] == [[2], [3], [2]]
    assert stored["settings"]["time"] == "30m"


def test_all_other_settings_stay(tmp_path):
    carried(tmp_path / "run", 2, False)
    with pytest.raises(RunError, match="started with model=zoo:x, not zoo:y"):
        Study(tmp_path / "run", {**settings(3), "model": "zoo:y"}, resume=True)


def test_a_run_of_an_older_version_is_resumed(tmp_path):
    """It has no places and no courses: its trials took one course, in order."""
    alone, _ = carried(tmp_path / "run", 2, False)
    with sqlite3.connect(tmp_path / "run" / "run.db") as base:
        base.execute("DELETE FROM trial_user_attributes WHERE key = 'place'")
    base.close()
    assert carried(tmp_path / "run", 2, True) == (alone, [])
    assert carried(tmp_path / "run", 3, True)[1] == [5, 6, 7, 8]


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    carried(tmp_path / "run", 2, False)
    half = [tmp_path / "run" / ".result.json.4711", tmp_path / "run" / "trials" / "0003" / ".model.safetensors.17"]
    for file in half:
        file.touch()
    carried(tmp_path / "run", 2, True)
    assert not any(file.exists() for file in half)


def test_a_key_depends_on_everything_but_number_and_role():
    base = Candidate(PLAN, None, 1, 0)
    same = [Candidate(PLAN, None, 1, 0, role="base"), Candidate(PLAN, 7, 1, 0)]
    other = [
        Candidate(PLAN.with_edits(Width("a", 3)), None, 1, 0),
        Candidate(PLAN, None, 2, 0),
        Candidate(PLAN, None, 1, 1),
        Candidate(PLAN, None, 1, 0, probes=("bundles",)),
        Candidate(PLAN, None, 1, 0, recipe={"lr": 0.1}),
        Candidate(PLAN, None, 1, 0, weights="fresh"),
    ]
    assert len({key_of(c.to_dict(), None) for c in (base, *same)}) == 1
    assert len({key_of(c.to_dict(), None) for c in (base, *other)} | {key_of(base.to_dict(), "x")}) == 8


class Deciding(Asking):
    """Decides something after each batch."""

    @property
    def decisions(self):
        return tuple(Decision("step", {e.trial: "a width"}, e.trial, f"{e.score:.2f}") for e in self.results)

    @property
    def log(self):
        return tuple(f"{d.phase}: {d.reason}" for d in self.decisions)


def test_decisions_are_recorded_as_they_are_taken(tmp_path):
    method, read = Deciding(*grown(2)), []
    with Study(tmp_path / "run", settings(2)) as study:

        def evaluate(number, candidate, parents):
            file = study.folder / DECISIONS
            read.append(json.loads(file.read_text())["log"] if file.exists() else [])
            save_weights(torch.nn.Linear(1, 1), study.weights(number))
            return Evidence(candidate, number, number / 10, 0.0, {})

        search(method, study, evaluate)
    assert read == [[f"step: {i / 10:.2f}" for i in range(n)] for n in range(9)]
    recorded = json.loads((tmp_path / "run" / DECISIONS).read_text())
    assert recorded["decisions"] == [d.to_dict() for d in method.decisions]
    with Study(tmp_path / "run", settings(3), resume=True) as study:  # another budget decides anew
        assert not (study.folder / DECISIONS).exists()
        assert (study.folder / "earlier" / "0" / DECISIONS).exists()
