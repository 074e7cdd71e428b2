"""Cutout for one's own loop, and random resized crops in memory and from files."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from convwright.errors import RecipeError
from convwright.training import Augment, Loader, Recipe, load_data
from convwright.training.data.augment import resized_crop
from convwright.training.techniques.recipe_fields import cutout


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 13), st.integers(1, 11)),
    length=st.integers(0, 11),
    seed=st.integers(0, 99),
)
def test_cutout_erases_one_square_per_image(size, length, seed):
    images = torch.ones(size)
    height, width = size[2:]
    if length > min(height, width):
        with pytest.raises(RecipeError, match=r"cutout length="):
            cutout(images, length)
        return
    erased = cutout(images, length, torch.Generator().manual_seed(seed), value=-3.0)
    assert torch.equal(images, torch.ones(size))
    for image in erased:
        gone = image == -3
        assert torch.equal(gone, gone[:1].expand_as(gone))  # all channels alike
        assert torch.equal(image[~gone], torch.ones(int((~gone).sum())))
        rows, columns = gone[0].any(1).nonzero()[:, 0], gone[0].any(0).nonzero()[:, 0]
        if length == 0:
            assert not len(rows)
            continue
        for found, last in ((rows, height - 1), (columns, width - 1)):  # whole, or cut by the border
            assert int(found[-1] - found[0]) + 1 == len(found)
            cut = int(found[0]) == 0 or int(found[-1]) == last
            assert len(found) == length or (cut and length // 2 <= len(found) < length)
        assert gone[0].sum() == len(rows) * len(columns)


def test_squares_differ_and_reach_every_corner():
    erased = cutout(torch.ones(400, 1, 7, 5), 3, torch.Generator().manual_seed(0))[:, 0] == 0
    assert erased.any(0).all()
    assert erased[:, [0, 0, -1, -1], [0, -1, 0, -1]].any(0).all()
    assert len(torch.unique(erased.flatten(1), dim=0)) == 35  # one per centre
    with pytest.raises(RecipeError, match=r"length=-1"):
        cutout(torch.ones(1, 1, 2, 2), -1)


CROP = (0.2, 0.6, 0.5, 2.0)


@pytest.mark.parametrize("seed", range(5))
def test_crops_equal_torchvisions(seed):
    from torchvision.transforms import v2

    image = torch.randint(0, 256, (3, 23, 17), dtype=torch.uint8)
    state = torch.random.get_rng_state()
    found = resized_crop(image, Augment(resized_crop=CROP), (11, 13), seed)
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        expected = v2.RandomResizedCrop((11, 13), CROP[:2], CROP[2:], antialias=True)(image)
    assert torch.equal(found, expected)


def test_crops_of_a_set_in_memory(make_pictures):
    images = make_pictures(29)
    recipe = Recipe(random_resized_crop=(0.2, 0.6), crop_padding=3, hflip=False)
    assert recipe.augment == Augment(0, resized_crop=(0.2, 0.6, 3 / 4, 4 / 3))
    plain, one, two = (Loader(images, 7, augment=a, seed=3) for a in (None, recipe.augment, recipe.augment))
    two.load_state_dict({"seed": 3, "epoch": 0, "position": 2})
    resumed = list(two)
    for index, ((bare, labels), (cropped, same)) in enumerate(zip(plain, one, strict=True)):
        assert torch.equal(labels, same)
        assert cropped.shape == bare.shape
        assert all(not torch.equal(a, b) for a, b in zip(bare, cropped, strict=True))
        if index >= 2:
            assert torch.equal(resumed[index - 2][0], cropped)


def test_streamed_folders_crop_whole_files(tmp_path):
    """The crop sees the file in full size, not the resized image: the red border shows up."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(4):
            image = Image.new("RGB", (96, 24), (255, 0, 0))
            image.paste((0, 0, 255), (36, 0, 60, 24))  # what a square crop of the middle shows
            image.save(tmp_path / name / f"{number}.png")
    data = load_data(f"folder:{tmp_path}", input_shape=(3, 8, 8), val_fraction=0, memory_limit=0)
    recipe = Recipe(random_resized_crop=(0.05, 0.3), crop_padding=0)
    batches = [torch.cat([x for x, _ in Loader(data.train, 4, augment=a, workers=0)]) for a in (None, recipe.augment)]
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    red = [(b.movedim(1, -1) * std + mean)[..., 0] for b in batches]
    assert red[0].max() < 0.1  # the resizing filter reaches a little beyond the middle
    assert red[1].max() > 0.9
    assert batches[1].shape == (8, 3, 8, 8)
    again = torch.cat([x for x, _ in Loader(data.train, 4, augment=recipe.augment, workers=1)])
    assert torch.equal(again, batches[1])


def test_the_middle_of_photographs_is_shown_as_timm_shows_it(tmp_path):
    from timm.data import create_transform

    from convwright.training.data.folders import Resize

    image = Image.effect_mandelbrot((90, 60), (-2, -1.2, 1, 1.2), 50).convert("RGB")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(2):
            image.save(tmp_path / name / f"{number}.png")
    whole, part = (
        load_data(f"folder:{tmp_path}", input_shape=(3, 28, 28), val_fraction=0, resize=how)
        for how in (None, Resize(crop_pct=0.875, interpolation="bilinear"))
    )
    theirs = create_transform((3, 28, 28), crop_pct=0.875, interpolation="bilinear", mean=(0,) * 3, std=(1,) * 3)
    wanted = theirs(image) * 255
    errors = [(data.train.images[0].float() - wanted).abs().mean().item() for data in (part, whole)]
    assert errors[0] < 2.5 < 10 < errors[1]
    assert (part.resize.crop_pct, whole.resize) == (0.875, Resize())
    # Images that are alike and stay as they are do not lose their borders.
    assert load_data(f"folder:{tmp_path}", val_fraction=0, resize=part.resize).shape == (3, 60, 90)
