"""Candidates ranked on a part of the data; result and untouched network on all of it."""

import json
from dataclasses import replace

import numpy as np
import pytest

import convwright.runs.evaluate as module
from convwright.edits import Plan, Width
from convwright.errors import ConvwrightError, DataError, RunError
from convwright.methods import Candidate, Evidence, Method
from convwright.runs import Study, optimize
from convwright.runs.directory.files import save_weights
from convwright.runs.evaluate import Evaluator
from convwright.runs.executors import InProcess, Task
from convwright.runs.executors.worker import Setup, WorkerTask, answered
from convwright.runs.load import load_model_and_data
from convwright.runs.proxy import Proxied, ProxyConfig, whole_trainings
from convwright.training.data.proxy import draw_proxy

PLAN = Plan((), "zoo:x", (1, 3, 8, 8), 100, 1000)
SEARCH = {"method": "random", "options": {"trials": 2, "trial_epochs": 1}, "tune_epochs": 1, "epochs": 1}


@pytest.fixture
def seen(monkeypatch):
    """The labels and sizes of the data of each training, in order."""
    honest, found = module.train, []

    def train(model, data, recipe, **options):
        labels = sorted(set(data.train.labels.tolist()))
        found.append((labels, len(data.train), sorted(set(data.val.labels.tolist())), data.num_classes))
        return honest(model, data, recipe, **options)

    monkeypatch.setattr(module, "train", train)
    return found


def run(tiny, pictures, plain, out, **changes):
    given = {**SEARCH, "proxy_classes": 2, "proxy_samples": 41, **changes}
    return optimize(tiny, pictures, "macs<=70%", out=out, recipe=plain, progress=False, **given)


def test_trials_see_the_proxy_and_final_trainings_all_data(tiny, pictures, plain, tmp_path, seen):
    said = []
    out = tmp_path / "run"
    result = run(tiny, pictures, plain, out, say=said.append)
    stored = json.loads((out / "proxy.json").read_text())
    classes = stored["classes"]
    assert [(labels, count) for labels, count, _, _ in seen[:2]] == [(classes, 41)] * 2
    assert [(labels, count) for labels, count, _, _ in seen[2:]] == [([0, 1, 2], 179)] * 2
    assert all(judged == labels for labels, _, judged, _ in seen)
    assert {outputs for *_, outputs in seen} == {3}  # outputs and labels stay
    images = [trial["images"] for trial in result.data["trials"]]
    assert images == ["proxy"] * 2 + ["all"] * 2
    assert result.best.candidate.images == result.baseline.candidate.images == "all"
    settings = json.loads((out / "run.json").read_text())["settings"]["proxy"]
    assert {k: settings[k] for k in ("classes", "samples", "seed")} == {"classes": 2, "samples": 41, "seed": 0}
    (line,) = [text for text in said if "proxy:" in text]
    assert "2 of 3 classes" in line
    assert "41 of 179 training images" in line
    assert "labels and outputs stay" in line
    assert "1 epoch of the proxy" in " ".join(said)
    again = run(tiny, pictures, plain, out, resume=True)
    assert len(seen) == 4
    assert json.loads((out / "proxy.json").read_text()) == stored
    assert [t.to_dict() for t in again.trials] == [t.to_dict() for t in result.trials]


