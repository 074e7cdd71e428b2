"""Two 64-bit hashes per row, computed where the rows are.

A hash is the sum of a row's 32-bit words, each times a random odd number of its column, modulo 2^64, and a final mix.
Words of 32 bits matter: with words of 64, two sign changes (2^63 each) would cancel under *all* odd multipliers. Two
rows that differ agree in one hash with a probability of 2^-32 at most (2^-63 unless they differ in high bits only),
in both with 2^-64 at most; rows that are equal always agree. So grouping by hashes can only be too coarse, and
comparing the rows of each group once makes it exact.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

_WORD = 1 << 64
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # of SplitMix64 (Steele, Lea and Flood, 2014)
_COLUMNS = 1 << 12
# Elements of a piece that is worked on: few where memory counts and calls cost little.
_ELEMENTS = {"cpu": 1 << 14}
_ELEMENTS_ELSEWHERE = 1 << 20
_LEAST_ROWS = 8


@torch.no_grad()
def row_keys(activations: Tensor, see: Callable[[Tensor], Tensor], seed: int) -> tuple[Tensor, Tensor]:
    """Return the hashes of what ``see`` makes of each row, and which rows hold a NaN after it.

    Memory beyond the activations is bounded by a piece of them, whatever their size, if they are contiguous; by a
    piece of at least eight rows else.

    Args:
        activations: (N, ...), any layout in memory; what counts is the order of elements, not their layout.
        see: elementwise; gives float32, float64, int32 or int64, without -0.0.
        seed: of the multipliers.

    Returns:
        Hashes, (N, 2), int64; and (N,), bool; on the same device. A NaN equals nothing: its row's hashes are void.
    """
    if activations.is_contiguous():
        return _keys(activations.flatten(1), see, seed)
    step = max(_LEAST_ROWS, rows_at_a_time(activations))
    parts = [_keys(part.flatten(1), see, seed) for part in torch.split(activations, step)]
    return torch.cat([keys for keys, _ in parts]), torch.cat([void for _, void in parts])


def rows_at_a_time(activations: Tensor) -> int:
    """Return how many rows of (N, ...) can be worked on at a time without regard to memory; 1 at least."""
    return max(1, _ELEMENTS.get(activations.device.type, _ELEMENTS_ELSEWHERE) // max(activations[0].numel(), 1))


def _keys(rows: Tensor, see: Callable[[Tensor], Tensor], seed: int) -> tuple[Tensor, Tensor]:
    void = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    sums = torch.zeros(len(rows), 2, dtype=torch.int64, device=rows.device)
    start = 0
    for columns in torch.split(rows, _COLUMNS, dim=1):
        multipliers: tuple[Tensor, ...] = ()
        step = rows_at_a_time(columns)
        for place in (slice(first, first + step) for first in range(0, len(rows), step)):
            seen = see(columns[place])
            if seen.is_floating_point():
                void[place] |= seen.amax(1).isnan()  # a maximum is NaN where any number is
            words = seen.contiguous().view(torch.int32).to(torch.int64)  # of 32 bits: (n, D) or (n, 2 D)
            if not multipliers:
                multipliers = tuple(_multipliers(start, words.shape[1], 2 * seed + i, rows.device) for i in range(2))
            for i, factors in enumerate(multipliers):
                sums[place, i] += (words * factors).sum(1)
        start += 2 * columns.shape[1]  # a column is two words at most: no multiplier is used twice
    return _mixed(sums), void


@lru_cache(maxsize=16)
def _multipliers(start: int, count: int, stream: int, device: torch.device) -> Tensor:
    """Return random odd numbers for some columns: SplitMix64's, the same on every device."""
    places = torch.arange(start + 1, start + count + 1, dtype=torch.int64, device=device)
    begin = _mixed(torch.tensor(_signed((stream + 1) % _WORD), device=device) * _signed(_GOLDEN))
    return _mixed(places * _signed(_GOLDEN) + begin) | 1


def _mixed(words: Tensor) -> Tensor:
    words = (words ^ _shifted(words, 30)) * _signed(_FIRST)
    words = (words ^ _shifted(words, 27)) * _signed(_SECOND)
    return words ^ _shifted(words, 31)


def _shifted(words: Tensor, bits: int) -> Tensor:
    return (words >> bits) & ((1 << (64 - bits)) - 1)  # torch's shift keeps the sign


def _signed(number: int) -> int:
    return number - _WORD if number >= _WORD // 2 else number
