"""What evidence is worth to `GreedyEnlarging`, as a score and in words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from convwright.methods.base import Evidence
from convwright.methods.enlarging.growth import Score


def score_of(evidence: Evidence) -> Score:
    """Return the score of one training; NaN where it failed."""
    return Score(evidence.score, evidence.stderr) if evidence.usable else Score(float("nan"))


def mean_of(told: Sequence[Evidence]) -> Score:
    """Return the mean of repeated trainings; its error falls with their number, as they share the images judged on."""
    count = len(told)
    error = statistics.fmean(e.stderr for e in told) / math.sqrt(count)
    return Score(statistics.fmean(e.score for e in told), error, count)


def said(score: Score) -> str:
    """Say a score: ``71.20%``, with how many seeds it is of, or that it is of a first part of a training."""
    times = f" ({score.times} seeds)" if score.times > 1 else " (first part)" * (not score.times)
    return f"{score.value:.2%}{times}"


def told_of(evidence: Evidence, score: Score) -> str:
    """Say a score, or why there is none."""
    return said(score) if evidence.usable else f"failed ({evidence.message})"


def row(numbers: Sequence[int]) -> str:
    """Return numbers in a row."""
    return ",".join(map(str, numbers))
