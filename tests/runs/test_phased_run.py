"""`optimize` with the phased design, from end to end; and what it refuses in a recipe."""

import json

import pytest

from convwright.diagnose.tables import trials_table
from convwright.errors import RecipeError
from convwright.methods import Trying
from convwright.runs import optimize
from convwright.runs.candidate_recipe import changed_recipe
from convwright.training.techniques import TECHNIQUES


@pytest.fixture
def structural():
    """The name of a technique that edits the network."""
    return next(name for name, entry in TECHNIQUES.items() if entry.kind is not None and entry.kind.changes_network)


def test_techniques_that_edit_the_network_are_edits_of_the_plan(structural, tiny, pictures, plain, tmp_path):
    with pytest.raises(RecipeError, match="edits the network"):
        changed_recipe(plain, {"techniques": {structural: {}}})
    recipe = plain.updated(techniques={structural: {}})
    with pytest.raises(RecipeError, match=f"techniques.{structural}: it edits the network"):
        optimize(tiny, pictures, "macs<=50%", recipe=recipe, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------ from end to end


@pytest.mark.breadth
def test_a_run_by_phases(plain, tmp_path, monkeypatch):
    few = (Trying("cutout", {"cutout": 5}), Trying("bad", {"lr": -1}), Trying("blurpool", operator="blurpool"))
    monkeypatch.setattr("convwright.methods.phased.phased.default_techniques", lambda arch: few)
    recipe = plain.updated(epochs=1, max_steps=3)
    said = []
    usual = {"recipe": recipe, "tune_epochs": 1, "progress": False, "say": said.append}
    result = optimize("zoo:mnist-base", "fashion-mini", "params<=2500", "phased", tmp_path / "run", **usual)
    data = json.loads((tmp_path / "run" / "result.json").read_text())
    assert data["budget_met"]["params"]["met"]
    assert data["result"]["costs"]["params"] <= 2500
    assert result.baseline.candidate.role == "baseline"
    assert result.baseline.candidate.recipe == result.best.candidate.recipe
    phases = [decision["phase"] for decision in data["decisions"]]
    assert phases[0] == "phase 0, base"
    assert "techniques, one by one" in phases
    for decision in data["decisions"]:
        assert f"{decision['phase']}: {decision['reason']}" in said
    assert any(t.status == "failed" and "lr" in t.message for t in result.trials)
    table = trials_table(data)
    assert table.row_count == len(result.trials)

    # Resumed after its end: every decision is taken again from the record, and nothing is trained.
    monkeypatch.setattr("convwright.runs.evaluate.train", None)
    again = optimize("zoo:mnist-base", "fashion-mini", "params<=2500", "phased", tmp_path / "run", resume=True, **usual)
    assert again.data == data
    assert again.best.trial == result.best.trial
