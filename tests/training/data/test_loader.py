"""The loader visits every image once per epoch and continues exactly from its state."""

import itertools
from collections import Counter

import pytest
import torch

from convwright.training import ArrayImages, Augment, Loader, StreamImages
from convwright.training.data.images import stratified_split

AUGMENT = Augment(crop_padding=2, hflip=True, cutout=3)


def numbered(count):
    """Images whose value is their number, so that a batch tells what is in it."""
    values = torch.arange(count).view(-1, 1, 1, 1).expand(count, 1, 5, 5)
    images = values.to(torch.uint8).contiguous(memory_format=torch.channels_last)
    return ArrayImages(images, torch.arange(count), (0.0,), (1.0,))


def streamed(images):
    def read(position):
        return images.images[position]

    everything = torch.arange(len(images))
    return StreamImages(read, everything, images.labels, images.shape, images.mean, images.std)


def same(left, right):
    return len(left) == len(right) and all(
        torch.equal(a, b) for one, two in zip(left, right, strict=True) for a, b in zip(one, two, strict=True)
    )


@pytest.mark.parametrize("count", [1, 7, 16, 17, 33, 47])
@pytest.mark.parametrize("kind", [lambda x: x, streamed])
def test_each_image_once(count, kind):
    loader = Loader(kind(numbered(count)), 16, workers=0)
    for epoch in range(2):
        assert loader.epoch == epoch
        seen = Counter()
        for images, labels in loader:
            assert torch.equal((images[:, 0, 0, 0] * 255).round().long(), labels)
            seen.update(labels.tolist())
        assert seen == Counter(range(count))
    assert count == 1 or min(loader.sizes) > 1


def test_order_changes_with_epoch_and_seed_only():
    def order(loader):
        return torch.cat([labels for _, labels in loader]).tolist()

    loader = Loader(numbered(47), 16)
    first, second = order(loader), order(loader)
    assert first != second
    assert order(Loader(numbered(47), 16)) == first
    assert order(Loader(numbered(47), 5, augment=AUGMENT)) == first
    assert order(Loader(numbered(47), 16, seed=1)) != first
    assert order(Loader(numbered(47), 16, shuffle=False)) == list(range(47))


@pytest.mark.parametrize("kind", [lambda x: x, streamed])
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_state_continues_mid_epoch_and_at_epoch_boundaries(make_pictures, kind, stop):
    images = kind(make_pictures(61))
    whole = Loader(images, 16, augment=AUGMENT, seed=5, workers=0)
    expected = list(whole) + list(whole)
    first = Loader(images, 16, augment=AUGMENT, seed=5, workers=0)
    taken = list(first)
    taken += itertools.islice(first, stop)
    resumed = Loader(images, 16, augment=AUGMENT, workers=0)
    resumed.load_state_dict(first.state_dict())
    assert same(expected, taken + list(resumed))


def test_state_points_behind_the_batch_in_hand(make_pictures):
    loader = Loader(make_pictures(40), 16)
    states = [tuple(loader.state_dict().values()) for _ in loader]
    assert states == [(0, 0, 1), (0, 0, 2), (0, 1, 0)]


def test_layouts_and_streams_hold_the_same_values(make_pictures):
    images = make_pictures(29)
    batches = [
        list(Loader(kind, 8, augment=AUGMENT, channels_last=last, workers=0))
        for kind in (images, streamed(images))
        for last in (True, False)
    ]
    assert all(same(batches[0], other) for other in batches[1:])
    assert batches[1][0][0].is_contiguous()
    assert batches[0][0][0].is_contiguous(memory_format=torch.channels_last)


def test_global_generator_is_left_alone(make_pictures):
    before = torch.get_rng_state()
    list(Loader(make_pictures(29), 8, augment=AUGMENT))
    list(Loader(streamed(make_pictures(29)), 8, augment=AUGMENT, workers=0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_split_is_stratified_and_disjoint(fraction):
    labels = torch.tensor([0] * 40 + [1] * 20 + [2] * 3 + [3])[torch.randperm(64)]
    kept, held = stratified_split(labels, fraction, seed=7)
    assert sorted(torch.cat([kept, held]).tolist()) == list(range(64))
    for label, size in ((0, 40), (1, 20), (2, 3)):
        assert int((labels[held] == label).sum()) == max(round(size * fraction), 1)
    assert int((labels[kept] == 3).sum()) == 1
    again = stratified_split(labels, fraction, seed=7)
    assert torch.equal(held, again[1])
    assert not torch.equal(held, stratified_split(labels, fraction, seed=8)[1])
