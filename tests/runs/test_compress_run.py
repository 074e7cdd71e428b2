"""`compress`: one call for a trained network, and its repairs as a run records them."""

import copy
import json

import pytest
import torch
from small_pictures import picture_data, trained_tiny

import convwright as cw
from convwright import cli
from convwright.errors import ConvwrightError
from convwright.methods import Evidence
from convwright.runs import compress
from convwright.runs.directory.result import rows
from convwright.training import Recipe

QUICK = {"tune_epochs": 1, "recipe": Recipe(epochs=1, batch_size=16, lr=0.01, precision="fp32"), "progress": False}


@pytest.fixture(scope="module")
def data():
    return picture_data()


@pytest.fixture(scope="module")
def model(data):
    return trained_tiny(data, stem=24)


def test_a_trained_module_is_cut_repaired_and_tuned(model, data, tmp_path):
    before, said = copy.deepcopy(model.state_dict()), []
    result = compress(
        model, data, "macs<=50%", out=tmp_path / "run", say=said.append, options={"rounds": 2}, calibration=40, **QUICK
    )
    trials = result.trials
    assert [t.candidate.epochs for t in trials] == [0, 0, 1, 1]
    assert [t.candidate.role for t in trials] == ["base", "candidate", "baseline", "candidate"]
    assert list(trials[3].repaired) == ["cut", "merging", "refit", "batch norm"]
    assert trials[3].before_training == trials[3].repaired["batch norm"]
    assert not trials[1].repaired  # only judged, to be cut again
    assert result.data["budget_met"]["macs"]["met"]
    assert f"refit {trials[3].repaired['refit']:.2%}" in result.report().markdown()
    assert any("right after the edits (cut " in line for line in said)
    settled = json.loads((tmp_path / "run" / "run.json").read_text())
    assert settled["settled"]["repairs"] == {"merge": True, "refit": True}
    assert settled["settings"]["trained"] is True
    assert settled["settings"]["calibration"] == 40
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert f"As it was given, its validation accuracy was {trials[0].score:.2%}" in result.report().markdown()
    assert "validation accuracy, the network as given" in [row.name for row in rows(result.data)]
    assert type(result.model) is type(model)
    assert not result.model.training
    assert result.plan == cw.Plan.load(tmp_path / "run" / "plan.json")
    params = sum(each.numel() for each in result.model.parameters())
    assert params == result.metrics["params"] < sum(each.numel() for each in before.values())
    assert result.metrics["validation"] == result.best.score


def test_repairs_can_be_left_out_one_by_one(model, data, tmp_path):
    usual = {"options": {"rounds": 1}, "baseline": False, **QUICK}
    plain = compress(model, data, out=tmp_path / "a", merge=False, refit=False, reestimate=False, **usual)
    assert plain.trials[-1].repaired == {}
    refitted = compress(model, data, out=tmp_path / "b", merge=False, **usual)
    assert list(refitted.trials[-1].repaired) == ["cut", "refit", "batch norm"]
    assert "with the weights that it came with" in refitted.report().markdown()
    assert "validation accuracy, the network as given" not in [row.name for row in rows(refitted.data)]
    again = compress(model, data, out=tmp_path / "b", merge=False, resume=True, **usual)
    assert [t.score for t in again.trials] == [t.score for t in refitted.trials]


def test_what_was_repaired_is_recorded_and_left_out_where_nothing_was():
    candidate = cw.methods.Candidate(cw.Plan.empty(cw.read("zoo:mnist-m1")), None, 0, 0)
    evidence = Evidence(candidate, 0, 0.5, 0.1, {"macs": 1}, repaired={"cut": 0.1, "refit": 0.4})
    assert Evidence.from_dict(evidence.to_dict(), candidate) == evidence
    assert "repaired" not in Evidence(candidate, 0, 0.5, 0.1, {"macs": 1}).to_dict()


def test_a_network_without_trained_weights_is_refused():
    with pytest.raises(ConvwrightError, match=r"zoo:resnet20 has none: give weights \(--weights FILE\)"):
        compress("zoo:resnet20", "fashion-mini")
    with pytest.raises(TypeError, match=r"compress\(\) got an unexpected keyword argument 'wieghts'.*weights"):
        compress("zoo:resnet20", "fashion-mini", wieghts="w")


def test_the_command_is_optimize_without_method_and_objective(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["compress", "zoo:resnet20", "--data", "fashion-mini"])
    assert ended.value.code == 2
    assert "compress begins with trained weights" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["compress", "zoo:resnet20", "--data", "fashion-mini", "--method", "auto"])
    assert "No such option" in capsys.readouterr().err
