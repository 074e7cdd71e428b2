"""A report runs no code that a run directory names."""

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from convwright.errors import RunError
from convwright.report import report_of

ASSETS = Path(__file__).parents[1] / "assets" / "runs"
CODE = """
from pathlib import Path
Path("ran").touch()
from convwright import zoo


def Net(num_classes=10, in_channels=1):
    return zoo.create("mnist-b", num_classes=num_classes, in_channels=in_channels)
"""


@pytest.fixture
def foreign():
    """An unfinished run of a network in a file that leaves a mark where it runs."""
    Path("net.py").write_text(CODE)
    folder = Path(shutil.copytree(ASSETS / "interrupted", "run"))
    text = (folder / "run.json").read_text()
    (folder / "run.json").write_text(text.replace('"zoo:mnist-b"', '"net.py:Net"'))
    with contextlib.closing(sqlite3.connect(folder / "run.db")) as base:
        base.execute("UPDATE trial_user_attributes SET value_json = replace(value_json, 'zoo:mnist-b', 'net.py:Net')")
        base.commit()
    return folder


def test_a_report_does_not_run_the_file_that_a_run_names(foreign):
    found = report_of(foreign)
    assert not Path("ran").exists()
    assert found.networks is None
    assert "give the original network with --model" in found.missing["networks"]


def test_it_does_where_the_user_names_the_file(foreign):
    assert report_of(foreign, model="net.py:Net").networks is not None
    assert Path("ran").exists()


@pytest.mark.parametrize("name", ["net.py:Net", "timm:hf-hub:somebody/something", "zoo:../net.py:Net"])
def test_neither_does_the_report_of_a_training(name):
    Path("net.py").write_text(CODE)
    Path("run").mkdir()
    content = {"format": "convwright training", "version": 1, "model": name, "data": "x", "recipe": {}, "history": []}
    Path("run/training.json").write_text(json.dumps({**content, "macs": 1, "params": 1}))
    assert "--model" in report_of("run").missing["networks"]
    assert not Path("ran").exists()


def test_a_storage_for_a_run_with_its_own_file_is_refused(foreign):
    with pytest.raises(RunError, match="leave --storage out"):
        report_of(foreign, storage="sqlite:///other.db")
