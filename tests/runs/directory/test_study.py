import json
import subprocess
import sys
from contextlib import suppress

import filelock
import pytest
import torch
from safetensors.torch import load_file

from convwright.edits import Plan
from convwright.errors import RunError
from convwright.methods import Candidate, Evidence, Method
from convwright.runs import Study, search
from convwright.runs.directory.files import load_weights, owned, save_weights, write_json

PLAN = Plan((), "zoo:x", (1, 3, 8, 8), 100, 1000)
SETTINGS = {"model": "zoo:x", "recipe": {"lr": 0.1}, "seed": 0}


class Counting(Method):
    """Asks for one base and then two batches of two."""

    def __init__(self):
        self.results = []

    def ask(self):
        for batch in ((0,), (1, 2), (3, 4)):
            if left := [n for n in batch if n >= len(self.results)]:
                return tuple(Candidate(PLAN, None, 1, n) for n in left)
        return ()

    def tell(self, evidence):
        self.results.append(evidence)

    def best(self):
        return max(self.results, key=lambda e: e.score)


class Worker:
    """Makes up evidence; interrupts itself at one trial."""

    def __init__(self, study, stop_at=None):
        self.study, self.stop_at, self.done = study, stop_at, []

    def __call__(self, number, candidate, parents):
        if number == self.stop_at:
            raise KeyboardInterrupt
        self.done.append(number)
        save_weights(torch.nn.Linear(1, 1), self.study.weights(number))
        return Evidence(candidate, number, candidate.seed / 10, 0.01, {"macs": 5})


def test_a_search_is_recorded_as_optuna_trials(tmp_path):
    import optuna

    with Study(tmp_path / "run", SETTINGS) as study:
        search(Counting(), study, Worker(study))
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'run' / 'run.db'}")
    trials = optuna.load_study(study_name="run", storage=storage).trials
    storage.engine.dispose()
    assert [t.value for t in trials] == [0, 0.1, 0.2, 0.3, 0.4]
    assert [t.user_attrs["candidate"]["seed"] for t in trials] == [0, 1, 2, 3, 4]
    assert all(t.user_attrs["evidence"]["costs"] == {"macs": 5} for t in trials)


@pytest.mark.parametrize("stop_at", range(5))
def test_an_interrupted_search_goes_on_where_it_stopped(tmp_path, stop_at):
    with Study(tmp_path / "run", SETTINGS) as study, pytest.raises(KeyboardInterrupt):
        search(Counting(), study, Worker(study, stop_at))
    with Study(tmp_path / "run", SETTINGS, resume=True) as study:
        worker = Worker(study)
        method = Counting()
        found = search(method, study, worker)
    assert worker.done == list(range(stop_at, 5))
    assert [e.score for e in found] == [0, 0.1, 0.2, 0.3, 0.4]
    assert method.results == list(found)


def test_failed_trials_are_recorded_and_not_repeated(tmp_path):
    def fail(number, candidate, parents):
        return Evidence(candidate, number, float("nan"), 0.0, {}, status="failed", message="broke")

    with Study(tmp_path / "run", SETTINGS) as study:
        search(Counting(), study, fail)
    with Study(tmp_path / "run", SETTINGS, resume=True) as study:
        worker = Worker(study)
        found = search(Counting(), study, worker)
    assert worker.done == []
    assert {e.message for e in found} == {"broke"}


def test_it_says_what_it_does_on_request(tmp_path):
    lines = []
    with Study(tmp_path / "run", SETTINGS) as study:
        search(Counting(), study, Worker(study), lines.append)
    assert lines[0] == "trial 0: 0 edits, 1 epoch"
    assert lines[1].startswith("trial 0: validation accuracy 0.00%")


# ------------------------------------------------------------------ one process at a time


