"""Conflicting bundles: samples that a layer makes one although their labels differ.

A *bundle* is a set of samples whose activations at a layer are the same to the weights that learn from them (see
``weight_grid``). A bundle with two labels or more *conflicts*: the gradients of its samples are added before any
later weight sees them, so later layers cannot tell its samples apart. The *bundle entropy* of a layer is the entropy
of the labels given the bundle, in nats: 0 for no conflict, that of the labels alone if everything is one bundle.

After Peer, Stabinger and Rodríguez-Sánchez, "Conflicting Bundles" (WACV 2021, arXiv 2011.02956) and "Auto-tuning of
Deep Neural Networks by Conflicting Layer Removal" (arXiv 2103.04331). Equality, entropy and amplitude are those of
their published code; accuracy ceiling, share in conflict, the other dtypes and the algorithm are reconstructed or our
own. The published code compares each bundle with all rows and keeps all activations; here rows are hashed as they
come, 20 bytes are kept of each, and the groups are checked exactly.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from convwright.errors import ConvwrightError, DataError
from convwright.metrics.bundles.counts import Counts, Groups, KeyStore, count
from convwright.metrics.bundles.row_hash import row_keys, rows_at_a_time
from convwright.metrics.bundles.weight_grid import Mode, WeightGrid

Numbers: TypeAlias = Any  # tensors, NumPy arrays, and nested lists of numbers
_SEEDS = 8
_ROWS = 1 << 12  # of a whole array, hashed at a time


@dataclass(frozen=True)
class Bundles(Counts):
    """The bundles of one layer.

    Attributes:
        samples: how many rows were measured.
        count: bundles; ``samples`` if no two are one, 1 if all are.
        conflicting_bundles: bundles with at least two labels.
        samples_in_conflict: samples in those.
        entropy: of the labels given the bundle, nats; NaN if the layer diverged: ask ``diverged`` before comparing.
        label_entropy: of the labels, nats; ``entropy`` cannot exceed it.
        accuracy_ceiling: the highest share of these samples that anything after the layer can get right; NaN if the
            layer diverged.
        diverged_samples: samples with a NaN. NaN equals nothing; each counts as a bundle of its own.
        verified: whether the rows of each bundle were compared number by number. Else equal means equal 128-bit
            hashes.
        grid: what counted as equal.
        eps: None for the entropy itself, else what was added within its logarithm.
    """

    verified: bool
    grid: WeightGrid
    eps: float | None = None

    @property
    def diverged(self) -> bool:
        """Whether some sample's numbers are NaN (or the weights are not finite)."""
        return self.diverged_samples > 0

    @property
    def conflicting(self) -> bool:
        """Whether some bundle holds two labels or more, counted in integers; rows with NaN are in none."""
        return self.conflicting_bundles > 0

    @property
    def status(self) -> Literal["clean", "conflicting", "diverged"]:
        """What to think of the layer; ``diverged`` whatever else holds."""
        if self.diverged:
            return "diverged"
        return "conflicting" if self.conflicting else "clean"

    @property
    def clean(self) -> bool:
        """Whether the layer neither conflicts nor diverged."""
        return self.status == "clean"

    @property
    def conflict_share(self) -> float:
        """The share of samples in conflicting bundles; NaN if the layer diverged."""
        return math.nan if self.diverged else self.samples_in_conflict / self.samples


def bundles(
    activations: Numbers,
    labels: Numbers,
    *,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    amplitude: float | None = None,
    mode: Mode = "published",
    dtype: torch.dtype | None = None,
    eps: float | None = None,
    seed: int = 0,
) -> Bundles:
    """Return the bundles of one layer's activations, exactly.

    Rows are grouped by hash where they are (no copy leaves the device), and each row is compared with the first of
    its group; if two differ, all is hashed anew. For activations that come in batches see ``BundleCounter``.

    Args:
        activations: (N, ...), one row per sample; real numbers. More axes are flattened.
        labels: (N,), class indices >= 0.
        learning_rate: of training. Not needed in exact mode.
        batch_size: of training, whatever N is. Not needed in exact mode.
        amplitude: w*, see ``weight_amplitude``. Not needed in exact mode.
        mode: ``published``, ``dtype`` or ``exact``, see ``WeightGrid``.
        dtype: of the weights that the optimizer updates, in mode ``dtype``.
        eps: None for the entropy itself. 1e-5 for the published code's, which adds it within the logarithm and
            clips each bundle's entropy at 0.
        seed: of the hash's multipliers.

    Returns:
        The bundles, ``verified``. With NaN they are ``diverged``; that is no error.

    Raises:
        DataError: activations or labels do not have these shapes and types, or there is no sample.
        ConvwrightError: a setting is missing, negative, or does not fit the mode.

    Examples:
        >>> import convwright as cw
        >>> found = cw.bundles([1.0, 1.0, 2.0], [0, 1, 1], learning_rate=1e-3, batch_size=64, amplitude=1.0)
        >>> found.count, found.conflicting, round(found.entropy, 6)
        (2, True, 0.462098)
    """
    grid = WeightGrid(learning_rate, batch_size, amplitude, mode, dtype)
    _check_eps(eps)
    rows = as_rows(activations, "activations")
    marks = as_labels(labels, len(rows), "activations")
    for attempt in range(seed, seed + _SEEDS):
        store = KeyStore()
        for part, own in zip(torch.split(rows, _ROWS), torch.split(marks, _ROWS), strict=True):
            store.append(*row_keys(part, grid, attempt), own)
        if _rows_agree(rows, grid, store):
            return Bundles(**asdict(count(store, eps)), verified=True, grid=grid, eps=eps)
    raise _no_hash("activations")


