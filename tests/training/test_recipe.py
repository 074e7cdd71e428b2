"""Recipes: YAML, presets, one-line errors; schedules and optimizers by name."""

import pytest
import torch
from torch import nn

from convwright.errors import RecipeError
from convwright.training import Recipe
from convwright.training.optimizers import (
    build_optimizer,
    load_state_by_name,
    optimizer_class,
    state_by_name,
)
from convwright.training.recipe import PRESETS, as_recipe
from convwright.training.schedules import SCHEDULES, onecycle


def test_yaml_round_trip(tmp_path):
    recipe = Recipe(lr=1e-3, optimizer="adamw", optimizer_options={"amsgrad": True}, max_steps=7)
    recipe.save(tmp_path / "r.yaml")
    assert Recipe.load(tmp_path / "r.yaml") == recipe == as_recipe(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text("lr: 1e-3\nepochs: 2\n")
    assert Recipe.load(tmp_path / "r.yaml") == Recipe(lr=0.001, epochs=2)
    (tmp_path / "r.yaml").write_text("")
    assert Recipe.load(tmp_path / "r.yaml") == Recipe()


def test_presets():
    assert {"fast-cpu", "small-net", "default"} <= set(PRESETS)
    assert as_recipe(None) == as_recipe("default") == Recipe()
    with pytest.raises(RecipeError, match=r"Did you mean fast-cpu"):
        Recipe.preset("fastcpu")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "unknown recipe field 'epoch'. Did you mean epochs"),
        ({"lr": -1}, "recipe field lr=-1: .*greater than 0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"epochs": 0, "cutout": -1}, "epochs=0: .*; recipe field cutout=-1"),
        ({"precision": "fp8"}, "precision='fp8'"),
        ({"seed": 1.5}, "seed=1.5"),
    ],
)
def test_bad_fields(values, message, tmp_path):
    with pytest.raises(RecipeError, match=message) as error:
        Recipe(**values)
    assert "\n" not in str(error.value)
    with pytest.raises(RecipeError, match=message):
        Recipe().updated(**values)


@pytest.mark.parametrize(("text", "message"), [("lr: [", "not valid YAML"), ("- 1", "not a list"), ("lr: x", "lr='x'")])
def test_bad_files(text, message, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=rf"bad\.yaml: .*{message}|bad\.yaml: {message}") as error:
        Recipe.load(path)
    assert "\n" not in str(error.value)
    with pytest.raises(RecipeError, match=r"cannot be read"):
        Recipe.load(tmp_path / "missing.yaml")


def test_recipe_is_frozen():
    with pytest.raises(ValueError, match=r"frozen"):
        Recipe().lr = 1.0


@pytest.mark.parametrize("total", [7, 100])
@pytest.mark.parametrize("warmup", [0.25, 0.3])
def test_onecycle_equals_torch(total, warmup):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total, pct_start=warmup, cycle_momentum=False)
    for step in range(total):
        assert 0.1 * onecycle(step, total, warmup) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        if step + 1 < total:
            theirs.step()


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("total", [1, 2, 50])
@pytest.mark.parametrize("warmup", [0.0, 0.2, 0.99])
def test_schedules_stay_in_range(name, total, warmup):
    factors = [SCHEDULES[name](step, total, warmup) for step in range(total)]
    assert all(0 < factor <= 1 + 1e-12 for factor in factors)


def test_norm_and_bias_do_not_decay(make_network):
    model = make_network()
    model[6].weight.requires_grad_(False)
    optimizer = build_optimizer(model, Recipe(weight_decay=0.1))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    expected = {"0.weight": 0.1, "0.bias": 0, "1.weight": 0, "1.bias": 0, "6.bias": 0}
    named = dict(model.named_parameters())
    assert {name: decay[id(named[name])] for name in expected} == expected
    assert len(decay) == 5
    everything = build_optimizer(model, Recipe(weight_decay=0.1, decay_norm_and_bias=True))
    assert {group["weight_decay"] for group in everything.param_groups} == {0.1}


def test_optimizers_by_name(make_network):
    assert optimizer_class("SGD") is torch.optim.SGD
    assert optimizer_class("lamb").__module__.startswith("timm")
    adam = build_optimizer(make_network(), Recipe(optimizer="adamw", momentum=0.8))
    assert adam.defaults["betas"] == (0.8, 0.999)
    with pytest.raises(RecipeError, match=r"Did you mean .*adamw"):
        optimizer_class("adamww")
    with pytest.raises(RecipeError, match=r"several passes"):
        optimizer_class("lbfgs")
    with pytest.raises(RecipeError, match=r"refuses its options"):
        build_optimizer(make_network(), Recipe(optimizer_options={"nonsense": 1}))
    with pytest.raises(RecipeError, match=r"no trainable parameter"):
        build_optimizer(nn.ReLU(), Recipe())


def test_state_by_name_moves_to_another_optimizer(make_network):
    model = make_network()
    one, two = (build_optimizer(model, Recipe(optimizer="adamw")) for _ in range(2))
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    one.step()
    state = state_by_name(model, one)
    assert set(state) == {name for name, _ in model.named_parameters()}
    load_state_by_name(model, two, state)
    again = state_by_name(model, two)
    assert all(torch.equal(again[n][k], state[n][k]) for n in state for k in state[n])
    with pytest.raises(RecipeError, match=r"'0.weigt'.* Did you mean 0.weight"):
        load_state_by_name(model, two, {"0.weigt": {}})
    with pytest.raises(RecipeError, match=r"exp_avg.*shape"):
        load_state_by_name(model, two, {"0.weight": {"exp_avg": torch.zeros(2)}})
