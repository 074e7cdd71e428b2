"""`optimize` with an objective, from end to end: the front, a folder for each network of it, and a resumed run."""

import json

import pytest
from safetensors.torch import load_file

from convwright import cli
from convwright.diagnose.apply_plan import replay
from convwright.edits import Plan
from convwright.errors import BudgetError, ConvwrightError
from convwright.export import export_run
from convwright.report import report_of
from convwright.report.html import charts
from convwright.runs import optimize
from convwright.runs.config import default_folder
from convwright.runs.directory.result import beats
from convwright.runs.evaluate import Evaluator

FEW = {"search_epochs": 8, "rounds": 1, "points": 2}


def usual(plain, **more):
    return {"recipe": plain.updated(epochs=1), "tune_epochs": 1, "progress": False, "options": FEW, "seed": 3, **more}


@pytest.mark.breadth
def test_without_a_budget_each_network_of_the_front_is_handed_back(tiny, pictures, plain, tmp_path):
    found = optimize(tiny, pictures, objective="params,accuracy,macs", out=tmp_path / "run", **usual(plain))
    data = found.data
    assert (data["method"], data["objective"], data["budget"], data["budget_met"]) == (
        "pareto", ["params", "macs"], [], {},
    )  # fmt: skip
    # Every trial is in the front, beaten, or trained to the end.
    listed = {entry["trial"]: entry for entry in data["front"]}
    unbeaten = {t.trial for t in found.trials if not any(beats(other, t, ["params", "macs"]) for other in found.trials)}
    ended = {number for number, entry in listed.items() if entry["finished"]}
    assert {t.trial for t in found.pareto} == unbeaten
    assert set(listed) == unbeaten | ended
    assert found.baseline.trial in ended
    assert found.best.trial in ended
    costs = [[entry["costs"][m] for m in data["objective"]] for entry in data["front"]]
    assert costs == sorted(costs)
    folders = {entry["folder"]: entry for entry in data["front"] if "folder" in entry}
    assert len(folders) == len(ended) - 1 >= 1
    assert sorted(folders) == sorted(f"front/{path.name}" for path in (tmp_path / "run" / "front").iterdir())
    for name, entry in folders.items():
        folder = tmp_path / "run" / name
        trial = found.trials[entry["trial"]]
        assert Plan.load(folder / "plan.json") == trial.candidate.plan
        for metric in ("macs", "params"):
            assert entry["counts"][metric]["convwright"] == entry["counts"][metric]["torch"] == trial.costs[metric]
        again = replay(folder / "plan.json", tiny, weights=folder / "model.safetensors", num_classes=3)
        assert again["after"]["params"] == trial.costs["params"]
        assert export_run(folder, "safetensors", tmp_path / name).difference < 1e-5
        assert entry["test"]["samples"] == 60
    kept, result = (load_file(tmp_path / "run" / name / "model.safetensors") for name in (best_of(data)["folder"], "."))
    assert all((kept[name] == result[name]).all() for name in result)
    report = report_of(tmp_path / "run")
    assert report.metrics[:2] == ("params", "macs")
    assert {t.number for t in report.trials if t.front} == unbeaten
    assert {t.number for t in report.trials if t.ended} == ended
    assert "No budget" in report.status
    labels = [variant.label for variant in charts(report)["costs"].variants]
    assert labels[:2] == ["parameters", "MACs per image"]
    assert "trained to the end" in report.markdown()
    assert "trained to the end" in report.html()


def best_of(data):
    return next(entry for entry in data["front"] if entry["result"])


