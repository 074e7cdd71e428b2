"""Conflicting bundles: values by hand and of the published code, a plain grouping as oracle, and laws."""

import dataclasses
import itertools
import math
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import convwright as cw
from convwright.errors import ConvwrightError, DataError
from convwright.metrics import BundleCounter, WeightGrid, weight_amplitude
from convwright.metrics.bundles import row_hash

NAN, INF, LN2 = math.nan, math.inf, math.log(2)
USUAL = {"learning_rate": 1e-3, "batch_size": 64, "amplitude": 1.0}
seeds = st.integers(0, 2**32 - 1)


def usual(activations, labels, **other):
    return cw.bundles(activations, labels, **USUAL | other)


def exact(activations, labels, **other):
    return cw.bundles(activations, labels, mode="exact", **other)


# ------------------------------------------------------------------ the oracles: plain, slow, and of no shared code


def seen_by_numpy(a, learning_rate, batch_size, amplitude):
    """The published float32 operations, one after the other."""
    a = np.asarray(a).astype(np.float32)
    scaled = (a * np.float32(learning_rate)) * np.float32(np.float32(1) / np.float32(batch_size))
    return np.float32(amplitude) - scaled


def grouped_by_numpy(rows, labels, eps=0.0):
    """Count, entropy, ceiling and share from sorted rows."""
    rows = np.asarray(rows).reshape(len(rows), -1) + 0.0
    _, owner = np.unique(rows, axis=0, return_inverse=True)
    table = np.zeros((owner.max() + 1, max(labels) + 1), dtype=int)
    np.add.at(table, (owner.ravel(), np.asarray(labels)), 1)
    entropy = 0.0
    for row in table:
        p = row[row > 0] / row.sum()
        entropy += row.sum() / len(rows) * max(0.0, -(p * np.log(p + eps)).sum())
    mixed = (table > 0).sum(1) > 1
    return len(table), entropy, table.max(1).sum() / len(rows), table[mixed].sum() / len(rows)


def agrees(found, oracle):
    count, entropy, ceiling, share = oracle
    return (
        found.count == count
        and abs(found.entropy - entropy) <= 1e-12
        and found.accuracy_ceiling == ceiling
        and found.conflict_share == share
        and found.conflicting == (share > 0)
    )


# ------------------------------------------------------------------ by hand

BY_HAND = {
    "A1": ([0, 1, 2, 3], [0, 0, 1, 1], 4, 0, 0, 1, 0),
    "A2": ([5] * 10, range(10), 1, 2.302585, 2.302485, 0.1, 1),
    "A3": ([1, 1, 2, 2], [0, 0, 1, 1], 2, 0, 0, 1, 0),
    "A4": ([1, 1, 2, 2], [0, 1, 0, 1], 2, LN2, 0.693127, 0.5, 1),
    "A5": ([1, 1, 1, 1], [0, 0, 0, 1], 1, 0.562335, 0.562315, 0.75, 1),
    "A6": ([1, 1, 1, 1, 2, 2, 3, 4], [0, 0, 1, 1, 0, 1, 2, 3], 4, 0.75 * LN2, 0.519845, 0.625, 0.75),
    "A7": ([1] * 64, [0] * 63 + [1], 1, 0.080485, 0.080465, 0.984375, 1),
    "A8": ([0.0, -0.0], [0, 1], 1, LN2, 0.693127, 0.5, 1),
    "A10": ([INF, INF], [0, 1], 1, LN2, 0.693127, 0.5, 1),
    "A11": ([[1, 0], [1, 1], [1, 0]], [0, 1, 1], 2, LN2 * 2 / 3, 0.462085, 2 / 3, 2 / 3),
}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("mode", ["published", "exact"])
def test_by_hand(name, mode):
    activations, labels, count, entropy, published, ceiling, share = BY_HAND[name]
    rows, labels = torch.tensor(activations, dtype=torch.float32), list(labels)
    found = usual(rows, labels, mode=mode)
    assert (found.count, found.samples) == (count, len(labels))
    assert found.entropy == pytest.approx(entropy, abs=1e-6)
    assert (found.accuracy_ceiling, found.conflict_share) == (pytest.approx(ceiling), pytest.approx(share))
    assert found.conflicting == (entropy > 0)
    assert found.status == ("conflicting" if entropy else "clean")
    assert found.verified
    assert usual(rows, labels, mode=mode, eps=1e-5).entropy == pytest.approx(published, abs=1e-6)


def test_entropies_that_are_nothing_are_nothing():
    for labels in ([0, 0, 0, 0], [3, 3, 3, 3]):
        for rows in ([1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 1.0]):
            for eps in (None, 1e-5):  # with eps a pure bundle would be at -1e-5: the clipping
                found = usual(rows, labels, eps=eps)
                assert (found.entropy, found.label_entropy, found.conflicting) == (0, 0, False)
                assert (found.accuracy_ceiling, found.conflict_share) == (1, 0)


