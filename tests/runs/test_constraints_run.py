"""A run with constraints and a divisor: they are obeyed, recorded, and compared when it is resumed."""

import json

import pytest

from convwright.errors import ConvwrightError, EditError, RunError
from convwright.runs import optimize
from convwright.runs.directory.files import read_json
from convwright.runs.directory.study import FORMAT

KEPT = {"keep": "conv1", "divisor": {"conv2": 3}}


@pytest.fixture
def go(tiny, pictures, plain):
    def run(out, **changes):
        usual = {"model": tiny, "data": pictures, "budget": "macs<=70%", "method": "uniform", "recipe": plain}
        return optimize(**{**usual, "progress": False, "out": out, "tune_epochs": 1, "epochs": 1, **changes})

    return run


def test_constraints_are_obeyed_recorded_and_compared(go, tmp_path):
    with pytest.raises(EditError, match=r"no layer or group that matches 'conv9'. Did you mean conv"):
        go(tmp_path / "run", constraints={"keep": "conv9"})
    with pytest.raises(ConvwrightError, match="there is no 'kept'"):
        go(tmp_path / "run", constraints={"kept": "conv1"})
    result = go(tmp_path / "run", constraints=KEPT)
    assert [(edit.target, edit.size % 3) for edit in result.best.candidate.plan.edits] == [("conv2", 0)]
    settings = read_json(tmp_path / "run" / "run.json", FORMAT)["settings"]
    assert settings["constraints"] == {"keep": ["conv1"], "divisor": {"conv2": 3}}
    assert settings["divisor"] == "auto"
    assert go(tmp_path / "run", constraints=KEPT, resume=True).data == result.data
    with pytest.raises(RunError, match="started with constraints="):
        go(tmp_path / "run", resume=True)


def test_a_run_of_a_stated_divisor_goes_on_without_saying_it_again(go, tmp_path):
    first = go(tmp_path / "run", divisor=1)
    assert go(tmp_path / "run", resume=True).data == first.data
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert settings["divisor"] == 1
    assert "constraints" not in settings
    with pytest.raises(RunError, match="started with divisor=1, not 2"):
        go(tmp_path / "run", resume=True, divisor=2)
