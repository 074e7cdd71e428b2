"""Two processes train as one: same losses, same weights up to rounding, same errors."""

import pytest
import torch
from torch import nn

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
