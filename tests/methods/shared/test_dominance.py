"""Fronts and crowding against what their definitions say, over many drawn points."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convwright.methods.shared.dominance import chosen, crowding, dominates, fronts, knee, spread

COARSE = st.integers(0, 6)  # many equal numbers
FINE = st.floats(-1e3, 1e3, allow_nan=False)


def sets_of(number, least=0):
    """Lists of points with two or three numbers."""
    return st.integers(2, 3).flatmap(lambda n: st.lists(st.tuples(*[number] * n), min_size=least, max_size=13))


def layers(points):
    """Fronts by their definition: peel off what nothing that is left dominates."""
    left, found = list(range(len(points))), []
    while left:
        front = tuple(i for i in left if not any(dominates(points[j], points[i]) for j in left))
        found.append(front)
        left = [i for i in left if i not in front]
    return tuple(found)


@given(points=sets_of(COARSE))
def test_domination_is_a_strict_order(points):
    for a, b, c in itertools.product(points[:5], repeat=3):
        assert not dominates(a, a)
        assert not (dominates(a, b) and dominates(b, a))
        assert not (dominates(a, b) and dominates(b, c)) or dominates(a, c)


@given(points=st.one_of(sets_of(COARSE), sets_of(FINE)))
def test_fronts_are_the_layers_that_peeling_finds(points):
    found = fronts(points)
    assert found == layers(points)
    assert sorted(i for front in found for i in front) == list(range(len(points)))


@given(points=sets_of(COARSE, least=1), seed=st.integers(0, 2**32))
def test_fronts_do_not_depend_on_the_order(points, seed):
    order = list(range(len(points)))
    random.Random(seed).shuffle(order)
    shuffled = fronts([points[i] for i in order])
    assert [sorted(order[i] for i in front) for front in shuffled] == [list(front) for front in fronts(points)]


@given(points=st.integers(2, 3).flatmap(lambda n: st.lists(st.tuples(*[st.floats(0, 1)] * n), min_size=1, max_size=11)))
def test_crowding_by_its_definition(points):
    found = crowding(points)
    for i, point in enumerate(points):
        expected, told = 0.0, True
        for k, value in enumerate(point):
            others = [other[k] for j, other in enumerate(points) if j != i]
            below, above = [v for v in others if v < value], [v for v in others if v > value]
            told &= value not in others  # of equal ones the order decides, and nothing is said here
            span = max([value, *others]) - min([value, *others])
            if span > 0:
                expected += (min(above) - max(below)) / span if below and above else math.inf
        if told:
            assert found[i] == pytest.approx(expected)


@given(points=sets_of(st.integers(-50, 50), least=2), scale=st.sampled_from([0.5, 4.0]), shift=st.integers(-7, 7))
def test_crowding_does_not_depend_on_units(points, scale, shift):
    moved = [tuple(scale * value + shift for value in point) for point in points]
    assert crowding(moved) == pytest.approx(crowding(points))


@given(points=sets_of(COARSE, least=1), count=st.integers(0, 14))
def test_a_spread_choice_keeps_the_ends(points, count):
    found = spread(points, count)
    assert len(found) == min(count, len(points))
    assert list(found) == sorted(set(found))
    if count >= len(points[0]):
        for k in range(len(points[0])):
            assert max(points[i][k] for i in found) == max(point[k] for point in points)
    elif count:
        assert max(points[i][0] for i in found) == max(point[0] for point in points)


def test_the_most_crowded_go_first():
    points = [(x, -x) for x in (0.0, 4.0, 5.0, 10.0)]
    assert spread(points, 3) == (0, 2, 3)
    assert spread(points, 2) == (0, 3)
    assert spread(points, 1) == (3,)


def test_one_that_went_gives_its_neighbour_room():
    """Distances are found anew: of two near ones one stays, where NSGA-II, all at once, would drop both."""
    points = [(x, -x) for x in (0.0, 3.0, 5.0, 5.1, 7.2, 8.5, 10.0)]
    at_once = sorted(sorted(range(7), key=lambda i: -crowding(points)[i])[:5])
    assert at_once == [0, 1, 4, 5, 6]
    assert spread(points, 5) == (0, 1, 3, 4, 6)


@given(points=sets_of(COARSE, least=1), count=st.integers(1, 14))
def test_the_next_generation_is_whole_fronts_and_a_part_of_one(points, count):
    found = chosen(points, count)
    assert len(found) == len(set(found)) == min(count, len(points))
    rank = {i: number for number, front in enumerate(fronts(points)) for i in front}
    ranks = [rank[i] for i in found]
    assert ranks == sorted(ranks)
    for number, front in enumerate(fronts(points)):
        if number < ranks[-1]:
            assert set(front) <= set(found)


@given(points=sets_of(COARSE, least=1), scale=st.sampled_from([0.25, 8.0]))
def test_the_knee_is_on_the_front_and_has_no_units(points, scale):
    found = knee(points)
    assert found in fronts(points)[0]
    assert knee([tuple(scale * value for value in point) for point in points]) == found


def test_the_knee_of_a_line_is_the_most_accurate_and_of_a_bend_is_the_bend():
    assert knee([(0.2, 3), (0.4, 2), (0.6, 1)]) == 2
    for bend in range(1, 6):
        points = [(i / 7 if i <= bend else (bend + (i - bend) / 50) / 7, float(-i)) for i in range(7)]
        assert knee(points) == bend
    assert knee([(0.5, 1.0)]) == 0
