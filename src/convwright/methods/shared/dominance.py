"""Choosing among networks when accuracy and cost count at once: fronts, crowding, and a spread choice of a few.

A point is a tuple of numbers of which each is better the larger it is; costs go in with a minus. Fronts and crowding
distance are those of NSGA-II (Deb et al. 2002, IEEE Transactions on Evolutionary Computation 6(2)). That the most
crowded point is taken out one by one, with the distances found anew each time, and that the best of each number always
stays, are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = Sequence[float]


def dominates(one: Point, other: Point) -> bool:
    """Return whether a point is nowhere worse than another and somewhere better.

    Examples:
        >>> dominates((0.9, -50), (0.8, -50)), dominates((0.9, -50), (0.8, -40)), dominates((1, 1), (1, 1))
        (True, False, False)
    """
    return all(a >= b for a, b in zip(one, other, strict=True)) and any(a > b for a, b in zip(one, other, strict=True))


def fronts(points: Sequence[Point]) -> tuple[tuple[int, ...], ...]:
    """Sort points into fronts.

    The first front are those that no other dominates, the second those that only the first dominates, and so forth.

    Args:
        points: Finite numbers, as many in each.

    Returns:
        Places of the points, each in one front, in their order within a front.

    Examples:
        >>> fronts([(0.9, -50), (0.8, -50), (0.7, -35), (0.6, -50)])
        ((0, 2), (1,), (3,))
    """
    found: list[tuple[int, ...]] = []
    left = list(range(len(points)))
    while left:
        found.append(tuple(i for i in left if not any(dominates(points[j], points[i]) for j in left)))
        left = [i for i in left if i not in found[-1]]
    return tuple(found)


def crowding(points: Sequence[Point]) -> tuple[float, ...]:
    """Return the crowding distance of each point of one front.

    In each number the points are sorted; the gap between a point's two neighbours, over the whole range, is added up.
    The first and the last are infinitely far. A number in which all are equal says nothing.

    Args:
        points: Finite numbers, as many in each.

    Examples:
        >>> crowding([(0.0, 4.0), (1.0, 3.0), (4.0, 0.0)])
        (inf, 2.0, inf)
    """
    distances = [0.0] * len(points)
    for values in zip(*points, strict=True):
        order = sorted(range(len(points)), key=lambda i: values[i])
        span = values[order[-1]] - values[order[0]]
        if span <= 0:
            continue
        distances[order[0]] = distances[order[-1]] = math.inf
        for before, i, after in zip(order, order[1:], order[2:], strict=False):
            distances[i] += (values[after] - values[before]) / span
    return tuple(distances)


def spread(points: Sequence[Point], count: int) -> tuple[int, ...]:
    """Choose points of one front that are far from each other.

    The best of each number stays, in the order of the numbers where `count` is too small for all of them. Of the
    others the most crowded one goes, again and again, until `count` are left; of equal ones the later.

    Args:
        points: Finite numbers, as many in each.
        count: So many at most.

    Returns:
        Their places, in order.

    Examples:
        >>> spread([(0, 9), (1, 8), (1.1, 7.9), (5, 4), (9, 0)], 4)
        (0, 2, 3, 4)
    """
    if count < 1 or not points:
        return ()
    ends = [max(range(len(points)), key=lambda i: (points[i][k], points[i])) for k in range(len(points[0]))]
    kept = tuple(dict.fromkeys(ends))[:count]
    left = list(range(len(points)))
    while len(left) > count:
        distances = crowding([points[i] for i in left])
        loose = [(distance, -i) for i, distance in zip(left, distances, strict=True) if i not in kept]
        left.remove(-min(loose)[1])
    return tuple(left)


def chosen(points: Sequence[Point], count: int) -> tuple[int, ...]:
    """Choose the next generation: whole fronts as long as they fit, of the next one a spread choice.

    Args:
        points: Finite numbers, as many in each.
        count: So many at most.

    Returns:
        Their places, front after front.

    Examples:
        >>> chosen([(0.9, -50), (0.8, -50), (0.7, -35), (0.6, -50)], 3)
        (0, 2, 1)
    """
    found: list[int] = []
    for front in fronts(points):
        room = count - len(found)
        if room < 1:
            break
        found += [front[i] for i in spread([points[i] for i in front], room)]
    return tuple(found)


def knee(points: Sequence[Point]) -> int:
    """Return the point of a front that gains most for what it gives up.

    Each number is put between 0 (the worst of the front) and 1 (the best). Taken is the point with the largest sum of
    the first number and the mean of the others: with two numbers, the one that lies furthest beyond the line through
    both ends (Das 1999, Structural Optimization 18). Of equal ones the one with the largest first number is taken.

    Args:
        points: At least one; finite numbers, as many in each. The first is accuracy; give costs as
            logarithms.

    Examples:
        >>> knee([(0.90, -4.0), (0.89, -2.0), (0.60, -1.0)])
        1
    """
    scaled = []
    for values in zip(*points, strict=True):
        low, span = min(values), max(values) - min(values)
        scaled.append([(value - low) / span if span > 0 else 1.0 for value in values])
    first, others = scaled[0], scaled[1:]

    def worth(i: int) -> tuple[float, float]:
        mean = math.fsum(values[i] for values in others) / len(others) if others else 0.0
        return round(first[i] + mean, 12), points[i][0]

    return max(range(len(points)), key=worth)
