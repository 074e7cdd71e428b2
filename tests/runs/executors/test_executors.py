"""Who works on a candidate, where and when, must not change what is found out."""

import importlib.util
import json
import os
import signal
import socket
import sys
import time
from dataclasses import replace

import pytest
import torch

from convwright.edits import Plan, Width
from convwright.errors import ConvwrightError, RunError
from convwright.methods import Candidate, Evidence
from convwright.runs import Evaluator, Study, memory, optimize
from convwright.runs.directory.files import save_weights
from convwright.runs.executors import Executor, InProcess, Placement, Task, lost, threads_of
from convwright.runs.executors.ray import OnRay
from convwright.runs.executors.worker import Processes, Setup, WorkerResult, WorkerTask, answered
from convwright.runs.load import load_model_and_data
from convwright.runs.loop import carried_out
from convwright.training.checkpoint import FILE as CHECKPOINT

PLAN = Plan((), "zoo:x", (1, 3, 8, 8), 100, 1000)
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@pytest.fixture
def bench(tiny, pictures, plain, tmp_path):
    """A study with an evaluator, and the setup that a worker gets."""
    opened = load_model_and_data(tiny, pictures)
    with Study(tmp_path / "run", {"model": tiny}) as study:
        initial = study.folder / "initial.safetensors"
        save_weights(opened.arch.model, initial)
        evaluator = Evaluator(opened.arch, opened.data, plain, study, progress=False)
        yield study, evaluator, Setup.of(evaluator, tiny, initial, 1)


def batches(arch):
    """A base, and two that inherit from it."""
    empty = Plan.empty(arch)
    narrow = empty.with_edits(Width("conv1", 5))
    return [
        (Candidate(empty, None, 1, 3, role="base"),),
        (Candidate(empty, 0, 1, 4, role="baseline"), Candidate(narrow, 0, 1, 4)),
    ]


def facts(found):
    return [{k: v for k, v in e.to_dict().items() if k != "seconds"} for e in found]


def done_by(executor, study, arch):
    asked, found = {}, []
    for batch in batches(arch):
        found += carried_out(batch, asked, study, executor, lambda text: None)
    weights = [study.weights(e.trial).read_bytes() for e in found]
    return facts(found), weights


# ------------------------------------------------------------------ the same from anywhere


def test_a_worker_finds_out_what_this_process_does(bench):
    study, evaluator, setup = bench
    here = done_by(InProcess(evaluator, 1), study, evaluator.arch)
    packed = setup.packed()
    asked = dict(enumerate(c for batch in batches(evaluator.arch) for c in batch))
    for number, candidate in asked.items():
        for file in study.trial_folder(number).iterdir():
            file.unlink()
        errand = WorkerTask.of(Task(number, candidate, asked), study.trial_folder)
        again = answered(packed, errand).evidence(Task(number, candidate, asked))
        assert facts([again]) == [here[0][number]]
        assert study.weights(number).read_bytes() == here[1][number]


def test_evidence_is_told_in_the_batch_s_order(tmp_path):
    class Backwards:
        def carry_out(self, tasks):
            for task in reversed(list(tasks)):
                save_weights(torch.nn.Linear(1, 1), study.weights(task.number))
                yield Evidence(task.candidate, task.number, task.number / 10, 0.0, {})

        def close(self):
            pass

    assert isinstance(Backwards(), Executor)
    with Study(tmp_path / "run", {}) as study:
        found = carried_out([Candidate(PLAN, None, 1, n) for n in range(5)], {}, study, Backwards(), str)
    assert [e.trial for e in found] == [0, 1, 2, 3, 4]
    assert [e.candidate.seed for e in found] == [0, 1, 2, 3, 4]


