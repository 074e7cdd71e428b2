"""A proxy of a data set: the fixed part of its classes and images that candidates are ranked by.

A network that is judged on it keeps all its outputs, and the labels stay as they are: what it learns is a part of the
whole task, not another one. Pixels are normalised as in the whole data set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from convwright.errors import DataError
from convwright.training.data.data import ImageData

_FEWEST = 2  # classes: with one there is nothing to tell apart


@dataclass(frozen=True)
class Proxy:
    """Which classes and images.

    Attributes:
        classes: Labels, sorted.
        train: Positions in the training part, sorted.
        val: Positions in the validation part, sorted: all images of these classes, as fewer would only add noise.
    """

    classes: tuple[int, ...]
    train: tuple[int, ...]
    val: tuple[int, ...]

    @property
    def digest(self) -> str:
        """A digest of the whole list."""
        return hashlib.sha256(json.dumps(self.to_dict()).encode()).hexdigest()[:16]

    def of(self, data: ImageData) -> ImageData:
        """Return the part of a data set that this is: the same classes and labels, fewer images, no test part."""
        assert data.val is not None
        train, val = data.train.subset(torch.tensor(self.train)), data.val.subset(torch.tensor(self.val))
        return replace(data, train=train, val=val, read_test=None)

    def words(self, data: ImageData) -> str:
        """Say what it is: ``3 of 10 classes (bag, coat, shirt), 900 of 4,500 training images, ...``."""
        named = ", ".join(data.class_names[label] for label in self.classes)
        every = len(self.classes) == data.num_classes
        classes = f"all {data.num_classes} classes" if every else f"{len(self.classes)} of {data.num_classes} classes"
        train = f"{len(self.train):,} of {len(data.train):,} training images"
        val = f"{len(self.val):,} of {len(data.val or ()):,} validation images"
        return f"{classes}{'' if every else f' ({named})'}, {train}, {val}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {name: list(values) for name, values in vars(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Proxy:
        """Read what `to_dict` wrote.

        Raises:
            DataError: It is damaged.
        """
        try:
            classes, train, val = (tuple(int(n) for n in values[name]) for name in ("classes", "train", "val"))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"a recorded proxy is damaged ({error!r})") from error
        return cls(classes, train, val)


def draw_proxy(data: ImageData, classes: int | None = None, samples: int | None = None, seed: int = 0) -> Proxy:
    """Draw classes and images; the same seed draws the same ones.

    Args:
        data: From which; only its labels are looked at.
        classes: How many classes; None: all.
        samples: How many training images, in each class its share; None: all of these classes.
        seed: Of the draw.

    Raises:
        DataError: There are not so many classes or images, fewer than two classes or one image of each are asked for,
            or a drawn class has no validation image.
    """
    if data.val is None:
        raise DataError(f"{data.name}: no validation images; a proxy is judged on those")
    for name, value in (("classes", classes), ("samples", samples)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise DataError(f"proxy {name}={value!r}: give a whole number")
    generator = torch.Generator().manual_seed(seed)
    chosen = _classes(data, classes, generator)
    members = [(data.train.labels == label).nonzero()[:, 0] for label in chosen]
    sizes = [len(found) for found in members]
    counts = sizes if samples is None else shares(sizes, _checked(data, samples, sizes))
    train = [m[torch.randperm(len(m), generator=generator)[:n]] for m, n in zip(members, counts, strict=True)]
    val = torch.isin(data.val.labels, torch.tensor(chosen)).nonzero()[:, 0]
    return Proxy(tuple(chosen), tuple(torch.cat(train).sort().values.tolist()), tuple(val.tolist()))


def _classes(data: ImageData, count: int | None, generator: torch.Generator) -> list[int]:
    assert data.val is not None
    known = torch.unique(data.train.labels).tolist()
    if count is not None and count < _FEWEST:
        raise DataError(f"proxy classes={count}: a proxy needs at least {_FEWEST} classes to tell apart")
    if count is not None and count > len(known):
        raise DataError(
            f"proxy classes={count}: {data.name} has training images of {len(known)} classes; give at most {len(known)}"
        )
    drawn = torch.randperm(len(known), generator=generator)[:count]
    chosen = sorted(known[int(place)] for place in drawn)
    judged = set(data.val.labels.tolist())
    missing = [data.class_names[label] for label in chosen if label not in judged]
    if missing:
        raise DataError(
            f"{data.name}: class {missing[0]} of the proxy has no validation image; set val_fraction in the recipe "
            "higher, or draw other classes with another seed"
        )
    return chosen


def _checked(data: ImageData, samples: int, sizes: Sequence[int]) -> int:
    if samples > sum(sizes):
        raise DataError(
            f"proxy samples={samples}: the {len(sizes)} classes of the proxy have {sum(sizes)} training images in "
            f"{data.name}; give at most {sum(sizes)}"
        )
    if samples < len(sizes):
        raise DataError(f"proxy samples={samples}: give at least one image of each of the {len(sizes)} classes")
    return samples


def shares(sizes: Sequence[int], count: int) -> list[int]:
    """Return how many of each class make `count` together: in proportion, at least one of each.

    Args:
        sizes: How many there are of each, at least 1.
        count: From the number of classes up to all.

    >>> shares([50, 30, 20], 10), shares([97, 2, 1], 5)
    ([5, 3, 2], [3, 1, 1])
    """
    total = sum(sizes)
    found = [max(1, count * size // total) for size in sizes]
    while sum(found) != count:
        by = 1 if sum(found) < count else -1
        able = [i for i, n in enumerate(found) if 1 <= n + by <= sizes[i]]
        # Who lies furthest from its share, in the direction that is wanted; of equal ones the earlier.
        found[max(able, key=lambda i: by * (count * sizes[i] / total - found[i]))] += by
    return found
