"""Conflicting bundles: samples that a layer makes one although their labels differ.

A *bundle* is a set of samples whose activations at a layer are the same to the weights that learn from them (see
``weight_grid``). A bundle with two labels or more *conflicts*: the gradients of its samples are added before any
later weight sees them, so later layers cannot tell its samples apart. The *bundle entropy* of a layer is the entropy
of the labels given the bundle, in nats: 0 for no conflict, that of the labels alone if everything is one bundle.

After Peer, Stabinger and Rodríguez-Sánchez, "Conflicting Bundles" (WACV 2021, arXiv 2011.02956) and "Auto-tuning of
Deep Neural Networks by Conflicting Layer Removal" (arXiv 2103.04331). Equality, entropy and amplitude are those of
their published code; accuracy ceiling, share in conflict, the other dtypes and the algorithm are reconstructed or our
own. The published code compares each bundle with all rows and keeps all activations; here rows are hashed as they
come, and 20 bytes are kept of each; of a whole array the groups are checked exactly.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from convwright.errors import ConvwrightError, DataError
from convwright.metrics.bundles.counts import Counts, KeyStore, count, first_rows
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
            hashes, as ``BundleCounter`` counts.
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
    raise ConvwrightError(
        f"activations: rows that differ had equal hashes under {_SEEDS} seeds. Report it, with the rows"
    )


def _rows_agree(rows: Tensor, grid: WeightGrid, store: KeyStore) -> bool:
    """Whether each row of a group is equal to the first."""
    all_firsts, step = first_rows(store), rows_at_a_time(rows)
    for start in range(0, len(rows), step):
        firsts = all_firsts[start : start + step]
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
        return Bundles(**asdict(count(self._store, eps)), verified=False, grid=self.grid, eps=eps)

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


def _check_eps(eps: float | None) -> None:
    if eps is not None and not 0 < eps < 1:
        raise ConvwrightError(f"eps={eps}: give None for the entropy itself, or 1e-5 for the published code's")


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