def test_threads_are_set_inside_and_back_outside():
    before = torch.get_num_threads()
    with threads_of(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_what_cannot_be_sent_is_named(bench):
    _, evaluator, setup = bench

    class Local(torch.nn.Module):
        pass

    with pytest.raises(RunError, match=r"the network \(give it as FILE\.py:CLASS\) cannot be sent"):
        replace(setup, model=Local()).packed()
    with pytest.raises(RunError, match=r"the data \(give them by name\) cannot be sent.*without --jobs"):
        replace(setup, data=replace(evaluator.data, read_test=lambda: None)).packed()


def test_what_a_worker_meets_is_told():
    task = Task(3, Candidate(PLAN, None, 1, 0), {})
    with pytest.raises(RunError, match="disk"):
        WorkerResult("refused", RunError("disk")).evidence(task)
    with pytest.raises(RuntimeError, match=r"(?s)trial 3: its worker broke.*line 7"):
        WorkerResult("broken", "line 7").evidence(task)
    assert answered(b"no setup", WorkerTask.of(task, lambda n: None or __import__("pathlib").Path())).kind == "broken"
    assert not lost(task, "x").usable


@pytest.mark.parametrize(
    "wrong",
    [
        Placement(jobs=0),
        Placement(threads=0),
        Placement(gpus=1),
        Placement(cpus=2),
        Placement(jobs=2, ray="local"),
        Placement(ray="local", cpus=0),
    ],
)
def test_impossible_placements(wrong):
    with pytest.raises(ConvwrightError):
        wrong.check()


def test_a_run_keeps_its_threads(tmp_path):
    assert Placement(jobs=2, threads=3).settled() == 3
    assert Placement(ray="local").settled() == 1
    assert Placement().threads_in({"threads": 7}, tmp_path) == 7
    assert Placement(threads=2).threads_in({}, tmp_path) == 2
    with pytest.raises(RunError, match="started with threads=7, not 2"):
        Placement(threads=2).threads_in({"threads": 7}, tmp_path)


# ------------------------------------------------------------------ processes


def slow_answer(packed, errand):
    """Stands for training: kills itself as often as the file says, then answers."""
    folder = errand.trial_folder(errand.number)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
    left = folder / "kills"
    count = int(left.read_text()) if left.exists() else 0
    if count:
        left.write_text(str(count - 1))
        os.kill(os.getpid(), signal.SIGKILL)
    save_weights(torch.nn.Linear(1, 1), errand.weights(errand.number))
    candidate = errand.candidate
    return WorkerResult("found", Evidence(candidate, errand.number, 0.5, 0.0, {}).to_dict())


class Kept:
    def packed(self, dumps=None):
        return b""


@pytest.fixture
def forked(monkeypatch):
    """Processes that are forked, so that they start at once, and that do not train."""
    import multiprocessing

    import convwright.runs.executors.worker as module

    monkeypatch.setattr(module, "answered", slow_answer)
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: multiprocessing.context.ForkContext())
    # A fork holds copies of this process's ends of the pipes: it never hears that they are closed, and is killed.
    monkeypatch.setattr("convwright.runs.executors.pool._ENOUGH", 0.1)


@pytest.mark.few(1)
@pytest.mark.parametrize(("kills", "usable"), [(1, True), (0, True), (5, False), (4, True)])
def test_a_killed_worker_is_replaced_a_bounded_number_of_times(forked, tmp_path, kills, usable):
    said = []
    with Study(tmp_path / "run", {}) as study:
        study.trial_folder(1).mkdir(parents=True)
        (study.trial_folder(1) / "kills").write_text(str(kills))
        executor = Processes(2, Kept(), study, said.append)
        try:
            found = carried_out([Candidate(PLAN, None, 1, n) for n in range(5)], {}, study, executor, str)
        finally:
            executor.close()
    assert [e.usable for e in found] == [True, usable, True, True, True]
    assert len(said) == min(kills, 4)
    assert all("trial 1: its process ended by signal 9; begun again" in line for line in said)
    assert usable or "lost 5 times" in found[1].message


