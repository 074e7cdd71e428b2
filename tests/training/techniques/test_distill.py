"""Distillation: losses by hand, laws of the gradient, features at kept channels, and teachers that are refused."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_model
from torch import nn
from torch.nn import functional as F

import convwright as cw
from convwright import techniques
from convwright.techniques import distillation_loss, distilled, feature_loss
from convwright.training import Recipe, train
from convwright.training.preflight import prepare
from convwright.training.techniques import Teacher, distill
from convwright.training.techniques.distill import _with_weights

QUIET = {"progress": False, "accelerator": "cpu", "test": False}


def same(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def taught(small_recipe: Recipe, **options: object) -> Recipe:
    return small_recipe.updated(techniques={"distill": options})


def still(seed: int = 0, widths: tuple[int, int] = (5, 7)) -> nn.Module:
    """A network that computes the same in training and in evaluation, in two stages."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, widths[0], 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(*widths, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[1], 3),
    )  # fmt: skip


# ------------------------------------------------------------------ the losses


def test_the_divergence_is_that_of_softened_classes_times_the_squared_temperature() -> None:
    scores, other = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    said, own = (other / 2).softmax(1), (scores / 2).softmax(1)
    wanted = 4 * (said * (said.log() - own.log())).sum(1).mean()
    torch.testing.assert_close(distillation_loss(scores, other, 2.0).double(), wanted, rtol=1e-5, atol=1e-6)
    maps = torch.randn(2, 3, 5, 5)
    pixels = [distillation_loss(maps[:, :, i, j], maps.flip(0)[:, :, i, j]) for i in range(5) for j in range(5)]
    torch.testing.assert_close(distillation_loss(maps, maps.flip(0)), torch.stack(pixels).mean())


def test_features_are_compared_relative_to_the_teacher_s_at_the_student_s_size() -> None:
    own, other = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    shares = [(a - b).square().mean() / b.square().mean() for a, b in zip(own, other, strict=True)]
    torch.testing.assert_close(feature_loss(own, other), torch.stack(shares).mean())
    torch.testing.assert_close(feature_loss(9 * own, 9 * other), feature_loss(own, other))
    assert feature_loss(own, F.interpolate(own, scale_factor=2, mode="nearest")) < 1e-10


# ------------------------------------------------------------------ laws


def test_a_teacher_that_is_the_student_teaches_nothing(small_data, small_recipe) -> None:
    model = still()
    recipe = taught(small_recipe.updated(weight_decay=0.0), labels=False, features=1.0)
    result = train(model, small_data, recipe, teacher=model, **QUIET)
    assert result.history[-1].train_loss < 1e-6
    for mine, first in zip(model.parameters(), still().parameters(), strict=True):
        torch.testing.assert_close(mine, first, rtol=1e-4, atol=1e-5)


def test_without_labels_no_label_counts(small_data, small_recipe, make_network) -> None:
    wrong = replace(small_data, train=replace(small_data.train, labels=small_data.train.labels.flip(0)))
    recipe = small_recipe.updated(techniques={"mixup": {}, "distill": {"labels": False}})
    teacher = make_network(seed=5)
    one, two = (train(make_network(), data, recipe, teacher=teacher, **QUIET).model for data in (small_data, wrong))
    assert same(one, two)
    mixed = taught(small_recipe)
    one, two = (train(make_network(), data, mixed, teacher=teacher, **QUIET).model for data in (small_data, wrong))
    assert not same(one, two)
    assert same(teacher, make_network(seed=5))


def test_without_weight_it_changes_nothing(small_data, small_recipe, make_network) -> None:
    plain = train(make_network(), small_data, small_recipe, **QUIET).model
    with pytest.warns(cw.errors.RecipeWarning, match="distill has no effect: its weights are 0"):
        assert same(train(make_network(), small_data, taught(small_recipe, weight=0.0), **QUIET).model, plain)