@pytest.mark.breadth
def test_a_killed_search_resumes_to_the_same_front_and_another_budget_puts_it_aside(
    tiny, pictures, plain, tmp_path, monkeypatch
):
    whole = optimize(tiny, pictures, "macs<=80%", objective="macs", out=tmp_path / "whole", **usual(plain))
    evaluate, calls = Evaluator.__call__, []

    def killed(self, number, candidate, parents):
        calls.append(number)
        if number == 3 and calls.count(3) == 1:
            raise KeyboardInterrupt
        return evaluate(self, number, candidate, parents)

    monkeypatch.setattr(Evaluator, "__call__", killed)
    run = {"objective": "macs", "out": tmp_path / "run", **usual(plain)}
    with pytest.raises(KeyboardInterrupt):
        optimize(tiny, pictures, "macs<=80%", **run)
    resumed = optimize(tiny, pictures, "macs<=80%", resume=True, **run)
    assert resumed.data["front"] == whole.data["front"]
    assert resumed.data["decisions"] == whole.data["decisions"]
    for entry in resumed.data["front"]:
        if "folder" in entry:
            own = json.loads((tmp_path / "run" / entry["folder"] / "result.json").read_text())
            assert own["budget_met"]["macs"]["met"]
            assert own["result"]["trial"] == entry["trial"]
    again = optimize(tiny, pictures, "macs<=70%", resume=True, **run)
    assert (tmp_path / "run" / "earlier" / "0" / "front").is_dir()
    assert {path.name for path in (tmp_path / "run" / "front").iterdir()} == {
        f"{entry['trial']:04d}" for entry in again.data["front"] if "folder" in entry
    }
    for budget in ("macs<=80%", "macs<=70%"):  # what is put aside twice replaces what was put aside before
        optimize(tiny, pictures, budget, resume=True, **run)
    assert not (tmp_path / "run" / "earlier" / "0" / "front" / "front").exists()


def test_candidates_ranked_on_a_proxy_are_not_on_the_front(tiny, pictures, plain, tmp_path):
    found = optimize(tiny, pictures, objective="macs", out=tmp_path / "run", proxy_samples=64, **usual(plain))
    ranked = {t.trial for t in found.trials if t.candidate.images == "proxy"}
    assert ranked
    assert not ranked & {entry["trial"] for entry in found.data["front"]}
    assert any(entry["finished"] and entry["result"] for entry in found.data["front"])


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, BudgetError, "method auto redesigns a network to a budget; give --budget, such as macs<=50%, or an obj"),
        ({"method": "uniform"}, BudgetError, "method uniform redesigns a network to a budget"),
        ({"method": "auto", "objective": "macs"}, ConvwrightError, "an objective is for method pareto, .* method auto"),
        ({"objective": "accuracy"}, ConvwrightError, "here is no cost"),
        ({"objective": "macs,params,weights"}, ConvwrightError, "here is 3 costs"),
        ({"objective": "latency"}, ConvwrightError, "latency is measured only where the budget limits it"),
        ({"objective": "macs", "options": {"objective": ["macs"]}}, ConvwrightError, "the objective is given twice"),
        ({"method": "pareto", "options": {"objective": 3}}, ConvwrightError, "option objective=3 of method pareto"),
        ({"objective": "macs", "budget": "macs<=3"}, BudgetError, "cannot be met"),
    ],
)
def test_what_is_refused_before_any_training(tiny, pictures, plain, tmp_path, given, error, message):
    with pytest.raises(error, match=message):
        optimize(tiny, pictures, out=tmp_path / "run", recipe=plain, progress=False, **given)
    assert not (tmp_path / "run").exists()


@pytest.mark.breadth
def test_the_command_prints_the_front(tiny, pictures, plain, tmp_path, capsys):
    (tmp_path / "r.yaml").write_text("epochs: 1\nbatch_size: 32\nprecision: fp32\nmemory_format: contiguous\n")
    words = ["optimize", tiny, "--data", pictures, "--objective", "accuracy,macs", "--recipe", "r.yaml"]
    options = [word for name, value in FEW.items() for word in ("--option", f"{name}={value}")]
    with pytest.raises(SystemExit) as left:
        cli.main([*words, *options, "--out", "run", "--tune-epochs", "1"])
    assert left.value.code == 0
    shown = capsys.readouterr()
    assert "Trained to the end: accuracy and macs" in shown.out
    assert "the untouched network, trained as long" in shown.out
    assert "front/0" in shown.out
    with pytest.raises(SystemExit) as left:
        cli.main([*words, "--method", "auto", "--out", "other"])
    assert left.value.code == 2
    assert "an objective is for method pareto" in capsys.readouterr().err


def test_the_folder_is_named_after_what_is_sought():
    assert str(default_folder("zoo:resnet20", objective="accuracy,macs")) == "runs/zoo-resnet20-accuracy-macs"
    assert str(default_folder("zoo:resnet20", "macs<=50%")) == "runs/zoo-resnet20-macs50pct"
