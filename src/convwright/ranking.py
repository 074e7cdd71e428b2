"""The metric that networks are ranked by: its name, its direction, its unit, and how its values are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_HALF = 6.0  # dB: half the amplitude, or twice the error


@dataclass(frozen=True)
class Metric:
    """The number that networks are ranked by.

    Attributes:
        name: Its name among the metrics.
        higher_is_better: Whether the larger value is the better one.
        unit: ``%`` for a share of 1, which is shown times 100; else a unit such as ``dB``, or nothing.

    Examples:
        >>> Metric("mae", higher_is_better=False, unit="px").shown(-0.639, 0.02)
        '0.639 ± 0.02 px'
        >>> Metric("PSNR", unit="dB").change(28.41, 28.2)
        '-0.21 dB'
    """

    name: str = "accuracy"
    higher_is_better: bool = True
    unit: str = "%"

    def score(self, value: float) -> float:
        """Return a value so that more is better; of such a score, the value."""
        return value if self.higher_is_better else -value

    def plotted(self, score: float) -> float:
        """Return what is drawn of a score: its value, a share in per cent."""
        return self.amount(self.score(score))

    def amount(self, difference: float) -> float:
        """Return a difference in points, or in the unit."""
        return 100 * difference if self.unit == "%" else difference

    @property
    def axis(self) -> str:
        """Name and unit, for an axis."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    @property
    def best(self) -> str:
        """What the best value is: the highest or the lowest."""
        return "highest" if self.higher_is_better else "lowest"

    def shown(self, score: float, error: float | None = None) -> str:
        """Write a score, as a value of the metric, with its standard error; an error of 0 is of the accuracy alone."""
        percent, error = self.unit == "%", error if error or self == ACCURACY else None
        said = "" if error is None else f" ± {error:.2%}" if percent else f" ± {error:.4g}"
        value = self.score(score)
        return f"{value:.2%}{said}" if percent else f"{value:.4g}{said} {self.unit}".rstrip()

    def brief(self, score: float) -> str:
        """Write a score with a digit less: ``71.2%``."""
        return f"{self.score(score):.1%}" if self.unit == "%" else self.shown(score)

    def change(self, before: float, after: float) -> str:
        """Write the change from one score to another."""
        return self.difference(self.score(after) - self.score(before), "+")

    def difference(self, amount: float, sign: str = "") -> str:
        """Write a difference of values: ``-1.20 points``, ``0.3 dB``."""
        if self.unit == "%":
            return f"{100 * amount:{sign}.2f} points"
        return f"{amount:{sign}.4g} {self.unit}".rstrip()

    def halved(self, before: float, after: float) -> bool:
        """Return whether a score is worth less than half of another: half the value, twice the error, 6 dB less."""
        if self.unit == "dB":
            return after < before - _HALF
        one, two = self.score(before), self.score(after)
        return one > 0 and (two < one / 2 if self.higher_is_better else two > 2 * one)

    def settings(self) -> dict[str, Any]:
        """Return what a record keeps of it: nothing of the usual one."""
        return {} if self == ACCURACY else {"metric": dict(vars(self))}


ACCURACY = Metric()


def metric_of(record: Mapping[str, Any]) -> Metric:
    """Return the metric that a recorded run or training was judged by."""
    return Metric(**record.get("metric", {}))


class Ranked:
    """What has a score, its standard error, and the metric that both are of."""

    score: float
    stderr: float
    metric: Metric

    @property
    def shown(self) -> str:
        """The score as a value of the metric: ``71.20%``, ``28.41 dB``."""
        return self.metric.shown(self.score)

    @property
    def judged(self) -> str:
        """The same with its standard error."""
        return self.metric.shown(self.score, self.stderr)
