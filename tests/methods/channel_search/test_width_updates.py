"""Traces of the published updates, worked out by hand, and laws of ours."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convwright.methods.channel_search.updates import (
    Need,
    annealed,
    kick_probability,
    metropolis,
    momentum,
    pulled,
    relative_values,
    resized,
    round_even,
    temperature,
)


def greedy(values, gamma, trials, start=16):
    """The published course of one group's width: `values` are its metric, one per trial."""
    widths, before = [start], {}
    for trial in range(1, trials):
        after = momentum(before, {"g": values(trial - 1)}, gamma)
        step = 16 / widths[-1] if trial == 1 else after["g"] - before["g"]
        widths.append(resized(widths[-1], step))
        before = after
    return widths


# ------------------------------------------------------------------ as published


@pytest.mark.parametrize(
    ("delta", "before", "after"),
    [
        (0.1, 33, 36), (0.5, 32, 48), (-0.7, 64, 32), (1.5, 64, 128), (0.03, 16, 16), (0.5, 200, 256),
        (0, 17, 16), (0, 19, 20), (0, 21, 20), (-0.2, 16, 16),
    ],
)  # fmt: skip
def test_one_update(delta, before, after):
    assert resized(before, delta) == after


def test_halves_go_to_even():
    assert [round_even(x) for x in (15, 17, 19, 21, 23)] == [16, 16, 20, 20, 24]


def test_greedy_trace():
    metric = [0.30, 0.40, 0.35, 0.05]
    assert greedy(lambda t: metric[t], 0.8, 5) == [16, 32, 42, 52, 46]
    first = momentum({}, {"g": 0.30}, 0.8)
    second = momentum(first, {"g": 0.40}, 0.8)
    third = momentum(second, {"g": 0.35}, 0.8)
    assert second["g"] - first["g"] == pytest.approx(0.34)
    assert third["g"] - second["g"] == pytest.approx(0.222)


def test_first_annealing_step():
    heat = temperature(2, 36)
    assert heat == pytest.approx(4.861111, abs=1e-6)
    assert kick_probability(0.34, heat) == pytest.approx(0.54605148, abs=1e-8)
    assert resized(32, annealed(0.34, heat, 0.546)) == 60
    assert resized(32, annealed(0.34, heat, 0.547)) == 42


@pytest.mark.parametrize(
    ("trial", "expected"),
    [
        (1, (0.663, 0.504, 0.358, 0.128)), (10, (0.575, 0.397, 0.250, 0.063)),
        (20, (0.407, 0.223, 0.105, 0.011)), (30, (0.091, 0.018, 0.002, 6e-6)),
    ],
)  # fmt: skip
def test_annealing_probabilities(trial, expected):
    # The table counts trials from 0 and is rounded to three digits.
    found = [kick_probability(d, temperature(trial + 1, 36)) for d in (0.5, 0.3, 0.2, 0.1)]
    assert found == pytest.approx(expected, abs=6e-4)


def test_no_change_gives_no_kick():
    assert kick_probability(0.0, 5.0) == 0.0
    assert kick_probability(5e-324, 0.5) == kick_probability(5e-324, 1.0) == 0.0
    assert annealed(0.0, 5.0, 0.0) == 0.0
    assert kick_probability(0.5, 0.0) == 0.0


@given(st.floats(-2, 2), st.floats(0.01, 5), st.floats(0, 1))
def test_published_annealing_only_adds(delta, heat, draw):
    assert annealed(delta, heat, draw) >= delta


@pytest.mark.parametrize(
    ("gamma", "expected"),
    [(0.6, (48, 56, 70)), (0.7, (60, 82, 110)), (0.8, (98, 160, 256)), (0.9, (256, 256, 256))],
)
def test_a_constant_metric_gives_a_size_that_gamma_sets(gamma, expected):
    assert tuple(greedy(lambda t, m=m: m, gamma, 36)[-1] for m in (0.3, 0.45, 0.6)) == expected


def test_first_terms_of_a_constant_metric():
    assert greedy(lambda t: 0.45, 0.8, 36)[:12] == [16, 32, 44, 56, 68, 80, 92, 102, 112, 120, 128, 134]


# ------------------------------------------------------------------ ours

NAMES = "abcde"
widths = st.lists(st.floats(2, 300), min_size=5, max_size=5).map(lambda row: dict(zip(NAMES, row, strict=True)))
qualities = st.lists(st.floats(0.01, 1.5), min_size=5, max_size=5).map(lambda row: dict(zip(NAMES, row, strict=True)))


@given(widths, st.floats(0.01, 1.5), st.integers(1, 7), st.floats(0, 0.95))
def test_equal_qualities_pull_nowhere(shape, quality, trials, gamma):
    need = Need({})
    for _ in range(trials):
        need = need.joined(shape, dict.fromkeys(shape, quality), gamma)
    pull = need.pull(shape)
    assert set(pull.values()) == {0.0}
    assert pulled(shape, pull, 1.0, dict.fromkeys(shape, 3.0)) == shape


@given(widths, qualities, st.floats(1e-3, 1e3))
def test_only_relations_count(shape, values, scale):
    """Neither the scale of the metric nor that of the widths changes the pull, so neither sets a size."""
    one = Need({}).joined(shape, values, 0.8).pull(shape)
    two = Need({}).joined(shape, {n: scale * v for n, v in values.items()}, 0.8).pull(shape)
    three = Need({}).joined({n: scale * w for n, w in shape.items()}, values, 0.8).pull(shape)
    assert two == pytest.approx(one, abs=1e-8)
    assert three == pytest.approx(one, abs=1e-8)
    assert sum(one.values()) == pytest.approx(0, abs=1e-6)


@given(widths, qualities)
def test_the_higher_quality_gains(shape, values):
    relative, pull = relative_values(values), Need({}).joined(shape, values, 0.8).pull(shape)
    order = sorted(shape, key=lambda n: relative[n])
    assert all(pull[a] <= pull[b] + 1e-8 for a, b in pairwise(order))
    moved = pulled(shape, pull, 1.0)
    assert all(0.5 <= moved[n] / shape[n] <= 2 for n in shape)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.8, 0.95])
def test_it_settles_at_the_need_whatever_gamma_is(gamma):
    """Quality = need / width: the shares end at those of the needs."""
    wanted = {"a": 3.0, "b": 17.0, "c": 31.0, "d": 13.0, "e": 11.0}
    shape, need = dict.fromkeys(NAMES, 15.0), Need({})
    for _ in range(60):
        need = need.joined(shape, {n: wanted[n] / shape[n] for n in NAMES}, gamma)
        shape = pulled(shape, need.pull(shape), 0.7)
    total = sum(shape.values())
    assert {n: w * 75 / total for n, w in shape.items()} == pytest.approx(wanted, rel=1e-3 if gamma < 0.9 else 0.1)


@given(st.floats(-3, 3), st.floats(0.01, 3), st.floats(0.01, 3))
def test_metropolis_falls_with_loss_and_cold(loss, heat, more):
    chance = metropolis(loss, heat)
    assert 0 <= chance <= 1
    assert metropolis(loss + more, heat) <= chance <= metropolis(loss, heat + more)
    assert (chance == 1.0) == (loss <= 0) or math.isclose(chance, 1.0)
