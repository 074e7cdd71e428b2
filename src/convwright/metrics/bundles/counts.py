"""Bundles counted from row hashes: how many, which labels they mix, and what that costs.

All counts are integers, and what is decided is decided from them; the entropy is computed from them at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convwright.devices import to_host

Ints = NDArray[np.int64]
Piece = tuple[Ints, Ints, Ints]  # rows, keys and labels; a label is negative where the row holds a NaN
_PART = 1 << 11  # rows that are sorted at a time,
_BITS = 6  # or a 64th of all, if that is more
_BLOCK = 1 << 11  # rows from which a block is not joined with the next batch


@dataclass
class KeyStore:
    """What is kept of each sample: two hashes and the label, 20 bytes, on the device of the activations.

    They lie in blocks of some size: batches may be small. A label is kept as its complement, a negative number, where
    the row holds a NaN.
    """

    rows: int = 0
    blocks: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def append(self, keys: Tensor, void: Tensor, labels: Tensor) -> None:
        """Add rows: (n, 2) int64, (n,) bool, (n,) integers."""
        self.rows += len(keys)
        labels = labels.to(keys.device, torch.int32)
        labels = torch.where(void, ~labels, labels)
        if self.blocks and len(self.blocks[-1][0]) < _BLOCK:
            before = self.blocks.pop()
            keys, labels = torch.cat([before[0], keys]), torch.cat([before[1], labels])
        self.blocks.append((keys, labels))

    def pieces(self, start: int, stop: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield where rows from ``start`` to before ``stop`` are (counted from ``start``), and views of them."""
        begin = 0
        for keys, labels in self.blocks:
            low, high = max(start - begin, 0), min(stop - begin, len(keys))
            if low < high:
                yield slice(begin + low - start, begin + high - start), keys[low:high], labels[low:high]
            begin += len(keys)

    def holds(self, start: int, keys: Tensor, void: Tensor) -> bool:
        """Whether these are the rows kept from ``start`` on, NaN in the same places."""
        for place, kept, labels in self.pieces(start, start + len(keys)):
            same = (kept == keys[place].to(kept.device)).all(1) | (labels < 0)
            if not bool((same & ((labels < 0) == void[place].to(labels.device))).all()):
                return False
        return True

    def overwrite(self, start: int, keys: Tensor) -> None:
        """Put other hashes of the same rows in place, from ``start`` on."""
        for place, kept, _ in self.pieces(start, start + len(keys)):
            kept.copy_(keys[place])

    def parts(self) -> Iterator[Iterator[Piece]]:
        """Yield parts split by the hash, so that a bundle lies in one part whole, each as pieces of bounded size.

        A part has few different rows. It may have many equal ones: with one bundle it is everything.
        """
        bits = min(max(0, math.ceil(math.log2(max(self.rows, 1) / _PART))), _BITS)
        for part in range(1 << bits):
            yield _gathered(self._chosen(part, bits))

    def _chosen(self, part: int, bits: int) -> Iterator[Piece]:
        for place, all_keys, all_labels in self.pieces(0, self.rows):
            for start in range(0, len(all_keys), _PART):
                keys, labels = all_keys[start : start + _PART], all_labels[start : start + _PART]
                rows = np.arange(place.start + start, place.start + start + len(keys))
                if bits:
                    chosen = ((keys[:, 0] >> (64 - bits)) & ((1 << bits) - 1)) == part
                    keys, labels, rows = keys[chosen], labels[chosen], rows[to_host(chosen).numpy()]
                yield rows, to_host(keys).numpy(), to_host(labels).numpy().astype(np.int64)