def test_a_second_process_is_refused(tmp_path):
    with Study(tmp_path / "run", SETTINGS):
        script = (
            "from pathlib import Path\nfrom convwright.runs import Study\nfrom convwright.errors import RunError\n"
            f"try: Study(Path({str(tmp_path / 'run')!r}), {SETTINGS!r}, resume=True)\n"
            "except RunError as error: print(error)"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "another process is working in this run directory" in done.stdout
    Study(tmp_path / "run", SETTINGS, resume=True).__exit__(None, None, None)


def test_a_study_lets_go_of_the_directory_when_it_cannot_open(tmp_path):
    with Study(tmp_path / "run", SETTINGS):
        pass
    with pytest.raises(RunError):
        Study(tmp_path / "run", {**SETTINGS, "seed": 1}, resume=True)
    with filelock.FileLock(tmp_path / "run" / ".lock", timeout=0):
        pass


@pytest.mark.parametrize("leave", [None, RunError("no"), KeyboardInterrupt()])
def test_an_owned_folder_is_free_again_however_it_was_left(tmp_path, leave):
    folder = tmp_path / "deep" / "run"
    with suppress(RunError, KeyboardInterrupt), owned(folder):
        with (
            pytest.raises(RunError, match="another process is working in this run directory; wait for it"),
            owned(folder),
        ):
            pass
        if leave is not None:
            raise leave
    with owned(folder):
        pass


@pytest.mark.parametrize(
    ("path", "said"),
    [("file", "is a file; give a folder"), ("file/run", "cannot be made"), ("locked", "cannot be written")],
)
def test_a_folder_that_cannot_be_owned_is_named(tmp_path, path, said):
    (tmp_path / "file").touch()
    (tmp_path / "locked" / ".lock").mkdir(parents=True)
    with pytest.raises(RunError, match=f"{path}: {said}.*with --out"), owned(tmp_path / path):
        pass
    with pytest.raises(RunError, match=f"{path}: {said}.*with --out"):
        Study(tmp_path / path, SETTINGS)


# ------------------------------------------------------------------ what does not fit


def test_other_settings_are_named(tmp_path):
    with Study(tmp_path / "run", SETTINGS):
        pass
    other = {"model": "zoo:y", "recipe": {"lr": 0.2}, "seed": 0}
    with pytest.raises(RunError, match=r"started with model=zoo:x, not zoo:y; recipe\.lr=0\.1, not 0\.2; give the"):
        Study(tmp_path / "run", other, resume=True)


def test_a_directory_with_anything_in_it_needs_resume(tmp_path):
    with Study(tmp_path / "run", SETTINGS):
        pass
    with pytest.raises(RunError, match="already exists; continue it with --resume, or"):
        Study(tmp_path / "run", SETTINGS)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(RunError, match="not empty: choose another folder"):
        Study(tmp_path / "full", SETTINGS)
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_an_empty_directory_is_taken(tmp_path):
    (tmp_path / "run").mkdir()
    with Study(tmp_path / "run", SETTINGS):
        pass


def test_nothing_to_resume(tmp_path):
    with pytest.raises(RunError, match="no run to resume"):
        Study(tmp_path / "run", SETTINGS, resume=True)
    assert not (tmp_path / "run").exists()


def test_a_file_is_no_run_directory(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(RunError, match="is a file"):
        Study(tmp_path / "run", SETTINGS)


def test_what_fails_to_settle_leaves_nothing_behind(tmp_path):
    def resolve():
        raise RunError("no")

    with pytest.raises(RunError, match="no"):
        Study(tmp_path / "run", SETTINGS, resolve)
    assert not (tmp_path / "run").exists()


def test_what_was_settled_is_kept(tmp_path):
    with Study(tmp_path / "run", SETTINGS, lambda: {"precision": "bf16"}) as study:
        assert study.settled == {"precision": "bf16"}
    with Study(tmp_path / "run", SETTINGS, lambda: {"precision": "fp32"}, resume=True) as study:
        assert study.settled == {"precision": "bf16"}


# ------------------------------------------------------------------ damage


@pytest.fixture
def finished(tmp_path):
    with Study(tmp_path / "run", SETTINGS) as study:
        search(Counting(), study, Worker(study))
    return tmp_path / "run"


def resumed(folder):
    with Study(folder, SETTINGS, resume=True) as study:
        return search(Counting(), study, Worker(study))


def judged_by(folder, version):
    """Let a run look as if another version had judged its networks; None: one that recorded none."""
    content = json.loads((folder / "run.json").read_text())
    assert content.pop("judgement") == 2
    write_json(folder / "run.json", content if version is None else {**content, "judgement": version})


def test_a_run_of_the_same_judgement_goes_on(finished):
    judged_by(finished, 2)
    assert len(resumed(finished)) == 5


@pytest.mark.parametrize(("version", "said_version"), [(7, 7), (1, 1), (None, 1)])
def test_a_run_of_another_judgement_does_not_go_on(finished, version, said_version):
    judged_by(finished, version)
    with pytest.raises(RunError) as refused:
        resumed(finished)
    said = str(refused.value)
    assert "\n" not in said
    assert f"version {said_version} of the judgement, and this convwright has version 2" in said
    assert "start anew in another folder, or continue with the version of convwright that began it" in said


def test_a_finished_run_of_another_judgement_is_read_but_takes_no_other_course(finished):
    judged_by(finished, 7)
    write_json(finished / "result.json", {})
    assert len(resumed(finished)) == 5
    with pytest.raises(RunError, match="version 7 of the judgement"):
        Study(finished, {**SETTINGS, "budget": ["macs<=40%"]}, resume=True)
    assert (finished / "result.json").is_file()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "other"}', '{"format": "convwright run"}', "\x00\x01"])
def test_a_damaged_run_json(finished, text):
    (finished / "run.json").write_text(text)
    with pytest.raises(RunError, match=r"run\.json: damaged"):
        resumed(finished)


def test_a_damaged_database(finished):
    (finished / "run.db").write_bytes(b"no database at all" * 1000)
    with pytest.raises(RunError, match=r"run\.db: damaged"):
        resumed(finished)


def test_a_missing_database(finished):
    (finished / "run.db").unlink()
    with pytest.raises(RunError, match=r"run\.db: missing"):
        resumed(finished)


def test_missing_weights(finished):
    (finished / "trials" / "0002" / "model.safetensors").unlink()
    with pytest.raises(RunError, match="damaged, the weights of trial 2 are missing"):
        resumed(finished)


def test_a_trial_of_another_candidate(finished):
    class Other(Counting):
        def ask(self):
            return tuple(Candidate(PLAN, None, 9, c.seed) for c in super().ask())

    with (
        pytest.raises(RunError, match="trial 0 is another candidate than the method now asks for"),
        Study(finished, SETTINGS, resume=True) as study,
    ):
        search(Other(), study, Worker(study))


def test_killed_before_anything_was_recorded(tmp_path):
    """Only the lock is there, or run.json without a database, or a trial without its candidate."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".lock").touch()
    with Study(folder, SETTINGS) as study:
        study.study.ask()
        assert [e.trial for e in search(Counting(), study, Worker(study))] == [0, 1, 2, 3, 4]
    bare = tmp_path / "bare"
    with Study(bare, SETTINGS):
        pass
    (bare / "run.db").unlink()
    assert len(resumed(bare)) == 5


# ------------------------------------------------------------------ files


def test_weights_come_back(tmp_path):
    model, other = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    save_weights(model, tmp_path / "deep" / "m.safetensors")
    load_weights(other, tmp_path / "deep" / "m.safetensors")
    assert torch.equal(other.weight, model.weight)
    assert set(load_file(tmp_path / "deep" / "m.safetensors")) == {"weight", "bias"}
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["m.safetensors"]


def test_wrong_weights_are_named(tmp_path):
    save_weights(torch.nn.Linear(2, 3), tmp_path / "m.safetensors")
    with pytest.raises(RunError, match=r"m\.safetensors: these weights do not fit .*size mismatch"):
        load_weights(torch.nn.Linear(2, 4), tmp_path / "m.safetensors")
    several = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(4)))
    with pytest.raises(
        RunError, match=r'Missing key.*"0\.bias", "0\.weight", "1\.bias" and 5 more; Unexpected.*"bias", "weight"\)'
    ):
        load_weights(several, tmp_path / "m.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    with pytest.raises(RunError, match="damaged"):
        load_weights(torch.nn.Linear(2, 3), tmp_path / "bad.safetensors")
    with pytest.raises(RunError, match="no such file"):
        load_weights(torch.nn.Linear(2, 3), tmp_path / "none.pt")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    (tmp_path / "closed").touch()
    with pytest.raises(RunError, match="cannot be written"):
        write_json(tmp_path / "closed" / "x.json", {})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["closed", "x.json"]


def test_a_database_that_does_not_answer_leaves_no_run(tmp_path):
    with pytest.raises(RunError):
        Study(tmp_path / "run", {}, storage="sqlite:////no/where/x.db")
    assert not (tmp_path / "run" / "run.json").exists()
    Study(tmp_path / "run", {}, storage=f"sqlite:///{tmp_path}/x.db").__exit__(None, None, None)
