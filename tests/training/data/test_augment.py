"""The vectorised augmentation equals a slow one that treats each image and pixel by itself."""

import pytest
import torch

from convwright.errors import RecipeError
from convwright.training.data.augment import Augment, Draws, draw, gather, normalise, square_mask


def reference(image, augment, top, left, flip):
    """Crop and flip one (c, h, w) image, pixel by pixel."""
    _, height, width = image.shape
    result = torch.zeros_like(image)
    for i in range(height):
        for j in range(width):
            row, column = i + top, (width - 1 - j if flip else j) + left
            if augment.padding_mode == "reflect":
                row = abs(row) if row < height else 2 * (height - 1) - row
                column = abs(column) if column < width else 2 * (width - 1) - column
            if 0 <= row < height and 0 <= column < width:
                result[:, i, j] = image[:, row, column]
    return result


@pytest.mark.parametrize("mode", ["reflect", "zero"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_gather_equals_reference(mode, channels, layout, dtype):
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(1, 256, (17, channels, 13, 11), generator=generator).to(dtype)
    images = images.contiguous(memory_format=layout)
    augment = Augment(crop_padding=5, padding_mode=mode, hflip=True)
    indices = torch.tensor([16, 3, 3, 0, 11, 7, 1])
    draws = draw(augment, 7, 13, 11, generator)
    assert draws.flip.any()
    assert not draws.flip.all()
    batch = gather(images, indices, augment, draws)
    for k, index in enumerate(indices):
        expected = reference(images[index], augment, int(draws.top[k]), int(draws.left[k]), bool(draws.flip[k]))
        assert torch.equal(batch[k], expected)
    assert batch.dtype == dtype


def test_zero_padding_may_exceed_the_image():
    augment = Augment(crop_padding=9, padding_mode="zero")
    zeros = torch.zeros(1, dtype=torch.int64)
    draws = Draws(torch.tensor([9]), torch.tensor([-2]), zeros.bool(), zeros, zeros)
    images = torch.full((1, 1, 5, 5), 7, dtype=torch.uint8)
    assert not gather(images, zeros, augment, draws).any()


@pytest.mark.parametrize("size", [1, 4, 5])
def test_cutout_equals_reference(size):
    augment = Augment(cutout=size)
    draws = draw(augment, 19, 11, 7, torch.Generator().manual_seed(5))
    mask = square_mask(draws.row, draws.column, augment.cutout, 11, 7)
    for k in range(19):
        row, column = int(draws.row[k]) - size // 2, int(draws.column[k]) - size // 2
        expected = torch.zeros(11, 7, dtype=torch.bool)
        expected[max(row, 0) : row + size, max(column, 0) : column + size] = True
        assert torch.equal(mask[k, 0], expected)


def test_nothing_asked_nothing_done():
    images = torch.randint(0, 256, (5, 3, 7, 7)).to(torch.uint8)
    assert not Augment().active
    assert torch.equal(gather(images, torch.tensor([4, 1]), None, None), images[[4, 1]])


def test_shifts_reach_both_ends_and_the_generator_decides():
    augment = Augment(crop_padding=2, hflip=True)
    one, two = (draw(augment, 500, 8, 8, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one.top, two.top)
    assert one.top.unique().tolist() == [-2, -1, 0, 1, 2]
    assert 150 < int(one.flip.sum()) < 350


def test_normalise():
    batch = torch.randint(0, 256, (4, 3, 5, 7)).to(torch.uint8)
    mean, std = torch.rand(1, 3, 1, 1), torch.rand(1, 3, 1, 1) + 0.1
    expected = (batch.double() / 255 - mean) / std
    torch.testing.assert_close(normalise(batch, mean, std).double(), expected, rtol=1e-5, atol=1e-5)
    floats = torch.randn(4, 3, 5, 7)
    plain = normalise(floats, torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1))
    assert torch.equal(plain, floats)


@pytest.mark.parametrize("augment", [Augment(crop_padding=5), Augment(cutout=6)])
def test_impossible_requests_are_refused(augment):
    with pytest.raises(RecipeError, match=r"use at most"):
        augment.check(5, 9)
