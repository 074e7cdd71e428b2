"""How well numbers that are known of networks order them by accuracy: rank correlations with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Numbers = NDArray[np.float64]
Values = Sequence[float | None]

RESAMPLES = 2000
LEAST = 4  # networks, below which a rank correlation says nothing

NOTE = (
    "Spearman's rank correlation with the mean accuracy over seeds; 1: the same order, -1: the reverse order. "
    f"Interval: 95 %, by {RESAMPLES:,} bootstrap samples of networks. Noise between seeds lowers every value."
)


def correlated(predictor: Values, accuracy: Numbers, given: Values | None = None) -> dict[str, float] | None:
    """Return Spearman's rho and its interval.

    Args:
        predictor: One number per network.
        accuracy: Likewise, shape (n,).
        given: What both may follow from: rho is then the partial one, of what it does not explain.

    Returns:
        ``rho``, ``low`` and ``high``; None where the predictor says nothing: one value for all, or none for some.
    """
    wanted = [predictor] if given is None else [predictor, given]
    if any(value is None for values in wanted for value in values) or any(len(set(v)) == 1 for v in wanted):
        return None
    columns = [np.array(values, dtype=np.float64) for values in wanted]
    if given is not None and abs(float(spearman(columns[0][None], columns[1][None])[0])) > 1 - 1e-12:
        return None  # it orders as the other does: nothing is left
    whole = np.arange(len(accuracy))[None]
    chosen = np.random.default_rng(0).integers(0, len(accuracy), (RESAMPLES, len(accuracy)))
    rho = _partial if given is not None else spearman
    drawn = _of(rho, columns, accuracy, chosen)
    drawn = drawn[np.isfinite(drawn)]  # a sample of equal values has none
    if not len(drawn):
        return None
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"rho": float(_of(rho, columns, accuracy, whole)[0]), "low": float(low), "high": float(high)}


def _of(
    rho: Callable[..., Numbers], columns: Sequence[Numbers], accuracy: Numbers, chosen: NDArray[np.intp]
) -> Numbers:
    return rho(columns[0][chosen], accuracy[chosen], *(column[chosen] for column in columns[1:]))


def spearman(x: Numbers, y: Numbers) -> Numbers:
    """Return Spearman's rank correlation of each row, (samples, n) twice -> (samples,); nan where a row is constant."""
    one, two = (rankdata(values, axis=1) - (values.shape[1] + 1) / 2 for values in (x, y))
    scale = np.sqrt((one**2).sum(1) * (two**2).sum(1))
    with np.errstate(invalid="ignore"):
        return np.asarray((one * two).sum(1) / np.where(scale > 0, scale, np.nan), dtype=np.float64)


def _partial(x: Numbers, y: Numbers, z: Numbers) -> Numbers:
    """Return the rank correlation of x and y with what z explains of both taken out."""
    xy, xz, yz = spearman(x, y), spearman(x, z), spearman(y, z)
    with np.errstate(invalid="ignore"):
        left = np.sqrt(np.clip(1 - xz**2, 0, None) * np.clip(1 - yz**2, 0, None))
        return np.asarray((xy - xz * yz) / np.where(left > 1e-9, left, np.nan), dtype=np.float64)


def said(found: dict[str, float] | None) -> tuple[str, str]:
    """Return rho and its interval as two cells of a table."""
    if found is None:
        return "the same for all", ""
    return f"{found['rho']:+.2f}", f"{found['low']:+.2f} to {found['high']:+.2f}"
