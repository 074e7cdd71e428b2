"""Gains against a control: Student's interval over seeds, against scipy's own test as the oracle."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from convwright.experiments.statistics import gain

SEEDS = st.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(SEEDS, st.integers(2, 13))
def test_pairs_by_seed_are_a_paired_t_test(seed, count):
    rng = np.random.default_rng(seed)
    ours, theirs = rng.random(count), rng.random(count)
    order = rng.permutation(count)
    found = gain(dict(enumerate(ours)), {int(k): theirs[k] for k in order})
    oracle = stats.ttest_rel(ours, theirs)
    interval = oracle.confidence_interval(0.95)
    assert found.mean == pytest.approx((ours - theirs).mean(), abs=1e-12)
    assert found.stderr == pytest.approx(stats.sem(ours - theirs))
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert (found.verdict != "within the noise") == (oracle.pvalue < 0.05)
    assert (found.seeds, found.by) == (count, "seeds")


@settings(deadline=None)
@given(SEEDS, st.integers(1, 7), st.integers(0, 7), st.integers(0, 7))
def test_only_common_seeds_count(seed, both, ours_only, theirs_only):
    rng = np.random.default_rng(seed)
    a = {k: rng.random() for k in range(both + ours_only)}
    b = {k: rng.random() for k in [*range(both), *range(100, 100 + theirs_only)]}
    common = range(both)
    assert gain(a, b, 50) == gain({k: a[k] for k in common}, {k: b[k] for k in common}, 50)


@settings(deadline=None)
@given(SEEDS)
def test_swapping_the_rows_swaps_the_signs(seed):
    rng = np.random.default_rng(seed)
    a, b = ({k: rng.random() for k in range(5)} for _ in range(2))
    one, two = gain(a, b), gain(b, a)
    assert (one.mean, one.low, one.high) == (
        pytest.approx(-two.mean),
        pytest.approx(-two.high),
        pytest.approx(-two.low),
    )


def test_one_pair_has_the_error_of_the_images():
    found = gain({3: 0.9}, {3: 0.8}, samples=1000)
    assert found.stderr == pytest.approx(math.sqrt(0.09 / 1000 + 0.16 / 1000))
    assert (found.by, found.seeds, found.verdict) == ("images", 1, "better")
    assert gain({3: 0.9}, {3: 0.8}).stderr is None
    assert gain({3: 0.9}, {3: 0.8}).verdict == ""


def test_no_common_seed_is_no_gain():
    assert gain({0: 0.9}, {1: 0.8}, 10) is None
