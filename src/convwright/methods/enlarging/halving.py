"""Halving inside a level of greedy enlarging: all candidates get a first part of their training, the best of them all.

The first part is a training of its own, with a schedule that ends with it: a schedule that was cut in its middle would
say little, and one that is to be continued could not end. So who goes on is trained anew, as without halving.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from convwright.errors import ConvwrightError
from convwright.methods.enlarging.growth import Score
from convwright.methods.shared.halving import Scored, survivors

_LEAST = 3  # halves of all, then all of a half, would save nothing


@dataclass(frozen=True)
class Halving:
    """How long a first part is, and who goes on.

    Attributes:
        eta: A first part is one in so many of the steps, and one in so many candidates goes on.
        epochs: Of a whole training.
        steps: Most steps of a whole training; None: whole epochs.
        beam: At least so many go on.

    Raises:
        ConvwrightError: `eta` would save nothing, or the training is too short to be divided.
    """

    eta: int
    epochs: int
    steps: int | None = None
    beam: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.eta, int) or isinstance(self.eta, bool) or self.eta < _LEAST:
            raise ConvwrightError(f"halving={self.eta!r} must be a whole number from {_LEAST} on: less saves nothing")
        name, length = ("trial_epochs", self.epochs) if self.steps is None else ("trial_steps", self.steps)
        if length < self.eta:
            raise ConvwrightError(
                f"halving={self.eta} trains each candidate for one part in {self.eta} at first, and {name}={length} "
                f"has no such part; give {name}={self.eta} at least, or trial_steps"
            )

    @property
    def first_part(self) -> tuple[int, dict[str, Any]]:
        """Epochs, and changes to the recipe, of a first part."""
        if self.steps is None:
            return self.epochs // self.eta, {}
        return self.epochs, {"max_steps": self.steps // self.eta}

    def most(self, count: int) -> int:
        """Return how many of `count` may go on so that all together take no longer than without halving."""
        return count * (self.eta - 1) // self.eta

    def helps(self, count: int) -> bool:
        """Return whether any of `count` candidates would be left behind."""
        return self.keep(count) <= self.most(count)

    def keep(self, count: int) -> int:
        """Return how many of `count` go on at least."""
        return max(math.ceil(count / self.eta), self.beam)

    def going_on(self, scores: Sequence[Score]) -> tuple[int, ...]:
        """Return the places of those that get the whole training, in order.

        The best of them, and those that the last of these does not differ from by more than the standard error, as far
        as that takes no longer than the whole training of all.
        """
        scored = [Scored(score.value, score.stderr) for score in scores]
        return tuple(sorted(survivors(scored, self.keep(len(scored)), self.most(len(scored)))))