@pytest.mark.parametrize(
    ("pair", "bundled", "other"),
    [
        ((0, 0.0018), True, {}),
        ((0, 0.0020), False, {}),
        ((0.0018, 0.0020), False, {}),
        ((0.0020, 0.0056), True, {}),
        ((0.0056, 0.0058), False, {}),
        ((0, -0.0037), True, {}),
        ((0, -0.0039), False, {}),
        ((0, 2e-5), True, {"batch_size": 1}),
        ((0, 5e-5), False, {"batch_size": 1}),
        ((0, 1e-5), True, {"learning_rate": 0.1}),
        ((0, 5e-5), False, {"learning_rate": 0.1}),
        ((0, 0.0037), True, {"amplitude": 1.5}),
        ((0, 0.0039), False, {"amplitude": 1.5}),
        ((0, 0.0018), True, {"amplitude": 0.75}),
        ((0, 0.0020), False, {"amplitude": 0.75}),
        ((0, 0.0009), True, {"amplitude": 0.3}),
        ((0, 0.0010), False, {"amplitude": 0.3}),
    ],
)
def test_thresholds(pair, bundled, other):
    found = usual(np.array(pair, dtype=np.float32), [0, 1], **other)
    assert found.count == (1 if bundled else 2)
    assert found.entropy == pytest.approx(LN2 if bundled else 0)


# ------------------------------------------------------------------ seeded arrays


def s2():
    rng = np.random.default_rng(1)
    a = np.maximum(rng.standard_normal((64, 2)), 0).astype(np.float32) * np.float32(0.01)
    y = rng.integers(0, 10, 64)
    assert (round(float(a.sum()), 6), y.sum()) == (0.414986, 323)
    return a, y


def holds(found, count, entropy, ceiling, share):
    assert found.count == count
    assert found.entropy == pytest.approx(entropy, abs=1e-6)
    assert found.accuracy_ceiling == pytest.approx(ceiling)
    assert found.conflict_share == pytest.approx(share, abs=1e-6)


def test_s1():
    rng = np.random.default_rng(0)
    a, y = rng.integers(0, 3, (16, 2)).astype(np.float32), rng.integers(0, 4, 16)
    assert y.tolist() == [0, 3, 0, 2, 0, 1, 1, 1, 1, 0, 0, 0, 0, 2, 2, 2]
    holds(usual(a, y), 8, 0.465920, 0.6875, 0.6875)
    assert usual(a, y, eps=1e-5).entropy == pytest.approx(0.465906, abs=1e-6)


@pytest.mark.parametrize(
    ("other", "count", "entropy", "published", "ceiling", "share"),
    [
        ({}, 17, 1.213885, 1.213840, 0.468750, 0.859375),
        ({"amplitude": 0.25}, 37, 0.777446, 0.777416, 0.671875, 0.515625),
        ({"amplitude": 0.5}, 29, 0.936166, 0.936131, 0.593750, 0.640625),
        ({"amplitude": 1.5}, 8, 1.720598, 1.720525, 0.312500, 0.953125),
        ({"amplitude": 3.0}, 5, 1.972384, 1.972297, 0.234375, 0.968750),
        ({"learning_rate": 1e-2}, 45, 0.438526, 0.438512, 0.796875, 0.328125),
        ({"learning_rate": 1e-4}, 3, 2.103998, 2.103903, 0.218750, 0.953125),
        ({"learning_rate": 1e-5}, 1, 2.210512, 2.210412, 0.171875, 1),
        ({"batch_size": 1}, 49, 0.363727, 0.363715, 0.843750, 0.265625),
        ({"batch_size": 16}, 37, 0.777446, 0.777416, 0.671875, 0.515625),
        ({"batch_size": 256}, 5, 1.972384, 1.972297, 0.234375, 0.968750),
    ],
)
def test_s2(other, count, entropy, published, ceiling, share):
    a, y = s2()
    found = usual(a, y, **other)
    holds(found, count, entropy, ceiling, share)
    assert usual(a, y, eps=1e-5, **other).entropy == pytest.approx(published, abs=1e-6)
    if count == 1:
        assert found.entropy == found.label_entropy


def test_s3():
    rng = np.random.default_rng(2)
    a, y = (rng.standard_normal((128, 4, 4, 3)) * 1e-3).astype(np.float32), rng.integers(0, 10, 128)
    assert (round(float(a.sum()), 5), y.sum()) == (0.05639, 536)
    holds(usual(a, y), 84, 0.677606, 0.703125, 57 / 128)
    assert usual(a, y, eps=1e-5).entropy == pytest.approx(0.677578, abs=1e-6)


def test_s4():
    rng = np.random.default_rng(3)
    a, y = rng.standard_normal((64, 8)).astype(np.float32), rng.integers(0, 10, 64)
    holds(usual(a, y), 64, 0, 1, 0)


# ------------------------------------------------------------------ untrained multilayer perceptrons


def perceptron(width, depth, seed):
    """Return the bundles of every hidden layer of a network that was never trained."""
    rng = np.random.default_rng(seed)
    x, y = rng.random((64, 784)).astype(np.float32), rng.integers(0, 10, 64)

    def weights(rows, columns, limit):
        return rng.uniform(-limit, limit, (rows, columns)).astype(np.float32)

    sizes = [784] + [width] * (depth - 1)
    matrices = [weights(d, width, math.sqrt(6 / d)) for d in sizes]
    amplitude = max(float(np.abs(w).max()) for w in [*matrices, weights(width, 10, math.sqrt(6 / (width + 10)))])
    found, h = [], x
    for w in matrices:
        h = np.maximum(h @ w, 0)
        found.append(usual(h, y, amplitude=amplitude))
    return amplitude, found


