"""Bundles made sure of: the rows of each group compared number by number, in further passes over the activations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from convwright.errors import ConvwrightError, DataError
from convwright.metrics.bundles.counts import Groups
from convwright.metrics.bundles.inputs import Numbers
from convwright.metrics.bundles.row_hash import row_keys, rows_at_a_time

if TYPE_CHECKING:
    from convwright.metrics.bundles.counter import BundleCounter


class BundleCheck:
    """Compares the rows of each bundle with its first, in further passes over the same activations.

    ``BundleCounter.check`` makes it. Where several layers are checked in one pass of the network, give each batch to
    the ``add`` of each check, pass after pass, until all are ``complete``; for one layer ``BundleCounter.verify`` does
    it. Then the counter's results are ``verified``.

    Attributes:
        collision: whether two rows with equal hashes differ; ``BundleCounter.rehash`` is the remedy.
        passes: how many passes were begun.
    """

    def __init__(self, counter: BundleCounter, rows: int) -> None:
        if rows < 1:
            raise ConvwrightError(f"rows={rows}: at least one row must be held to compare others with it")
        self.collision = False
        self.passes = 0
        self._counter = counter
        self._limit = rows
        # A bundle is open, that is to be compared, as long as its first row has a last row behind itself.
        self._groups = Groups.of(counter._store)
        self._open = self._groups.several
        self._held: dict[int, Tensor] = {}
        self._start = 0
        counter.verified = self.complete

    @property
    def complete(self) -> bool:
        """Whether all bundles were compared; at once if no bundle has two rows."""
        return not self._open and not self.collision

    def add(self, activations: Numbers) -> None:
        """Compare a batch. With the last one a pass ends, and the next begins if one is needed.

        Args:
            activations: rows that follow those of the batch before, in the order in which they were counted.

        Raises:
            DataError: other activations came than were counted.
        """
        if self.complete or self.collision:
            return
        rows = self._counter._rows(activations)
        self._check_same(rows)
        self.passes += self._start == 0
        for first, members in self._bundles(len(rows)):
            self._compare(first, rows, members)
        self._start = (self._start + len(rows)) % len(self._groups.links)
        self._counter.verified = self.complete

    def run(self, batches: Iterable[Numbers]) -> None:
        """Make one pass.

        Raises:
            DataError: other activations came than were counted.
        """
        for batch in batches:
            self.add(batch)
            if self.complete or self.collision:
                return
        if self._start or not self.passes:
            raise DataError(other_count(self._counter._what, self._start, self._counter.samples))

    def _check_same(self, rows: Tensor) -> None:
        counter, stop = self._counter, self._start + len(rows)
        if stop > len(self._groups.links) or counter.samples != len(self._groups.links):
            raise DataError(other_count(counter._what, stop, len(self._groups.links)))
        if not counter._store.holds(self._start, *row_keys(rows, counter.grid, counter.seed)):
            raise DataError(
                f"{counter._what} of samples {self._start} to {stop - 1} are not those that were counted. A check "
                "needs the same samples in the same order, without augmentation, the network in eval mode, and "
                "kernels that repeat their results (torch.use_deterministic_algorithms(True), the same batches)"
            )

    def _bundles(self, rows: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the open bundles that have rows in a batch, by their first row, and which rows."""
        firsts = self._groups.firsts(self._start, self._start + rows)
        open_rows = np.flatnonzero(self._groups.lasts(firsts) > firsts)
        if not len(open_rows):
            return
        order = open_rows[np.argsort(firsts[open_rows], kind="stable")]
        found, starts = np.unique(firsts[order], return_index=True)
        for first, members in zip(found.tolist(), np.split(order, starts[1:]), strict=True):
            yield first, torch.from_numpy(members)

    def _compare(self, first: int, rows: Tensor, members: Tensor) -> None:
        """Compare the rows of one bundle in a batch with its first row, if that one is held or can be."""
        grid, ends = self._counter.grid, ~int(self._groups.links[first]) < self._start + len(rows)
        if first >= self._start and (ends or len(self._held) < self._limit):
            self._held[first] = grid(rows[first - self._start])
        if first not in self._held:
            return  # no room in this pass
        held = self._held[first].to(rows.device)
        step = rows_at_a_time(rows)
        if not all(bool((grid(rows[some]) == held).all()) for some in torch.split(members.to(rows.device), step)):
            self.collision = True
        if ends:
            del self._held[first]
            self._groups.links[first] = ~first  # as if it were alone
            self._open -= 1


def other_count(what: str, given: int, counted: int) -> str:
    """Say that a further pass did not give the rows that were counted."""
    return f"{what}: {given} rows came, but {counted} were counted. Give the same batches again, each time"
