"""Run directories and plans that earlier versions wrote resume and replay; `tests/assets/runs` holds two of them."""

import json
import shutil
from pathlib import Path

import pytest

import convwright as cw
from convwright.errors import RunError

ASSETS = Path(__file__).parents[2] / "assets" / "runs"


@pytest.fixture
def recorded(tmp_path, lines):
    """Return a function that copies a recorded run to where it may be resumed, beside its data."""
    shutil.copy(lines, "lines.npz")
    return lambda name: Path(shutil.copytree(ASSETS / name, tmp_path / name))


def resumed(folder, method):
    return cw.optimize(
        "zoo:mnist-b", "npz:lines.npz", "macs<=60%", method, folder, recipe=ASSETS / "fp32.yaml", epochs=1,
        tune_epochs=1, progress=False, resume=True, placement=cw.runs.executors.Placement(threads=1),
    )  # fmt: skip


def test_a_finished_run_is_read_not_repeated(recorded):
    folder = recorded("finished")
    before = (folder / "result.json").read_bytes()
    result = resumed(folder, "uniform")
    assert result.data["result"]["costs"]["macs"] == 142_278
    assert (folder / "result.json").read_bytes() == before


def test_an_interrupted_run_that_was_judged_otherwise_is_refused_and_left_alone(recorded):
    folder = recorded("interrupted")
    before = {path: path.read_bytes() for path in folder.rglob("*.json")}
    with pytest.raises(RunError) as refused:
        resumed(folder, "phased")
    said = str(refused.value)
    assert "\n" not in said
    assert "version 1 of the judgement, and this convwright has version 2" in said
    assert "start anew in another folder" in said
    assert {path: path.read_bytes() for path in folder.rglob("*.json")} == before


def test_an_interrupted_run_goes_on_where_it_ended(recorded, monkeypatch):
    monkeypatch.setattr("convwright.runs.directory.study.JUDGEMENT", 1)  # its candidates and weights are still read
    folder = recorded("interrupted")
    result = resumed(folder, "phased")
    trials = result.data["trials"]
    assert len(trials) == 14
    assert result.data["result"]["costs"]["macs"] <= 142_900
    then = json.loads((ASSETS / "interrupted" / "trials" / "0003" / "history.json").read_text())
    assert json.loads((folder / "trials" / "0003" / "history.json").read_text()) == then


def test_a_recorded_plan_replays():
    plan = cw.Plan.load(ASSETS / "finished" / "plan.json")
    arch = cw.apply(plan, "zoo:mnist-b", num_classes=10, in_channels=1)
    assert arch.profile().macs == 142_278
    recorded = json.loads((ASSETS / "finished" / "result.json").read_text())
    assert arch.profile().params == recorded["result"]["costs"]["params"]
