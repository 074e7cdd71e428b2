"""Where trials are recorded: by URL, one driver at a time, and what is said when it does not work."""

import os
import sqlite3
import uuid

import pytest
import torch

from convwright.edits import Plan
from convwright.errors import RunError
from convwright.methods import Candidate, Evidence, Method
from convwright.runs import Study, search
from convwright.runs.directory.files import save_weights
from convwright.runs.directory.storage import Storage, check_url

PLAN = Plan((), "zoo:x", (1, 3, 8, 8), 100, 1000)
# Such as postgresql://user@localhost:5432/test: then every test runs with that server, too.
SERVER = os.environ.get("CONVWRIGHT_TEST_POSTGRESQL")


class Counting(Method):
    """Asks for `count` candidates, one after the other."""

    def __init__(self, count=3):
        self.count, self.results = count, []

    def ask(self):
        return (Candidate(PLAN, None, 1, len(self.results)),) if len(self.results) < self.count else ()

    def tell(self, evidence):
        self.results.append(evidence)

    def best(self):
        return self.results[-1]


def worker(study, done, stop_at=None):
    def evaluate(number, candidate, parents):
        if number == stop_at:
            raise KeyboardInterrupt
        done.append(number)
        save_weights(torch.nn.Linear(1, 1), study.weights(number))
        return Evidence(candidate, number, candidate.seed / 10, 0.0, {})

    return evaluate


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'all runs.db'}"
    if SERVER is None:
        pytest.skip("no PostgreSQL server is given")
    return SERVER


def test_runs_in_one_database_go_on_each_by_itself(url, tmp_path):
    done = {name: [] for name in "ab"}
    for name, found in done.items():
        with Study(tmp_path / name, {"name": name}, storage=url) as study, pytest.raises(KeyboardInterrupt):
            search(Counting(), study, worker(study, found, stop_at=1))
        assert not (tmp_path / name / "run.db").exists()
    for name, found in done.items():
        with Study(tmp_path / name, {"name": name}, resume=True, storage=url) as study:
            trials = search(Counting(), study, worker(study, found))
        assert [e.score for e in trials] == [0.0, 0.1, 0.2]
    assert done == {"a": [0, 1, 2], "b": [0, 1, 2]}


def test_a_second_driver_of_one_study_is_refused(url):
    name = f"test-{uuid.uuid4().hex}"
    one = Storage(url, name, "here", "start anew", shared=True)
    other = Storage(url, f"{name}-other", "here", "start anew", shared=True)
    with pytest.raises(RunError, match=f"here: another process is working at study '{name}'; wait for it"):
        Storage(url, name, "here", "start anew", shared=True)
    one.check()
    one.close()
    Storage(url, name, "here", "start anew", shared=True).close()
    other.close()


@pytest.mark.skipif(SERVER is None, reason="no PostgreSQL server is given")
def test_a_lost_lock_is_noticed():
    from sqlalchemy import text

    one = Storage(SERVER, f"test-{uuid.uuid4().hex}", "here", "start anew", shared=True)
    with one.storage.engine.connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"))
    with pytest.raises(RunError, match="here: the connection that kept other processes out was lost"):
        one.check()
    one.close()


# ------------------------------------------------------------------ what does not fit


def test_the_storage_of_a_run_stays_the_same(url, tmp_path):
    with Study(tmp_path / "here", {}), Study(tmp_path / "there", {}, storage=url) as study:
        search(Counting(1), study, worker(study, []))
    with pytest.raises(RunError, match=r"the trials of this run are in .*run\.db; leave --storage out"):
        Study(tmp_path / "here", {}, resume=True, storage=url)
    with pytest.raises(RunError, match=r"the trials of this run are in .*; give it with --storage"):
        Study(tmp_path / "there", {}, resume=True)
    with pytest.raises(RunError, match=r"has no trials of study 'convwright-.*'; give the --storage of this run"):
        Study(tmp_path / "there", {}, resume=True, storage=f"sqlite:///{tmp_path / 'another.db'}")
    Study(tmp_path / "there", {}, resume=True, storage=url).__exit__(None, None, None)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [("runs.db", "not the URL of a database"), ("oracle://x/y", "oracle is not known; give")],
)
def test_what_is_no_database(wrong, said, tmp_path):
    with pytest.raises(RunError, match=said):
        Study(tmp_path / "run", {}, storage=wrong)
    assert not (tmp_path / "run").exists()


def test_no_password_is_recorded(tmp_path):
    assert check_url("postgresql://me:secret@host:5432/runs") == "postgresql://me@host:5432/runs"


def test_a_server_that_does_not_answer(tmp_path):
    pytest.importorskip("psycopg")
    with pytest.raises(RunError, match=r"postgresql://me@127\.0\.0\.1:1/x: the database cannot be reached"):
        Study(tmp_path / "run", {}, storage="postgresql://me:secret@127.0.0.1:1/x")


def test_a_missing_driver_names_the_extra(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(RunError, match=r"pip install 'convwright\[postgresql\]'"):
        Study(tmp_path / "run", {}, storage="postgresql://me@127.0.0.1:1/x")


def test_another_version_s_storage_is_named(tmp_path):
    with Study(tmp_path / "run", {}):
        pass
    with sqlite3.connect(tmp_path / "run" / "run.db") as base:
        base.execute("UPDATE alembic_version SET version_num = 'v2.6.0.a'")
    base.close()
    with pytest.raises(RunError, match=r"run\.db: written by another version of Optuna .*optuna storage upgrade"):
        Study(tmp_path / "run", {}, resume=True)


def test_a_locked_database_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("convwright.runs.directory.storage._WRITE_WAIT", 0.05)
    with Study(tmp_path / "run", {}) as study:
        other = sqlite3.connect(tmp_path / "run" / "run.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(RunError, match=r"run\.db: locked by another process .*continue with --resume"):
            search(Counting(), study, worker(study, []))
        other.close()
        done = []
        assert len(search(Counting(), study, worker(study, done))) == 3
    assert done == [0, 1, 2]


def test_a_full_disk_is_named_and_nothing_is_lost(tmp_path):
    done = []
    with Study(tmp_path / "run", {}) as study:

        def limited(number, candidate, parents):
            found = worker(study, done)(number, candidate, parents)
            if number != 1:
                return found
            connect = study.storage.engine.connect
            with connect() as one, connect() as other:  # the pool's two; SQLite then says what it says on a full disk
                one.exec_driver_sql("PRAGMA max_page_count = 1")
                other.exec_driver_sql("PRAGMA max_page_count = 1")
            return Evidence(candidate, number, 0.1, 0.0, {}, probes={"x": [0.5] * 50_000})

        with pytest.raises(RunError, match=r"cannot be written .*full.*--resume"):
            search(Counting(), study, limited)
    with Study(tmp_path / "run", {}, resume=True) as study:
        found = search(Counting(), study, worker(study, done))
    assert [e.score for e in found] == [0.0, 0.1, 0.2]
    assert done == [0, 1, 1, 2]
