"""How much better one row is than another, and how sure that is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from scipy.stats import t as student


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
        stderr = statistics.stdev(differences) / math.sqrt(count)
        return _gain(mean, stderr, float(student.ppf(0.975, count - 1)), count, "seeds")
    if samples is None:
        return Gain(mean, None, None, None, 1, "seeds")
    stderr = math.sqrt(sum(share * (1 - share) for share in pairs[0]) / max(samples, 1))
    return _gain(mean, stderr, 1.96, 1, "images")


def _gain(mean: float, stderr: float, width: float, count: int, by: str) -> Gain:
    return Gain(mean, stderr, mean - width * stderr, mean + width * stderr, count, by)