def test_another_list_is_refused(tiny, pictures, plain, tmp_path, monkeypatch):
    out = tmp_path / "run"

    class EnoughError(Exception):
        pass

    def stopped(*_):
        raise EnoughError

    monkeypatch.setattr(Evaluator, "__call__", stopped)
    with pytest.raises(EnoughError):
        run(tiny, pictures, plain, out)
    before, settings = ((out / name).read_text() for name in ("proxy.json", "run.json"))
    for other in ({"proxy_samples": 43}, {"proxy_classes": None, "proxy_samples": None}):
        with pytest.raises(RunError, match=r"was started with .*proxy.*; give the same"):
            run(tiny, pictures, plain, out, resume=True, **other)
    content = json.loads(before)
    content["train"][0] += 1  # another list than the one that the run was started with
    (out / "proxy.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"was started with proxy\.digest=[0-9a-f]{16}, not [0-9a-f]{16}"):
        run(tiny, pictures, plain, out, resume=True)
    (out / "proxy.json").write_text("{")
    with pytest.raises(RunError, match=r"proxy\.json: damaged"):
        run(tiny, pictures, plain, out, resume=True)
    (out / "proxy.json").unlink()  # drawn again, the same
    with pytest.raises(EnoughError):
        run(tiny, pictures, plain, out, resume=True)
    assert (out / "proxy.json").read_text() == before
    plainly = json.loads(settings)
    del plainly["settings"]["proxy"]  # as a run that was started without one
    (out / "run.json").write_text(json.dumps(plainly))
    with pytest.raises(RunError, match="was started with proxy=null, not "):
        run(tiny, pictures, plain, out, resume=True)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"proxy_classes": 4}, DataError, "classes=4: npz:set.npz has training images of 3 classes"),
        ({"proxy_classes": 1}, DataError, "classes=1: a proxy needs at least 2"),
        ({"proxy_classes": 0}, DataError, "classes=0"),
        ({"proxy_classes": None, "proxy_samples": 180}, DataError, "samples=180: .* 179 training images"),
        ({"proxy_samples": 31}, DataError, "the proxy has 31 training images, .* batch_size=32 in one step"),
        ({"method": "uniform", "options": {}}, ConvwrightError, "method uniform has no trainings that only rank"),
        (
            {"method": "phased", "options": {}},
            ConvwrightError,
            "or use one of auto, channel-search, greedy, pareto, random, sc",
        ),
    ],
)
def test_what_cannot_be_is_named_before_anything_is_done(tiny, pictures, plain, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        run(tiny, pictures, plain, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_a_worker_judges_on_the_same_part(tiny, pictures, plain, tmp_path):
    opened = load_model_and_data(tiny, pictures)
    proxy = draw_proxy(opened.data, 2, 37, 5)
    narrow = Plan.empty(opened.arch).with_edits(Width("conv1", 5))
    found = []
    with Study(tmp_path / "run", {}) as study:
        initial = study.folder / "initial.safetensors"
        save_weights(opened.arch.model, initial)
        evaluator = Evaluator(opened.arch, opened.data, plain, study, progress=False, proxy=proxy)
        packed = Setup.of(evaluator, tiny, initial, 1).packed()
        for number, images in enumerate(("all", "proxy")):
            task = Task(number, Candidate(narrow, None, 1, 3, weights="fresh", images=images), {})
            (here,) = InProcess(evaluator, 1).carry_out([task])
            weights = study.weights(number).read_bytes()
            for file in study.trial_folder(number).iterdir():
                file.unlink()
            there = answered(packed, WorkerTask.of(task, study.trial_folder)).evidence(task)
            assert replace(there, seconds=0.0) == replace(here, seconds=0.0)
            assert study.weights(number).read_bytes() == weights
            found.append(weights)
        assert found[0] != found[1]
        with pytest.raises(RunError, match="this run has none"):
            Evaluator(opened.arch, opened.data, plain, study, progress=False)(2, task.candidate, {})


# ------------------------------------------------------------------ the wrapper


class Course(Method):
    """Yields given batches, and notes what it is told."""

    def __init__(self, *batches):
        self.batches, self.results, self.decisions = batches, [], ("one",)

    def ask(self):
        done = len(self.results)
        for batch in self.batches:
            if done < len(batch):
                return tuple(batch[done:])
            done -= len(batch)
        return ()

    def tell(self, evidence):
        self.results.append(evidence)

    def best(self):
        return self.results[-1] if self.results else None


def candidate(seed, role="candidate"):
    return Candidate(PLAN, None, 1, seed, role=role, weights="fresh")


def asked(method, most):
    """Answer at most so many of each batch at a time, as a run with little time does."""
    found = []
    while batch := method.ask():
        for each in batch[:most]:
            method.tell(Evidence(each, len(found), 0.5, 0.0, {}))
            found.append(each.images)
    return found


@pytest.mark.parametrize("most", [1, 2, 7])
def test_what_stands_beside_the_untouched_network_is_judged_on_all_data(most):
    course = Course(
        [candidate(0, "base")],
        [candidate(1), candidate(2), candidate(3)],
        [candidate(4, "baseline"), candidate(5), candidate(6)],
        [candidate(7)],
    )
    method = Proxied(course)
    assert asked(method, most) == ["all", *["proxy"] * 3, *["all"] * 3, "proxy"]
    assert [e.candidate for e in course.results] == [c for batch in course.batches for c in batch]  # it does not know
    assert method.best().candidate.images == "proxy"
    assert method.decisions == ("one",)


@pytest.mark.parametrize("weights", ["fresh", "inherit", "net2wider"])
@pytest.mark.parametrize("baseline", [True, False])
def test_a_search_that_ended_early_is_trained_on_all_data(weights, baseline):
    chain = [Candidate(PLAN, None, 3, 0, role="base")]
    chain += [Candidate(PLAN, 0, 3, 0, role="baseline")] * baseline
    parent = None if weights == "fresh" else 0
    chain.append(Candidate(PLAN, parent, 2, 7, weights=weights, images="proxy", recipe={"max_steps": 3}, short=True))
    found = [Evidence(c, n, 0.1, 0.0, {}) for n, c in enumerate(chain)]
    best = found[-1]
    last, *rest = whole_trainings(best, found, 11)
    assert (last.plan, last.epochs, last.images, last.short, last.recipe) == (PLAN, 11, "all", False, {})
    assert (last.parent, last.weights) == ((None, "fresh") if weights == "fresh" else (best.trial, "inherit"))
    assert len(rest) == 0 if baseline else rest[0].role == "baseline"
    if not baseline:  # as many epochs as the result has behind it
        assert rest[0].epochs == (11 if weights == "fresh" else 13)
        assert rest[0].images == "all"
    assert whole_trainings(replace(best, candidate=chain[0]), found, 11) == ()


def test_a_search_that_runs_out_of_time_ends_with_all_data(tiny, pictures, plain, tmp_path, seen, monkeypatch):
    from convwright.runs.time_budget import TimeBudget

    monkeypatch.setattr(TimeBudget, "fits", lambda self, found, batch: len(batch) if len(found) < 2 else 0)
    result = run(tiny, pictures, plain, tmp_path / "run", time="30m", tune_epochs=2)
    assert [count for _, count, _, _ in seen[-4:]] == [41, 41, 179, 179]
    assert [t.candidate.role for t in result.trials] == ["candidate"] * 3 + ["baseline"]
    assert result.best.trial == 2
    assert result.best.candidate.epochs == result.baseline.candidate.epochs == 2


def test_candidates_say_what_they_are_judged_on():
    plain = candidate(1)
    assert not {"images", "short"} & plain.to_dict().keys()  # as before there were proxies
    for marked in (replace(plain, images="proxy"), replace(plain, short=True)):
        assert Candidate.from_dict(json.loads(json.dumps(marked.to_dict()))) == marked
    with pytest.raises(RunError, match="images 'some'"):
        Candidate.from_dict(plain.to_dict() | {"images": "some"})


def test_nothing_asked_for_is_no_proxy():
    assert ProxyConfig.of(None, None, 3) is None
    assert ProxyConfig.of(0, None, 3) is not None  # refused when it is drawn, not overlooked
    assert np.isfinite(ProxyConfig.of(2, None, 3).seed)