@pytest.mark.parametrize(
    ("width", "depth", "seed", "first", "count", "entropy"),
    [
        (10, 50, 0, 22, 1, 2.252866),
        (10, 50, 1, 12, 2, 2.105762),
        (10, 50, 2, 10, 17, 1.200119),
        (10, 150, 0, 22, 1, 2.252866),
        (10, 150, 1, 12, 1, 2.246020),
        (10, 150, 2, 10, 1, 2.148510),
        (25, 50, 0, 49, 64, 0),
        (25, 50, 1, 41, 60, 0.086643),
        (25, 50, 2, None, 64, 0),
        (50, 50, 0, None, 64, 0),
        (50, 50, 1, None, 64, 0),
        (50, 50, 2, None, 64, 0),
        (100, 50, 0, None, 64, 0),
        (100, 50, 1, None, 64, 0),
        (100, 50, 2, None, 64, 0),
        (50, 150, 0, 75, 26, 1.137332),
        (50, 150, 1, 97, 62, 0.021661),
        (50, 150, 2, 85, 37, 0.665269),
    ],
)
def test_untrained_perceptrons(width, depth, seed, first, count, entropy):
    amplitude, found = perceptron(width, depth, seed)
    rounded = {10: 0.7745, 25: 0.4899, 50: 0.3464, 100: 0.2449}[width]
    assert amplitude == pytest.approx(rounded, abs=3e-4 if depth < 150 else 1e-3)
    start = next((i for i, layer in enumerate(found, 1) if layer.conflicting), None)
    last = found[-1]
    if (entropy == 0 and first is None) or count == 1:  # the ends of the scale hold whatever rounds the products
        assert (start is None) == (first is None)
        assert last.count == count
        assert last.entropy == pytest.approx(entropy, abs=1e-6)
        assert last.entropy == (last.label_entropy if count == 1 else 0)
    else:
        assert last.count == pytest.approx(count, abs=2)
        assert last.entropy == pytest.approx(entropy, abs=0.1)
    if first is not None and width != 25:  # at width 25 a single pair decides
        assert start == pytest.approx(first, abs=2)


def test_the_profile_may_fall_again():
    """Unlike exact equality, the metric is not monotone in depth."""
    entropies = [layer.entropy for layer in perceptron(10, 50, 0)[1]]
    assert any(after < before for before, after in itertools.pairwise(entropies))


# ------------------------------------------------------------------ against the oracles


