"""Products of channel windows on the processor: rolling pointwise convolution without a copy of every window.

To lay overlapping windows side by side costs more than the arithmetic that it saves. Here one autograd function
computes values and exact gradients, and moves each channel at most once per product:

* In contiguous memory a window of channels is a block of rows, and the outputs of a window are rows a fixed step
  apart. Batched matrix products read and write both where they lie.
* In channels-last memory windows that do not overlap are the groups of a grouped convolution. Windows made of ``B``
  blocks of ``shift`` channels are ``B`` such sets, each one block further on: the layer is ``B`` grouped convolutions
  of the input rolled by 0, 1, .. ``B - 1`` blocks, each with its share of the outputs.

Both follow from the definition in ``rolling_pointwise``; the source is named there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Positions are taken some at a time, so that what is rolled and added stays in the cache and its memory is used again:
# fresh memory of the size of the input costs as much as a convolution.
_ELEMENTS_AT_A_TIME = 1 << 20


@dataclass(frozen=True)
class Windows:
    """Which channels belong to which output.

    Attributes:
        channels: of the input, C.
        outputs: of the layer, O.
        window: channels that one output reads.
        shift: channels from the start of one window to the start of the next.
        count: distinct windows, D.
        interleaved: output ``o`` reads window ``o mod D``; otherwise window ``floor(o / (O / D))``.
    """

    channels: int
    outputs: int
    window: int
    shift: int
    count: int
    interleaved: bool

    @property
    def regular(self) -> bool:
        """Whether windows are whole runs of blocks of ``shift`` channels, and all have equally many outputs."""
        blocks = self.count * self.shift == self.channels and self.window % self.shift == 0
        return blocks and self.outputs % self.count == 0

    def rows(self, k: int) -> slice:
        """Return the outputs of window k."""
        if self.interleaved:
            return slice(k, self.outputs, self.count)
        size = self.outputs // self.count
        return slice(k * size, (k + 1) * size)

    def pieces(self, k: int) -> tuple[tuple[slice, slice], ...]:
        """Return the channels of window k and their columns in the weight, in two parts where the window wraps."""
        start = k * self.shift % self.channels
        before = min(self.window, self.channels - start)
        first = (slice(start, start + before), slice(0, before))
        if before == self.window:
            return (first,)
        return first, (slice(0, self.window - before), slice(before, self.window))

    def index(self, device: torch.device | None = None) -> Tensor:
        """Return the channel behind each weight, shape (outputs, window)."""
        number = torch.arange(self.outputs, device=device)
        return self.channels_of(number % self.count if self.interleaved else number // (self.outputs // self.count))

    def channels_of(self, numbers: Tensor) -> Tensor:
        """Return the channels in some windows, shape (len(numbers), window)."""
        return (numbers[:, None] * self.shift + torch.arange(self.window, device=numbers.device)) % self.channels

    def __iter__(self) -> Iterator[tuple[slice, tuple[tuple[slice, slice], ...]]]:
        """Yield outputs and channels of each window that has an output."""
        for k in range(min(self.count, self.outputs)):
            yield self.rows(k), self.pieces(k)


def by_position(x: Tensor) -> bool:
    """Whether the channels of one position lie side by side."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def window_products(x: Tensor, weight: Tensor, bias: Tensor | None, windows: Windows) -> Tensor:
    """Return the rolling pointwise convolution of x with stride 1.

    Args:
        x: (N, C, H, W), on the processor.
        weight: (O, window, 1, 1); column ``i`` belongs to the ``i``-th channel of the row's window.
        bias: (O,), or none.
        windows: which channels belong to which output.

    Returns:
        (N, O, H, W), in the memory format of x. Gradients of any order.
    """
    suggested = torch.channels_last if x.stride(1) == 1 else torch.contiguous_format
    x = x.contiguous(memory_format=torch.contiguous_format if x.is_contiguous() else suggested)
    y: Tensor = _Products.apply(x, weight, bias, windows)
    return y


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, windows: Windows) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.windows = windows
        if by_position(x):
            if windows.regular:
                return _rolled_values(x, weight, bias, windows)
            return _values(x, weight, bias, windows).contiguous(memory_format=torch.channels_last)
        return _values(x, weight, bias, windows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (gradient,), windows = gradients, ctx.windows
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        of_bias = gradient.sum((0, 2, 3)) if needs_bias else None
        of_x: Tensor | None
        of_weight: Tensor | None
        if torch.is_grad_enabled():  # gradients of gradients: in operations that autograd can follow
            of_x, of_weight = _followed(gradient, x, weight, windows)
        elif by_position(x) and windows.regular:
            of_x, of_weight = _rolled_gradients(gradient, x, weight, windows)
        else:
            of_x = _input_gradient(gradient, weight, windows) if needs_x else None
            of_weight = _weight_gradient(gradient, x, weight, windows) if needs_weight else None
            if of_x is not None and by_position(x):
                of_x = of_x.contiguous(memory_format=torch.channels_last)
        return of_x if needs_x else None, of_weight if needs_weight else None, of_bias, None


# ------------------------------------------------------------------ contiguous: batched products of row blocks


def _values(x: Tensor, weight: Tensor, bias: Tensor | None, windows: Windows) -> Tensor:
    columns, table = x.flatten(2), weight.flatten(1)
    y = x.new_empty(x.shape[0], windows.outputs, columns.shape[2])
    for rows, pieces in windows:
        for piece, (channels, inside) in enumerate(pieces):
            factor = table[rows, inside].expand(x.shape[0], -1, -1)
            y[:, rows].baddbmm_(factor, columns[:, channels], beta=min(piece, 1))
    if bias is not None:
        y += bias[:, None]
    return _unflatten(y, 2, x.shape[2:])


def _input_gradient(gradient: Tensor, weight: Tensor, windows: Windows) -> Tensor:
    columns, table = gradient.flatten(2), weight.flatten(1)
    total = gradient.new_zeros(gradient.shape[0], windows.channels, columns.shape[2])
    for rows, pieces in windows:
        for channels, inside in pieces:
            factor = table[rows, inside].t().expand(gradient.shape[0], -1, -1)
            total[:, channels].baddbmm_(factor, columns[:, rows])
    return _unflatten(total, 2, gradient.shape[2:])


def _weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor, windows: Windows) -> Tensor:
    columns, inputs = gradient.flatten(2), x.flatten(2).transpose(1, 2)
    total = weight.new_empty(weight.shape)
    for rows, pieces in windows:
        for channels, inside in pieces:
            total[rows, inside, 0, 0] = torch.bmm(columns[:, rows], inputs[:, :, channels]).sum(0)
    return total


