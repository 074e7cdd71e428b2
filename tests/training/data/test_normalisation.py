"""What pixels are normalised by."""

import json
from typing import ClassVar

import pytest
import torch
from torch import nn

from convwright.errors import RecipeError
from convwright.training import Loader, Recipe, load_data, train
from convwright.training.checkpoint import read_checkpoint, write_checkpoint
from convwright.training.data.normalisation import IMAGENET, Normalisation, normalised
from convwright.training.data.resized import resized_data

HALF = {"mean": [0.5, 0.25, 0.125], "std": [0.5, 1, 2]}


def colours(count=12):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8)
    dataset = torch.utils.data.TensorDataset(images, torch.arange(count) % 2)
    return load_data((dataset, dataset), val_fraction=0.25)


class Timm(nn.Module):
    pretrained_cfg: ClassVar = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "input_size": (3, 4, 4)}


@pytest.mark.parametrize(
    ("choice", "numbers"),
    [
        ("imagenet", IMAGENET),
        ("timm", Normalisation(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))),
        (HALF, Normalisation(**HALF)),
    ],
)
def test_every_part_is_normalised_by_the_recipes_numbers(choice, numbers):
    recipe = Recipe(normalisation=choice)
    data = normalised(colours(), recipe.normalisation, Timm())
    for images in (data.train, data.val, data.test, resized_data(data, (6, 6)).test):
        assert (images.mean, images.std) == (numbers.mean, numbers.std)
    batch, _ = next(iter(Loader(data.test, 12, shuffle=False)))
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (numbers.mean, numbers.std))
    torch.testing.assert_close(batch, (colours().test.images / 255 - mean) / std)


def test_the_default_is_the_datas_own():
    data = colours()
    assert normalised(data, Recipe().normalisation, nn.Identity()) is data
    assert data.normalised(data.mean, data.std) is data


def test_numbers_go_through_files(tmp_path):
    recipe = Recipe(normalisation=HALF)
    recipe.save(tmp_path / "r.yaml")
    assert Recipe.load(tmp_path / "r.yaml") == recipe == Recipe(**json.loads(recipe.model_dump_json()))
    assert recipe.updated(epochs=3).normalisation == Normalisation(**HALF)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("imagnet", "normalisation='imagnet': give data, imagenet, timm, or numbers such as"),
        (True, "normalisation=True: give data"),
        (["data"], "give data, imagenet, timm"),
        ({"mean": [0.5]}, r"normalisation\.std"),
        ({"mean": [0.5], "std": [0.1, 0.2]}, "1 means and 2 standard deviations; give one per channel"),
        ({"mean": [0.5], "std": [0]}, r"normalisation\.std\.0=0: .*greater than 0"),
        ({"mean": [], "std": []}, r"normalisation\.mean"),
        ({"mean": [0.5], "std": [0.1], "scale": 255}, "scale"),
    ],
)
def test_bad_choices_are_one_line(choice, message):
    with pytest.raises(RecipeError, match=message) as error:
        Recipe(normalisation=choice)
    assert "\n" not in str(error.value)


def test_numbers_that_are_not_there():
    with pytest.raises(RecipeError, match=r"Linear has no pretrained_cfg with mean and std, .* use imagenet or data"):
        normalised(colours(), "timm", nn.Linear(1, 1))
    with pytest.raises(RecipeError, match="is for 3 channels and the images of fashion-mini have 1; use data"):
        normalised(load_data("fashion-mini"), "imagenet", nn.Linear(1, 1))
    with pytest.raises(RecipeError, match="is for 1 channel and the images of"):
        normalised(colours(), Normalisation(mean=[0.5], std=[0.5]), nn.Linear(1, 1))


def test_numbers_of_bytes_are_refused_for_images_from_0_to_1():
    with pytest.raises(RecipeError, match=r"looks like that of bytes .* in units of 0\.\.1, divided by 255"):
        normalised(colours(), Normalisation(mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4]), nn.Linear(1, 1))


def test_a_checkpoint_from_before_the_field_is_continued(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    recipe = Recipe(epochs=2, batch_size=4, crop_padding=1, precision="fp32", memory_format="contiguous")
    train(model, colours(), recipe, out=tmp_path, progress=False, on_epoch=lambda _: True)
    found = read_checkpoint(tmp_path)
    old = {k: v for k, v in json.loads(found.pop("recipe")).items() if k != "normalisation"}
    found.pop("format")
    write_checkpoint(tmp_path, {**found, "recipe": json.dumps(old)})
    with pytest.raises(RecipeError, match="was trained with normalisation=data, not imagenet"):
        train(model, colours(), recipe.updated(normalisation="imagenet"), out=tmp_path, resume=True, progress=False)
    assert len(train(model, colours(), recipe, out=tmp_path, resume=True, progress=False).history) == 2
