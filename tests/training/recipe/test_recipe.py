"""Recipes: YAML, presets, one-line errors; optimizers by name."""

import tempfile
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from convwright.errors import RecipeError
from convwright.training import Recipe, presets
from convwright.training.recipe.optimizers import (
    build_optimizer,
    load_state_by_name,
    optimizer_class,
    state_by_name,
)
from convwright.training.recipe.recipe import as_recipe
from convwright.training.recipe.schedules import SCHEDULES


def test_yaml_round_trip(tmp_path):
    recipe = Recipe(lr=1e-3, optimizer="adamw", optimizer_options={"amsgrad": True}, max_steps=7)
    recipe.save(tmp_path / "r.yaml")
    assert Recipe.load(tmp_path / "r.yaml") == recipe == as_recipe(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text("lr: 1e-3\nepochs: 2\n")
    assert Recipe.load(tmp_path / "r.yaml") == Recipe(lr=0.001, epochs=2)
    (tmp_path / "r.yaml").write_text("")
    assert Recipe.load(tmp_path / "r.yaml") == Recipe()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "unknown recipe field 'epoch'. Did you mean epochs"),
        ({"lr": -1}, "recipe field lr=-1: .*greater than 0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"epochs": 0, "cutout": -1}, "epochs=0: .*; recipe field cutout=-1"),
        ({"precision": "fp8"}, "precision='fp8'"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"epochs": True}, "epochs=True: give a number"),
        ({"lr": False}, "lr=False: give a number"),
        ({"max_steps": True}, "max_steps=True: give a number"),
        ({"batch_size": 30, "accumulate": 4}, "accumulate=4: a batch of 30 cannot be computed in 4 equal parts"),
        ({"batch_size": 4, "accumulate": 8}, "accumulate=8: a batch of 4"),
        ({"random_resized_crop": [0.5, 0.2]}, r"random_resized_crop=.*0 < least <= largest <= 1"),
        ({"random_resized_crop": [0.5, 1.2]}, "random_resized_crop="),
        ({"random_resized_crop": 0.5}, "random_resized_crop=0.5"),
        ({"crop_ratio": [0, 1]}, "crop_ratio="),
        ({"techniques": {"mixup": {"alpha": -1}}}, "recipe field techniques.mixup.alpha=-1: .*greater than 0"),
        ({"techniques": {"mixup": {"alpah": 1}}}, "'techniques.mixup.alpah'. Did you mean alpha"),
        ({"techniques": {"mixup": {"zzz": 1}}}, "techniques.mixup has .*alpha"),
        ({"techniques": {"mixpu": {}}}, "techniques: unknown technique 'mixpu'. Did you mean mixup"),
        ({"techniques": {"cutout": 8}}, "is a field of the recipe itself; write `cutout: 8`"),
        ({"techniques": "mixup"}, "techniques: write names with options"),
        ({"techniques": [{"mixup": {}}]}, "techniques: write names with options"),
        ({"optimizer_options": {"eps": {"a": 1}}}, "optimizer_options.eps"),
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 1\nlr: 2", "the key 'lr' is given twice, again in line 2"),
        ("techniques: {mixup: {alpha: 1, alpha: 2}}", "'alpha' is given twice"),
        ("? [1, 2]\n: 3", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("x: !!python/object:os.system {}", "not valid YAML"),
        ("5", "not a list of fields"),
        ("preset: fastcpu", "unknown recipe 'fastcpu'. Did you mean fast-cpu"),
        ("preset: [a]", r"preset=\['a'\]: give one of default"),
        ("preset: small-net\nlr: -1", "lr=-1"),
        ("a: &a\n  b: *a", "unknown recipe field 'a'"),
    ],
)
def test_careless_files(text, message, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=rf"bad\.yaml: .*{message}|bad\.yaml: {message}") as error:
        Recipe.load(path)
    assert "\n" not in str(error.value)


