"""Unfoldings of kernels into matrices, and their singular values, many at a time.

Singular values are the roots of the eigenvalues of the Gram matrix on the shorter side, in double precision: what is
lost, about 1e-8 of the largest one, lies far below the noise of any trained kernel, and it costs a tenth of a
decomposition with its vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_NUMBERS = 1 << 22  # of one batch in double precision: 32 MB
_BLOCK = 128  # rows
_SINGLE = frozenset({"mps"})  # devices without double precision


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The singular values of one matrix.

    Attributes:
        values: in descending order; as many as the shorter side is long.
        shape: of the matrix, (rows, columns).
        finite: whether all entries were; if not, ``values`` are zeros.
    """

    values: npt.NDArray[np.float64]
    shape: tuple[int, int]
    finite: bool = True

    @property
    def turned(self) -> Spectrum:
        """That of the transpose."""
        return Spectrum(self.values, self.shape[::-1], self.finite)

    @property
    def squared(self) -> Spectrum:
        """That of the Gram matrix of the rows."""
        rows = self.shape[0]
        return Spectrum(np.pad(self.values**2, (0, rows - len(self.values))), (rows, rows), self.finite)


def input_spectra(weights: Sequence[Tensor]) -> list[Spectrum]:
    """Return the singular values of kernels (out, in, *kernel) unfolded to (in, out * taps): mode 3 of the paper."""
    return spectra([weight.transpose(0, 1) for weight in weights])


def spectra(tensors: Sequence[Tensor]) -> list[Spectrum]:
    """Return the singular values of tensors as matrices: the first axis holds the rows, all others the columns.

    Equal shapes on one device go through together. The tensors stay where they are.
    """
    kinds = [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]
    batches = alike(kinds, lambda i: _NUMBERS // max(1, tensors[i].numel()))  # up to a limit of memory
    with torch.no_grad():
        results = [_singular_values(torch.stack([tensors[i].detach() for i in batch])) for batch in batches]
    found: dict[int, Spectrum] = {}
    for batch, values in zip(batches, results, strict=True):
        rows, *others = tensors[batch[0]].shape
        for i, row in zip(batch, values.cpu().double().numpy(), strict=True):
            finite = not bool(np.isnan(row).any())
            found[i] = Spectrum(row if finite else np.zeros_like(row), (rows, math.prod(others)), finite)
    return [found[i] for i in range(len(tensors))]


def alike(keys: Sequence[object], most: Callable[[int], int]) -> list[list[int]]:
    """Return the places of equal keys together, at most so many as `most` says of the first one's place."""
    places: dict[object, list[int]] = {}
    for i, key in enumerate(keys):
        places.setdefault(key, []).append(i)
    steps = [(some, max(1, most(some[0]))) for some in places.values()]
    return [some[i : i + step] for some, step in steps for i in range(0, len(some), step)]


def _singular_values(stacked: Tensor) -> Tensor:
    """Return (batch, n) singular values of (batch, rows, ...), descending; NaN where an entry is not finite."""
    wanted = torch.float32 if stacked.device.type in _SINGLE else torch.float64
    matrices = stacked.to(wanted, memory_format=torch.contiguous_format).flatten(2)
    if matrices.shape[1] > matrices.shape[2]:
        matrices = matrices.mT
    gram = _lower_gram(matrices)
    # The squares on the diagonal are finite only where all entries are. LAPACK may refuse anything else.
    finite = gram.diagonal(dim1=1, dim2=2).isfinite().all(dim=1)
    values = torch.linalg.eigvalsh(torch.where(finite[:, None, None], gram, 0.0), UPLO="L")
    values = values.clamp(min=0).sqrt().flip(1)
    return torch.where(finite[:, None], values, math.nan)


def _lower_gram(matrices: Tensor) -> Tensor:
    """Return the Gram matrices of the rows, by blocks; above the diagonal, where nobody looks, mostly zeros."""
    count, rows, _ = matrices.shape
    gram = matrices.new_zeros(count, rows, rows)
    for start in range(0, rows, _BLOCK):
        stop = min(start + _BLOCK, rows)
        gram[:, start:stop, :stop] = matrices[:, start:stop] @ matrices[:, :stop].mT
    return gram
