"""Mixed precision in float16 scales the loss: what a CPU can show of it, with torch's scaler for CPUs."""

import copy

import every_task
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision

from convwright.errors import RecipeError
from convwright.training import preflight, train

HOW = {"progress": False, "accelerator": "cpu", "test": False}


@pytest.fixture
def scaled(monkeypatch):
    """Let a CPU train in float16; returns the scalers, of which the last one is that of the last training."""
    made = []

    def fabric(accelerator, devices, precision):
        if precision != "16-mixed":
            return Fabric(accelerator=accelerator, devices=devices, precision=precision)
        made.append(torch.amp.GradScaler("cpu", init_scale=scale[0]))
        return Fabric(accelerator=accelerator, devices=devices, plugins=MixedPrecision(precision, "cpu", made[-1]))

    scale = [2.0**10]
    monkeypatch.setattr(preflight, "SCALES", ("cpu",))
    monkeypatch.setattr(preflight, "Fabric", fabric)
    return made, scale


def trained(recipe, name="classification", **how):
    task, network = every_task.made(name)
    return train(network, task, recipe, **{**HOW, **how})


def test_float16_is_refused_where_nothing_scales():
    with pytest.raises(RecipeError, match="precision=fp16: float16 is trained on CUDA devices only, and this is cpu"):
        trained(every_task.recipe(precision="fp16"))


SHARP = {"accumulate": 2, "grad_clip": 0.1, "techniques": {"sam": {}}}
WAYS = [(name, {"grad_clip": 0.1}) for name in every_task.TASKS] + [("classification", {}), ("two inputs", SHARP)]


@pytest.mark.parametrize(("name", "changes"), WAYS)
def test_weights_are_those_of_float32_within_rounding(name, changes, scaled):
    """Were gradients clipped, or their norm taken, as they are scaled, a thousand times too large, it would show."""
    recipe = every_task.recipe(epochs=2, **changes)
    plain, short = trained(recipe, name), trained(recipe.updated(precision="fp16"), name)
    assert short.settings.precision == "fp16"
    before = every_task.made(name)[1].state_dict()
    for key, value in plain.model.named_parameters():
        moved = (value - before[key]).norm()
        assert (short.model.get_parameter(key) - value).norm() < 0.1 * moved + 1e-4, key


def test_a_rate_is_found(scaled):
    plain, short = (trained(every_task.recipe(lr="auto", precision=kind)).settings.lr for kind in ("fp32", "fp16"))
    assert 0.2 < short / plain < 5


def test_a_scale_too_large_costs_steps_and_nothing_else(scaled):
    """Also with SAM, whose second pass then runs on weights that are not finite."""
    scalers, scale = scaled
    scale[0] = 2.0**26
    result = trained(every_task.recipe(precision="fp16", epochs=9, techniques={"sam": {}}))
    assert 2.0**8 < scalers[-1].get_scale() < 2.0**26
    assert all(bool(torch.isfinite(t).all()) for t in result.model.state_dict().values())
    assert result.history[-1].train_loss < result.history[0].train_loss


def test_resuming_is_exact(scaled, tmp_path):
    """The scale is in the checkpoint: the steps that are left out are the same ones."""
    scalers, scale = scaled
    recipe = every_task.recipe(precision="fp16", epochs=4)
    scale[0] = 2.0**24
    whole = trained(recipe)
    kept = copy.deepcopy(scalers[-1].state_dict())
    trained(recipe, out=tmp_path, on_epoch=lambda record: record.epoch == 2)
    scale[0] = 2.0**10
    again = trained(recipe, out=tmp_path, resume=True)
    assert scalers[-1].state_dict() == kept
    for one, two in zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(one, two)