@pytest.mark.parametrize("start", range(0, 300, 60))
def test_random_cases(start):
    """300 cases: whole, streamed and verified, against rows sorted by NumPy."""
    for case in range(start, start + 60):
        rng = np.random.default_rng(case)
        n, d, k = int(rng.integers(2, 80)), int(rng.integers(1, 12)), int(rng.integers(2, 11))
        a = (rng.standard_normal((n, d)) * 10.0 ** rng.uniform(-4, -1)).astype(np.float32)
        if case % 3 == 0:
            a = np.round(a, 2)[rng.integers(0, max(1, n // 3), n)]
        y = rng.integers(0, k, n)
        how = {
            "learning_rate": 10.0 ** rng.uniform(-4, -1),
            "batch_size": int(rng.integers(1, 300)),
            "amplitude": rng.uniform(0.1, 4),
        }
        seen = seen_by_numpy(a, **how)
        found = cw.bundles(a, y, **how)
        assert agrees(found, grouped_by_numpy(seen, y)), case
        counter = BundleCounter(**how)
        step = int(rng.integers(n // 4 + 1, n + 1))
        parts = [a[i : i + step] for i in range(0, n, step)]
        for i, part in enumerate(parts):
            counter.add(torch.from_numpy(part), y[i * step : i * step + step])
        assert dataclasses.replace(counter.result(), verified=True) == found, case
        if case % 5 == 0:
            eps = cw.bundles(a, y, eps=1e-5, **how).entropy
            assert eps == pytest.approx(grouped_by_numpy(seen, y, 1e-5)[1], abs=1e-12)
            assert agrees(exact(a, y), grouped_by_numpy(a, y)), case


@settings(deadline=None, max_examples=30)
@given(seeds)
def test_published_rounding_is_numpys_bit_for_bit(seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 5000))
    a = (rng.standard_normal(size) * 10.0 ** rng.uniform(-42, 37, size)).astype(np.float32)
    a[rng.random(size) < 0.05] = 0
    how = 10.0 ** rng.uniform(-6, 1), int(rng.integers(1, 5000)), 10.0 ** rng.uniform(-3, 2)
    mine = WeightGrid(*how)(torch.from_numpy(a)).numpy()
    with np.errstate(under="ignore", over="ignore"):
        theirs = seen_by_numpy(a, *how)
    assert (mine + np.float32(0)).tobytes() == (theirs + np.float32(0)).tobytes()


def test_other_precisions_are_cast_to_float32_first():
    rng = np.random.default_rng(7)
    wide = torch.from_numpy(rng.standard_normal((31, 5)))
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        a = wide.to(dtype)
        grid = WeightGrid(**USUAL)
        assert torch.equal(grid(a), grid(a.to(torch.float32)))
    whole = torch.arange(12).reshape(6, 2)
    assert usual(whole, [0] * 6) == usual(whole.float(), [0] * 6)


# ------------------------------------------------------------------ the grid and the other modes


@settings(deadline=None, max_examples=30)
@given(seeds)
def test_a_finer_dtype_has_no_fewer_bundles(seed):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((57, 2)) * 10.0 ** rng.uniform(-12, 5)
    y = rng.integers(0, 3, 57)
    how = {"learning_rate": 1e-3, "batch_size": 7, "amplitude": rng.uniform(0.1, 4), "mode": "dtype"}
    found = {t: cw.bundles(a, y, dtype=t, **how) for t in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}
    wide, single, half, brain = found.values()
    assert exact(a, y).count >= wide.count >= single.count >= max(half.count, brain.count)
    assert wide.entropy <= single.entropy + 1e-12
    assert single.entropy <= min(half.entropy, brain.entropy) + 1e-12


def test_a_double_rounding_that_would_split_a_bundle():
    """Two float64 numbers around a midpoint of float16 are one float32 number: one bundle in both."""
    midpoint, little = 2.0**-12, 2.0**-40
    pair = np.array([-midpoint + little, -midpoint - little])
    how = {"learning_rate": 1.0, "batch_size": 1, "amplitude": 1.0, "mode": "dtype"}
    assert np.unique((1 - pair).astype(np.float32)).size == 1
    assert [cw.bundles(pair, [0, 1], dtype=t, **how).count for t in (torch.float64, torch.float32)] == [2, 1]
    pair = pair * 2  # the midpoint between 1 and the next float16
    assert [cw.bundles(pair, [0, 1], dtype=t, **how).count for t in (torch.float32, torch.float16)] == [1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_mode_is_float64_rounded(dtype):
    rng = np.random.default_rng(11)
    a = rng.standard_normal((53, 3)) * 30
    found = WeightGrid(1e-2, 13, 0.7, "dtype", dtype)(torch.from_numpy(a))
    wide = torch.from_numpy(0.7 - a * 1e-2 / 13)
    assert torch.equal(found.double(), (wide if dtype == torch.float64 else wide.float().to(dtype)).double())


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8]
)
def test_exact_mode_compares_the_numbers_themselves(dtype):
    rng = np.random.default_rng(5)
    a = torch.from_numpy(rng.integers(0, 3, (61, 3))).to(dtype)
    y = rng.integers(0, 5, 61)
    assert agrees(exact(a, y), grouped_by_numpy(a.double().numpy(), y))


def test_exact_mode_sees_the_last_bit():
    one = np.nextafter(1.0, 2)
    assert exact(np.array([1.0, one]), [0, 1]).count == 2
    assert usual(np.array([1.0, one]), [0, 1]).count == 1
    assert exact(torch.tensor([2**62, 2**62 + 1]), [0, 1]).count == 2  # no detour through floating point
    assert exact(torch.tensor([False, True, False]), [0, 1, 1]).count == 2


def test_sign_changes_in_two_columns_are_seen():
    """In 64-bit words two sign bits cancel under all odd multipliers; words are of 32 bits for this."""
    for dtype in (torch.float64, torch.float32, torch.float16):
        a = torch.tensor([[1.0, -1.0, 3.0], [-1.0, 1.0, 3.0], [1.0, 1.0, 3.0], [-1.0, -1.0, 3.0]], dtype=dtype)
        for seed in range(20):
            keys, _ = row_hash.row_keys(a, WeightGrid(mode="exact"), seed)
            assert len(keys.unique(dim=0)) == 4


def test_settings_that_scale_alike_give_the_same_partition():
    a, y = s2()
    for power in (1, 2, 3):
        two = 2.0**power
        scaled = [
            usual(a, y, batch_size=64 * 2**power),
            usual(a, y, learning_rate=1e-3 / two),
            usual(a / np.float32(two), y),
            usual(a, y, amplitude=two),
        ]
        assert len({(found.count, found.entropy, found.conflict_share) for found in scaled}) == 1


def test_a_rate_of_zero_and_an_amplitude_of_zero_follow_the_formula():
    a, y = s2()
    nothing = usual(a, y, learning_rate=0)
    assert (nothing.count, nothing.entropy) == (1, nothing.label_entropy)
    bare = usual(a, y, amplitude=0.0)  # 0 - x: only rounding of the products merges, and -0.0 is 0.0
    assert agrees(bare, grouped_by_numpy(seen_by_numpy(a, 1e-3, 64, 0.0), y))
    assert bare.count == exact(a, y).count
    assert usual([0.0, -0.0, 1e-45], [0, 1, 2], amplitude=0.0).count == 1


# ------------------------------------------------------------------ numbers that are none


def test_nan_is_reported_as_diverged():
    found = usual([NAN, NAN, 1.0], [0, 1, 1])  # A9
    assert found.diverged
    assert (found.status, found.clean, found.count, found.diverged_samples) == ("diverged", False, 3, 2)
    assert all(math.isnan(x) for x in (found.entropy, found.accuracy_ceiling, found.conflict_share))
    assert found.label_entropy > 0


@settings(deadline=None, max_examples=30)
@given(seeds)
def test_one_nan_anywhere_is_found(seed):
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(1, 30)), int(rng.integers(1, 5000))
    a = rng.standard_normal((n, d)).astype(np.float32)
    where = int(rng.integers(n)), int(rng.integers(d))
    a[where] = NAN
    a[int(rng.integers(n)), int(rng.integers(d))] += 1  # still NaN where it was
    for found in (
        usual(a, np.zeros(n, int)),
        exact(a, np.zeros(n, int)),
        usual(a, [0] * n, mode="dtype", dtype=torch.float64),
    ):
        assert (found.diverged_samples, found.status) == (1, "diverged")


def test_infinities_are_equal_and_no_divergence():
    found = usual([[INF, -INF], [INF, -INF], [-INF, INF]], [0, 1, 1])
    assert (found.count, found.diverged) == (2, False)


def test_diverged_weights_are_a_diverged_layer():
    for amplitude in (NAN, INF):
        assert usual([1.0, 2.0], [0, 1], amplitude=amplitude).status == "diverged"
    assert usual([INF, 1.0], [0, 1], learning_rate=0).diverged_samples == 1  # infinity times 0


# ------------------------------------------------------------------ laws


@settings(deadline=None, max_examples=40)
@given(seeds)
def test_laws_of_one_layer(seed):
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(1, 60)), int(rng.integers(1, 7))
    a = (rng.standard_normal((n, int(rng.integers(1, 4)))) * 10.0 ** rng.uniform(-4, 0)).astype(np.float32)
    y = rng.integers(0, k, n)
    found = usual(a, y)
    assert 0 <= found.entropy <= found.label_entropy <= math.log(k) + 1e-12
    assert (found.entropy == 0) == (found.conflicting_bundles == 0) == (not found.conflicting)
    assert 1 <= found.count <= n
    assert (found.accuracy_ceiling < 1) == found.conflicting
    assert 1 - found.conflict_share <= found.accuracy_ceiling
    order, names = rng.permutation(n), rng.permutation(k)
    assert usual(a[order], y[order]) == found
    assert usual(a, names[y]) == found
    twice = usual(np.concatenate([a, a]), np.concatenate([y, y]))
    assert (twice.count, twice.entropy, twice.conflict_share) == (found.count, found.entropy, found.conflict_share)
    below = usual(a, y, eps=1e-5)
    assert -1e-12 <= found.entropy - below.entropy <= 1e-5 * k + 1e-12
    assert below.conflicting == found.conflicting


@settings(deadline=None, max_examples=15)
@given(seeds)
def test_exact_equality_persists(seed):
    """What is one at a layer is one behind it: the exact entropy never falls with depth (T1)."""
    torch.manual_seed(seed % 2**31)
    with torch.no_grad():
        h, y = torch.randn(41, 7), torch.randint(0, 3, (41,))
        entropies = []
        for _ in range(6):
            rows = torch.stack([nn.functional.relu(row @ torch.ones(7, 7)) for row in (h * 2).round()])
            h = rows + torch.randint(0, 2, (1, 7))
            entropies.append(exact(h, y).entropy)
    assert all(before <= after + 1e-12 for before, after in itertools.pairwise(entropies))


@settings(deadline=None, max_examples=25)
@given(seeds)
def test_no_classifier_beats_floor_or_ceiling(seed):
    """T2 and T3: any function of the bundle has at least this loss and at most this accuracy."""
    rng = np.random.default_rng(seed)
    owner, y = rng.integers(0, 5, 43), rng.integers(0, 4, 43)
    found = exact(owner, y)
    logits = torch.from_numpy(rng.standard_normal((5, 4)) * 3)[owner]
    labels = torch.from_numpy(y)
    assert nn.functional.cross_entropy(logits, labels) >= found.entropy - 1e-12
    assert (logits.argmax(1) == labels).double().mean() <= found.accuracy_ceiling + 1e-12
    table = np.zeros((5, 4))
    np.add.at(table, (owner, y), 1)
    best = torch.from_numpy(table / table.sum(1, keepdims=True).clip(1)).log().clamp(min=-1e6)[owner]
    assert float(nn.functional.cross_entropy(best, labels)) == pytest.approx(found.entropy, abs=1e-9)
    assert (best.argmax(1) == labels).double().mean() == pytest.approx(found.accuracy_ceiling)


def test_gradients_cancel_in_a_bundle():
    """T4: at the class frequencies the summed logit gradient is 0, although those of the samples are not."""
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    logits = (labels.bincount().double() / 6).log().requires_grad_()
    single = [torch.autograd.grad(nn.functional.cross_entropy(logits, label), logits)[0] for label in labels]
    assert sum(single).norm() < 1e-15
    assert max(gradient.abs().max() for gradient in single) == pytest.approx(0.833333, abs=1e-6)


def test_a_shortcut_escapes():
    """T7: a branch that bundles everything does not bundle the sum with its input."""
    x, y = torch.randn(37, 5, 3, 3, generator=torch.Generator().manual_seed(0)), torch.arange(37) % 3
    branch = x * 0
    assert (usual(branch, y).count, usual(x + branch, y).count) == (1, 37)


@settings(deadline=None, max_examples=25)
@given(seeds)
def test_batches_make_no_difference(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 200))
    a = (rng.standard_normal((n, 3, 2)) * 10.0 ** rng.uniform(-4, -2)).astype(np.float32)
    a[rng.random(n) < 0.02] = NAN
    y = rng.integers(0, 4, n)
    cuts = [0, *sorted(rng.integers(0, n + 1, 4).tolist()), n]
    parts = [slice(i, j) for i, j in itertools.pairwise(cuts) if i < j]
    whole, split = BundleCounter(**USUAL), BundleCounter(**USUAL)
    whole.add(a, y)
    for part in parts:
        split.add(a[part], y[part])
    assert repr(split.result()) == repr(whole.result())  # NaN is not equal to NaN, but is written alike
    assert repr(dataclasses.replace(split.result(), verified=True)) == repr(usual(a, y))


