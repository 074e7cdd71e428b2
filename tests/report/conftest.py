import importlib.util
import os
import sys
from pathlib import Path

import pytest

_FILE = Path(__file__).parents[2] / "benchmarks" / "report.py"


@pytest.fixture(scope="session")
def bench():
    """The benchmark, whose made-up runs and browser the tests use, too."""
    spec = importlib.util.spec_from_file_location("benchmark_of_reports", _FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def finished(bench, tmp_path_factory):
    """The folder of a made-up run of 13 trials; nobody may change it."""
    return bench.make_run(tmp_path_factory.mktemp("runs") / "finished", 13)


@pytest.fixture(scope="session")
def unfinished(bench, tmp_path_factory):
    """The folder of one whose seventh trial is not finished; nobody may change it."""
    return bench.make_run(tmp_path_factory.mktemp("runs") / "unfinished", 7, finished=False)


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    """No test may find data sets of the machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