def _gathered(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Join pieces to some of about equal size; empty ones vanish."""
    waiting: list[Piece] = []
    for piece in pieces:
        if len(piece[0]):
            waiting.append(piece)
        if sum(len(rows) for rows, _, _ in waiting) >= _PART:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(pieces: list[Piece]) -> Piece:
    rows, keys, labels = (np.concatenate(each) for each in zip(*pieces, strict=True))
    return rows, keys, labels


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
    void = bundles = conflicting = in_conflict = majority = 0
    sums: list[float] = []
    for part in store.parts():
        keys, labels, counts = _no_pairs()
        for _, own_keys, own_labels in part:
            numbers = own_labels >= 0
            void += int((~numbers).sum())
            keys, labels, counts = _pairs(
                np.concatenate([keys, own_keys[numbers]]),
                np.concatenate([labels, own_labels[numbers]]),
                np.concatenate([counts, np.ones(int(numbers.sum()), dtype=np.int64)]),
            )
        if not len(keys):
            continue
        sizes, largest, owners = _bundles(keys, counts)
        mixed = largest < sizes
        bundles += len(sizes)
        conflicting += int(mixed.sum())
        in_conflict += int(sizes[mixed].sum())
        majority += int(largest.sum())
        chosen = mixed[owners]
        sums.append(_entropy_sum(counts[chosen], sizes[owners[chosen]], owners[chosen], eps))
    of_labels = _label_entropy(store)
    entropy = min(math.fsum(sums) / store.rows, of_labels)  # knowing the bundle never adds; rounding could
    entropy, ceiling = (math.nan, math.nan) if void else (entropy, majority / store.rows)
    return Counts(store.rows, bundles + void, conflicting, in_conflict, entropy, of_labels, ceiling, void)


def _no_pairs() -> tuple[Ints, Ints, Ints]:
    return np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)


def _pairs(keys: Ints, labels: Ints, counts: Ints) -> tuple[Ints, Ints, Ints]:
    """Return the different pairs of key and label in order, and the sums of their counts."""
    if not len(keys):
        return keys, labels, counts
    order = np.lexsort((labels, keys[:, 1], keys[:, 0]))
    keys, labels, counts = keys[order], labels[order], counts[order]
    starts = _starts((keys[1:] != keys[:-1]).any(axis=1) | (labels[1:] != labels[:-1]))
    return keys[starts], labels[starts], np.add.reduceat(counts, starts)


def _bundles(keys: Ints, counts: Ints) -> tuple[Ints, Ints, Ints]:
    """Return the sizes and the largest label counts of bundles, and the bundle of each pair."""
    starts = _starts((keys[1:] != keys[:-1]).any(axis=1))
    owners = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(keys)))
    return np.add.reduceat(counts, starts), np.maximum.reduceat(counts, starts), owners


def _sorted(keys: Ints) -> tuple[Ints, Ints]:
    """Return the stable order of keys, and where in it another key begins."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    ordered = keys[order]
    return order, _starts((ordered[1:] != ordered[:-1]).any(axis=1)) if len(keys) else order


def _starts(change: NDArray[np.bool_]) -> Ints:
    return np.flatnonzero(np.concatenate(([True], change)))


def _entropy_sum(counts: Ints, sizes: Ints, owners: Ints, eps: float | None) -> float:
    """Return the sum over conflicting bundles of size times entropy, from their (bundle, label) counts.

    Bundles of one label add nothing: exactly without eps, by the clipping with it.
    """
    if eps is None:
        return math.fsum(counts * np.log(sizes / counts))
    if not len(counts):
        return 0.0
    shares = counts / sizes
    firsts = _starts(owners[1:] != owners[:-1])
    per_bundle = np.add.reduceat(-shares * np.log(shares + eps), firsts)
    return math.fsum(sizes[firsts] * np.maximum(per_bundle, 0))


def _label_entropy(store: KeyStore) -> float:
    found: dict[int, int] = {}
    for _, _, labels in store.pieces(0, store.rows):
        kept = to_host(torch.where(labels < 0, ~labels, labels)).numpy()
        for label, number in zip(*np.unique(kept, return_counts=True), strict=True):
            found[label] = found.get(label, 0) + number
    counts = np.array(list(found.values()), dtype=np.int64)
    return math.fsum(counts * np.log(store.rows / counts)) / store.rows


def _ends(part: Iterator[Piece]) -> tuple[Ints, Ints, Ints]:
    """Return the different keys of a part in order, and the first and the last row of each."""
    table, firsts, lasts = _no_pairs()
    for rows, keys, labels in part:
        numbers = labels >= 0
        table, firsts, lasts = (
            np.concatenate([known, own[numbers]]) for known, own in ((table, keys), (firsts, rows), (lasts, rows))
        )
        if len(table):
            order, starts = _sorted(table)
            table = table[order][starts]
            firsts, lasts = np.minimum.reduceat(firsts[order], starts), np.maximum.reduceat(lasts[order], starts)
    return table, firsts, lasts


@dataclass(frozen=True)
class Groups:
    """Which rows have equal hashes, in one 32-bit number per row.

    Attributes:
        links: of a row that is not the first of its group, the first row; of the first, the complement (< 0) of the
            last. A row with a NaN is a group of itself.
        several: how many groups have two rows or more.
    """

    links: NDArray[np.int32]
    several: int

    @classmethod
    def of(cls, store: KeyStore) -> Groups:
        """Group the rows of a store."""
        links = ~np.arange(store.rows, dtype=np.int32)
        several = 0
        for part, again in zip(store.parts(), store.parts(), strict=True):
            table, firsts, lasts = _ends(part)
            for rows, keys, labels in again:
                rows, keys = rows[labels >= 0], keys[labels >= 0]
                order, starts = _sorted(np.concatenate([table, keys]))  # the table's key is the first of its kind
                owners = np.repeat(order[starts], np.diff(starts, append=len(order)))
                own = order >= len(table)
                links[rows[order[own] - len(table)]] = firsts[owners[own]]
            links[firsts] = ~lasts
            several += int((lasts > firsts).sum())
        return cls(links, several)

    def firsts(self, start: int, stop: int) -> Ints:
        """Return the first row of the groups of rows from ``start`` to before ``stop``."""
        links = self.links[start:stop].astype(np.int64)
        return np.where(links < 0, np.arange(start, start + len(links)), links)

    def lasts(self, firsts: Ints) -> Ints:
        """Return the last row of groups, by their first."""
        return ~self.links[firsts].astype(np.int64)
