"""`optimize` with the channel search, from end to end, killed and resumed; and options of methods."""

import json

import pytest

from convwright.cli.options import parse_options
from convwright.errors import ConvwrightError, RunError
from convwright.methods.options import checked_options, options_of
from convwright.runs import optimize
from convwright.runs.evaluate import Evaluator

FEW = {"trials": 4, "trial_epochs": 1}


@pytest.mark.breadth
def test_a_killed_search_resumes_to_the_same_widths(tiny, pictures, plain, tmp_path, monkeypatch):
    recipe = plain.updated(epochs=1)
    # The published code's metric: after so little training ours finds noise only.
    options = {**FEW, "mode": "parity", "rule": "annealing"}
    budget = "macs<=1000%"
    usual = {"recipe": recipe, "progress": False, "options": options, "seed": 3}
    whole = optimize(tiny, pictures, budget, "channel-search", tmp_path / "whole", **usual)

    evaluate, calls = Evaluator.__call__, []

    def killed(self, number, candidate, parents):
        calls.append(number)
        if number == 2 and len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(self, number, candidate, parents)

    monkeypatch.setattr(Evaluator, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        optimize(tiny, pictures, budget, "channel-search", tmp_path / "run", **usual)
    resumed = optimize(tiny, pictures, budget, "channel-search", tmp_path / "run", resume=True, **usual)
    assert calls == [0, 1, 2, 2, 3, 4, 5]
    assert any(sum(step["values"].values()) > 0 for step in whole.data["decisions"][:-1])
    assert resumed.best.candidate == whole.best.candidate
    assert resumed.data["decisions"] == whole.data["decisions"]
    assert [t.score for t in resumed.trials] == [t.score for t in whole.trials]
    steps = [d for d in resumed.data["decisions"] if "widths" in d]
    assert len(steps) == 4
    for step, trial in zip(steps, resumed.data["trials"], strict=False):
        assert step["costs"]["macs"] == trial["costs"]["macs"]
        assert step["costs"]["params"] == trial["costs"]["params"]
    assert resumed.data["method_options"] == options
    assert resumed.best.candidate.weights == "fresh"
    with pytest.raises(RunError, match=r"method_options.trials=4, not 5"):
        optimize(
            tiny, pictures, budget, "channel-search", tmp_path / "run", resume=True,
            **{**usual, "options": {**options, "trials": 5}},
        )  # fmt: skip


@pytest.mark.breadth
def test_a_trained_network_keeps_its_weights(tiny, pictures, plain, tmp_path):
    recipe = plain.updated(epochs=1)
    first = optimize(tiny, pictures, "macs<=100%", "uniform", tmp_path / "first", recipe=recipe, progress=False)
    found = optimize(
        tiny, pictures, "params<=60%", "channel-search", tmp_path / "second", recipe=recipe, progress=False,
        weights=first.folder / "model.safetensors", options=FEW, divisor=1, merge=False, refit=False,
    )  # fmt: skip
    assert [t.candidate.weights for t in found.trials] == ["inherit"] * 2 + ["net2wider"] * 3 + ["inherit"] * 2
    assert found.data["budget_met"]["params"]["met"]
    assert json.loads((found.folder / "result.json").read_text())["decisions"][-1]["kept"] == found.best.trial


# ------------------------------------------------------------------ options of methods


def test_options_without_options_are_not_recorded(tiny, pictures, plain, tmp_path):
    found = optimize(tiny, pictures, "macs<=70%", "uniform", tmp_path / "r", recipe=plain, progress=False, options={})
    assert "method_options" not in found.data


def test_options_are_read_as_json_or_text():
    assert parse_options(["trials=12", "mode=parity", "gamma=0.7", "min-width=null", "start=given"]) == {
        "trials": 12, "mode": "parity", "gamma": 0.7, "min_width": None, "start": "given",
    }  # fmt: skip
    for text in ("trials", "=3", "trials="):
        with pytest.raises(ConvwrightError, match="is not NAME=VALUE"):
            parse_options([text])
    with pytest.raises(ConvwrightError, match="trials is given twice"):
        parse_options(["trials=1", "trials=2"])


def test_options_are_those_of_the_method():
    assert {"mode", "trials", "gamma", "transfer"} <= set(options_of("channel-search").model_fields)
    assert not options_of("uniform").model_fields
    assert not {"epochs", "seed", "divisor"} & set(options_of("channel-search").model_fields)
    assert checked_options("receptive-field", {"mode": "spend"}) == {"mode": "spend"}
    assert checked_options("channel-search", {"gamma": 0, "start": 16}) == {"gamma": 0.0, "start": 16}


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("channel-search", {"trils": 3}, "no option 'trils'; it has mode.*Did you mean trials"),
        ("channel-search", {"trials": "many"}, "trials='many'.*valid integer"),
        ("channel-search", {"trials": True}, "trials=True.*valid integer"),
        ("channel-search", {"mode": "exact"}, "mode='exact'.*'corrected' or 'parity'"),
        ("channel-search", {"epochs": 3}, "give epochs itself"),
        ("uniform", {"mode": "parity"}, "method uniform has no option 'mode'; it has none"),
        ("phased", {"techniques": 3}, "option techniques=3 of method phased"),
        ("no-such", {"a": 1}, "unknown method 'no-such'"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(method, options, message, tmp_path):
    with pytest.raises(ConvwrightError, match=message):
        optimize("no-such-network", "no-such-data", "macs<=50%", method, tmp_path / "r", options=options)
    assert not (tmp_path / "r").exists()
