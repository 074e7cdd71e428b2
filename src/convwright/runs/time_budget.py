"""How long a search may compute: decided by the seconds of recorded trials, so that a continued run decides alike.

Methods read no clock. The driver ends a search by not asking on; what the method holds for the best is then the result.
"""

from __future__ import annotations

import copy
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from torch import nn

from convwright.errors import ConvwrightError, RunError
from convwright.methods import Candidate, Evidence
from convwright.training import Recipe, train
from convwright.training.tasks.base import BaseTask

_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_FEW, _MORE = 2, 6  # steps of the two trainings that an epoch is estimated from


@dataclass(frozen=True)
class TimeBudget:
    """Seconds that the trials of a search may take in all; side by side, those of all of them count.

    Attributes:
        seconds: The most.
        text: As a person wrote it.
    """

    seconds: float
    text: str

    @classmethod
    def parse(cls, text: str) -> TimeBudget:
        """Read ``90s``, ``30m``, ``1h30m`` or ``2d``.

        Raises:
            ConvwrightError: It is none of these, or no time at all.
        """
        parts = re.fullmatch(r"\s*" + "".join(rf"(?:([0-9]{{1,9}}){unit})?\s*" for unit in _UNITS), text)
        amounts = [int(part or 0) for part in parts.groups()] if parts else []
        seconds = sum(n * unit for n, unit in zip(amounts, _UNITS.values(), strict=False))
        if seconds <= 0:
            raise ConvwrightError(f"--time {text!r}: not a length of time; write it like 90s, 30m, 1h30m or 2d")
        return cls(seconds, text.strip())

    def fits(self, found: Sequence[Evidence], batch: Sequence[Candidate]) -> int:
        """Return how many candidates of a batch would end in time by the mean epoch so far; before any, one.

        Args:
            found: The evidence so far.
            batch: Independent candidates.
        """
        spent = _spent(found)
        if spent >= self.seconds:
            return 0
        if not any(e.usable and e.candidate.epochs for e in found):
            return min(1, len(batch))
        epoch = _epoch(found)
        return sum(spent + epoch * epochs <= self.seconds for epochs in accumulate(c.epochs for c in batch))

    def ended(self, found: Sequence[Evidence], batch: Sequence[Candidate]) -> str:
        """Return the sentence that tells why no candidate of a batch is begun."""
        return (
            f"the search ends: {length(_spent(found))} of {self.text} are used, and the next candidate would take "
            f"about {length(_needed(found, batch[:1]))}"
        )

    def too_short(self, found: Sequence[Evidence], batch: Sequence[Candidate]) -> RunError:
        """Return the error for a search that ended before anything met the budget."""
        enough = length(1.1 * (_spent(found) + _needed(found, batch)))
        return RunError(
            f"--time {self.text}: used up before any trial met the budget; what is finished is kept: continue with "
            f"--resume and at least --time {enough}"
        )

    def check(self, epoch: float, base_epochs: int, later_epochs: int) -> None:
        """Refuse a time in which nothing can be trained.

        Args:
            epoch: Seconds of one, measured here.
            base_epochs: Of the first training.
            later_epochs: Of each later one.

        Raises:
            RunError: It is shorter than one epoch.
        """
        if self.seconds < epoch:
            least = (base_epochs + 2 * later_epochs) * epoch
            raise RunError(
                f"--time {self.text}: shorter than one epoch of this network, which takes about {length(epoch)} here; "
                f"the first training, one candidate and its baseline need about {length(least)}: give --time "
                f"{length(1.1 * least)}, or fewer epochs"
            )


def _spent(found: Sequence[Evidence]) -> float:
    return sum(evidence.seconds for evidence in found)


def _epoch(found: Sequence[Evidence]) -> float:
    """Return the seconds of the mean epoch so far; 0 where there was none."""
    trained = [e for e in found if e.usable and e.candidate.epochs]
    epochs = sum(e.candidate.epochs for e in trained)
    return _spent(trained) / epochs if epochs else 0.0


def _needed(found: Sequence[Evidence], batch: Sequence[Candidate]) -> float:
    """Return the seconds that a batch would take by the mean epoch so far."""
    return _epoch(found) * sum(c.epochs for c in batch)


def length(seconds: float) -> str:
    """Return a length of time as it may be given: whole seconds, minutes from two minutes on, hours from two hours."""
    whole = max(1, math.ceil(seconds))
    if whole < 120:
        return f"{whole}s"
    minutes = math.ceil(whole / 60)
    return f"{minutes}m" if minutes < 120 else f"{minutes // 60}h{minutes % 60}m"


def epoch_seconds(model: nn.Module, data: BaseTask, recipe: Recipe) -> float:
    """Return about how long one epoch takes here, with judging, from two trainings of a few steps.

    Args:
        model: Is left as it is.
        data: Training and validation images.
        recipe: Precision and layout are settled in it.
    """

    def timed(steps: int) -> float:
        start = time.perf_counter()
        few = recipe.updated(epochs=1, max_steps=steps)
        train(copy.deepcopy(model), data, few, progress=False, test=False, teacher=model)
        return time.perf_counter() - start

    few, more = timed(_FEW), timed(_MORE)
    steps = math.ceil(len(data.train) / recipe.batch_size)
    return more + max(0.0, more - few) / (_MORE - _FEW) * max(0, steps - _MORE)


def baseline_of(best: Evidence, found: Sequence[Evidence]) -> Candidate | None:
    """Return the untouched network trained as long as the best trial, where a search ended before it asked for that.

    Args:
        best: The trial that is handed back.
        found: All trials, in the order of asking.

    Returns:
        The candidate; None where the search has a baseline.
    """
    if any(e.candidate.role == "baseline" and e.usable for e in found):
        return None
    last = best.candidate
    epochs, origin = last.epochs, last.parent
    while origin is not None and found[origin].candidate.role != "base" and last.weights != "fresh":
        last = found[origin].candidate
        epochs, origin = epochs + last.epochs, last.parent
    plan = replace(best.candidate.plan, edits=())
    if last.weights == "fresh":
        return Candidate(plan, None, epochs, best.candidate.seed, role="baseline", weights="fresh")
    return Candidate(plan, origin, epochs, best.candidate.seed, role="baseline")
