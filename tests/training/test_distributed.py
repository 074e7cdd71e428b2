"""Two processes train as one: same losses, same weights up to rounding, same errors."""

import every_task
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from convwright.errors import RecipeError
from convwright.training import train
from convwright.training.batches import synchronised


def network(seed=2):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(20, 3),
    )


def test_two_processes_train_as_one(small_data, small_recipe, tmp_path):
    """61 images in batches of 16: the parts of the last batch (13) are unequal. Mixing needs the whole batch."""
    recipe = small_recipe.updated(
        techniques={"mixup": {"until": 0.5}, "sam": {}, "swa": {"start": 0.5}, "distill": {"features": 0.2}}
    )
    how = {"progress": False, "accelerator": "cpu", "teacher": network(3)}
    one = train(network(), small_data, recipe, **how)
    model = network()
    two = train(model, small_data, recipe, devices=2, out=tmp_path, **how)
    assert two.model is model
    for here, there in zip(one.history, two.history, strict=True):
        assert here.train_loss == pytest.approx(there.train_loss, rel=1e-5)
        assert here.train_acc == pytest.approx(there.train_acc)
        assert here.val_loss == pytest.approx(there.val_loss, rel=1e-5)
    for a, b in zip(one.model.state_dict().values(), two.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert two.test.loss == pytest.approx(one.test.loss, rel=1e-4)
    # What two processes began, one can finish: the checkpoint is the same.
    again = train(network(), small_data, recipe, out=tmp_path, resume=True, **how)
    assert again.test.loss == pytest.approx(one.test.loss, rel=1e-4)


def test_batches_that_cannot_be_divided_are_refused(small_data, small_recipe):
    with pytest.raises(RecipeError, match="batch_size=29"):  # 61 = 29 + 29 + 3
        train(network(), small_data, small_recipe.updated(batch_size=29), progress=False, devices=4)


def test_callbacks_cannot_cross_processes(small_data, small_recipe):
    with pytest.raises(RecipeError, match="on_epoch"):
        train(network(), small_data, small_recipe, progress=False, devices=2, on_epoch=print)


def test_one_process_keeps_its_own_batch_norm():
    model = network()
    with synchronised(model, 1):
        assert "forward" not in vars(model[1])
    with synchronised(model, 2):
        assert "forward" in vars(model[1])
    assert "forward" not in vars(model[1])


class Shuffled(every_task.Pairs):
    """Batches of torch's own loader, in an order that it draws itself; how often each process judged is on file."""

    def __init__(self, folder=None):
        self.folder = folder

    def batches(self, part):
        (left, right), same = self.sample(part, 21 if part == "train" else 7)
        rows = DataLoader(TensorDataset(left, right, same), 8, shuffle=part == "train")
        return (((left, right), same) for left, right, same in rows)

    def metrics(self, model, part):
        if self.folder is not None:
            with (self.folder / part).open("a") as file:
                file.write(f"{sum(len(same) for _, same in self.on_device(model, part))}\n")
        return super().metrics(model, part)


# Batch norm sees the images of a list one by one, which is another network over two processes.
OTHERS = [name for name in every_task.TASKS if name not in ("classification", "lists")]


@pytest.mark.parametrize("name", ["shuffled", *(pytest.param(name, marks=pytest.mark.breadth) for name in OTHERS)])
def test_any_task_is_trained_by_two_processes_as_by_one(name, tmp_path):
    """Batches are divided, the last one into unequal parts; metrics are judged on the whole part, and once."""
    task = Shuffled(tmp_path) if name == "shuffled" else every_task.made(name)[0]
    plain = Shuffled() if name == "shuffled" else task
    kind, recipe = "two inputs" if name == "shuffled" else name, every_task.recipe(epochs=2)
    how = {"progress": False, "accelerator": "cpu"}
    one = train(every_task.made(kind)[1], plain, recipe, **how)
    two = train(every_task.made(kind)[1], task, recipe, devices=2, **how)
    for here, there in zip(one.history, two.history, strict=True):
        assert there.train_loss == pytest.approx(here.train_loss, rel=1e-5)
        assert there.val_acc == pytest.approx(here.val_acc, rel=1e-5)
    for a, b in zip(one.model.state_dict().values(), two.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert two.val.values == pytest.approx(one.val.values, rel=1e-5)
    assert two.val.stderr == one.val.stderr
    if name == "shuffled":
        assert (tmp_path / "val").read_text().split() == ["7", "7"]  # after each epoch
