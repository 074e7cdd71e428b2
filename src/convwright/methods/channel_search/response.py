"""A course of the channel search that follows accuracy itself: a response surface over widths, climbed on the budget.

Trials are all trained alike from new weights, and all lie on the budget's surface, so accuracies compare like with
like. What they say is fitted as a function of the logarithms of widths, and the next trial goes where the fit is most
promising (Box and Wilson 1951 for the response surface; the fit is a Gaussian process, the choice an upper confidence
bound). With hardly more trials than groups not every width can be asked about by itself, so the fit has three parts:
trends over the whole network (wider where maps are small? wider where many layers share the channels?), a slope per
group, and what is peculiar to a place. Which of them the trials show, their likelihood decides; none has a preferred
sign. Ours: CONetV2 has nothing of the kind.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from convwright.architecture import Architecture
from convwright.methods.base import Evidence
from convwright.methods.channel_search.readings import Reading
from convwright.methods.channel_search.walks import Verdict
from convwright.methods.shared.width_surface import Place, Surface, Widths
from convwright.metrics.quality.channel_quality import Member

Floats = NDArray[np.float64]

# What the fit chooses from by its likelihood, in accuracy (0..1): deviation of what a trend of one (a width e times as
# large at one end, 1 / e at the other) brings, of what a factor e of one width brings, of what is peculiar to a place,
# and of one training's chance besides that of the images it is judged on.
_TRENDS, _SLOPES = (0.01, 0.03, 0.1), (0.003, 0.01, 0.03)
_LOCAL, _CHANCE = (0.003, 0.01, 0.02), (0.005, 0.01)
_SPREAD = 0.02  # deviation of accuracies that these are meant for: of a metric in another unit they are in proportion
_LENGTH = 0.4  # logarithms of widths, root mean square over groups, at which what is peculiar to a place is forgotten
_DRAWS = 400  # widths that are compared for each trial, by the fit alone
_SCREENED = 2  # trials per trend that are given beforehand: one each way
_BOLD = 1.0  # deviations of the fit that a trial is given credit for; 0 in the last quarter of the trials


@dataclass(frozen=True, eq=False)
class Fit:
    """Accuracy as a function of the logarithms of widths.

    Attributes:
        points: (trials, groups) logarithms of widths, relative to the first trial's.
        trends: (trends, groups), of which a point's products with them are trends.
        mean: Of the accuracies.
        deviations: Of trends, slopes, places and chance.
        weights: (trials,) of the kernel at each point.
        factor: Cholesky's, of the covariance.
    """

    points: Floats
    trends: Floats
    mean: float
    deviations: tuple[float, float, float, float]
    weights: Floats
    factor: tuple[Floats, bool]

    def expected(self, points: Floats) -> tuple[Floats, Floats]:
        """Return the expected accuracy at points (n, groups), and its deviation."""
        across = _kernel(points, self.points, self.trends, self.deviations)
        solved = cho_solve(self.factor, across.T)
        trend, slope, local, _ = self.deviations
        leaning = points @ self.trends.T
        own = trend**2 * (leaning**2).sum(1) + slope**2 * (points**2).sum(1) + local**2
        variance = own - np.einsum("nt,tn->n", across, solved)
        return self.mean + across @ self.weights, np.sqrt(np.maximum(variance, 0.0))

    def slopes(self) -> Floats:
        """Return (groups,) what a factor e of each width adds, by trends and slopes."""
        trend, slope, _, _ = self.deviations
        linear = slope**2 * self.points + trend**2 * self.points @ self.trends.T @ self.trends
        return linear.T @ self.weights


def fit(points: Floats, trends: Floats, scores: Floats, stderr: Floats, unit: float = 1.0) -> Fit:
    """Return the Gaussian process that explains accuracies best, of those that differ in their deviations.

    Args:
        points: (trials, groups) logarithms of widths.
        trends: (trends, groups); may have no row.
        scores: (trials,) accuracies, 0..1.
        stderr: (trials,) their standard errors from the images that they were judged on.
        unit: What all deviations are multiplied by.
    """
    mean = float(scores.mean())
    answers = scores - mean
    best: tuple[float, Fit] | None = None
    for each in itertools.product(_TRENDS, _SLOPES, _LOCAL, _CHANCE):
        deviations = each[0] * unit, each[1] * unit, each[2] * unit, each[3] * unit
        covariance = _kernel(points, points, trends, deviations) + np.diag(deviations[3] ** 2 + stderr**2)
        factor = cho_factor(covariance, lower=True)
        weights = cho_solve(factor, answers)
        likelihood = float(-0.5 * answers @ weights - np.log(np.diag(factor[0])).sum())
        if best is None or likelihood > best[0] + 1e-9:  # ties go to the plainer one, which comes first
            best = likelihood, Fit(points, trends, mean, deviations, weights, factor)
    assert best is not None
    return best[1]


def _kernel(here: Floats, there: Floats, trends: Floats, deviations: tuple[float, float, float, float]) -> Floats:
    trend, slope, local, _ = deviations
    apart = ((here[:, None, :] - there[None, :, :]) ** 2).mean(2)
    linear = slope**2 * here @ there.T + trend**2 * (here @ trends.T) @ (there @ trends.T).T
    found: Floats = linear + local**2 * np.exp(-apart / (2 * _LENGTH**2))
    return found


def trends_of(arch: Architecture, surface: Surface, members: Mapping[str, Sequence[Member]]) -> Floats:
    """Return the trends over a network's groups: by the size of their maps, and by how many layers share them.

    Args:
        arch: The network.
        surface: Whose families are the groups.
        members: Convolutions that write or read each channel group.

    Returns:
        (0 to 2, families), each row with mean 0 and largest magnitude 1; what is the same everywhere is left out.
    """
    shapes = {layer.name: layer.output_shape for layer in arch.layers}
    size, share = [], []
    for family in surface.families:
        found = [m for name in family.groups for m in members.get(name, ())]
        areas = [math.prod(shapes[m.layer][2:]) for m in found if m.layer in shapes]
        size.append(-math.log(sum(areas) / len(areas)) if areas else math.nan)
        share.append(math.log(max(len(found), 1)))
    rows = []
    for values in (np.array(size), np.array(share)):
        known = np.where(np.isnan(values), np.nanmean(values) if not np.isnan(values).all() else 0.0, values)
        centred = known - known.mean()
        if np.abs(centred).max() > 1e-6:
            rows.append(centred / np.abs(centred).max())
    return np.array(rows).reshape(len(rows), len(surface.families))


class Response:
    """A walk that goes where the fit of all trials so far is most promising.

    Args:
        surface: The network's widths and the budget.
        start: First widths by family; they are scaled to the budget.
        trends: (trends, families), as of `trends_of`.
        trials: All trials.
        spread: A width may be so many times what one common ratio of the start would give, or one over it.
        seed: Of the draws.
    """

    parent: int | None = None  # every trial begins with new weights, else the longer trained would seem the better

    def __init__(
        self, surface: Surface, start: Widths, trends: Floats, *, trials: int, spread: float, seed: int
    ) -> None:
        self.surface, self.trends, self.trials, self.seed = surface, trends, trials, seed
        self.reach = math.log(spread)
        self.base = {name: float(width) for name, width in start.items()}
        self._next = surface.project(self.base)
        self._origin = self._logs(self._next)
        self._shares = _shares_of_cost(surface, self._next)
        self._asked = 1
        self._places: list[Place] = []
        self._seen: list[Evidence] = []

    @property
    def widths(self) -> Widths:
        """What to try next."""
        return self._next.widths

    def take(self, _: int, seen: Reading) -> Verdict:
        """Take in a trial, and choose the next place."""
        self._places.append(self._next)
        self._seen.append(seen.evidence)
        return Verdict(True, self._propose())

    def back(self) -> None:
        """Go on with another place: this one could not be trained."""
        self._propose()

    def chosen(self) -> tuple[Widths, str] | None:
        """Return the tried widths with the highest expected accuracy."""
        if not self._seen:
            return None
        expected, _ = self._fitted().expected(self._points)
        best = int(expected.argmax())
        seen = self._seen[best]
        name, value = seen.metric.name, seen.metric.score
        numbers = f"{value(expected[best]):.4f} (measured {value(seen.score):.4f})"
        why = f"expected {name} {numbers}, the {seen.metric.best} of {len(self._seen)}"
        return self._places[best].widths, f"the widths of trial {seen.trial}, {why}"

    # ------------------------------------------------------------------ what comes next

    def _propose(self) -> str:
        number, self._asked = self._asked - 1, self._asked + 1
        if number < _SCREENED * len(self.trends):
            trend, sign = self.trends[number // _SCREENED], 1 - 2 * (number % _SCREENED)
            self._next = self._placed(0.5 * self.reach * sign * trend)
            return f"screening, trend {number // _SCREENED + 1} of {len(self.trends)}, {'+-'[number % _SCREENED]}"
        if not self._seen:
            return "nothing is known yet"
        found = self._fitted()
        slopes = found.slopes()
        drawn = self._drawn(slopes)
        # Scaled to the budget, all widths fall by the same factor: to first order, by what the step adds to the cost.
        expected, deviation = found.expected(drawn - (drawn @ self._shares)[:, None])
        bold = _BOLD if self._asked <= 0.75 * self.trials else 0.0
        best = int((expected + bold * deviation).argmax())
        self._next = self._placed(drawn[best])
        most, metric = int(np.abs(slopes).argmax()), self._seen[0].metric
        return (
            f"{metric.score(expected[best]):.4f} ± {deviation[best]:.4f} expected next; "
            f"most depends on {list(self.base)[most]}, "
            f"{metric.change(0, slopes[most] * math.log(2))} if it is twice as wide"
        )

    def _drawn(self, slopes: Floats) -> Floats:
        """Return steps to compare: trends of any strength with some scatter, and steps from the best trials."""
        rng = np.random.default_rng([self.seed, self._asked])
        groups = len(self.base)
        trends = rng.uniform(-1, 1, (_DRAWS, len(self.trends))) @ self.trends
        scatter = rng.standard_normal((_DRAWS, groups)) * rng.uniform(0, 0.5, (_DRAWS, 1))
        best = sorted(range(len(self._seen)), key=lambda n: -self._seen[n].score)[:3]
        from_best = self._points[rng.choice(best, _DRAWS)] + 0.5 * self.reach * scatter
        along = rng.uniform(0.2, 3, (_DRAWS, 1)) * slopes / max(float(np.abs(slopes).max()), 1e-12)
        wide = self.reach * np.concatenate([trends + scatter, along + 0.3 * scatter])
        found: Floats = np.clip(np.concatenate([wide, from_best]), -self.reach, self.reach)
        return found

    def _placed(self, step: Floats) -> Place:
        wanted = {name: width * math.exp(step[n]) for n, (name, width) in enumerate(self.base.items())}
        return self.surface.project(wanted)

    # ------------------------------------------------------------------ what is known

    @property
    def _points(self) -> Floats:
        return np.array([self._logs(place) - self._origin for place in self._places])

    def _logs(self, place: Place) -> Floats:
        found: Floats = np.log(np.array([float(place.widths[name]) for name in self.base]))
        return found

    def _fitted(self) -> Fit:
        scores = np.array([s.score for s in self._seen])
        unit = 1.0 if self._seen[0].metric.unit == "%" else float(scores.std()) / _SPREAD or 1.0
        return fit(self._points, self.trends, scores, np.array([s.stderr for s in self._seen]), unit)


def _shares_of_cost(surface: Surface, place: Place) -> Floats:
    """Return how the use of the budget answers to the logarithm of each width, as shares that sum to one."""
    rows = [place.widths] + [{**place.widths, f.name: place.widths[f.name] + f.step} for f in surface.families]
    uses = np.log(surface.uses(rows))
    steps = np.log([(place.widths[f.name] + f.step) / place.widths[f.name] for f in surface.families])
    answers = np.maximum((uses[1:] - uses[0]) / steps, 0.0)
    total = float(answers.sum())
    return answers / total if total > 0 else np.full(len(answers), 1 / len(answers))