@pytest.mark.breadth
def test_a_process_that_takes_the_place_of_another_takes_its_gpu(forked, monkeypatch, tmp_path):
    import convwright.runs.executors.pool as module

    monkeypatch.setattr(module, "gpus", lambda: ("5", "2"))
    with Study(tmp_path / "run", {}) as study:
        for number in (0, 1):
            study.trial_folder(number).mkdir(parents=True)
            (study.trial_folder(number) / "kills").write_text("3")
        executor = Processes(2, Kept(), study)
        try:
            carried_out([Candidate(PLAN, None, 1, n) for n in range(7)], {}, study, executor, str)
            assert sorted(worker.number for worker in executor.pool.workers) == [0, 1]
        finally:
            executor.close()
        assert {(study.trial_folder(n) / "gpu").read_text() for n in range(7)} <= {"5", "2"}


# ------------------------------------------------------------------ Ray


class BusyRay:
    """A cluster that answers at the third time of asking."""

    def __init__(self, free):
        self.free, self.asked = free, 0

    def wait(self, sent, num_returns, timeout):
        self.asked += 1
        return (sent[:1], sent[1:]) if self.asked > 2 else ([], sent)

    def available_resources(self):
        return {"CPU": self.free} if self.free else {}

    def cluster_resources(self):
        return {"CPU": 3.0}


@pytest.mark.parametrize(("free", "lines"), [(3.0, 2), (2.0, 0), (0.0, 0)])
def test_workers_that_do_not_start_are_told_of(monkeypatch, free, lines):
    said = []
    executor = object.__new__(OnRay)  # without a cluster
    executor.ray, executor.say = BusyRay(free), said.append
    monkeypatch.setattr(OnRay, "_sent", lambda self, task: task)
    monkeypatch.setattr(OnRay, "_evidence", lambda self, ready, task: task)
    assert list(executor.carry_out([5, 7])) == [5, 7]
    assert len(said) == lines
    assert all("begun none of 2 candidates" in line for line in said)


def test_without_ray_its_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RunError, match=r"Ray is not installed; pip install 'convwright\[ray\]'"):
        OnRay("local", Kept(), None, tmp_path / "run.json")


@needs_ray
@pytest.mark.parametrize("address", ["nonsense", "ray://", "host:"])
def test_an_address_that_is_none(address, tmp_path):
    with pytest.raises(RunError, match=f"--ray {address}: not an address"):
        OnRay(address, Kept(), None, tmp_path / "run.json")


@needs_ray
def test_a_cluster_that_does_not_answer(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(RunError, match=rf"--ray {address}: nobody answers there .*ray start --head"):
        OnRay(address, Kept(), None, tmp_path / "run.json")


# ------------------------------------------------------------------ memory


def short(monkeypatch, limit, error):
    """Let every training with fewer than `limit` parts run out of memory."""
    import convwright.runs.evaluate as module

    honest, tried = module.train, []

    def train(model, data, recipe, **options):
        tried.append(recipe.accumulate)
        if recipe.accumulate < limit:
            options["out"].mkdir(parents=True, exist_ok=True)
            (options["out"] / CHECKPOINT).touch()  # as the first epochs may have left it
            raise error
        return honest(model, data, recipe, **options)

    monkeypatch.setattr(module, "train", train)
    return tried


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes"),
    MemoryError(),
]


@pytest.mark.few(3)
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    ("limit", "tried", "usable"),
    [(4, [1, 2, 4], True), pytest.param(16, [1, 2, 4, 8], False, marks=pytest.mark.breadth)],
)
def test_short_memory_makes_the_parts_smaller(bench, monkeypatch, error, limit, tried, usable):
    study, evaluator, _ = bench
    seen = short(monkeypatch, limit, error)
    (base,) = batches(evaluator.arch)[0]
    (found,) = carried_out((base,), {}, study, InProcess(evaluator, 1), str)
    assert seen == tried
    assert found.usable is usable
    assert ("4 parts" in found.message) if usable else ("out of memory" in found.message)
    assert found.probes.get(memory.PROBE) == (4 if usable else None)


