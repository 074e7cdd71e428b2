"""How much of a matrix is signal: empirical variational Bayesian matrix factorization (EVBMF), in closed form.

A matrix is taken as a low-rank signal plus noise of one unknown variance. The variance minimises a free energy over
one number; singular values that noise of this variance explains are dropped, the others are shrunk. No rank and no
threshold is given from outside.

Sources: Nakajima, Sugiyama, Babacan and Tomioka, "Global Analytic Solution of Fully-observed Variational Bayesian
Matrix Factorization" (JMLR 2013) for the solution, and the published code of CONetV2 (arXiv 2110.06830) for
``parity``. That code searches the variance to an absolute 1e-5, so that its answer depends on the scale of the
matrix, and puts a tall matrix into formulas for a wide one. By default neither is so here: the matrix is turned, and
the minimum is found exactly. In ``z``, the logarithm of the variance, the slope of the objective is concave between
one singular value's crossing of the threshold and the next. So each such piece has at most one minimum inside, and
Newton's method from its left end reaches it without passing it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from convwright.devices import to_host

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

NOT_FINITE = "it holds NaN or infinite numbers"
ZERO = "all of it is zero"
CROSSED = "the published code's lower bound of the variance exceeds its upper one"

_TAU = 2.5129  # times sqrt(alpha): the published approximation of the threshold, for any shape
_STEPS = 200  # of Newton's method; far from the root a step is about 1 in z, which spans some 40 at most
_ENTRIES = 1 << 21  # of one array when matrices of equal shape are solved together


@dataclass(frozen=True)
class Evbmf:
    """What EVBMF keeps of a matrix.

    Attributes:
        rank: number of singular values kept.
        values: what is kept, shrunk, in descending order; in units of the matrix.
        variance: of the noise, per entry; in squared units of the matrix.
        shape: of the matrix, (rows, columns).
        problem: why nothing could be found, in words; empty if all went well. Rank and variance are 0 then.
    """

    rank: int
    values: tuple[float, ...]
    variance: float
    shape: tuple[int, int]
    problem: str = ""


def evbmf(matrix: Tensor | npt.NDArray[np.floating], *, parity: bool = False) -> Evbmf:
    """Return the rank, the shrunk singular values and the noise variance of a matrix.

    By default the answer is the global minimum of the objective: scaling the matrix scales it, and the transpose has
    the same. NaN, infinite or all-zero entries give rank 0 and say so in ``problem``.

    Args:
        matrix: shape (rows, columns), any floating type, on any device; computed in double precision.
        parity: reproduce the published code instead, with its dependence on scale and orientation.

    Returns:
        What is kept.

    Raises:
        ValueError: it is no matrix, or an empty one.

    Examples:
        >>> import numpy as np
        >>> import convwright as cw
        >>> draw = np.random.default_rng(0)
        >>> noisy = draw.normal(size=(8, 2)) @ draw.normal(size=(2, 20)) + 0.1 * draw.normal(size=(8, 20))
        >>> cw.evbmf(noisy).rank
        2
    """
    # torch refuses negative strides, and warns of arrays that are read-only
    given = matrix if isinstance(matrix, Tensor) else torch.from_numpy(np.array(matrix, np.float64, order="C"))
    if given.ndim != 2 or not given.numel():
        raise ValueError(f"evbmf takes a matrix with entries, not shape {tuple(given.shape)}; unfold the tensor first.")
    spectrum = spectra([given])[0]
    return solve_published(spectrum) if parity else solve([spectrum])[0]


def solve(found: Sequence[Spectrum]) -> list[Evbmf]:
    """Return the exact solution for each matrix; equal shapes are solved together."""
    solved = {i: Evbmf(0, (), 0.0, s.shape, trouble) for i, s in enumerate(found) if (trouble := _problem(s))}
    rest = [i for i in range(len(found)) if i not in solved]
    shapes = [tuple(sorted(found[i].shape)) for i in rest]
    for some in alike(shapes, lambda n: _ENTRIES // shapes[n][0] ** 2):
        places = [rest[n] for n in some]
        solved |= zip(places, _solve_alike([found[i] for i in places], *shapes[some[0]]), strict=True)
    return [solved[i] for i in range(len(found))]


def _problem(spectrum: Spectrum) -> str:
    if not spectrum.finite:
        return NOT_FINITE
    return "" if spectrum.values.any() else ZERO


# ------------------------------------------------------------------ the exact minimum


def _solve_alike(found: Sequence[Spectrum], rows: int, columns: int) -> list[Evbmf]:
    """Solve matrices of one shape; ``rows`` is the shorter side."""
    s = np.stack([spectrum.values for spectrum in found])
    energy = (s**2).sum(axis=1)
    problem = _Problem(rows / columns, s**2 * (rows / energy)[:, None])
    kept, share = problem.minimum()
    variance = share * energy / (rows * columns)
    answers = []
    for i, spectrum in enumerate(found):
        x = problem.y[i, : kept[i]] / share[i]
        values = s[i, : kept[i]] * _tau(x, problem.alpha) / x
        answers.append(Evbmf(int(kept[i]), tuple(values.tolist()), float(variance[i]), spectrum.shape))
    return answers


class _Problem:
    """The objective of several matrices of one shape, over ``z``.

    ``y`` are squared singular values over their mean and ``exp(z)`` is the variance over its upper bound, so that
    ``x = y * exp(-z)`` is what the theory calls x, and the upper bound is ``z = 0``. Terms without z are left out.
    """

    def __init__(self, alpha: float, y: Floats) -> None:
        self.alpha, self.y = alpha, y
        self.count, self.size = y.shape
        self.rest = np.cumsum(np.pad(y, ((0, 0), (0, 1)))[:, ::-1], axis=1)[:, ::-1]  # sum from each on
        tau = _TAU * math.sqrt(alpha)
        self.threshold = (1 + tau) * (1 + alpha / tau)

    def minimum(self) -> tuple[Ints, Floats]:
        """Return how many values stand out, and the variance over its upper bound."""
        kept, left, right, valid = self._pieces()
        at_left, slope, bend = self._evaluate(left, kept)
        at_right = self._evaluate(right, kept)[0]
        inside = np.full_like(left, np.nan)
        which = np.nonzero(valid & (slope < 0) & (bend > 0) & (left < right))
        inside[which] = self._stationary(which, left[which], right[which])
        at_inside = self._evaluate(np.where(np.isnan(inside), left, inside), kept)[0]
        at_inside[np.isnan(inside)] = np.inf
        heights = np.stack([at_inside, np.where(valid, at_left, np.inf), np.where(valid, at_right, np.inf)], axis=1)
        best = heights.reshape(self.count, -1).argmin(axis=1)
        z = np.stack([inside, left, right], axis=1).reshape(self.count, -1)[np.arange(self.count), best]
        piece: Ints = best % len(kept)
        share: Floats = np.exp(z)
        return piece, share

    def _pieces(self) -> tuple[Ints, Floats, Floats, npt.NDArray[np.bool_]]:
        """Return how many values stand out on each piece, where it begins and ends, and whether it exists."""
        low = self._lower_bound()
        most = int((self.y > self.threshold * low[:, None]).sum(axis=1).max())
        floor = np.log(low)[:, None]
        with np.errstate(divide="ignore"):
            crossing = np.log(self.y[:, :most] / self.threshold)
        ends = np.full((self.count, 1), np.inf)
        right = np.concatenate([ends, crossing], axis=1)
        left = np.concatenate([crossing, -ends], axis=1)
        valid = (right > floor) & (left < 0)
        return np.arange(most + 1), np.clip(left, floor, 0), np.clip(right, floor, 0), valid

    def _lower_bound(self) -> Floats:
        """Return the least variance over its upper bound: what the values that must be noise can come from."""
        tail = min(-(-self.size // (1 + self.alpha)) - 1, self.size)
        noise = self.y[:, int(tail) :]
        low = np.maximum(noise[:, 0] / self.threshold, noise.mean(axis=1))
        # A matrix without noise has no minimum. Below rounding there is nothing to tell, so nothing is looked for.
        rounding = 4 * self.size * np.finfo(np.float64).eps * self.y[:, 0]
        bound: Floats = np.minimum(np.maximum(low, rounding), 1.0)
        return bound

    def _evaluate(self, z: Floats, kept: Ints) -> tuple[Floats, Floats, Floats]:
        """Return the objective at ``z`` (matrix, piece), its slope and the slope's slope."""
        rest = self.rest[:, : len(kept)]
        return self._sums(self.y[:, None, : len(kept) - 1], rest, z, kept)

    def _sums(self, y: Floats, rest: Floats, z: Floats, kept: Ints) -> tuple[Floats, Floats, Floats]:
        """Sum over the last axis of ``y``, as far as values are kept; ``rest`` is the sum of the others.

        A large x and its tau nearly cancel: what is left of them is written out, x - tau = 1 + alpha + alpha / tau.
        """
        alpha, noise = self.alpha, rest * np.exp(-z)
        out = np.arange(y.shape[-1]) < kept[:, None]
        x = np.maximum(y * np.exp(-z)[..., None], self.threshold)  # those that do not stand out count for nothing
        tau = _tau(x, alpha)
        gain = (np.log1p(tau) + alpha * np.log1p(tau / alpha) + (1 + alpha) + alpha / tau) * out
        value = noise + self.size * z + gain.sum(axis=-1)
        slope = self.size - kept - noise - (alpha * (1 + 1 / tau) * out).sum(axis=-1)
        return value, slope, noise - (alpha * x / (tau**2 - alpha) * out).sum(axis=-1)

    def _stationary(self, which: tuple[Ints, ...], z: Floats, right: Floats) -> Floats:
        """Return the minimum inside each piece, NaN where there is none.

        The slope is concave and negative at the start, so each Newton step ends before the root or at it.
        """
        z, found = z.copy(), np.full_like(z, np.nan)
        rows, kept = which
        rest, most = self.rest[rows, kept], int(kept.max(initial=0))
        active = np.arange(len(z))
        for _ in range(_STEPS):
            y = self.y[rows[active], :most]
            _, slope, bend = self._sums(y, rest[active], z[active], kept[active])
            with np.errstate(divide="ignore"):
                step = np.where(bend > 0, -slope / bend, np.inf)
            z[active] += step
            arrived = (slope >= 0) | (step < 1e-14 * (1 + np.abs(z[active])))  # a slope above 0 is rounding
            found[active[arrived]] = z[active[arrived]]
            active = active[~arrived & (z[active] < right[active])]
            if not len(active):
                break
        return np.where(found < right, found, np.nan)