def test_layout_in_memory_makes_no_difference():
    x = torch.randn(67, 5, 3, 2, generator=torch.Generator().manual_seed(1)) * 1e-3
    x[30:60] = x[:30]
    y = torch.arange(67) % 4
    found = usual(x, y)
    assert found.count < 40
    others = [
        x.to(memory_format=torch.channels_last),
        x.numpy(),
        x.numpy()[::-1],
        x.transpose(1, 3).contiguous().transpose(1, 3),
    ]
    for other in others:
        labels = y.flip(0) if isinstance(other, np.ndarray) and other.strides[0] < 0 else y
        assert usual(other, labels) == found
    mixed = BundleCounter(**USUAL)
    mixed.add(x[:20], y[:20])
    mixed.add(x[20:].to(memory_format=torch.channels_last), y[20:])
    assert dataclasses.replace(mixed.result(), verified=True) == found


def test_rows_that_differ_anywhere_in_a_long_row_differ():
    """Rows longer than the columns that are hashed at a time, of one word and of two."""
    size = 2 * row_hash._COLUMNS + 3
    for dtype in (torch.float32, torch.float64):
        a = torch.ones(1, size, dtype=dtype).repeat(6, 1)
        for row, place in enumerate((0, row_hash._COLUMNS - 1, row_hash._COLUMNS, size - 1)):
            a[row, place] = 2
        assert exact(a, [0] * 6).count == 5


