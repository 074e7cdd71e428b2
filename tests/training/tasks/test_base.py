"""Tasks of a user's own: any inputs, any loss, any metric, trained and searched like a classification."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn.functional import smooth_l1_loss
from torch.utils.data import DataLoader, TensorDataset

import convwright as cw
from convwright.architecture.capture.pytrees import joined, rows_of, samples_in
from convwright.edits.importance import BatchLoss, mean_loss
from convwright.errors import DataError, RecipeError
from convwright.training.evaluate import evaluate
from convwright.training.tasks.loader import TaskLoader

FAST = {"precision": "fp32", "memory_format": "contiguous", "lr": 0.05, "epochs": 2}


class TwoInputs(nn.Module):
    """An image and a map of its depth, of other channels; the forward names them."""

    def __init__(self):
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 7, 3, padding=1), nn.BatchNorm2d(7), nn.ReLU(), nn.Conv2d(7, 6, 3))
        self.depth = nn.Sequential(nn.Conv2d(1, 5, 3, padding=1), nn.ReLU())
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(11, 2)

    def forward(self, image, depth):
        seen = torch.cat([self.image(image).relu().mean((2, 3)), self.depth(depth).mean((2, 3))], 1)
        return {"place": self.head(self.drop(seen)), "seen": seen}


def as_tuple(items):
    image, depth, place = (torch.stack(part) for part in zip(*items, strict=True))
    return (image, depth), place


def as_dict(items):
    (image, depth), place = as_tuple(items)
    return {"depth": depth, "image": image}, {"place": place}


class Places(cw.Task):
    """Two numbers of an image and its depth."""

    parts = ("train", "val", "test")
    metric = cw.Metric("mae", higher_is_better=False, unit="px")

    def __init__(self, collate=as_tuple, size=9):
        draw = torch.Generator().manual_seed(0)
        self.loaders = {}
        for part, count in (("train", 40), ("val", 17), ("test", 13)):
            image, depth = (torch.randn(count, c, size, size, generator=draw) for c in (3, 1))
            place = torch.stack([3 * image.mean((1, 2, 3)), depth.mean((1, 2, 3))], 1)
            data = TensorDataset(image, depth, place)
            self.loaders[part] = DataLoader(data, 8, shuffle=part == "train", collate_fn=collate)

    def batches(self, part):
        return self.loaders[part]

    def loss(self, model, batch):
        inputs, targets = batch
        place = targets["place"] if isinstance(targets, dict) else targets
        return smooth_l1_loss(self.forward(model, inputs)["place"], place)

    def metrics(self, model, part):
        errors = []
        for inputs, targets in self.on_device(model, part):
            place = targets["place"] if isinstance(targets, dict) else targets
            errors.append((self.forward(model, inputs)["place"] - place).abs().mean(1))
        error = torch.cat(errors)
        return {"mae": float(error.mean()), "mae_stderr": float(error.std()) / math.sqrt(len(error))}

    def outputs(self, output):
        return [output["place"]]


def network(seed=0):
    torch.manual_seed(seed)
    return TwoInputs()


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.parametrize("collate", [as_tuple, as_dict])
def test_a_task_is_trained_and_judged_by_its_own_metric(collate):
    task, model = Places(collate), network()
    before = evaluate(model, task.val)
    result = cw.train(model, task, cw.Recipe(**{**FAST, "epochs": 4}), progress=False)
    assert result.val.values["mae"] == -result.val.accuracy < -before.accuracy
    assert result.val.stderr == result.val.values["mae_stderr"]
    assert result.test.samples == 13
    assert result.last.train_acc is None
    assert result.best.val_acc == max(record.val_acc for record in result.history)


def test_names_and_order_of_inputs_are_the_same_to_it():
    results = [cw.train(network(), Places(how), cw.Recipe(**FAST), progress=False) for how in (as_tuple, as_dict)]
    assert same(results[0].model, results[1].model)


def test_a_batch_in_parts_has_the_gradients_of_the_whole():
    losses = [
        [r.train_loss for r in cw.train(plain(), Places(), cw.Recipe(**FAST, accumulate=n), progress=False).history]
        for n in (1, 4)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def plain():
    """Without what sees a batch as a whole, or draws."""
    model = network()
    model.image[1], model.drop = nn.Identity(), nn.Identity()
    return model


def test_a_resumed_training_of_a_task_is_the_uninterrupted_one(tmp_path):
    whole = cw.train(network(), Places(), cw.Recipe(**FAST), progress=False)
    first = network()
    cw.train(first, Places(), cw.Recipe(**FAST), out=tmp_path, on_epoch=lambda record: True, progress=False)
    resumed = cw.train(network(), Places(), cw.Recipe(**FAST), out=tmp_path, resume=True, progress=False)
    assert same(whole.model, resumed.model)
    assert [r.train_loss for r in whole.history] == [r.train_loss for r in resumed.history]


def test_saliency_of_a_task_is_that_of_its_loss():
    task, model = Places(), network().eval()
    arch = cw.read(model, task.example_inputs())
    batches = list(task.batches("val"))
    ours = cw.saliency(arch, batches, BatchLoss(task.loss))
    theirs = cw.saliency(arch, batches, lambda output, place: smooth_l1_loss(output["place"], place))
    assert ours.keys() == theirs.keys() != set()
    assert all((ours[name] == theirs[name]).all() for name in ours)
    assert mean_loss(model, batches, BatchLoss(task.loss)) > 0


def test_compress_halves_a_network_of_a_task_and_proves_it(tmp_path):
    model, task = network(), Places()
    cw.train(model, task, cw.Recipe(**FAST), progress=False)
    recipe = cw.Recipe(**{**FAST, "lr": 0.01}, techniques={"distill": {"weight": 0.3}})
    result = cw.compress(
        model, task, "macs<=50%", out=tmp_path / "run", recipe=recipe, tune_epochs=1, progress=False, calibration=32
    )
    costs = [result.data[side]["costs"]["macs"] for side in ("baseline", "result")]
    assert 2 * costs[1] <= costs[0]
    assert result.data["metric"] == {"name": "mae", "higher_is_better": False, "unit": "px"}
    assert result.data["result"]["test"]["values"]["mae"] == result.metrics["test"]
    assert evaluate(result.model, task.test).values["mae"] == pytest.approx(result.metrics["test"])


def test_a_task_travels_to_another_process():
    assert pickle.loads(pickle.dumps(Places())).shape == (3, 9, 9)


def test_samples_of_nested_batches():
    batch = ({"a": torch.arange(6).view(3, 2)}, [{"b": torch.ones(4)}, {}, {}]), torch.arange(3)
    assert samples_in(batch) == 3
    one, two = rows_of(batch, slice(0, 1)), rows_of(batch, slice(1, 3))
    again = joined([one, two])
    assert torch.equal(again[0][0]["a"], batch[0][0]["a"])
    assert len(again[0][1]) == 3
    assert torch.equal(again[1], batch[1])


# ------------------------------------------------------------------ bad input


def failing(**methods):
    return type("Bad", (Places,), methods)()


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (lambda: failing(loss=lambda self, model, batch: batch[1] - 1), r"Bad: train: the loss of a batch is of shape"),
        (lambda: failing(loss=lambda self, model, batch: 3.0), "the loss of a batch is a float; return its mean"),
        (lambda: failing(loss=lambda self, model, batch: model(batch[0])), "the loss of the first two samples fails"),
        (lambda: failing(metrics=lambda self, model, part: {"mse": 1.0}), "metrics of val have no mae, which ranks"),
        (lambda: failing(metrics=lambda self, model, part: {"mae": math.nan}), "mae of val is NaN"),
        (lambda: failing(metrics=lambda self, model, part: {"mae": math.inf}), "mae of val is inf"),
        (
            lambda: failing(metrics=lambda self, model, part: {"mae": torch.ones(2)}),
            "mae of val is tensor",
        ),
        (lambda: failing(metrics=lambda self, model, part: None), "metrics of val are a NoneType"),
        (lambda: failing(loss=lambda self, model, batch: torch.ones(1)), r"the loss of a batch is of shape \(1,\)"),
        (
            lambda: failing(loss=lambda self, model, batch: torch.tensor(math.nan)),
            "first two samples is nan",
        ),
        (lambda: failing(metric="mae"), r"Bad: metric is 'mae'; give cw\.Metric\('mae', \.\.\.\)"),
        (lambda: failing(batches=lambda self, part: None), "train: batches are a NoneType"),
        (lambda: failing(batches=lambda self, part: []), "Bad: train has no batches"),
        (lambda: failing(batches=lambda self, part: [torch.ones(2)]), "train: batch 0 is a Tensor; give a pair"),
        (lambda: type("Empty", (cw.Task,), {})(), r"Empty: a task needs a method batches"),
    ],
)
def test_a_wrong_task_is_one_line(task, words):
    with pytest.raises(DataError, match=words) as caught:
        cw.train(network(), task(), cw.Recipe(**FAST), progress=False)
    assert "\n" not in str(caught.value)


def test_nan_in_a_batch_is_named():
    torch.manual_seed(0)
    x = [torch.randn(4, 3) for _ in range(4)]
    x[2][1, 1] = math.nan

    class Sums(cw.Task):
        def batches(self, part):
            return [(each, each.sum(1, keepdim=True)) for each in (x if part == "train" else x[:2])]

        def loss(self, model, batch):
            return smooth_l1_loss(self.forward(model, batch[0]), batch[1])

    with pytest.raises(RecipeError, match=r"became nan at step 3 \(Sums: train: batch 2 holds NaN: correct the data\)"):
        cw.train(nn.Linear(3, 1), Sums(), cw.Recipe(**FAST), progress=False)


def test_volumes_are_trained():
    """Layouts of images once ended this with 'required rank 4 tensor to use channels_last format'."""

    class Volumes(cw.Task):
        def batches(self, part):
            return [(torch.ones(2, 1, 4, 4, 4), torch.ones(2, 2, 2, 2, 2))] * 2

        def loss(self, model, batch):
            return smooth_l1_loss(self.forward(model, batch[0]), batch[1])

    recipe = cw.Recipe(epochs=1, precision="fp32", memory_format="channels_last")
    assert cw.train(nn.Conv3d(1, 2, 3), Volumes(), recipe, progress=False).val.loss >= 0


def test_batches_of_changing_structure_are_refused_by_name():
    batches = [*Places().loaders["val"]][:2]
    batches[1] = (batches[1][0][0], batches[1][1])
    task = failing(batches=lambda self, part: batches)
    with pytest.raises(DataError, match=r"Bad: train: batch 1 is .* and the first one was"):
        list(TaskLoader(task.train, 8))


def test_what_needs_classes_is_refused():
    with pytest.raises(RecipeError, match=r"techniques\.mixup: it needs images with one class each"):
        cw.train(network(), Places(), cw.Recipe(**FAST, techniques={"mixup": {}}), progress=False)


def test_the_users_generators_are_left_as_they_were():
    import random

    import numpy as np

    random.seed(3)
    np.random.seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    cw.train(network(seed=0), Places(), cw.Recipe(**FAST), progress=False)
    torch.manual_seed(0)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 9, 3, 2), nn.ReLU())
        self.head = nn.Linear(9, 1)

    def forward(self, one, two):
        return self.head((self.body(one) - self.body(two)).mean((2, 3)))


@pytest.mark.parametrize(("model", "shapes"), [(network(), ((3, 9, 9), (1, 9, 9))), (Siamese(), ((3, 16, 16),) * 2)])
def test_stages_of_two_inputs_have_fields_and_units(model, shapes):
    """An IndexError once ended `receptive_field` and method auto on networks with two inputs."""
    from convwright.methods.receptive_field.stage_units import find_units

    arch = cw.read(model, tuple(torch.zeros(1, *shape) for shape in shapes))
    assert cw.receptive_field(arch).stages
    assert find_units(arch).skipped
