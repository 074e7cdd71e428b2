"""Unfoldings of kernels into matrices, and their singular values, many at a time.

Singular values are the roots of the eigenvalues of the Gram matrix on the shorter side, in double precision: what is
lost, about 1e-8 of the largest one, lies far below the noise of any trained kernel, and it costs a tenth of a
decomposition with its vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Shape = tuple[int, ...]

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


def output_spectra(weights: Sequence[Tensor]) -> list[Spectrum]:
    """Return the singular values of kernels (out, in, *kernel) unfolded to (out, in * taps)."""
    return spectra([weight.flatten(1) for weight in weights])


def input_spectra(weights: Sequence[Tensor]) -> list[Spectrum]:
    """Return the singular values of kernels (out, in, *kernel) unfolded to (in, out * taps): mode 3 of the paper."""
    return spectra([weight.transpose(0, 1) for weight in weights])


def kernel_spectra(weights: Sequence[Tensor]) -> list[Spectrum]:
    """Return the singular values of kernels (out, in, *kernel) unfolded to (taps, in * out): mode 12 of the paper."""
    return spectra([weight.reshape(math.prod(weight.shape[:2]), -1).T for weight in weights])


def spectra(tensors: Sequence[Tensor]) -> list[Spectrum]:
    """Return the singular values of tensors as matrices: the first axis holds the rows, all others the columns.

    Equal shapes on one device go through together. The tensors stay where they are; the singular values of all of
    them come to the host at once.
    """
    batches = list(_batches(tensors))
    with torch.no_grad():
        results = [_singular_values(torch.stack([tensors[i].detach() for i in batch])) for batch in batches]
        on_host = _to_host(results)
    found: list[Spectrum | None] = [None] * len(tensors)
    for batch, values in zip(batches, on_host, strict=True):
        shape = _matrix(tensors[batch[0]].shape)
        for i, row in zip(batch, values, strict=True):
            finite = not bool(np.isnan(row).any())
            found[i] = Spectrum(row if finite else np.zeros_like(row), shape, finite)
    return [each for each in found if each is not None]


def _matrix(shape: Shape) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])


def _batches(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Put tensors of equal shape, type and device together, up to a limit of memory."""
    alike: dict[object, list[int]] = {}
    for i, tensor in enumerate(tensors):
        alike.setdefault((tensor.shape, tensor.dtype, tensor.device), []).append(i)
    batches = []
    for places in alike.values():
        most = max(1, _NUMBERS // max(1, tensors[places[0]].numel()))
        batches += [places[i : i + most] for i in range(0, len(places), most)]
    return batches


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


def _to_host(results: Sequence[Tensor]) -> list[npt.NDArray[np.float64]]:
    """Bring small tensors to the host, with one transfer per device."""
    arrays: list[npt.NDArray[np.float64] | None] = [None] * len(results)
    for device in {result.device for result in results}:
        places = [i for i, result in enumerate(results) if result.device == device]
        flat = torch.cat([results[i].reshape(-1) for i in places]).cpu().numpy().astype(np.float64)
        cuts = np.cumsum([results[i].numel() for i in places])[:-1]
        for i, part in zip(places, np.split(flat, cuts), strict=True):
            arrays[i] = part.reshape(tuple(results[i].shape))
    return [each for each in arrays if each is not None]