def _tau(x: Floats, alpha: float) -> Floats:
    """Return the larger root of x = (1 + tau) (1 + alpha / tau), for x at the threshold or above."""
    half = x - (1 + alpha)
    return np.asarray(0.5 * (half + np.sqrt(half**2 - 4 * alpha)), dtype=np.float64)


# ------------------------------------------------------------------ as published


def solve_published(spectrum: Spectrum) -> Evbmf:
    """Return what the published code finds: tall matrices are not turned, and the variance has an absolute 1e-5."""
    s, (rows, columns) = spectrum.values, spectrum.shape
    trouble = _problem(spectrum)
    if trouble:
        return Evbmf(0, (), 0.0, spectrum.shape, trouble)
    alpha = rows / columns
    tau = _TAU * math.sqrt(alpha)
    threshold = (1 + tau) * (1 + alpha / tau)
    tail = min(math.ceil(rows / (1 + alpha)) - 1, rows)
    upper = float((s**2).sum()) / (rows * columns)
    lower = max(float(s[tail]) ** 2 / (columns * threshold), float((s[tail:] ** 2).mean()) / columns)
    if lower > upper:
        return Evbmf(0, (), 0.0, spectrum.shape, CROSSED)

    def objective(variance: float) -> float:
        x = s**2 / (columns * variance)
        t = _tau(x[x > threshold], alpha)
        gain = np.log1p(t) + alpha * np.log1p(t / alpha) - t
        return float(x.sum() + gain.sum() + rows * math.log(variance))

    variance = float(minimize_scalar(objective, bounds=(lower, upper), method="bounded").x)
    x = s**2 / (columns * variance)
    standing = s > math.sqrt(columns * variance * threshold)
    values = s[standing] * _tau(x[standing], alpha) / x[standing]
    return Evbmf(int(standing.sum()), tuple(values.tolist()), variance, spectrum.shape)


# ------------------------------------------------------------------ singular values, many at a time

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


def spectra(tensors: Sequence[Tensor]) -> list[Spectrum]:
    """Return the singular values of tensors as matrices: the first axis holds the rows, all others the columns.

    Equal shapes on one device go through together. The tensors stay where they are. Values are the roots of the
    eigenvalues of the Gram matrix on the shorter side, in double precision: what is lost, about 1e-8 of the largest
    one, lies far below the noise of any trained kernel, and it costs a tenth of a decomposition with its vectors.
    """
    kinds = [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]
    batches = alike(kinds, lambda i: _NUMBERS // max(1, tensors[i].numel()))  # up to a limit of memory
    with torch.no_grad():
        results = [_singular_values(torch.stack([tensors[i].detach() for i in batch])) for batch in batches]
    found: dict[int, Spectrum] = {}
    for batch, values in zip(batches, results, strict=True):
        rows, *others = tensors[batch[0]].shape
        for i, row in zip(batch, to_host(values).double().numpy(), strict=True):
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
