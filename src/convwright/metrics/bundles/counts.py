"""Bundles counted from row hashes: how many, which labels they mix, and what that costs.

All counts are integers, and what is decided is decided from them; the entropy is computed from them at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convwright.devices import to_host

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_BITS = 4  # of the hash, that tell the parts that are sorted at a time
_BLOCK = 1 << 11  # rows from which a block is not joined with the next batch


@dataclass
class KeyStore:
    """What is kept of each sample: two hashes and the label, 20 bytes, on the device of the activations.

    They lie in blocks of some size until they are read: batches may be small. A label is kept as its complement, a
    negative number, where the row holds a NaN.
    """

    rows: int = 0
    blocks: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def append(self, keys: Tensor, void: Tensor, labels: Tensor) -> None:
        """Add rows: (n, 2) int64, (n,) bool, (n,) integers."""
        self.rows += len(keys)
        labels = labels.to(keys.device, torch.int32)
        self.blocks.append((keys, torch.where(void, ~labels, labels)))
        if len(self.blocks) > 1 and len(self.blocks[-2][0]) < _BLOCK:
            self.blocks[-2:] = [_joined(self.blocks[-2:])]

    def whole(self) -> tuple[Tensor, Tensor]:
        """Return the hashes and labels of all rows, in one piece each from now on."""
        self.blocks = [_joined(self.blocks)]
        return self.blocks[0]

    def parts(self) -> Iterator[tuple[Ints, Ints, Ints]]:
        """Yield rows, hashes and labels without a NaN, ordered by hash and label and as they came.

        A part has the bundles of some hashes whole, so that sorting takes little memory beside the rows.
        """
        keys, labels = (to_host(each).numpy() for each in self.whole())
        place = (keys[:, 0] >> (64 - _BITS)).astype(np.int8)
        for part in range(-(1 << (_BITS - 1)), 1 << (_BITS - 1)):
            rows = np.flatnonzero((place == part) & (labels >= 0))
            order = rows[np.lexsort((labels[rows], keys[rows, 1], keys[rows, 0]))]
            yield order, keys[order], labels[order].astype(np.int64)


def _joined(blocks: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if len(blocks) == 1:
        return blocks[0]
    keys, labels = (torch.cat([each.to(parts[0].device) for each in parts]) for parts in zip(*blocks, strict=True))
    return keys, labels


def _starts(keys: NDArray[np.integer]) -> Ints:
    """Return where another row begins among ordered rows, (n, columns)."""
    return np.flatnonzero(np.concatenate(([len(keys) > 0], (keys[1:] != keys[:-1]).any(axis=1))))


@dataclass(frozen=True)
class Counts:
    """What is counted of one layer; each number as in ``Bundles``."""

    samples: int
    count: int
    conflicting_bundles: int
    samples_in_conflict: int
    entropy: float
    label_entropy: float
    accuracy_ceiling: float
    diverged_samples: int


def count(store: KeyStore, eps: float | None) -> Counts:
    """Count what lies in a store.

    Args:
        store: the rows.
        eps: None for the entropy itself (0 ln 0 = 0); else ``ln(p + eps)`` for ``ln p``, and no bundle below 0, as
            in the published code (where eps is 1e-5).
    """
    found = [_tallied(keys, labels, eps) for _, keys, labels in store.parts()]
    bundles, rows, largest, conflicting, in_conflict = (sum(each) for each in list(zip(*found, strict=True))[:-1])
    void, of_labels = store.rows - rows, _label_entropy(store)
    total = math.fsum(chain.from_iterable(part[-1] for part in found))  # rounded once, whatever the parts are
    entropy = min(total / store.rows, of_labels)  # knowing the bundle never adds; rounding could
    entropy, ceiling = (math.nan, math.nan) if void else (entropy, largest / store.rows)
    return Counts(store.rows, bundles + void, conflicting, in_conflict, entropy, of_labels, ceiling, void)


def _tallied(keys: Ints, labels: Ints, eps: float | None) -> tuple[int, int, int, int, int, Floats]:
    """Return of ordered rows: bundles, rows, of the largest labels, bundles and rows in conflict, their entropies."""
    bundles, pairs = _starts(keys), _starts(np.column_stack([keys, labels]))
    counts = np.diff(pairs, append=len(keys))  # of each pair of a bundle and a label
    owners = np.searchsorted(bundles, pairs, side="right") - 1
    sizes = np.diff(bundles, append=len(keys))
    largest = np.maximum.reduceat(counts, np.searchsorted(pairs, bundles)) if len(keys) else counts
    mixed = largest < sizes
    chosen = mixed[owners]
    terms = _entropies(counts[chosen], sizes[owners[chosen]], owners[chosen], eps)
    return len(sizes), len(keys), int(largest.sum()), int(mixed.sum()), int(sizes[mixed].sum()), terms


def _entropies(counts: Ints, sizes: Ints, owners: Ints, eps: float | None) -> Floats:
    """Return what adds up to size times entropy of conflicting bundles, from their (bundle, label) counts.

    Bundles of one label add nothing: exactly without eps, by the clipping with it.
    """
    if eps is None or not len(counts):
        return np.asarray(counts * np.log(sizes / counts), np.float64)
    shares = counts / sizes
    firsts = _starts(owners[:, None])
    per_bundle = np.add.reduceat(-shares * np.log(shares + eps), firsts)
    return np.asarray(sizes[firsts] * np.maximum(per_bundle, 0), np.float64)


def _label_entropy(store: KeyStore) -> float:
    labels = to_host(store.whole()[1]).numpy()
    counts = np.unique(np.where(labels < 0, ~labels, labels), return_counts=True)[1]
    return math.fsum(counts * np.log(store.rows / counts)) / store.rows


def first_rows(store: KeyStore) -> Ints:
    """Return of each row the first one with equal hashes, which may be itself; a row with a NaN is alone."""
    found = np.arange(store.rows)
    for rows, keys, _ in store.parts():
        if len(rows):
            starts = _starts(keys)
            found[rows] = np.repeat(np.minimum.reduceat(rows, starts), np.diff(starts, append=len(rows)))
    return found
