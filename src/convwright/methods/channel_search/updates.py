"""How widths answer a quality of channels: the published updates, and ours.

Pure functions on numbers. ``annealed`` and what stands before it are those of CONetV2's code (Wang et al. 2021). What
begins with ``pull`` and ``metropolis`` is ours: the published signal is a momentum that is not normalised, so that its
decay sets the size of the network, and the published "annealing" only ever adds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

_LEAST, _MOST = 0.5, 2.0  # what a width is multiplied by in one update
ALPHA = 5.0  # the published code's first temperature

Values = Mapping[str, float]

# ------------------------------------------------------------------ CONetV2 as published


def round_even(width: float) -> int:
    """Return the nearest even number; of two equally near ones as Python's `round` chooses.

    >>> [round_even(width) for width in (17, 19, 21, 36.3)]
    [16, 20, 20, 36]
    """
    return 2 * round(width / 2)


def resized(width: int, delta: float, least: int = 16, most: int = 256) -> int:
    """Return the width after one update.

    Args:
        width: Channels before.
        delta: Change of the group's momentum; the width is multiplied by 1 + delta, held within 0.5 and 2.
        least: Smallest width.
        most: Largest width.
    """
    return min(max(round_even(width * min(max(1 + delta, _LEAST), _MOST)), least), most)


def momentum(before: Values, values: Values, gamma: float) -> dict[str, float]:
    """Return ``gamma * before + values`` per group, as published: without a factor ``1 - gamma``.

    The published code keeps one per layer and mode and averages them over a group; both are linear, so that one per
    group is the same.
    """
    return {name: gamma * before.get(name, 0.0) + value for name, value in values.items()}


def temperature(trial: int, trials: int) -> float:
    """Return the published temperature of an update: ``ALPHA * (trials - (trial - 1)) / trials``.

    Args:
        trial: The trial that is about to be asked for, from 1 on.
        trials: All trials.
    """
    return ALPHA * (trials - (trial - 1)) / trials


def kick_probability(delta: float, heat: float) -> float:
    """Return how likely a group is widened on top: ``exp(-(1 / |delta|) / heat)``, 0 for no change."""
    scaled = abs(delta) * heat  # 0 by rounding, too
    return math.exp(-1 / scaled) if scaled > 0 else 0.0


def annealed(delta: float, heat: float, draw: float) -> float:
    """Return the change after the published "annealing": where the draw is below the probability, that is added.

    It adds and never takes away, and nothing is rejected.

    Args:
        delta: Change of the group's momentum.
        heat: The temperature.
        draw: A uniform number from 0 to 1.
    """
    chance = kick_probability(delta, heat)
    return delta + chance if draw < chance else delta


# ------------------------------------------------------------------ ours


@dataclass(frozen=True)
class Need:
    """What each group was found to need: an average over trials, newer ones counting more.

    A group of width w whose quality is q times the mean over groups needs a share in proportion to w * q. The
    average of this, and not of q, stays right while the widths move.

    Attributes:
        logs: Per group the sum of the logarithms of its share, each with its weight.
        weight: Sum of the weights.
    """

    logs: Values
    weight: float = 0.0

    def joined(self, shape: Values, values: Values, gamma: float) -> Need:
        """Return the average with one more trial.

        Args:
            shape: The widths of the trial, whole numbers or not.
            values: The groups' qualities, at least one of them above 0.
            gamma: Weight of what was known before, from 0 to 1.
        """
        relative = relative_values(values)
        new = _centred({name: math.log(shape[name] * relative[name]) for name in shape})
        logs = {name: gamma * self.logs.get(name, 0.0) + value for name, value in new.items()}
        return Need(logs, gamma * self.weight + 1)

    def pull(self, shape: Values) -> dict[str, float]:
        """Return by how much the logarithm of each width falls short of its need; 0 where widths fit all alike."""
        here = _centred({name: math.log(width) for name, width in shape.items()})
        found = {name: self.logs[name] / self.weight - here[name] for name in shape}
        return {name: value if abs(value) > 1e-9 else 0.0 for name, value in found.items()}  # 0, and not rounding


def relative_values(values: Values) -> dict[str, float]:
    """Return values over their mean, held within 0.5 and 2: no single reading moves a width further."""
    mean = sum(values.values()) / len(values)
    return {name: min(max(value / mean, _LEAST), _MOST) for name, value in values.items()}


def pulled(shape: Values, pull: Values, heat: float, noise: Values | None = None) -> dict[str, float]:
    """Return widths moved along their pull.

    Args:
        shape: Widths, whole numbers or not.
        pull: As `Need.pull`.
        heat: Share of the pull that is followed, from 0 to 1.
        noise: A normal number per group; None: none. A number of 1 moves a width by half of the pulls' root mean
            square: where nothing pulls, nothing is shaken.
    """
    strength = 0.5 * math.sqrt(sum(value * value for value in pull.values()) / len(pull))
    steps = {name: heat * (pull[name] + strength * (noise[name] if noise else 0.0)) for name in shape}
    return {name: width * min(max(math.exp(steps[name]), _LEAST), _MOST) for name, width in shape.items()}


def metropolis(loss: float, heat: float) -> float:
    """Return the probability of accepting a step that loses: ``exp(-loss / heat)``, 1 where it gains.

    >>> metropolis(-0.1, 0.0), metropolis(0.1, 0.0), round(metropolis(1.0, 2.0), 4)
    (1.0, 0.0, 0.6065)
    """
    if loss <= 0:
        return 1.0
    return math.exp(-loss / heat) if heat > 0 else 0.0


def _centred(logs: Values) -> dict[str, float]:
    mean = sum(logs.values()) / len(logs)
    return {name: value - mean for name, value in logs.items()}
