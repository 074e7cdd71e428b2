"""A search with a rate to be found, and one of trained weights without a recipe."""

import json

import pytest
import torch

from convwright.architecture import read
from convwright.runs import evaluate, optimize
from convwright.training import Recipe

HOW = {"epochs": 1, "tune_epochs": 1, "progress": False, "out": "run"}


@pytest.fixture
def seen(monkeypatch):
    """The recipe of each training."""
    recipes, train = [], evaluate.train

    def watched(model, data, recipe, **options):
        recipes.append(recipe)
        return train(model, data, recipe, **options)

    monkeypatch.setattr(evaluate, "train", watched)
    return recipes


def test_the_rate_is_found_once_for_all_trials_and_recorded(tiny, pictures, plain, seen):
    said = []
    recipe = plain.updated(lr="auto")
    result = optimize(tiny, pictures, "macs<=60%", "uniform", recipe=recipe, say=said.append, **HOW)
    recorded = json.loads((result.folder / "run.json").read_text())
    rate = recorded["settled"]["lr"]
    assert recorded["settings"]["recipe"]["lr"] == "auto"
    assert f"the rate test found lr={rate:g}" in said
    assert {each.lr for each in seen} == {rate} == {result.data["trained_with"]["lr"]}
    again = optimize(tiny, pictures, "macs<=50%", "uniform", recipe=recipe, resume=True, **HOW)
    assert again.data["trained_with"]["lr"] == rate


def test_a_recipe_that_fine_tunes_finds_the_rate_of_each_training(tiny, pictures, tmp_path, seen):
    torch.save(read(tiny, "1x8x8").model.state_dict(), tmp_path / "trained.pt")
    said = []
    how = HOW | {"say": said.append, "epochs": None}
    result = optimize(tiny, pictures, "macs<=60%", "uniform", weights=tmp_path / "trained.pt", **how)
    assert {each.lr for each in seen} == {"auto"}
    rates = {n: trial["probes"]["lr"] for n, trial in enumerate(result.data["trials"]) if trial["epochs"]}
    assert {f"trial {n}: the rate test found lr={rate:g}" for n, rate in rates.items()} <= set(said)
    assert {result.data[side]["lr"] for side in ("trained_with", "baseline_trained_with")} <= set(rates.values())
    assert "lr" not in json.loads((result.folder / "run.json").read_text())["settled"]


def test_trained_weights_are_fine_tuned_and_it_is_said(tiny, pictures, tmp_path, seen):
    torch.save(read(tiny, "1x8x8").model.state_dict(), tmp_path / "trained.pt")
    said = []
    how = HOW | {"say": said.append, "epochs": None}
    result = optimize(tiny, pictures, "macs<=60%", "uniform", weights=tmp_path / "trained.pt", **how)
    assert "trained weights are fine-tuned: recipe finetune, 1 epoch" in said
    assert {each.optimizer for each in seen} == {"adamw"}
    assert result.data["trained_with"]["lr_head_factor"] == seen[0].lr_head_factor > 1
    own = how | {"tune_epochs": None, "recipe": Recipe.preset("finetune").updated(epochs=2), "out": tmp_path / "own"}
    optimize(tiny, pictures, "macs<=60%", "uniform", weights=tmp_path / "trained.pt", **own)
    assert "later trainings have 1 epoch, half of the recipe's 2; tune_epochs gives another number" in said