def test_the_teacher_sees_the_mixed_batch(small_data, small_recipe, monkeypatch) -> None:
    seen: list[torch.Tensor] = []

    class Watching(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.clone())
            return super().forward(x)

    recipe = small_recipe.updated(techniques={"distill": {}, "mixup": {}}, epochs=1)
    teacher, student = Watching(*still(4)), Watching(*still(5))
    train(student, small_data, recipe, teacher=Teacher(teacher), **QUIET)
    training = [images for images in seen if len(images) > 2][: 2 * 4]
    assert all(torch.equal(a, b) for a, b in zip(training[::2], training[1::2], strict=True))


def test_where_nothing_is_random_the_teacher_is_asked_once_per_image(small_data, small_recipe, make_network) -> None:
    calls: list[int] = []

    class Counting(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(len(x))
            return super().forward(x)

    fixed = taught(small_recipe.updated(crop_padding=0, hflip=False, cutout=0))
    teacher = Counting(*make_network(seed=5))
    cached = train(make_network(), small_data, fixed, teacher=teacher, **QUIET)
    assert sum(calls) == 61 + 2  # two in the check
    calls.clear()
    train(make_network(), small_data, taught(small_recipe), teacher=teacher, **QUIET)
    assert sum(calls) == 3 * 61 + 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distill, "_MOST_CACHED", 0)
        live = train(make_network(), small_data, fixed, teacher=teacher, **QUIET)
    for one, two in zip(cached.history, live.history, strict=True):
        assert one.train_loss == pytest.approx(two.train_loss, rel=1e-4)


def test_parts_of_a_batch_teach_as_one(small_data, small_recipe) -> None:
    recipe = taught(small_recipe, features=0.5).updated(epochs=1)
    whole = train(still(), small_data, recipe, teacher=still(7), **QUIET)
    parts = train(still(), small_data, recipe.updated(accumulate=4), teacher=still(7), **QUIET)
    assert parts.history[0].train_loss == pytest.approx(whole.history[0].train_loss, rel=1e-5)
    for mine, its in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ features


def test_features_of_kept_channels_reach_the_layers_below_them_alone(small_data, small_recipe) -> None:
    """Channels 4, 0 and 2 of the first layer are the student's: with the same weights they differ in nothing."""
    teacher, student = still(), still(1, (3, 7))
    kept = [4, 0, 2]
    with torch.no_grad():
        for mine, its in zip(student[0].parameters(), teacher[0].parameters(), strict=True):
            mine.copy_(its[kept])
    recipe = taught(small_recipe, weight=0.0, features=1.0).updated(epochs=1, lr=1e-8)
    right, wrong = (Teacher(teacher, None, {"0": channels, "gone": [0]}) for channels in (kept, [0, 1, 2]))
    plain = train(copy.deepcopy(student), small_data, small_recipe.updated(epochs=1, lr=1e-8), **QUIET)
    one, two = (train(copy.deepcopy(student), small_data, recipe, teacher=each, **QUIET) for each in (right, wrong))
    assert one.history[0].train_loss == pytest.approx(plain.history[0].train_loss, rel=1e-5)
    assert two.history[0].train_loss > 1.1 * plain.history[0].train_loss


def test_features_are_those_at_the_end_of_the_stages() -> None:
    assert distill.feature_modules(cw.read("zoo:resnet20")) == {
        "layer1.2": "layer1.2",
        "layer2.2": "layer2.2",
        "layer3.2": "layer3.2",
    }
    assert distill.feature_modules(cw.read(still(), (3, 8, 8))) == {"1": "0", "4": "3"}


def test_the_kept_channels_are_known_after_any_cuts() -> None:
    arch = cw.read("zoo:resnet20")
    kept = {"layer2.0.conv2": [3, 1, 9], "layer3.0.conv2": list(range(0, 64, 2))}
    cut = arch.apply(
        cw.RemoveBlock("layer1.1"), *(cw.Width(name, len(ids), keep={name: ids}) for name, ids in kept.items())
    )
    teacher = techniques.teacher_for(cut, arch)
    wanted = {
        "layer1.2": list(range(16)),
        "layer2.2": sorted(kept["layer2.0.conv2"]),
        "layer3.2": kept["layer3.0.conv2"],
    }
    assert {name: sorted(ids) for name, ids in teacher.channels.items()} == wanted
    assert teacher.size == (32, 32)