# ------------------------------------------------------------------ channels last: grouped convolutions, rolled inputs


def _rolled_values(x: Tensor, weight: Tensor, bias: Tensor | None, windows: Windows) -> Tensor:
    parts = _shares(weight.flatten(1), windows)
    biases = [None] * len(parts) if bias is None else [share.flatten() for share in _shares(bias[:, None], windows)]
    y = torch.empty_like(x[:, :1].expand(-1, windows.outputs, -1, -1), memory_format=torch.channels_last)
    inputs, outputs = _matrix(x), _matrix(y)
    for some in _tiles(inputs):
        table = _table(outputs[some], windows)
        for turn, (part, share) in enumerate(zip(parts, biases, strict=True)):
            rolled = _image(_rolled(inputs[some], turn * windows.shift))
            values = F.conv2d(rolled, part[:, :, None, None], share, groups=table.shape[1])
            table[:, :, turn] = _unflatten(_matrix(values), 1, (table.shape[1], -1))
    return y


def _rolled_gradients(gradient: Tensor, x: Tensor, weight: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
    parts = _shares(weight.flatten(1), windows)
    of_x, of_parts = torch.empty_like(x), [torch.zeros_like(part) for part in parts]
    inputs, outputs = _matrix(x), _matrix(gradient.contiguous(memory_format=torch.channels_last))
    for some in _tiles(inputs):
        table, backs = _table(outputs[some], windows), []
        for turn, part in enumerate(parts):
            share = _image(table[:, :, turn].flatten(1))
            rolled = _image(_rolled(inputs[some], turn * windows.shift))
            back, of_part, _ = torch.ops.aten.convolution_backward(
                share, rolled, part[:, :, None, None], None, (1, 1), (0, 0), (1, 1), False, (0, 0), table.shape[1],
                (True, True, False),
            )  # fmt: skip
            of_parts[turn] += of_part.flatten(1)
            backs.append(_matrix(back))
        _add_rolled(backs, windows.shift, _matrix(of_x)[some])
    of_weight = torch.empty_like(weight)
    shares = _table(of_weight.flatten(1).t(), windows)  # a view: what is written into it is the gradient
    for turn, of_part in enumerate(of_parts):
        shares[:, :, turn] = _unflatten(of_part.t(), 1, (shares.shape[1], -1))
    return of_x, of_weight


def _table(matrix: Tensor, windows: Windows) -> Tensor:
    """View columns, one per output, as (rows, windows side by side, blocks per window, outputs of a window)."""
    blocks = windows.window // windows.shift
    side, each = windows.count // blocks, windows.outputs // windows.count
    if windows.interleaved:
        return _unflatten(matrix, 1, (each, side, blocks)).permute(0, 2, 3, 1)
    return _unflatten(matrix, 1, (side, blocks, each))


def _shares(rows: Tensor, windows: Windows) -> list[Tensor]:
    """Return the rows, one per output, of each grouped convolution."""
    return [share.flatten(1).t().contiguous() for share in _table(rows.t(), windows).unbind(2)]


def _tiles(matrix: Tensor) -> Iterator[slice]:
    """Cut rows into parts that fit the cache: multiples of 64, and what is left."""
    rows, size = matrix.shape[0], max(1, _ELEMENTS_AT_A_TIME // 64 // matrix.shape[1]) * 64
    whole = rows // 64 * 64
    yield from (slice(start, min(start + size, whole)) for start in range(0, whole, size))
    if whole < rows:
        yield slice(whole, rows)


def _matrix(x: Tensor) -> Tensor:
    """View a channels-last tensor as (positions, channels)."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _image(matrix: Tensor) -> Tensor:
    """View (positions, channels) as channels-last images, of a size that is fast: to 1x1 filters all are the same.

    On one thread, PyTorch has a slow path for 1x1 convolutions of fewer than 16 images.
    """
    side = next(side for side in (8, 4, 2, 1) if matrix.shape[0] >= 16 * side**2 or side == 1)
    side = side if matrix.shape[0] % side**2 == 0 else 1
    return _unflatten(matrix, 0, (-1, side, side)).permute(0, 3, 1, 2)


def _rolled(matrix: Tensor, by: int) -> Tensor:
    """Return a matrix with column ``by`` first."""
    return matrix.roll(-by, 1) if by else matrix


def _add_rolled(terms: list[Tensor], by: int, out: Tensor) -> None:
    """Write the sum of the terms, the t-th rolled back by ``t * by`` columns."""
    total, width = terms[0], out.shape[1]
    if len(terms) == 1:
        out.copy_(total)
    for turn, term in enumerate(terms[1:], 1):
        here, cut = out if turn == len(terms) - 1 else total, turn * by
        torch.add(total[:, cut:], term[:, : width - cut], out=here[:, cut:])
        torch.add(total[:, :cut], term[:, width - cut :], out=here[:, :cut])


def _unflatten(x: Tensor, axis: int, sizes: tuple[int, ...]) -> Tensor:
    split: Tensor = x.unflatten(axis, sizes)  # type: ignore[no-untyped-call]
    return split


# ------------------------------------------------------------------ gradients of gradients


def _followed(gradient: Tensor, x: Tensor, weight: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
    """Return both gradients in operations that can be differentiated again."""
    channels = windows.index(x.device)
    dense = weight.new_zeros(windows.outputs, windows.channels).scatter(1, channels, weight.flatten(1))
    pairs = torch.einsum("nop,ncp->oc", gradient.flatten(2), x.flatten(2))
    return F.conv_transpose2d(gradient, dense[:, :, None, None]), pairs.gather(1, channels)[:, :, None, None]
