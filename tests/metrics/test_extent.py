"""Fields along one axis, beside dependency sets followed by brute force."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convwright.metrics.receptive_field.field import Extent, join

KERNELS = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(0, 4))
CHAINS = st.lists(KERNELS, max_size=5)


def grown(chain):
    extent = Extent()
    for kernel, stride, dilation, padding in chain:
        extent = extent.grown(kernel, stride, dilation, padding)
    return extent


def dependencies(chain, unit):
    """Return the input positions that a unit depends on, as if there were no borders."""
    positions = {unit}
    for kernel, stride, dilation, padding in reversed(chain):
        positions = {p * stride - padding + tap * dilation for p in positions for tap in range(kernel)}
    return positions


def centre(extent):
    return extent.first + Fraction(extent.size - 1, 2)


def seen(extent, unit):
    start = extent.first + unit * extent.step
    return {start + bit for bit in range(extent.size) if extent.seen >> bit & 1}


@given(CHAINS, st.integers(-7, 7))
def test_a_chain_sees_what_it_depends_on_holes_included(chain, unit):
    extent, expected = grown(chain), dependencies(chain, unit)
    assert seen(extent, unit) == expected
    assert extent.count == len(expected)
    assert extent.size == extent.least == max(expected) - min(expected) + 1
    assert extent.exact
    assert extent.aligned


@given(CHAINS)
def test_the_usual_recurrence(chain):
    size, jump, padding = 1, 1, 0
    for kernel, stride, dilation, front in chain:
        size += dilation * (kernel - 1) * jump
        padding += front * jump
        jump *= stride
    extent = grown(chain)
    assert (extent.size, extent.step, extent.padding) == (size, jump, padding)
    assert centre(extent) == Fraction(size - 1, 2) - padding


@given(CHAINS, st.integers(1, 40))
def test_inside_is_the_most_that_any_unit_has_in_the_scope(chain, length):
    extent = grown(chain)
    pattern = seen(extent, 0)
    moves = range(-max(pattern), length - min(pattern))
    assert extent.inside(length) == max(len({p + m for p in pattern} & set(range(length))) for m in moves)


def test_holes_are_not_counted():
    holes = Extent().grown(3, dilation=3)  # x..x..x
    assert (holes.size, holes.count, bin(holes.seen)) == (7, 3, "0b1001001")
    assert [holes.inside(length) for length in (1, 3, 4, 6, 7, 100)] == [1, 1, 2, 2, 3, 3]
    assert holes.grown(3).count == 9  # filled


def test_a_stride_larger_than_the_kernel_leaves_holes():
    assert bin(Extent().grown(1, stride=3).grown(2).seen) == "0b1001"


@given(st.lists(st.tuples(st.integers(1, 2), st.sampled_from([1, 3, 5])), min_size=1, max_size=5), st.data())
def test_branches_with_same_padding_are_aligned_and_join_to_their_union(strides, data):
    """Araujo et al.: equal effective strides and centres, whatever the kernels."""
    kernels = data.draw(st.lists(st.sampled_from([1, 3, 5]), min_size=len(strides), max_size=len(strides)))
    one = [(k, s, 1, k // 2) for s, k in strides]
    other = [(k, s, 1, k // 2) for (s, _), k in zip(strides, kernels, strict=True)]
    a, b = grown(one), grown(other)
    joined = join([a, b])
    assert seen(joined, 3) == dependencies(one, 3) | dependencies(other, 3)
    assert joined.aligned
    assert joined.exact
    assert joined.least == min(a.size, b.size)


@given(CHAINS, CHAINS)
def test_a_join_is_the_union_where_the_steps_are_equal(one, other):
    a, b = grown(one), grown(other)
    joined = join([a, b])
    assert joined.exact == (a.step == b.step)
    assert seen(joined, 0) == dependencies(one, 0) | dependencies(other, 0)
    assert join([b, a]) == joined
    if a.step == b.step:
        assert seen(joined, 2) == dependencies(one, 2) | dependencies(other, 2)
        assert joined.aligned == (centre(a) == centre(b))


def test_unequal_padding_is_not_aligned():
    a, b = Extent().grown(3, padding=1), Extent().grown(3, padding=0)
    assert not join([a, b]).aligned
    assert join([a, b]).seen == 0b1111


def test_a_global_extent_stays_whole():
    whole = Extent().everything(13)
    assert whole.grown(5, 2, 1, 2) is whole
    assert join([whole, Extent().grown(3)]) is whole
    assert whole.resampled(7, 14, 2) is whole
    assert (whole.count, whole.inside(13), whole.step) == (13, 13, 0)


@pytest.mark.parametrize("ratio", [Fraction(1, 2), Fraction(2, 3), Fraction(3, 7)])
@pytest.mark.parametrize("kernel", [2, 3, 5])
def test_after_nearest_upsampling_the_extent_is_an_upper_bound(ratio, kernel):
    extent = Extent().resampled(ratio.numerator, ratio.denominator, 1).grown(kernel).grown(kernel)
    reads = [len({(unit + tap) * ratio // 1 for tap in range(2 * kernel - 1)}) for unit in range(20)]
    assert extent.count >= max(reads)
    assert not extent.exact
    assert extent.step == ratio
