"""EVBMF: published numbers, the exact minimum against a plain search of the whole objective, and its symmetries."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import convwright as cw
from convwright.metrics.quality.evbmf import CROSSED, NOT_FINITE, ZERO, solve, spectra

SHAPES = [(8, 20), (20, 8), (5, 5), (7, 11), (37, 41), (23, 199), (61, 3), (2, 97), (31, 31), (13, 14)]


def threshold(alpha):
    tau = 2.5129 * math.sqrt(alpha)
    return (1 + tau) * (1 + alpha / tau)


def shrunk(rows, columns, variance, s):
    """The formula as it is printed; the package computes it from tau."""
    part = 1 - (rows + columns) * variance / s**2
    return s / 2 * (part + np.sqrt(part**2 - 4 * rows * columns * variance**2 / s**4))


def bounds(s, rows, columns):
    """For rows <= columns."""
    alpha = rows / columns
    tail = min(math.ceil(rows / (1 + alpha)) - 1, rows)
    low = max(s[tail] ** 2 / (columns * threshold(alpha)), (s[tail:] ** 2).mean() / columns)
    return low, (s**2).sum() / (rows * columns)


def objective(variance, s, rows, columns):
    """The whole free energy as the notes of the published code give it, for an array of variances."""
    alpha = rows / columns
    x = s**2 / (columns * np.asarray(variance)[..., None])
    out = x > threshold(alpha)
    half = np.where(out, x, threshold(alpha)) - 1 - alpha
    tau = 0.5 * (half + np.sqrt(half**2 - 4 * alpha))
    extra = np.log(tau + 1) + alpha * np.log(tau / alpha + 1) - tau
    return (x - np.log(x) + np.where(out, extra, 0)).sum(axis=-1)


def low_rank(draw, rows, columns, rank, noise):
    return draw.normal(size=(rows, rank)) @ draw.normal(size=(rank, columns)) + noise * draw.normal(
        size=(rows, columns)
    )


def matrices():
    """Noise, signal in noise, decaying spectra and heavy tails, in all shapes."""
    for seed, (rows, columns) in enumerate(SHAPES):
        draw = np.random.default_rng(seed)
        small = min(rows, columns)
        yield draw.normal(size=(rows, columns))
        yield low_rank(draw, rows, columns, max(1, small // 5), 0.3)
        yield low_rank(draw, rows, columns, max(1, small // 2), 1.0)
        yield draw.standard_t(2, size=(rows, columns))
        u, _, v = np.linalg.svd(draw.normal(size=(rows, columns)), full_matrices=False)
        yield (u / np.arange(1, small + 1) ** 2) @ v


def svd(matrix):
    return np.linalg.svd(matrix, compute_uv=False)


# ------------------------------------------------------------------ numbers that are known


@pytest.mark.parametrize(
    ("rows", "columns", "variance", "s", "limit", "theta", "d"),
    [
        (2, 2, 1, 10, 4.91084660, 3.13395807, 9.59583152),
        (4, 16, 0.25, 8, 2.70542330, 3.28963420, 7.36651566),
        (8, 20, 0.01, 5.65746269, 3.24098103, 0.80510633, 5.60788140),
    ],
)
def test_hand_checked_shrinkage(rows, columns, variance, s, limit, theta, d):
    """The formulas that the other tests use are right themselves."""
    assert threshold(rows / columns) == pytest.approx(limit, abs=1e-8)
    assert math.sqrt(columns * variance * limit) == pytest.approx(theta, abs=1e-7)
    assert shrunk(rows, columns, variance, s) == pytest.approx(d, abs=1e-7)


def seeded():
    draw = np.random.default_rng(0)
    return low_rank(draw, 8, 20, 2, 0.1)


def test_the_seeded_matrix():
    exact, published = cw.evbmf(seeded()), cw.evbmf(seeded(), parity=True)
    assert published.variance == pytest.approx(0.0098055463, rel=1e-6)
    assert published.values == pytest.approx((11.70053738, 5.60884723), rel=1e-8)
    assert exact.variance == pytest.approx(0.0098061, rel=1e-5)
    assert exact.values == pytest.approx((11.70054, 5.60885), rel=1e-6)
    assert exact.rank == published.rank == 2
    assert exact.shape == (8, 20)


def test_the_published_code_depends_on_scale_and_this_one_does_not():
    published = cw.evbmf(1e-3 * seeded(), parity=True)
    assert published.variance == pytest.approx(4.0967e-07, rel=1e-4)
    assert published.values == pytest.approx((0.01072735, 0.00338183), rel=1e-5)
    assert cw.evbmf(1e-3 * seeded()).values == pytest.approx((0.01170054, 0.00560885), rel=1e-6)


def test_a_matrix_without_rank():
    matrix = np.cos(0.5 * np.outer(np.arange(6), np.arange(10)))
    found = cw.evbmf(matrix)
    assert found.rank == 0
    assert found.values == ()
    assert found.variance == pytest.approx(0.60212182, rel=1e-7)
    assert cw.evbmf(matrix, parity=True).variance == pytest.approx(0.60212, rel=1e-5)


# ------------------------------------------------------------------ the minimum is the minimum


def test_no_variance_is_better_than_the_one_found():
    """A plain search of 20,001 variances over the whole range, for every kind of matrix."""
    for matrix in matrices():
        rows, columns = sorted(matrix.shape)
        s, found = svd(matrix), cw.evbmf(matrix)
        low, high = bounds(s, rows, columns)
        grid = np.geomspace(low, high, 20_001)
        least = objective(grid, s, rows, columns).min()
        assert low * (1 - 1e-9) <= found.variance <= high * (1 + 1e-9)
        # At the threshold the objective jumps by a little; from either side is right.
        around = found.variance * np.array([1 - 1e-10, 1, 1 + 1e-10])
        assert objective(around, s, rows, columns).min() <= least + 1e-8 * abs(least)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 23), st.integers(1, 53), st.floats(0.01, 3))
def test_the_minimum_with_drawn_shapes_and_noise(seed, rows, columns, noise):
    draw = np.random.default_rng(seed)
    matrix = low_rank(draw, rows, columns, 1 + min(rows, columns) // 3, noise)
    rows, columns = sorted(matrix.shape)
    s, found = svd(matrix), cw.evbmf(matrix)
    grid = np.geomspace(*bounds(s, rows, columns), 4_001)
    around = found.variance * np.array([1 - 1e-10, 1, 1 + 1e-10])
    assert objective(around, s, rows, columns).min() <= objective(grid, s, rows, columns).min() + 1e-8
    assert found.values == pytest.approx(shrunk(rows, columns, found.variance, s[: found.rank]), rel=1e-7)


def test_what_is_kept_lies_above_the_threshold_and_is_shrunk():
    for matrix in matrices():
        rows, columns = sorted(matrix.shape)
        s, found = svd(matrix), cw.evbmf(matrix)
        theta = math.sqrt(columns * found.variance * threshold(rows / columns))
        assert found.rank == len(found.values)
        assert (s[: found.rank] > theta * (1 - 1e-9)).all()
        assert (s[found.rank :] <= theta * (1 + 1e-9)).all()
        assert found.values == pytest.approx(shrunk(rows, columns, found.variance, s[: found.rank]), rel=1e-7)
        assert list(found.values) == sorted(found.values, reverse=True)


def test_a_clear_signal_is_found_exactly():
    for seed, (rows, columns) in enumerate([(37, 101), (53, 53), (101, 37), (17, 331)]):
        for rank in (1, 3, 7):
            matrix = low_rank(np.random.default_rng(seed), rows, columns, rank, 0.05)
            found = cw.evbmf(matrix)
            assert found.rank == rank
            assert math.sqrt(found.variance) == pytest.approx(0.05, rel=0.1)


# ------------------------------------------------------------------ symmetries


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 0.37, 1e2, 1e4])
def test_scaling_scales(scale):
    for matrix in matrices():
        one, other = cw.evbmf(matrix), cw.evbmf(scale * matrix)
        assert other.rank == one.rank
        assert other.values == pytest.approx([scale * value for value in one.values], rel=1e-7)
        assert other.variance == pytest.approx(scale**2 * one.variance, rel=1e-7)


def test_the_transpose_has_the_same():
    for matrix in matrices():
        one, other = cw.evbmf(matrix), cw.evbmf(matrix.T)
        assert other.shape == one.shape[::-1]
        assert other.rank == one.rank
        assert other.values == pytest.approx(one.values, rel=1e-7)
        assert other.variance == pytest.approx(one.variance, rel=1e-7)


def test_rotations_and_orders_change_nothing():
    draw = np.random.default_rng(11)
    for matrix in matrices():
        turn = np.linalg.qr(draw.normal(size=(matrix.shape[0],) * 2))[0]
        turned = turn @ matrix[:, draw.permutation(matrix.shape[1])]
        one, other = cw.evbmf(matrix), cw.evbmf(turned)
        assert other.rank == one.rank
        assert other.variance == pytest.approx(one.variance, rel=1e-7)


def test_a_strong_new_direction_is_one_more():
    for seed, (rows, columns) in enumerate([(37, 101), (53, 53), (101, 37), (17, 331)]):
        for rank in (0, 1, 3, 7):
            draw = np.random.default_rng(seed)
            matrix = low_rank(draw, rows, columns, rank, 0.1)
            new = low_rank(draw, rows, columns, 1, 0.0)
            assert cw.evbmf(matrix).rank == rank
            assert cw.evbmf(matrix + new).rank == rank + 1
            assert cw.evbmf(matrix + 1e3 * new).rank == rank + 1


def test_signals_far_above_the_noise_do_not_drown_its_minimum():
    """Large terms of the objective nearly cancel; summed as they are printed, their rounding hid the minimum."""
    for ratio in (1e2, 1e3, 1e4, 1e5):
        draw = np.random.default_rng(7)
        noise = draw.normal(size=(31, 43))
        found = cw.evbmf(noise + ratio * low_rank(draw, 31, 43, 5, 0.0))
        assert found.rank == 5
        assert found.variance == pytest.approx(1, rel=0.3)


def test_many_at_once_are_each_alone():
    given_ = [torch.from_numpy(matrix) for matrix in matrices()]
    given_ += [torch.full((7, 11), math.nan), torch.zeros(7, 11), 3 * given_[16], given_[16].T]
    for one, together in zip(given_, solve(spectra(given_)), strict=True):
        alone = cw.evbmf(one)
        assert (together.rank, together.shape, together.problem) == (alone.rank, alone.shape, alone.problem)
        assert together.variance == pytest.approx(alone.variance, rel=1e-9)
        assert together.values == pytest.approx(alone.values, rel=1e-9)


# ------------------------------------------------------------------ singular values


def test_gram_values_are_singular_values():
    for matrix in matrices():
        spectrum = spectra([torch.from_numpy(matrix)])[0]
        s = svd(matrix)
        assert spectrum.shape == matrix.shape
        assert np.abs(spectrum.values - s).max() < 1e-7 * s[0]
        clear = s > 1e-3 * s[0]
        assert spectrum.values[clear] == pytest.approx(s[clear], rel=1e-9)


def test_the_gram_of_the_rows_has_their_squares():
    for rows, columns in SHAPES:
        matrix = np.random.default_rng(3).normal(size=(rows, columns))
        squared = spectra([torch.from_numpy(matrix)])[0].squared
        assert squared.shape == (rows, rows)
        assert squared.values == pytest.approx(svd(matrix @ matrix.T), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_floating_type(dtype):
    matrix = torch.from_numpy(low_rank(np.random.default_rng(5), 37, 101, 3, 0.2)).to(dtype)
    one, other = cw.evbmf(matrix), cw.evbmf(matrix.double())
    assert one == other
    assert one.rank == 3


def test_any_layout_of_an_array():
    matrix = low_rank(np.random.default_rng(5), 37, 101, 3, 0.2)
    fixed = matrix.copy()
    fixed.flags.writeable = False
    whole = np.round(10 * matrix).astype(np.int64)
    for view, same in [
        (matrix[::-1], matrix),
        (fixed, matrix),
        (matrix[:, ::3], matrix[:, ::3].copy()),
        (whole, 1.0 * whole),
    ]:
        assert cw.evbmf(view).rank == cw.evbmf(same).rank == 3
        assert cw.evbmf(view).values == pytest.approx(cw.evbmf(same).values, rel=1e-9)


def test_weights_that_train_can_be_given_and_are_left_alone():
    weight = torch.randn(11, 13, requires_grad=True)
    before, state = weight.detach().clone(), torch.get_rng_state()
    cw.evbmf(weight)
    assert torch.equal(weight, before)
    assert weight.grad is None
    assert torch.equal(torch.get_rng_state(), state)


# ------------------------------------------------------------------ what cannot be told


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize(
    ("value", "words"), [(math.nan, NOT_FINITE), (math.inf, NOT_FINITE), (-math.inf, NOT_FINITE), (0.0, ZERO)]
)
def test_broken_matrices_say_so(value, words, parity):
    matrix = torch.randn(7, 13) if value else torch.zeros(7, 13)
    matrix[3, 5] = value
    found = cw.evbmf(matrix, parity=parity)
    assert (found.rank, found.values, found.variance, found.problem) == (0, (), 0.0, words)


@pytest.mark.parametrize("shape", [(1, 1), (1, 17), (17, 1), (2, 2), (2, 1)])
def test_the_smallest_matrices(shape):
    matrix = np.random.default_rng(1).normal(size=shape)
    for parity in (False, True):
        assert cw.evbmf(matrix, parity=parity).rank <= 1
    if 1 in shape:  # one value may be anything
        assert cw.evbmf(matrix).rank == 0
        assert cw.evbmf(matrix).variance == pytest.approx((matrix**2).mean())


def test_without_noise_the_rank_is_the_usual_one():
    """The objective has no minimum there; rounding is the bound."""
    assert cw.evbmf(np.ones((7, 13))).rank == 1
    for rank in (1, 2, 3):
        found = cw.evbmf(low_rank(np.random.default_rng(rank), 17, 29, rank, 0.0))
        assert found.rank == rank
        assert found.variance < 1e-10


@pytest.mark.parametrize("shape", [(5,), (), (2, 3, 4), (0, 3)])
def test_only_matrices(shape):
    with pytest.raises(ValueError, match="takes a matrix"):
        cw.evbmf(torch.zeros(shape))


def test_where_the_published_bounds_cross():
    noise = np.random.default_rng(0).normal(size=(384, 9))
    assert cw.evbmf(noise, parity=True).problem == CROSSED
    assert cw.evbmf(noise).problem == ""