def test_files_that_are_no_text(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"\xff\xfe\x00l")
    with pytest.raises(RecipeError, match=r"not valid YAML .*UTF-8"):
        Recipe.load(path)
    with pytest.raises(RecipeError, match=r"cannot be read"):
        Recipe.load(tmp_path)
    with pytest.raises(RecipeError, match=r"cannot be written"):
        Recipe().save(tmp_path / "none" / "r.yaml")
    with pytest.raises(RecipeError, match=r"int is not a recipe"):
        as_recipe(3)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1E+2", 100.0), (".5", 0.5), ("+0.25", 0.25), ("010", 10), ("3", 3), ("2.", 2.0), ("'0.5'", 0.5)],
)
def test_numbers_are_those_of_yaml_1_2(text, value, tmp_path):
    (tmp_path / "r.yaml").write_text(f"lr: {text}\noptimizer_options: {{eps: {text}, betas: [0.9, 1e-1]}}\n")
    recipe = Recipe.load(tmp_path / "r.yaml")
    assert recipe.lr == value
    assert recipe.optimizer_options["betas"] == (0.9, 0.1)
    if "'" not in text:
        assert recipe.optimizer_options["eps"] == value


numbers = st.floats(1e-6, 0.99)


@settings(max_examples=50, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "lr": numbers,
            "warmup": numbers,
            "schedule": st.sampled_from(sorted(SCHEDULES)),
            "epochs": st.integers(1, 99),
            "grad_clip": st.none() | numbers,
            "hflip": st.booleans(),
            "random_resized_crop": st.none() | st.tuples(st.just(0.1), numbers.filter(lambda x: x > 0.1)),
            "optimizer_options": st.dictionaries(st.sampled_from(["eps", "betas"]), numbers | st.tuples(numbers)),
            "techniques": st.dictionaries(st.just("mixup"), st.fixed_dictionaries({"alpha": numbers})),
        },
    )
)
def test_files_and_updates_keep_every_recipe(values):
    recipe = Recipe(**values)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.yaml"
        recipe.save(path)
        assert Recipe.load(path) == recipe
        path.write_text(recipe.model_dump_json())  # JSON is YAML
        assert Recipe.load(path) == recipe
    assert recipe.updated() == recipe
    assert set(recipe.model_dump()) == set(yaml.safe_load(recipe.to_yaml())) == set(Recipe.model_fields)


def test_a_file_changes_a_preset(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("preset: small-net\nepochs: 3\n")
    assert Recipe.load(path) == Recipe.preset("small-net").updated(epochs=3)
    path.write_text("preset: paper-mnist\nschedule: onecycle\n")
    assert Recipe.load(path).schedule_options["cycle_momentum"] is False
    path.write_text("preset: small-net\noptimizer: sgd\ntechniques: [mixup]\n")
    assert Recipe.load(path) == Recipe.preset("small-net").updated(optimizer="sgd", techniques=["mixup"])


def test_techniques_of_a_preset_are_changed_one_by_one(tmp_path, monkeypatch):
    folder = tmp_path / "presets"
    folder.mkdir()
    (folder / "default.yaml").write_text("# Nothing.\n")
    (folder / "mixed.yaml").write_text("# Two.\n# More.\nlr: 0.3\ntechniques: {mixup: {alpha: 0.5}, swa: {}}\n")
    monkeypatch.setattr(presets, "_FOLDER", folder)
    presets.fields.cache_clear()
    assert presets.names() == ("default", "mixed")
    assert presets.about("mixed") == "Two."
    path = tmp_path / "r.yaml"
    path.write_text("preset: mixed\ntechniques: {swa: false, ema: }\n")
    recipe = Recipe.load(path)
    presets.fields.cache_clear()
    assert recipe.lr == 0.3
    assert sorted(recipe.techniques) == ["ema", "mixup"]
    assert recipe.techniques["mixup"].alpha == 0.5


def test_recipe_is_frozen():
    with pytest.raises(ValueError, match=r"frozen"):
        Recipe().lr = 1.0


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
    with pytest.raises(RecipeError, match=r"'optimizer_options.nestrov': .*no such option. Did you mean|It has"):
        build_optimizer(make_network(), Recipe(optimizer_options={"nestrov": 1}))
    with pytest.raises(RecipeError, match=r"'optimizer_options.dampning': .* Did you mean dampening"):
        build_optimizer(make_network(), Recipe(optimizer_options={"dampning": 1}))
    with pytest.raises(RecipeError, match=r"optimizer_options.lr: write it as the field lr"):
        build_optimizer(make_network(), Recipe(optimizer_options={"lr": 1}))
    with pytest.raises(RecipeError, match=r"recipe field optimizer: 'adamw' refuses its options: .*eps"):
        build_optimizer(make_network(), Recipe(optimizer="adamw", optimizer_options={"eps": -1.0}))
    both = build_optimizer(make_network(), Recipe(optimizer="adamw", optimizer_options={"betas": [0.7, 0.8]}))
    assert both.defaults["betas"] == (0.7, 0.8)
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