def _rows_agree(rows: Tensor, grid: WeightGrid, store: KeyStore) -> bool:
    """Whether each row of a group is equal to the first."""
    groups = Groups.of(store)
    step = rows_at_a_time(rows)
    for start in range(0, len(rows), step):
        firsts = groups.firsts(start, start + step)
        places = np.arange(start, start + len(firsts))
        some = places != firsts
        if some.any():
            one, other = (torch.from_numpy(each[some]).to(rows.device) for each in (places, firsts))
            if not torch.equal(grid(rows[one]), grid(rows[other])):
                return False
    return True


class BundleCounter:
    """Counts the bundles of one layer, batch by batch, without keeping activations.

    Of each sample two 64-bit hashes and the label are kept, 20 bytes. The result does not depend on how the samples
    are split into batches. Several counters, one per layer, can be fed in one pass over the data.

    Args:
        learning_rate: of training. Not needed in exact mode.
        batch_size: of training, whatever the batches of the measurement. Not needed in exact mode.
        amplitude: w*, see ``weight_amplitude``. Not needed in exact mode.
        mode: ``published``, ``dtype`` or ``exact``, see ``WeightGrid``.
        dtype: of the weights that the optimizer updates, in mode ``dtype``.
        seed: of the hash's multipliers.
        name: of the layer, for messages.

    Raises:
        ConvwrightError: a setting is missing, negative, or does not fit the mode.

    Examples:
        >>> import torch
        >>> counter = BundleCounter(mode="exact", name="layer4")
        >>> for batch in (torch.zeros(2, 5), torch.ones(1, 5)):
        ...     counter.add(batch, torch.zeros(len(batch), dtype=torch.int64))
        >>> counter.result().count
        2
    """

    def __init__(
        self,
        *,
        learning_rate: float | None = None,
        batch_size: int | None = None,
        amplitude: float | None = None,
        mode: Mode = "published",
        dtype: torch.dtype | None = None,
        seed: int = 0,
        name: str = "",
    ) -> None:
        self.grid = WeightGrid(learning_rate, batch_size, amplitude, mode, dtype)
        self.seed = seed
        self.name = name
        self.verified = False
        self._what = f"activations of {name!r}" if name else "activations"
        self._store = KeyStore()
        self._kind: tuple[tuple[int, ...], torch.dtype] | None = None

    @property
    def samples(self) -> int:
        """How many samples were added."""
        return self._store.rows

    def add(self, activations: Numbers, labels: Numbers) -> None:
        """Take in a batch.

        Args:
            activations: (n, ...), one row per sample, all axes but the first as in other batches; on any device.
            labels: (n,), class indices >= 0.

        Raises:
            DataError: shapes or types do not fit, or there is no sample.
        """
        rows = self._rows(activations)
        marks = as_labels(labels, len(rows), self._what)
        self._store.append(*row_keys(rows, self.grid, self.seed), marks)
        self.verified = False

    def result(self, eps: float | None = None) -> Bundles:
        """Return the bundles of all samples so far; more can be added afterwards.

        Args:
            eps: None for the entropy itself, 1e-5 for the published code's, see ``bundles``.

        Raises:
            DataError: nothing was added.
            ConvwrightError: eps is not positive.
        """
        _check_eps(eps)
        if not self.samples:
            raise DataError(f"no {self._what} were added: call add(activations, labels) for each batch first")
        return Bundles(**asdict(count(self._store, eps)), verified=self.verified, grid=self.grid, eps=eps)

    def check(self, rows: int = 256) -> BundleCheck:
        """Return what compares the rows of each bundle while the same batches are passed again.

        Args:
            rows: how many rows may be held at a time, one for each bundle that is being compared; more passes are
                needed if more bundles are open at once.
        """
        return BundleCheck(self, rows)

    def verify(self, again: Callable[[], Iterable[Numbers]], rows: int = 256, eps: float | None = None) -> Bundles:
        """Compare the rows of each bundle number by number in further passes, and return the verified result.

        If no two samples are one, no pass is made: rows that are equal always have equal hashes. Where hashes were
        equal and rows were not, all rows are hashed with other multipliers, in a pass more.

        Args:
            again: gives the same activations in the same order, in any batches, each time that it is called.
            rows: how many rows may be held at a time, see ``check``.
            eps: as for ``result``.

        Raises:
            DataError: other activations came than at first.
        """
        self.result(eps)
        for _ in range(_SEEDS):
            check = self.check(rows)
            while not check.complete and not check.collision:
                check.run(again())
            if check.complete:
                return self.result(eps)
            self.rehash(again())
        raise _no_hash(self._what)

    def rehash(self, batches: Iterable[Numbers]) -> None:
        """Hash all rows with new multipliers; they must come again, in the same order.

        Raises:
            DataError: other numbers of rows came than at first.
        """
        self.seed += 1
        self.verified = False
        start = 0
        for batch in batches:
            rows = self._rows(batch)
            if start + len(rows) <= self.samples:
                self._store.overwrite(start, row_keys(rows, self.grid, self.seed)[0])
            start += len(rows)
        if start != self.samples:
            raise DataError(_other_count(self._what, start, self.samples))

    def _rows(self, activations: Numbers) -> Tensor:
        rows = as_rows(activations, self._what)
        kind = tuple(rows.shape[1:]), rows.dtype
        if self._kind is None:
            self._kind = kind
        if kind != self._kind:
            raise DataError(
                f"{self._what}: a sample is {kind[0]} of {kind[1]}, but was {self._kind[0]} of {self._kind[1]} in the "
                "first batch. Give one layer's activations, at one resolution and in one precision"
            )
        return rows


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
            raise DataError(_other_count(self._counter._what, self._start, self._counter.samples))

    def _check_same(self, rows: Tensor) -> None:
        counter, stop = self._counter, self._start + len(rows)
        if stop > len(self._groups.links) or counter.samples != len(self._groups.links):
            raise DataError(_other_count(counter._what, stop, len(self._groups.links)))
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


