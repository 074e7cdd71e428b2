"""The label algebra: compact planes, reductions, reshapes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convwright.architecture.labels import (
    Ledger,
    Value,
    along,
    compact,
    line_plane,
    merge,
    reduce_axes,
    reshape_blocks,
    with_sizes,
)


def test_fresh_labels_never_repeat():
    ledger = Ledger()
    rows = [ledger.fresh(size) for size in (3, 1, 5)]
    assert torch.cat(rows).tolist() == list(range(9))
    assert ledger.count == 9


def test_compact_keeps_only_the_axes_that_vary():
    labels = torch.arange(7, dtype=torch.int32).reshape(1, 7, 1, 1).expand(2, 7, 3, 5)
    plane = compact(labels)
    assert plane.axes == (1,)
    assert tuple(plane.labels.shape) == (1, 7, 1, 1)
    assert torch.equal(plane.labels.expand(2, 7, 3, 5), labels)


def test_compact_sees_through_copies():
    labels = torch.arange(7, dtype=torch.int32).reshape(1, 7, 1).expand(2, 7, 3).contiguous()
    assert compact(labels).axes == (1,)


def test_compact_of_equal_labels_varies_nowhere():
    assert compact(torch.zeros(2, 3, dtype=torch.int32)).axes == ()


def test_compact_takes_known_axes_on_trust():
    """With one channel left nothing varies, but the axis still is the channel axis."""
    plane = compact(torch.zeros(2, 1, 3, dtype=torch.int32), axes=(1,))
    assert plane.axes == (1,)
    assert tuple(plane.labels.shape) == (1, 1, 1)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_compact_and_expanding_are_inverse(shape, data):
    labels = torch.tensor(
        data.draw(st.lists(st.integers(0, 2), min_size=_product(shape), max_size=_product(shape)))
    ).reshape(shape)
    assert torch.equal(compact(labels).labels.expand(shape), labels)


@pytest.mark.parametrize(
    ("before", "after", "blocks"),
    [
        ((1, 6, 5), (1, 2, 3, 5), [((0,), (0,)), ((1,), (1, 2)), ((2,), (3,))]),
        ((2, 3, 5, 5), (2, 75), [((0,), (0,)), ((1, 2, 3), (1,))]),
        ((6, 4), (4, 6), [((0, 1), (0, 1))]),
        ((12,), (3, 4), [((0,), (0, 1))]),
        ((3, 4), (12,), [((0, 1), (0,))]),
        ((5, 1, 1), (5,), [((0,), (0,)), ((1,), ()), ((2,), ())]),
        ((5,), (5, 1), [((0,), (0,)), ((), (1,))]),
        ((), (), []),
    ],
)
def test_reshape_blocks_are_the_smallest_equal_parts(before, after, blocks):
    assert reshape_blocks(before, after) == blocks


@given(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=5), st.data())
def test_reshape_blocks_cover_both_shapes(before, data):
    total, after = _product(before), []
    while total > 1:
        size = data.draw(st.sampled_from([d for d in range(1, total + 1) if total % d == 0]))
        after.append(size)
        total //= size
        if size == 1 and len(after) > 4:
            after.append(total)
            break
    blocks = reshape_blocks(before, after)
    assert [i for left, _ in blocks for i in left] == list(range(len(before)))
    assert [j for _, right in blocks for j in right] == list(range(len(after)))
    for left, right in blocks:
        assert _product(before[i] for i in left) == _product(after[j] for j in right)


def test_reducing_spatial_axes_keeps_the_channel_row():
    ledger = Ledger()
    value = Value((2, 7, 3, 3), (line_plane(ledger.fresh(7), 1, 4),))
    (kept,) = reduce_axes(ledger, value, (2, 3), keepdim=False)
    assert kept.axes == (1,)
    assert tuple(kept.labels.shape) == (1, 7)
    assert not ledger.ties


def test_reducing_the_channel_axis_drops_the_plane():
    ledger = Ledger()
    value = Value((2, 7, 3, 3), (line_plane(ledger.fresh(7), 1, 4),))
    assert reduce_axes(ledger, value, (1,), keepdim=True) == ()


def test_reducing_beside_a_varying_axis_ties_along_the_reduced_one():
    ledger = Ledger()
    plane = compact(ledger.fresh(6).reshape(1, 2, 3))
    (kept,) = reduce_axes(ledger, Value((4, 2, 3), (plane,)), (1,), keepdim=False)
    assert kept.labels.reshape(-1).tolist() == [0, 1, 2]
    ((labels, first),) = ledger.ties
    assert labels.tolist() == [[[0, 1, 2], [3, 4, 5]]]
    assert first.tolist() == [[[0, 1, 2]]]


def test_along_ties_whatever_else_the_plane_varies_along():
    ledger = Ledger()
    plane = compact(ledger.fresh(12).reshape(1, 3, 2, 2))
    assert along(ledger, Value((1, 3, 2, 2), (plane,)), 1).tolist() == [0, 4, 8]
    assert len(ledger.ties) == 2


def test_along_an_axis_without_labels_is_none():
    assert along(Ledger(), Value((1, 3)), 1) is None


def test_merge_ties_operands_that_share_axes_and_keeps_the_narrower_plane():
    ledger = Ledger()
    wide = Value((1, 3, 2, 2), (compact(ledger.fresh(12).reshape(1, 3, 2, 2)),))
    row = Value((3, 1, 1), (line_plane(ledger.fresh(3), 0, 3),))
    (plane,) = merge(ledger, [wide, row], 4)
    assert plane.axes == (1,)
    assert plane.labels.reshape(-1).tolist() == [12, 13, 14]
    assert len(ledger.ties) == 1


def test_merge_keeps_planes_on_different_axes_apart():
    ledger = Ledger()
    rows = Value((3, 1), (line_plane(ledger.fresh(3), 0, 2),))
    columns = Value((1, 5), (line_plane(ledger.fresh(5), 1, 2),))
    assert [p.axes for p in merge(ledger, [rows, columns], 2)] == [(0,), (1,)]
    assert not ledger.ties


def test_ties_that_do_not_broadcast_are_refused():
    with pytest.raises(RuntimeError):
        Ledger().tie(torch.arange(3), torch.arange(5))


def test_sizes_come_from_the_planes():
    plane = line_plane(torch.arange(11), 1, 4)
    assert with_sizes((2, 7, 3, 3), [plane]) == (2, 11, 3, 3)


def _product(sizes):
    result = 1
    for size in sizes:
        result *= size
    return result
