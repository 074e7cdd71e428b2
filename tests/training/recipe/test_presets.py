"""Presets: all are valid files with a purpose; the paper's optimizer is the one of its code."""

import pytest
import torch
from torch import nn

from convwright.errors import RecipeError
from convwright.training import Recipe, presets
from convwright.training.recipe.check_recipe import check_alone
from convwright.training.recipe.optimizers import build_optimizer
from convwright.training.recipe.recipe import as_recipe
from convwright.training.recipe.schedules import Position


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_is_valid_and_says_what_it_is(name, tmp_path):
    recipe = Recipe.preset(name)
    assert check_alone(recipe) == ()
    assert presets.about(name).endswith(".")
    assert name.startswith("paper") or "paper" not in presets.about(name)
    recipe.save(tmp_path / "r.yaml")
    assert Recipe.load(tmp_path / "r.yaml") == recipe


def test_names():
    assert presets.names()[0] == "default"
    assert {"fast-cpu", "small-net", "imagenet-like", "paper-mnist", "paper-cifar10"} <= set(presets.names())
    assert as_recipe(None) == as_recipe("default") == Recipe()
    with pytest.raises(RecipeError, match=r"Did you mean fast-cpu"):
        Recipe.preset("fastcpu")
    with pytest.raises(RecipeError, match=r"unknown recipe '\.\./default'"):
        Recipe.preset("../default")


def test_paper_cifar10_is_marked_as_reconstructed():
    assert "Reconstructed" in " ".join(presets.notes("paper-cifar10"))
    recipe = Recipe.preset("paper-cifar10")
    assert set(recipe.techniques) == {"blurpool", "mixup", "swa", "sam"}
    assert recipe.cutout
    assert recipe.label_smoothing == 0.1


def test_paper_mnist_steps_as_composers_decoupled_sgd():
    """w <- w * (1 - wd * lr / lr0), then w <- w - lr * buffer, on all parameters, by a cosine per epoch."""
    recipe = Recipe.preset("paper-mnist").updated(epochs=5)
    generator = torch.Generator().manual_seed(7)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).double()
    weights = [p.detach().clone() for p in model.parameters()]
    buffers = [torch.zeros_like(w) for w in weights]
    optimizer = build_optimizer(model, recipe)
    per_epoch, first, decay = 3, 0.1, 1e-4
    for step in range(5 * per_epoch):
        lr = 0.05 * (1 + torch.cos(torch.tensor(torch.pi * (step // per_epoch) / 5, dtype=torch.float64)))
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * recipe.rates(Position(step, 5 * per_epoch, per_epoch)).factor
        for parameter, weight, buffer in zip(model.parameters(), weights, buffers, strict=True):
            parameter.grad = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight.mul_(1 - decay * lr / first)
            buffer.mul_(0.9).add_(parameter.grad)
            weight.sub_(lr * buffer)
        optimizer.step()
    for parameter, weight in zip(model.parameters(), weights, strict=True):
        torch.testing.assert_close(parameter.detach(), weight, rtol=1e-12, atol=1e-14)
