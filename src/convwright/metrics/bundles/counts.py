"""Bundles counted from row hashes: how many, which labels they mix, and what that costs.

All counts are integers, and what is decided is decided from them; the entropy is computed from them at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convwright.devices import to_host

Ints = NDArray[np.int64]
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

    def numbers(self) -> tuple[Ints, Ints, Ints]:
        """Return the rows without a NaN, ordered by hash and label and as they came: rows, hashes and labels."""
        keys, labels = (to_host(each).numpy() for each in self.whole())
        order = np.lexsort((labels, keys[:, 1], keys[:, 0]))
        order = order[labels[order] >= 0]
        return order, keys[order], labels[order].astype(np.int64)


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
    rows, keys, labels = store.numbers()
    void, bundles, pairs = store.rows - len(rows), _starts(keys), _starts(np.column_stack([keys, labels]))
    counts = np.diff(pairs, append=len(rows))  # of each pair of a bundle and a label
    owners = np.searchsorted(bundles, pairs, side="right") - 1
    sizes = np.diff(bundles, append=len(rows))
    largest = np.maximum.reduceat(counts, np.searchsorted(pairs, bundles)) if len(rows) else counts
    mixed = largest < sizes
    chosen = mixed[owners]
    total = _entropy_sum(counts[chosen], sizes[owners[chosen]], owners[chosen], eps)
    of_labels = _label_entropy(store)
    entropy = min(total / store.rows, of_labels)  # knowing the bundle never adds; rounding could
    entropy, ceiling = (math.nan, math.nan) if void else (entropy, int(largest.sum()) / store.rows)
    conflicting, in_conflict = int(mixed.sum()), int(sizes[mixed].sum())
    return Counts(store.rows, len(sizes) + void, conflicting, in_conflict, entropy, of_labels, ceiling, void)


def _entropy_sum(counts: Ints, sizes: Ints, owners: Ints, eps: float | None) -> float:
    """Return the sum over conflicting bundles of size times entropy, from their (bundle, label) counts.

    Bundles of one label add nothing: exactly without eps, by the clipping with it.
    """
    if eps is None or not len(counts):
        return math.fsum(counts * np.log(sizes / counts))
    shares = counts / sizes
    firsts = _starts(owners[:, None])
    per_bundle = np.add.reduceat(-shares * np.log(shares + eps), firsts)
    return math.fsum(sizes[firsts] * np.maximum(per_bundle, 0))


def _label_entropy(store: KeyStore) -> float:
    labels = to_host(store.whole()[1]).numpy()
    counts = np.unique(np.where(labels < 0, ~labels, labels), return_counts=True)[1]
    return math.fsum(counts * np.log(store.rows / counts)) / store.rows


def first_rows(store: KeyStore) -> Ints:
    """Return of each row the first one with equal hashes, which may be itself; a row with a NaN is alone."""
    found = np.arange(store.rows)
    rows, keys, _ = store.numbers()
    if len(rows):
        starts = _starts(keys)
        found[rows] = np.repeat(np.minimum.reduceat(rows, starts), np.diff(starts, append=len(rows)))
    return found
