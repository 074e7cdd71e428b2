"""Norms of weights, along any axis."""

import pytest
import torch

from convwright.edits.importance.weights import _sums


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("shape", [(7,), (5, 3), (600, 500), (4, 3, 2, 2), (1, 6, 5)])
def test_sums_of_powers_along_each_axis(shape, power):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for axis in range(weight.ndim):
        others = [other for other in range(weight.ndim) if other != axis]
        powers = weight.double().abs() ** power
        expected = powers.sum(others) if others else powers
        torch.testing.assert_close(_sums(weight, axis, power).double(), expected, rtol=1e-5, atol=1e-6)


def test_squares_of_half_precision_do_not_overflow():
    assert _sums(torch.full((2, 3), 300.0, dtype=torch.float16), 1, 2).tolist() == [180000.0] * 3