def test_channels_without_an_origin_are_left_out() -> None:
    own, other = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
    here, there = distill._kept(own, other, [4, -1, 0])
    assert torch.equal(here, own[:, [0, 2]])
    assert torch.equal(there, other[:, [4, 0]])
    assert distill._kept(own, other, None) is None
    assert distill._kept(own, other, [-1] * 3) is None


def test_a_teacher_of_another_size_sees_resized_images(small_data, small_recipe) -> None:
    sizes = set()

    class Large(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes.add(tuple(x.shape[2:]))
            return super().forward(x)

    recipe = taught(small_recipe, features=0.1).updated(epochs=1)
    train(still(), small_data, recipe, teacher=Teacher(Large(*still(3)), (12, 10)), **QUIET)
    assert sizes == {(12, 10)}


# ------------------------------------------------------------------ refusals, resume


def test_teachers_that_are_not_there_or_do_not_fit_are_refused(small_data, small_recipe, make_network) -> None:
    with pytest.raises(cw.RecipeError, match=r"no trained original here; give trained --weights, .*train\(teacher="):
        prepare(make_network(), small_data, taught(small_recipe))
    with pytest.raises(cw.RecipeError, match=r"returns \(4,\) values per image and the network \(3,\)"):
        prepare(make_network(), small_data, taught(small_recipe), Teacher(make_network(classes=4)))
    apart = Teacher(still(), None, {"0": [9] * 5})
    with pytest.raises(cw.RecipeError, match=r"features: no stage ends in channels that the teacher has, too"):
        prepare(still(), small_data, taught(small_recipe, features=1.0), apart)


def test_another_teacher_is_refused_when_a_training_is_resumed(small_data, small_recipe, make_network, tmp_path):
    recipe = taught(small_recipe)
    train(make_network(), small_data, recipe, out=tmp_path, on_epoch=lambda _: True, teacher=still(1), **QUIET)
    with pytest.raises(cw.RecipeError, match="the checkpoint was trained with another teacher"):
        train(make_network(), small_data, recipe, out=tmp_path, resume=True, teacher=still(2), **QUIET)


# ------------------------------------------------------------------ the earlier form


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


@pytest.mark.parametrize("name", ["distill", "distillation"])
def test_a_file_that_is_not_there_or_of_another_network_is_refused(
    small_data, small_recipe, make_network, tmp_path, name
) -> None:
    def trained(path: object) -> None:
        recipe = small_recipe.updated(techniques={name: {"teacher": str(path)}})
        train(make_network(), small_data, recipe, **QUIET)

    with pytest.raises(cw.RecipeError, match=r"absent.safetensors: no such file; train the teacher first"):
        trained(tmp_path / "absent.safetensors")
    save_model(nn.Linear(3, 4), str(tmp_path / "other.safetensors"))
    with pytest.raises(cw.RecipeError, match="not the weights of this network"):
        trained(tmp_path / "other.safetensors")
    save_model(make_network(seed=5), str(tmp_path / "fine.safetensors"))
    student = make_network()
    assert same(_with_weights(student, str(tmp_path / "fine.safetensors"), small_recipe, name), make_network(seed=5))
    assert same(student, make_network())
    with pytest.raises(cw.RecipeError, match=rf"techniques\.{name}\.weight=1.5"):
        Recipe(techniques={name: {"weight": 1.5}})


class Means(cw.training.Task):
    """Numbers of another size than what an untrained network says."""

    def batches(self, part):
        images = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        return [(images[i : i + 8], 9 * images[i : i + 8].mean((2, 3))) for i in range(0, 32, 8)]

    def loss(self, model, batch):
        return F.smooth_l1_loss(model(batch[0]), batch[1])


def test_a_teacher_that_says_little_does_not_outweigh_the_labels():
    teacher = still()
    with torch.no_grad():
        teacher[-1].weight.mul_(0.01)
        teacher[-1].bias.zero_()
    recipe = Recipe(epochs=3, lr=0.02, batch_size=8, techniques={"distill": {}})
    losses = [
        each.train_loss for each in train(copy.deepcopy(teacher), Means(), recipe, teacher=teacher, **QUIET).history
    ]
    assert losses[-1] <= losses[0] < 1
