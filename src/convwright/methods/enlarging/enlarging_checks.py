"""What `GreedyEnlarging` refuses before it begins."""

from __future__ import annotations

from typing import Literal, get_args

from convwright.cost.budget import Limits
from convwright.errors import BudgetError, ConvwrightError

Transfer = Literal["fresh", "inherit"]


def given_limits(limits: Limits | None) -> Limits:
    """Return the limits.

    Raises:
        BudgetError: There are none.
    """
    if limits is None or not limits.limits:
        raise BudgetError('method greedy enlarges a network to a budget; give one above its present cost: "macs<=200%"')
    return limits


def check_options(weights: str, pairs: str, refine: int, final_tolerance: float) -> None:
    """Refuse options that are unknown or do not go together.

    Raises:
        ConvwrightError: Names the option and what to give.
    """
    if weights not in get_args(Transfer):
        raise ConvwrightError(f"weights={weights!r} is unknown to greedy; give {', '.join(get_args(Transfer))}")
    if weights == "inherit" and pairs != "none":
        raise ConvwrightError(
            f"pairs={pairs!r} changes widths and depths at once, and weights cannot follow that: use fresh"
        )
    if weights == "inherit" and refine:
        raise ConvwrightError(f"refine={refine} takes back what was grown, and weights cannot follow that: use fresh")
    if not 0 < final_tolerance < 1:
        raise ConvwrightError(f"final_tolerance={final_tolerance!r} must lie between 0 and 1")


def check_quantum(quantum: int | None, divisor: int) -> None:
    """Refuse widths that would break a divisor.

    Raises:
        ConvwrightError: They would.
    """
    if quantum is not None and divisor > 1 and quantum % divisor:
        raise ConvwrightError(
            f"quantum={quantum} is no multiple of divisor={divisor}, so stages would have widths that break it; "
            f"give a multiple of {divisor}"
        )
