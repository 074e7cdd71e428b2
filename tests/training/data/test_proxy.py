"""The part of a data set that candidates are ranked by."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convwright.errors import DataError
from convwright.training import ArrayImages, ImageData, StreamImages
from convwright.training.data.proxy import Proxy, draw_proxy, shares


def images(labels, seed=0, mean=0.37):
    """Images whose first pixel is their position, so that each can be told."""
    labels = torch.tensor(labels)
    pixels = torch.zeros(len(labels), 2, 3, 5, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.arange(len(labels))
    return ArrayImages(pixels.contiguous(memory_format=torch.channels_last), labels, (mean,) * 2, (0.3,) * 2)


def data(train, val, classes=7):
    names = tuple(f"c{n}" for n in range(classes))
    return ImageData("set", images(train), images(val), names, lambda: images([0]))


SIZES = [23, 19, 13, 11, 7, 5, 3]
TRAIN = [label for label, size in enumerate(SIZES) for _ in range(size)]
WHOLE = data(TRAIN, [0, 1, 2, 3, 4, 5, 6] * 2)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 7), st.integers(7, 19), st.integers(0, 2**31))
def test_a_draw_is_a_part_of_the_data_with_the_same_labels(classes, samples, seed):
    samples = min(samples, sum(sorted(SIZES)[:classes]))
    proxy = draw_proxy(WHOLE, classes, samples, seed)
    assert proxy == draw_proxy(WHOLE, classes, samples, seed)
    assert len(proxy.classes) == classes
    assert len(set(proxy.train)) == len(proxy.train) == samples
    part = proxy.of(WHOLE)
    assert set(part.train.labels.tolist()) == set(part.val.labels.tolist()) == set(proxy.classes)
    assert (part.num_classes, part.class_names, part.mean, part.std) == (7, WHOLE.class_names, WHOLE.mean, WHOLE.std)
    assert not part.has_test
    for position, image, label in zip(proxy.train, part.train.images, part.train.labels, strict=True):
        assert image[0, 0, 0] == position
        assert label == TRAIN[position]
    assert len(part.val) == 2 * classes  # all validation images of these classes
    assert Proxy.from_dict(proxy.to_dict()) == proxy


def test_other_seeds_draw_other_lists():
    found = {draw_proxy(WHOLE, 3, 11, seed).digest for seed in range(40)}
    assert len(found) >= 30
    assert len({draw_proxy(WHOLE, 3, None, seed).classes for seed in range(40)}) >= 15


def test_what_is_not_asked_for_stays_whole():
    assert draw_proxy(WHOLE, 4, None, 5).train == tuple(
        n for n, label in enumerate(TRAIN) if label in draw_proxy(WHOLE, 4, None, 5).classes
    )
    every = draw_proxy(WHOLE, None, 29, 5)
    assert every.classes == tuple(range(7))
    assert (len(every.train), len(every.val)) == (29, 14)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 97), min_size=2, max_size=9), st.data())
def test_shares_keep_the_proportions(sizes, drawn):
    count = drawn.draw(st.integers(len(sizes), sum(sizes)))
    found = shares(sizes, count)
    assert sum(found) == count
    for got, size in zip(found, sizes, strict=True):
        exact = count * size / sum(sizes)
        assert 1 <= got <= size
        assert got - exact < 1 or got == 1
    if min(count * size / sum(sizes) for size in sizes) >= 1:
        assert all(abs(got - count * size / sum(sizes)) < 1 for got, size in zip(found, sizes, strict=True))


def test_streamed_images_are_not_read_for_it():
    def never(position):
        raise AssertionError("read")

    labels = torch.tensor(TRAIN)
    stream = StreamImages(never, torch.arange(100, 100 + len(labels)), labels, (2, 3, 5), (0.4,) * 2, (0.3,) * 2)
    part = draw_proxy(dataclasses.replace(WHOLE, train=stream), 3, 10, 1)
    assert part.of(dataclasses.replace(WHOLE, train=stream)).train.indices.tolist() == [100 + n for n in part.train]


@pytest.mark.parametrize(
    ("classes", "samples", "message"),
    [
        (8, None, "classes=8: set has training images of 7 classes; give at most 7"),
        (1, None, "classes=1: a proxy needs at least 2 classes"),
        (0, None, "classes=0: a proxy needs at least 2"),
        (True, None, "classes=True: give a whole number"),
        (None, 82, "samples=82: the 7 classes of the proxy have 81 training images in set; give at most 81"),
        (None, 6, "samples=6: give at least one image of each of the 7 classes"),
        (None, 2.5, "samples=2.5: give a whole number"),
    ],
)
def test_what_is_too_much_or_too_little_is_named(classes, samples, message):
    with pytest.raises(DataError, match=message):
        draw_proxy(WHOLE, classes, samples, 3)


def test_without_validation_images_there_is_nothing_to_judge_on():
    with pytest.raises(DataError, match="no validation images"):
        draw_proxy(dataclasses.replace(WHOLE, val=None), 3)
    with pytest.raises(DataError, match="class c6 of the proxy has no validation image; set val_fraction"):
        draw_proxy(data(TRAIN, [0, 1, 2, 3, 4, 5]), 7)


@pytest.mark.parametrize(
    "damaged", [{}, {"classes": [1], "train": None, "val": [2]}, {"classes": "x", "train": [], "val": []}]
)
def test_a_damaged_list_is_refused(damaged):
    with pytest.raises(DataError, match="a recorded proxy is damaged"):
        Proxy.from_dict(damaged)