def test_a_killed_try_goes_on_with_its_parts(bench, monkeypatch):
    study, evaluator, _ = bench
    seen = short(monkeypatch, 2, ERRORS[0])
    folder = study.trial_folder(0)
    memory.smaller(folder, evaluator.recipe, 1, ERRORS[0])
    (found,) = carried_out((batches(evaluator.arch)[0][0],), {}, study, InProcess(evaluator, 1), str)
    assert (seen, found.probes[memory.PROBE]) == ([2], 2)


def test_other_errors_are_not_taken_for_short_memory(bench, monkeypatch):
    study, evaluator, _ = bench
    short(monkeypatch, 2, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes"):
        carried_out((batches(evaluator.arch)[0][0],), {}, study, InProcess(evaluator, 1), str)


def test_a_damaged_checkpoint_costs_only_time(bench):
    study, evaluator, _ = bench
    whole = done_by(InProcess(evaluator, 1), study, evaluator.arch)
    for number in range(3):
        for file in study.trial_folder(number).iterdir():
            file.unlink()
        (study.trial_folder(number) / CHECKPOINT).write_bytes(b"PK\x03\x04 half a file")
        asked = dict(enumerate(c for batch in batches(evaluator.arch) for c in batch))
        again = evaluator(number, asked[number], asked)
        assert facts([again]) == [whole[0][number]]


# ------------------------------------------------------------------ whole runs (each worker loads torch: slow)


def result_of(folder):
    data = json.loads((folder / "result.json").read_text())
    trials = [{k: v for k, v in t.items() if k != "seconds"} for t in data["trials"]]
    return {k: v for k, v in data.items() if k not in ("seconds", "command", "trials")} | {"trials": trials}


@pytest.mark.parametrize(("placement", "kind"), [(Placement(), InProcess), (Placement(isolated=True), Processes)])
def test_a_candidate_may_be_kept_apart_from_the_run(bench, placement, kind):
    study, evaluator, setup = bench
    made = placement.executor(evaluator, setup.model, study.folder, study.folder / "initial.safetensors", 1, print)
    assert isinstance(made, kind)
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "placement",
    [Placement(2, 1), Placement(1, 1, isolated=True), pytest.param(Placement(1, 1, "local"), marks=needs_ray)],
)
def test_the_same_result_in_one_process_and_side_by_side(tiny, plain, tmp_path, placement):
    recipe = plain.updated(max_steps=8)
    options = {"recipe": recipe, "tune_epochs": 1, "progress": False, "method": "uniform"}
    optimize(tiny, "fashion-mini", "macs<=50%", out=tmp_path / "one", placement=Placement(1, 1), **options)
    optimize(tiny, "fashion-mini", "macs<=50%", out=tmp_path / "side", placement=placement, **options)
    assert result_of(tmp_path / "one") == result_of(tmp_path / "side")
    for name in ("plan.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "side" / name).read_bytes()


@pytest.mark.slow
@needs_ray
@pytest.mark.parametrize("seen", [True, False])
def test_on_ray_with_and_without_a_shared_directory(bench, seen):
    study, evaluator, setup = bench
    here = done_by(InProcess(evaluator, 1), study, evaluator.arch)
    mark = study.folder / ("run.json" if seen else "no file")
    with Study(study.folder.parent / "other", {}) as other:
        executor = OnRay("local", setup, other, mark if not seen else other.folder / "run.json", 1, 0)
        try:
            there = done_by(executor, other, evaluator.arch)
        finally:
            executor.close()
    assert there == here


@pytest.mark.slow
@needs_ray
def test_resources_that_no_machine_has(bench):
    study, _, setup = bench
    began = time.monotonic()
    with pytest.raises(RunError, match=r"--gpus-per-trial 64: no machine of the Ray cluster has more than"):
        OnRay("local", setup, study, study.folder / "run.json", 1, 64)
    assert time.monotonic() - began < 300
