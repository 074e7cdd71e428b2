"""Scaling rules: one formula for the whole network. What greedy enlarging is compared with.

Each rule turns a factor into stage widths, stage depths and a resolution; the factor is found by bisection on exact
costs. Rules are pure functions of numbers and need no network.

Sources: EfficientNet (Tan and Le 2019) for compound scaling, Dollar et al. 2021 for fast compound scaling. Random and
equal shares are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from convwright.errors import ConvwrightError
from convwright.zoo.parts import divisible

Rule = Literal["width", "depth", "resolution", "compound", "fast", "uniform", "random", "equal"]
Cost = Callable[["Setting"], int]
_LARGEST = 1e4  # factor
_HALVINGS = 60


class Setting(NamedTuple):
    """A network as a rule sees it.

    Attributes:
        widths: channels that leave each stage.
        depths: blocks of each stage.
        resolution: side of the input.
        ends: what stem and head are multiplied by.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    resolution: int
    ends: float = 1.0


def scaled(
    base: Setting,
    *,
    width: float = 1.0,
    depth: float = 1.0,
    resolution: float = 1.0,
    quantum: int = 8,
    step: int = 8,
    depth_rounding: Literal["up", "nearest"] = "up",
) -> Setting:
    """Multiply all widths, all depths and the resolution.

    Args:
        base: what is scaled.
        width: factor of the widths, and of stem and head.
        depth: factor of the depths.
        resolution: factor of the resolution.
        quantum: widths become multiples of it. A width whose factor is 1 stays.
        step: the resolution becomes a multiple of it.
        depth_rounding: ``up`` or to the ``nearest`` (half away from zero); at least 1 either way.
    """
    wide = tuple(divisible(w * width, quantum) if width != 1 else w for w in base.widths)
    deep = (d * depth for d in base.depths)
    blocks = tuple(max(1, math.ceil(d - 1e-9) if depth_rounding == "up" else int(d + 0.5)) for d in deep)
    side = base.resolution if resolution == 1 else max(step, step * int(base.resolution * resolution / step + 0.5))
    return Setting(wide, blocks, side, base.ends * width)


def single(base: Setting, kind: Literal["width", "depth", "resolution"], factor: float, quantum: int = 4) -> Setting:
    """Scale in one dimension only."""
    wide, deep, side = (factor if kind == name else 1.0 for name in ("width", "depth", "resolution"))
    return scaled(base, width=wide, depth=deep, resolution=side, quantum=quantum)


def compound(
    base: Setting, phi: float, coefficients: tuple[float, float, float] = (1.2, 1.1, 1.15), quantum: int = 8
) -> Setting:
    """Scale as EfficientNet does: depth alpha^phi, width beta^phi, resolution gamma^phi.

    Args:
        base: what is scaled.
        phi: 0 changes nothing; MACs grow by about (alpha * beta^2 * gamma^2)^phi.
        coefficients: alpha, beta, gamma.
        quantum: of the widths.
    """
    alpha, beta, gamma = coefficients
    return scaled(base, depth=alpha**phi, width=beta**phi, resolution=gamma**phi, quantum=quantum)


def fast(base: Setting, factor: float, weights: tuple[float, float, float] = (1, 8, 1), quantum: int = 8) -> Setting:
    """Scale as Dollar et al. do: MACs by a factor, shared out by weights.

    Depth grows by s^(e_d / E), width by s^(e_w / 2E), resolution by s^(e_r / 2E), with E the sum of the weights.

    Args:
        base: what is scaled.
        factor: s, what MACs are multiplied by, before rounding.
        weights: of depth, width and resolution: (1, 8, 1) is fast ("dWr"), (1, 1, 1) uniform ("dwr").
        quantum: of the widths.
    """
    total = sum(weights)
    depth, width, side = (factor ** (e / total) for e in weights)
    return scaled(
        base, depth=depth, width=width**0.5, resolution=side**0.5, quantum=quantum, step=4, depth_rounding="nearest"
    )


def to_cost(made: Callable[[float], Setting], cost: Cost, target: int, start: float = 1.0) -> Setting:
    """Return the setting of a rule whose cost is nearest to a target, by bisection of its factor.

    Args:
        made: factor -> setting; its cost must not fall with the factor.
        cost: exact cost of a setting.
        target: what it should cost.
        start: a factor at which it costs no more than the target.

    Raises:
        ConvwrightError: the target cannot be reached: the rule changes nothing that costs.
    """
    low, high = start, start + 1
    while cost(made(high)) < target:
        low, high = high, start + 2 * (high - start)
        if high > _LARGEST:
            raise ConvwrightError(f"the rule cannot bring the cost to {target:,}: what it scales costs nothing here")
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(made(middle)) >= target else (middle, high)
    return min((made(low), made(high)), key=lambda s: abs(cost(s) - target))


def shares(stages: int, how: Literal["equal", "random"], seed: int = 0) -> tuple[float, ...]:
    """Return what part of the further MACs each stage gets, first by width, then by depth: 2 * `stages` parts.

    Args:
        stages: how many.
        how: ``equal``: all alike; ``random``: drawn evenly from all ways to share (a flat Dirichlet distribution).
        seed: of the draw.
    """
    if how == "equal":
        return (1 / (2 * stages),) * (2 * stages)
    return tuple(np.random.default_rng(seed).dirichlet(np.ones(2 * stages)).tolist())
