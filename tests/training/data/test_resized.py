"""Images at another size."""

from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from convwright.training import load_data
from convwright.training.data.images import ArrayImages, StreamImages
from convwright.training.data.resized import resized_data, resized_images


def test_in_memory_and_streamed_images_are_resized_alike():
    torch.manual_seed(1)
    pixels = torch.randint(0, 256, (7, 3, 11, 13), dtype=torch.uint8)
    labels = torch.arange(7)
    held = ArrayImages(pixels, labels, (0.5,) * 3, (0.2,) * 3)
    read = StreamImages(pixels.__getitem__, labels, labels, (3, 11, 13), held.mean, held.std)
    for size in ((19, 17), (5, 7)):
        one, two = resized_images(held, size), resized_images(read, size)
        assert one.shape == two.shape == (3, *size)
        assert one.images.dtype == torch.uint8
        for i in range(7):
            assert torch.equal(one.images[i], two.read(i))
        assert (one.mean, one.std) == (held.mean, held.std)
    assert resized_images(held, (11, 13)) is held


def test_a_flat_image_stays_flat():
    flat = torch.full((2, 1, 9, 9), 77, dtype=torch.uint8)
    held = ArrayImages(flat, torch.zeros(2, dtype=torch.int64), (0.3,), (1.0,))
    assert (resized_images(held, (14, 6)).images == 77).all()


def test_all_parts_of_a_data_set():
    data = load_data("fashion-mini")
    other = resized_data(data, (21, 20))
    assert other.shape == (1, 21, 20)
    assert other.val.shape == other.test.shape == (1, 21, 20)
    assert torch.equal(other.val.labels, data.val.labels)
    assert resized_data(data, data.shape[1:]) is data


def test_images_of_a_folder_are_read_again(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("train", "val", "test"):
        for kind in "ab":
            (tmp_path / part / kind).mkdir(parents=True)
            for i in range(3):
                pixels = rng.integers(0, 256, (40 + i, 44, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / kind / f"{i}.png")
    for limit in (0, 10**9):
        small, large = (load_data(f"folder:{tmp_path}", input_shape=(3, s, s), memory_limit=limit) for s in (8, 32))
        grown = resized_data(replace(small, train=small.train.subset(torch.tensor([4, 1]))), (32, 32))
        assert (grown.train.mean, grown.test.mean) == (small.mean, small.mean)
        for one, other, positions in ((grown.train, large.train, (4, 1)), (grown.test, large.test, range(6))):
            for k, position in enumerate(positions):
                assert torch.equal(pixels_of(one, k), pixels_of(other, position))
        assert grown.train.labels.tolist() == [1, 0]


def pixels_of(images, position):
    if isinstance(images, ArrayImages):
        return images.images[position]
    return images.read(int(images.indices[position]))
