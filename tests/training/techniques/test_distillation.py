"""Distillation: targets by hand, no effect at weight 0, and a teacher that is not there is refused at once."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_model
from torch import nn

import convwright as cw
from convwright.techniques import distilled
from convwright.training import Recipe, train
from convwright.training.techniques.distillation import Distillation

QUIET = {"progress": False, "accelerator": "cpu"}


def same(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_targets_are_between_the_labels_and_the_teacher() -> None:
    scores = torch.tensor([[0.0, 2.0, 4.0], [1.0, 1.0, 1.0]])
    labels, soft = torch.tensor([0, 2]), torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    hard = torch.eye(3)[labels]
    assert torch.equal(distilled(labels, scores, 0.0), hard)
    torch.testing.assert_close(distilled(labels, scores, 1.0, 2.0), (scores / 2).softmax(1))
    torch.testing.assert_close(distilled(soft, scores, 0.25), 0.75 * soft + 0.25 * scores.softmax(1))
    torch.testing.assert_close(distilled(labels, scores, 0.7, 3.0).sum(1), torch.ones(2))


def test_a_training_depends_on_its_teacher_and_without_weight_on_nothing(
    small_data, small_recipe, make_network, tmp_path
) -> None:
    for seed in (0, 1):
        save_model(make_network(seed=5 + seed), str(tmp_path / f"teacher-{seed}.safetensors"))

    def trained(**options: object) -> nn.Module:
        techniques = {"distillation": {"teacher": str(tmp_path / "teacher-{seed}.safetensors"), **options}}
        return train(make_network(), small_data, small_recipe.updated(techniques=techniques), **QUIET).model

    plain = train(make_network(), small_data, small_recipe, **QUIET).model
    with pytest.warns(cw.errors.RecipeWarning, match="distillation has no effect: its weight is 0"):
        assert same(trained(weight=0.0), plain)
    one, again = trained(), trained()
    other = trained(teacher=str(tmp_path / "teacher-1.safetensors"))
    assert same(one, again)
    assert not same(one, plain)
    assert not same(one, other)


def test_the_teacher_stays_as_it_was_and_is_in_eval_mode(make_network, tmp_path, small_recipe) -> None:
    path = tmp_path / "teacher.safetensors"
    save_model(make_network(seed=5), str(path))
    student = make_network().train()
    taught = Distillation(teacher=str(path)).taught(student, small_recipe)
    assert same(taught, make_network(seed=5))
    assert same(student, make_network())


def test_a_teacher_that_is_not_there_or_another_network_is_refused(
    small_data, small_recipe, make_network, tmp_path
) -> None:
    def trained(path: object) -> None:
        recipe = small_recipe.updated(techniques={"distillation": {"teacher": str(path)}})
        train(make_network(), small_data, recipe, **QUIET)

    with pytest.raises(cw.RecipeError, match=r"absent.safetensors: no such file; train the teacher first"):
        trained(tmp_path / "absent.safetensors")
    save_model(nn.Linear(3, 4), str(tmp_path / "other.safetensors"))
    with pytest.raises(cw.RecipeError, match="not the weights of this network"):
        trained(tmp_path / "other.safetensors")
    with pytest.raises(cw.RecipeError, match=r"techniques\.distillation\.weight=1.5"):
        Recipe(techniques={"distillation": {"weight": 1.5}})
