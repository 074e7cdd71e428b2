"""How much better one row is than another, and how sure that is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from scipy.stats import t as student

from convwright.tables import Json


@dataclass(frozen=True)
class Gain:
    """The difference of two rows' accuracies, as shares (0.01 is one point).

    Attributes:
        mean: Mean over the seeds that both rows have.
        stderr: Its standard error; None where nothing is known.
        low: Lower end of the 95 % interval; None likewise.
        high: Upper end.
        seeds: Number of pairs.
        by: What the error is made of: the ``seeds``, or with a single pair the number of ``images``.
    """

    mean: float
    stderr: float | None
    low: float | None
    high: float | None
    seeds: int
    by: str

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` where the interval leaves out zero, else ``within the noise``."""
        if self.low is None or self.high is None:
            return ""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "within the noise"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, the verdict included."""
        return {**asdict(self), "verdict": self.verdict}


def gain(row: Mapping[int, float], control: Mapping[int, float], samples: int | None = None) -> Gain | None:
    """Compare two rows seed by seed: what a seed does to both alike cancels.

    With two or more pairs the interval is Student's, with one degree of freedom less than pairs. With one pair
    only the binomial error of the two accuracies is known, as if they were judged on different images, which is
    too wide rather than too narrow; how much another seed would change is not in it.

    Args:
        row: Accuracy (0..1) by seed.
        control: The same of the row that it is compared with.
        samples: Images that each accuracy was measured on; None: unknown.

    Returns:
        The gain; None without a common seed.
    """
    pairs = [(row[seed], control[seed]) for seed in row if seed in control]
    if not pairs:
        return None
    differences = [ours - theirs for ours, theirs in pairs]
    mean, count = statistics.fmean(differences), len(differences)
    if count > 1:
        stderr, width = statistics.stdev(differences) / math.sqrt(count), float(student.ppf(0.975, count - 1))
    elif samples is None:
        return Gain(mean, None, None, None, 1, "seeds")
    else:
        stderr, width = math.sqrt(sum(share * (1 - share) for share in pairs[0]) / max(samples, 1)), 1.96
    by = "seeds" if count > 1 else "images"
    return Gain(mean, stderr, mean - width * stderr, mean + width * stderr, count, by)


def gain_of(row: Json, control: Json) -> Gain | None:
    """Compare two rows of a ``result.json`` seed by seed, see `gain`."""
    by_seed, control_by_seed = (dict(zip(each["seeds"], each["accuracies"], strict=True)) for each in (row, control))
    return gain(by_seed, control_by_seed)


def spread_of(accuracies: Sequence[float]) -> dict[str, float | None]:
    """Return ``mean`` and standard ``deviation`` over the seeds; None where there are too few of them."""
    deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else None
    return {"mean": statistics.fmean(accuracies) if accuracies else None, "deviation": deviation}


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
    rho: Callable[..., Numbers] = _partial if given is not None else spearman
    columns.insert(1, accuracy)
    chosen = np.random.default_rng(0).integers(0, len(accuracy), (RESAMPLES, len(accuracy)))
    drawn = rho(*(column[chosen] for column in columns))
    drawn = drawn[np.isfinite(drawn)]  # a sample of equal values has none
    if not len(drawn):
        return None
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"rho": float(rho(*(column[None] for column in columns))[0]), "low": float(low), "high": float(high)}


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