def _other_count(what: str, given: int, counted: int) -> str:
    """Say that a further pass did not give the rows that were counted."""
    return f"{what}: {given} rows came, but {counted} were counted. Give the same batches again, each time"


def _check_eps(eps: float | None) -> None:
    if eps is not None and not 0 < eps < 1:
        raise ConvwrightError(f"eps={eps}: give None for the entropy itself, or 1e-5 for the published code's")


def _no_hash(what: str) -> ConvwrightError:
    return ConvwrightError(f"{what}: rows that differ had equal hashes under {_SEEDS} seeds. Report it, with the rows")


# ------------------------------------------------------------------ activations and labels as they are taken in


def as_rows(given: Numbers, what: str) -> Tensor:
    """Return activations as a tensor (N, D) or with more axes, N and D at least 1, where they are.

    Args:
        given: a tensor, an array or nested lists; (N,) is one number per sample.
        what: it is called in messages.

    Raises:
        DataError: it is no array of real numbers with an axis of samples.
    """
    rows = _tensor(given, what, "give one layer's output as a tensor (N, ...), one row per sample")
    if rows.is_complex() or rows.is_quantized or rows.layout != torch.strided or rows.is_meta:
        raise DataError(
            f"{what} are {rows.dtype}, {rows.layout}, on {rows.device}: give a plain tensor of real numbers"
        )
    if not rows.ndim:
        raise DataError(f"{what} are a single number: give a tensor (N, ...), one row per sample")
    if not rows.numel():
        raise DataError(f"{what} have the shape {tuple(rows.shape)}: at least one sample with one number is needed")
    return rows.unsqueeze(1) if rows.ndim == 1 else rows


def as_labels(given: Numbers, samples: int, what: str) -> Tensor:
    """Return labels as a tensor of integers, (N,).

    Args:
        given: a tensor, an array or a list.
        samples: how many there must be.
        what: the activations are called in messages.

    Raises:
        DataError: they are not one class index per sample.
    """
    remedy = "give class indices, integers >= 0, one per sample"
    labels = _tensor(given, "labels", remedy)
    if labels.ndim == 2:
        raise DataError(
            f"labels have the shape {tuple(labels.shape)}: {remedy}; of one-hot or soft labels that is labels.argmax(1)"
        )
    if labels.ndim != 1:
        raise DataError(f"labels have the shape {tuple(labels.shape)}: {remedy}, shape (N,)")
    if labels.is_floating_point() or labels.is_complex():
        raise DataError(
            f"labels are {labels.dtype}: {remedy}; if they are whole numbers that is labels.to(torch.int64)"
        )
    if len(labels) != samples:
        raise DataError(
            f"{what} have {samples} rows, but there are {len(labels)} labels: the first axis must be that of the "
            "samples, with one label each"
        )
    labels = labels.to(torch.int64)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > torch.iinfo(torch.int32).max:
        raise DataError(f"labels reach from {low} to {high}: {remedy}; leave out samples that are to be ignored")
    return labels


def _tensor(given: Numbers, what: str, remedy: str) -> Tensor:
    if isinstance(given, np.ndarray) and any(stride < 0 for stride in given.strides):
        given = np.ascontiguousarray(given)  # torch has no negative strides
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing is written
            return torch.as_tensor(given).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{what} are a {type(given).__name__} that is no array of numbers ({error}): {remedy}"
        ) from error
