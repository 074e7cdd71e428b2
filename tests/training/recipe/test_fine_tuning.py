"""Fine-tuning: rates by depth, a faster head, frozen batch norm, and the rate range test."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from torch import nn

from convwright import zoo
from convwright.errors import RecipeError, RecipeWarning
from convwright.training import Recipe, train
from convwright.training.preflight import prepare
from convwright.training.recipe import rate_test as test_of_rates
from convwright.training.recipe.optimizers import build_optimizer
from convwright.training.recipe.rate_test import rate_test
from convwright.training.settings import Settings

QUIET = {"progress": False, "accelerator": "cpu", "test": False}
PLAIN = Settings("fp32", "contiguous", "cpu", 1)


def rates(model: nn.Module, recipe: Recipe) -> dict[str, tuple[float, float]]:
    """Rate and decay of each parameter by name."""
    groups = build_optimizer(model, recipe).param_groups
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    return {name: found[id(p)] for name, p in model.named_parameters()}


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


# ------------------------------------------------------------------ rates by depth


def test_rates_rise_from_layer_to_layer_and_the_head_is_faster() -> None:
    model = zoo.create("resnet20", num_classes=3)
    recipe = Recipe(optimizer="adamw", lr=0.01, weight_decay=0.1, lr_first_factor=0.1, lr_head_factor=5)
    found = rates(model, recipe)
    body = [rate for name, (rate, _) in found.items() if not name.startswith("fc")]
    assert body == sorted(body)
    assert (body[0], body[-1]) == (pytest.approx(0.001), 0.01)
    assert [found["fc.weight"][0], found["fc.bias"][0]] == pytest.approx([0.05, 0.05])
    steps = sorted(set(body))
    ratios = [b / a for a, b in pairwise(steps)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))
    assert all(
        decay == (0.1 if p.ndim > 1 else 0) for p, (_, decay) in zip(model.parameters(), found.values(), strict=True)
    )


def test_without_factors_the_groups_are_those_of_old_checkpoints() -> None:
    groups = build_optimizer(zoo.create("resnet20"), Recipe()).param_groups
    assert [len(group["params"]) for group in groups] == [22, 43]
    assert {group["lr"] for group in groups} == {0.1}


def test_the_recorded_rate_is_the_recipe_s(small_data, small_recipe, make_network) -> None:
    recipe = small_recipe.updated(lr_first_factor=0.2, lr_head_factor=3, schedule="constant", warmup=0)
    slow, fast = make_network(), make_network()
    result = train(slow, small_data, recipe.updated(epochs=1), **QUIET)
    assert result.history[0].lr == pytest.approx(recipe.lr)
    train(fast, small_data, recipe.updated(epochs=1, lr_first_factor=1), **QUIET)
    moved = [(model[0].weight - make_network()[0].weight).norm().item() for model in (slow, fast)]
    assert moved[0] < 0.5 * moved[1]


# ------------------------------------------------------------------ frozen batch norm


def test_frozen_statistics_stay_and_normalise(small_data, small_recipe, make_network) -> None:
    model = make_network()
    model[1].running_mean.fill_(0.3)
    before = state(model)
    modes = [module.training for module in model.modules()]
    recipe = small_recipe.updated(techniques={"freeze_batch_norm": {}})
    train(model, small_data, recipe, **QUIET)
    after = state(model)
    assert same({name: before[name] for name in before if "running" in name or "tracked" in name}, after)
    assert not torch.equal(before["1.weight"], after["1.weight"])
    assert [module.training for module in model.modules()] == modes
    assert "train" not in vars(model[1])
    assert model.train()[1].training


def test_nothing_to_freeze_is_a_warning(small_data, small_recipe) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    (warning,) = prepare(model, small_data, small_recipe.updated(techniques={"freeze_batch_norm": {}})).warnings
    assert warning == "techniques.freeze_batch_norm has no effect: no batch norm keeps running statistics"


# ------------------------------------------------------------------ the rate test


def test_the_rate_test_leaves_everything_as_it_was(small_data, small_recipe, make_network) -> None:
    model = make_network().train()
    before, random = state(model), torch.get_rng_state()
    one = rate_test(model, small_data, small_recipe.updated(lr="auto"), PLAIN)
    assert same(before, state(model))
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert rate_test(model, small_data, small_recipe.updated(lr="auto"), PLAIN) == one
    assert 1e-5 < one < 1


def test_it_takes_a_tenth_of_the_rate_of_the_least_loss(small_data, small_recipe, make_network, monkeypatch) -> None:
    recipe = small_recipe.updated(lr="auto")
    monkeypatch.setattr(test_of_rates, "_losses", lambda *_: dict(enumerate([3.0, 2.0, 1.0, 1.5])))
    assert rate_test(make_network(), small_data, recipe, PLAIN) == float(f"{0.1 * test_of_rates._rate(2):.2g}")
    assert (test_of_rates._rate(0), test_of_rates._rate(69)) == (pytest.approx(1e-6), pytest.approx(10))
    for trained in (
        [0.3, 0.28, 0.31, 0.3, 0.3, 0.5],
        [0.8, 0.8, 0.79, 0.8, 0.8, 1.4],
    ):  # least loss at once: what they bear
        monkeypatch.setattr(test_of_rates, "_losses", lambda *_, trained=trained: dict(enumerate(trained)))
        assert rate_test(make_network(), small_data, recipe, PLAIN) == float(f"{test_of_rates._rate(4):.2g}")
    tuning = recipe.updated(lr_first_factor=0.5)
    for first, rate in ((0.65, test_of_rates._rate(21)), (3.0, 0.1 * test_of_rates._rate(20))):  # cut; a new head
        losses = {0: first, 20: 0.5, 21: 0.55, 22: 0.6}
        monkeypatch.setattr(test_of_rates, "_losses", lambda *_, losses=losses: losses)
        assert rate_test(make_network(), small_data, tuning, PLAIN) == float(f"{rate:.2g}")
    # One batch of few errors at first is no measure of the least.
    lucky = dict(enumerate([0.3, 0.417, 0.405, 0.393, 0.369, 0.339, 0.36, 0.375, 0.387, 0.42]))
    monkeypatch.setattr(test_of_rates, "_losses", lambda *_: lucky)
    assert rate_test(make_network(), small_data, tuning, PLAIN) == float(f"{test_of_rates._rate(8):.2g}")
    monkeypatch.setattr(test_of_rates, "_losses", lambda *_: {0: 1.1, 1: 2.0})
    with pytest.raises(RecipeError, match="lr=auto: the loss falls at no rate"):
        rate_test(make_network(), small_data, recipe, PLAIN)


def test_a_found_rate_is_that_of_the_same_number_and_is_kept_on_resume(
    small_data, small_recipe, make_network, tmp_path, monkeypatch
) -> None:
    recipe = small_recipe.updated(lr="auto")
    whole = train(make_network(), small_data, recipe, **QUIET)
    rate = whole.settings.lr
    assert rate is not None
    assert same(
        state(train(make_network(), small_data, small_recipe.updated(lr=rate), **QUIET).model), state(whole.model)
    )
    train(make_network(), small_data, recipe, out=tmp_path, on_epoch=lambda record: record.epoch == 1, **QUIET)
    monkeypatch.setattr(test_of_rates, "_losses", None)  # not asked again
    resumed = train(make_network(seed=3), small_data, recipe, out=tmp_path, resume=True, **QUIET)
    assert resumed.settings.lr == rate
    assert same(state(resumed.model), state(whole.model))
    with pytest.raises(RecipeError, match=r"trained with lr=auto, not 0\.2"):
        train(make_network(), small_data, small_recipe.updated(lr=0.2), out=tmp_path, resume=True, **QUIET)


def test_auto_is_written_and_read(tmp_path) -> None:
    recipe = Recipe(lr="auto")
    recipe.save(tmp_path / "r.yaml")
    assert Recipe.load(tmp_path / "r.yaml") == recipe == Recipe(**json.loads(recipe.model_dump_json()))
    with pytest.raises(RecipeError, match="lr=auto: `train` and `optimize` find the rate; here, give a number"):
        _ = recipe.rate


@pytest.mark.parametrize("field", ["lr_first_factor", "lr_head_factor"])
def test_factors_out_of_range_are_refused(field: str) -> None:
    for value in (0, -1, float("inf") if field == "lr_head_factor" else 1.5):
        with pytest.raises(RecipeError, match=f"recipe field {field}="):
            Recipe(**{field: value})


def test_the_preset_for_trained_weights_trains(small_data, make_network) -> None:
    recipe = Recipe.preset("finetune").updated(precision="fp32", memory_format="contiguous", epochs=1)
    result = train(make_network(), small_data, recipe, **QUIET)
    assert result.warnings == ()
    assert recipe.epochs <= Recipe.preset("finetune").epochs <= 10
    with pytest.warns(RecipeWarning, match="freeze_batch_norm has no effect"):
        train(
            nn.Sequential(nn.Flatten(), nn.Linear(192, 3)),
            small_data,
            recipe.updated(techniques=["freeze_batch_norm"]),
            **QUIET,
        )
