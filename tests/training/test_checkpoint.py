"""Checkpoints with wrong values: one line that names the file."""

import shutil

import pytest
import torch

from convwright.errors import RunError
from convwright.training import train
from convwright.training.checkpoint import FILE, check_alike


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("step",), "x"), (("history",), {}), (("history", 0), [float("inf")] * 7),
        (("settings",), "{}"), (("recipe",), "["),
        (("val",), [None, {}]), (("optimizer", "state"), {0: 3}), (("optimizer", "param_groups"), []), (("random",),
        {}),
        (("model",), 3), (("loader",), {}),
        (("optimizer", "param_groups", 0, "lr"), "x"), (("random", "cpu"), torch.zeros(3)),
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_one_line(folders, path, value, small_data, small_recipe, make_network):
    whole, folder = folders / "whole", folders / "damaged"
    recipe = small_recipe.updated(epochs=1)
    if not whole.exists():
        train(make_network(), small_data, recipe, out=whole, progress=False)
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    content = torch.load(folder / FILE, weights_only=True)
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    torch.save(content, folder / FILE)
    with pytest.raises(RunError, match=r"checkpoint.pt: damaged \(.*\); remove it to train from the beginning"):
        train(make_network(), small_data, recipe, out=folder, resume=True, progress=False)


def test_alike_is_the_same_kind_and_shape(tmp_path):
    own = {"a": [1, 0.5], "b": torch.zeros(2), "c": None}
    check_alike({"a": [2.0, 3], "b": torch.ones(2), "c": None, "more": 1}, own, tmp_path, "x")
    other = torch.zeros(2, dtype=torch.int)
    for wrong in ({"a": [1]}, {"a": [True, 0.5]}, {"b": torch.zeros(3)}, {"b": other}, {"c": 0}):
        with pytest.raises(RunError, match=r"damaged \(x"):
            check_alike(own | wrong, own, tmp_path, "x")