def test_equal_rows_with_nan_among_them():
    rng = np.random.default_rng(19)
    for different in (1, 3, 500):
        a, y = rng.integers(0, different, (501, 1)).astype(np.float32), rng.integers(0, 5, 501)
        clean = exact(a, y)
        assert agrees(clean, grouped_by_numpy(a, y))
        a[[7, 300]] = NAN
        kept = ~np.isnan(a).any(1)
        found, rest = exact(a, y), exact(a[kept], y[kept])
        assert found.count == rest.count + 2
        assert found.samples_in_conflict == rest.samples_in_conflict


@pytest.mark.parametrize(("bundles", "most"), [(1, 80), (30_000, 34)])
def test_counting_needs_little_memory(bundles, most):
    """Rows are sorted in parts that have bundles whole: what that needs is little beside the 20 bytes kept of each."""
    rows = 60_000
    counter = BundleCounter(mode="exact")
    for part in torch.arange(rows).split(rows // 10):
        counter.add((part % bundles)[:, None].float(), part % 3)
    counter.result()
    tracemalloc.start()
    try:
        assert counter.result().count == bundles
        assert tracemalloc.get_traced_memory()[1] < most * rows
    finally:
        tracemalloc.stop()


# ------------------------------------------------------------------ verification


def weak(monkeypatch, until):
    """Let hashes of the first seeds see the first column alone."""
    real = row_hash.row_keys

    def keys(activations, see, seed):
        flat = activations.flatten(1)
        return real(flat if seed >= until else flat[:, :1], see, seed)[0], real(flat, see, seed)[1]

    monkeypatch.setattr(sys.modules[BundleCounter.__module__], "row_keys", keys)


def collided():
    rng = np.random.default_rng(13)
    return rng.integers(0, 3, (101, 4)).astype(np.float32), rng.integers(0, 3, 101)


def test_hashes_that_collide_are_found_and_made_anew(monkeypatch):
    a, y = collided()
    expected = usual(a, y)
    weak(monkeypatch, until=2)
    counter = BundleCounter(**USUAL)
    counter.add(a, y)
    assert (counter.result().count, counter.result().verified) == (3, False)
    assert usual(a, y) == expected


def test_hashes_that_always_collide_are_an_error(monkeypatch):
    a, y = collided()
    weak(monkeypatch, until=1000)
    with pytest.raises(ConvwrightError, match="equal hashes"):
        usual(a, y)


# ------------------------------------------------------------------ what is kept, what is left alone


def test_twenty_bytes_are_kept_per_sample():
    for batch in (7, 64, 500):
        counter = BundleCounter(**USUAL)
        for start in range(0, 1500, batch):
            size = min(batch, 1500 - start)
            counter.add(torch.randn(size, 11), torch.zeros(size, dtype=torch.int64))
        kept = [tensor for block in counter._store.blocks for tensor in block]
        storage = sum(tensor.untyped_storage().nbytes() for tensor in kept)
        assert 20 * 1500 <= storage <= 26 * 1500


def test_nothing_of_the_activations_is_changed_kept_or_differentiated():
    x = torch.randn(13, 4, 3, requires_grad=True)
    before, state = x.detach().clone(), torch.get_rng_state()
    counter = BundleCounter(**USUAL)
    counter.add(x, torch.arange(13) % 2)
    kept = [tensor for block in counter._store.blocks for tensor in block]
    assert not any(t.requires_grad or t.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for t in kept)
    assert torch.equal(x, before)
    assert x.grad is None
    assert torch.equal(state, torch.get_rng_state())
    frozen = before.numpy()
    frozen.flags.writeable = False
    assert usual(frozen, torch.arange(13) % 2).count == 13


def test_activations_stay_where_they_are(monkeypatch):
    """Hashes and labels go to the processor; activations, and what is made of them, do not."""
    a, y = collided()
    rows, labels = torch.from_numpy(a), torch.from_numpy(y)

    def guarded(real):
        def call(tensor, *args, **kwargs):
            assert not tensor.is_floating_point()
            return real(tensor, *args, **kwargs)

        return call

    for name in ("cpu", "numpy", "tolist"):
        monkeypatch.setattr(torch.Tensor, name, guarded(getattr(torch.Tensor, name)))
    with pytest.raises(AssertionError):
        rows.cpu()
    assert usual(rows, labels).count > 3
    counter = BundleCounter(**USUAL)
    counter.add(rows, labels)
    assert counter.result().count == usual(rows, labels).count


def hashed_in_python(words, seed):
    """The hash of one row, in unbounded integers: SplitMix64's numbers, made odd, and its mix at the end."""
    whole, golden = 2**64, 0x9E3779B97F4A7C15

    def mixed(z):
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % whole
        z = (z ^ z >> 27) * 0x94D049BB133111EB % whole
        return z ^ z >> 31

    found = []
    for stream in (2 * seed, 2 * seed + 1):
        offset = mixed((stream + 1) * golden % whole)
        factors = [mixed(((i + 1) * golden + offset) % whole) | 1 for i in range(len(words))]
        found.append(mixed(sum(int(w) * f for w, f in zip(words, factors, strict=True)) % whole))
    return [h - whole if h >= whole // 2 else h for h in found]


def test_the_hash_is_that_of_unbounded_integers(monkeypatch):
    """So it is the same on every device and in every process, and it draws from no generator."""
    monkeypatch.setattr(row_hash, "_COLUMNS", 5)
    monkeypatch.setitem(row_hash._ELEMENTS, "cpu", 7)
    rows = np.random.default_rng(17).integers(-(2**31), 2**31, (11, 5), dtype=np.int32)
    for seed in (0, 1, 41):
        keys, _ = row_hash.row_keys(torch.from_numpy(rows), lambda x: x, seed)
        assert keys.tolist() == [hashed_in_python(row, seed) for row in rows]


def test_hashes_spread():
    """No two of many rows that differ little, and each bit is set half of the time."""
    rows = torch.arange(20000, dtype=torch.int32).reshape(-1, 1).repeat(1, 3)
    for seed in range(3):
        keys, _ = row_hash.row_keys(rows, lambda x: x, seed)
        for column in keys.T:
            assert len(column.unique()) == len(rows)
            share = torch.stack([(column >> bit & 1).double().mean() for bit in range(64)])
            assert ((share > 0.48) & (share < 0.52)).all()


# ------------------------------------------------------------------ amplitudes


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.norm = nn.BatchNorm2d(5)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(5, 2))
        self.scale = nn.Parameter(torch.tensor([-0.5]))
        with torch.no_grad():
            self.conv.weight.uniform_(-0.2, 0.2)
            self.conv.bias.fill_(0.1)
            self.conv.weight[0, 0, 0, 0] = -0.3
            self.head[1].weight.fill_(0.125)
            self.head[1].bias.fill_(-2.5)


def test_amplitudes_of_models_and_parts():
    net = Net()
    assert weight_amplitude(net) == 2.5  # the bias of the classifier counts
    assert weight_amplitude(net.conv) == pytest.approx(0.3)
    net.head.requires_grad_(False)
    assert weight_amplitude(net) == 1.0  # gamma; running statistics are not weights
    assert weight_amplitude(net.requires_grad_(False)) == 0.0
    assert weight_amplitude(nn.ReLU()) == 0.0
    assert weight_amplitude(nn.Linear(3, 2).half()) <= 1


def test_amplitudes_that_are_no_number():
    net = Net()
    with torch.no_grad():
        net.norm.bias[2] = NAN
    assert math.isnan(weight_amplitude(net))
    with pytest.raises(ConvwrightError, match=r"'scale' is on the meta"):
        weight_amplitude(Net().to("meta"))


# ------------------------------------------------------------------ what is refused

ROWS = torch.zeros(4, 3)
REFUSED_DATA = {
    "one-hot": (ROWS, torch.eye(4), r"argmax\(1\)"),
    "whole one-hot": (ROWS, torch.eye(4).long(), r"argmax\(1\)"),
    "float labels": (ROWS, torch.zeros(4), "class indices"),
    "column of labels": (ROWS, torch.zeros(4, 1, 1).long(), "shape"),
    "one label": (ROWS, torch.tensor(1), "class indices"),
    "words": (ROWS, ["cat", "dog", "cat", "dog"], "class indices"),
    "ignored labels": (ROWS, [0, -100, 1, 2], "from -100"),
    "huge labels": (ROWS, [0, 1, 2, 2**40], "reach from"),
    "fewer labels": (ROWS, [0, 1, 2], "4 rows, but there are 3 labels"),
    "not per sample": (torch.zeros(1, 4, 3), [0, 1, 2, 3], "1 rows, but there are 4 labels"),
    "one number": (torch.tensor(1.0), [0], "one row per sample"),
    "no sample": (torch.zeros(0, 3), [], "at least one sample"),
    "no number": (torch.zeros(4, 0), [0] * 4, "at least one sample"),
    "complex": (torch.zeros(4, 3, dtype=torch.complex64), [0] * 4, "real numbers"),
    "sparse": (ROWS.to_sparse(), [0] * 4, "plain tensor"),
    "meta": (ROWS.to("meta"), [0] * 4, "plain tensor"),
    "layers": ({"layer1": ROWS}, [0] * 4, "one layer's output"),
    "two layers": ([ROWS, torch.zeros(4, 5)], [0] * 4, "one layer's output"),
}


@pytest.mark.parametrize("name", REFUSED_DATA)
def test_refused_data(name):
    activations, labels, message = REFUSED_DATA[name]
    with pytest.raises(DataError, match=message):
        usual(activations, labels)
    with pytest.raises(DataError, match=message):
        BundleCounter(**USUAL, name="layer1").add(activations, labels)


REFUSED_SETTINGS = [
    ({"learning_rate": -1e-3}, "learning_rate=-0.001"),
    ({"learning_rate": NAN}, "learning_rate=nan"),
    ({"learning_rate": 1e60}, "learning_rate=1e"),
    ({"learning_rate": None}, "learning_rate=None"),
    ({"learning_rate": "0.1"}, "learning_rate='0.1'"),
    ({"batch_size": 0}, "batch_size=0"),
    ({"batch_size": -4}, "batch_size=-4"),
    ({"batch_size": 6.5}, "batch_size=6.5"),
    ({"batch_size": True}, "batch_size=True"),
    ({"batch_size": None}, "batch_size=None"),
    ({"amplitude": -1.0}, "amplitude=-1.0 is negative"),
    ({"amplitude": None}, r"weight_amplitude\(model\)"),
    ({"amplitude": torch.ones(2)}, "amplitude"),
    ({"mode": "exactly"}, "Did you mean exact"),
    ({"mode": "dtype"}, "dtype=None"),
    ({"mode": "dtype", "dtype": torch.int32}, "dtype=torch.int32"),
    ({"dtype": torch.float16}, "mode='dtype'"),
    ({"mode": "exact", "dtype": torch.float16}, "mode='dtype'"),
]


@pytest.mark.parametrize(("other", "message"), REFUSED_SETTINGS)
def test_refused_settings(other, message):
    with pytest.raises(ConvwrightError, match=message):
        usual(ROWS, [0] * 4, **other)
    with pytest.raises(ConvwrightError, match=message):
        BundleCounter(**USUAL | other)


def test_other_refusals():
    for eps in (0, -1e-5, 2, NAN):
        with pytest.raises(ConvwrightError, match="eps"):
            usual(ROWS, [0] * 4, eps=eps)
    counter = BundleCounter(**USUAL, name="layer2")
    with pytest.raises(DataError, match="'layer2' were added"):
        counter.result()
    counter.add(ROWS, [0] * 4)
    with pytest.raises(DataError, match=r"'layer2'.*\(5,\).*\(3,\)"):
        counter.add(torch.zeros(4, 5), [0] * 4)
    with pytest.raises(DataError, match="float64"):
        counter.add(ROWS.double(), [0] * 4)


def test_settings_may_be_numpys_or_torchs():
    other = {"learning_rate": np.float32(1e-3), "batch_size": np.int64(64), "amplitude": torch.tensor(1.0)}
    a, y = s2()
    assert usual(a, y, **other).count == 17
    assert isinstance(usual(a, y, **other).grid.batch_size, int)


def test_one_sample_is_one_bundle():
    found = usual([[1.0, 2.0]], [3])
    assert (found.count, found.entropy, found.status, found.accuracy_ceiling) == (1, 0, "clean", 1)


def test_the_result_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        usual(ROWS, [0] * 4).count = 3
