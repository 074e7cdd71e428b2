"""Rolling pointwise convolution (RPW): a 1x1 convolution whose filters read overlapping windows of channels.

Each filter reads a window of ``C / groups`` neighbouring channels, as in a grouped pointwise convolution, but
the window rolls on from filter to filter and wraps around at the last channel. So the cost is that of the
grouped convolution, and stacked layers still mix all channels.

Source: the three-dimensional receptive field paper's "DW+RPW" blocks, and the sliding-channel convolution of
DSXplore (Wang et al. 2021), of which this is the integer definition with the filters in interleaved order;
``blocked`` is the other order found there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ORDERS = ("interleaved", "blocked")
IMPLEMENTATIONS = ("auto", "windows", "dense")

# Measured by benchmarks/rolling_pointwise.py. Up to this many input channels the time goes into moving memory, and
# the windows move more of it than one dense convolution does.
_DENSE_UP_TO = 256
# Rolling copies each channel into every window that reads it. Overlaps up to 3/4 make up to four copies; an overlap
# that does not divide the window can make as many as a window has channels, which costs more than it saves.
MOST_COPIES = 4


class RollingPointwiseConv2d(nn.Module):
    """A 1x1 convolution in which output ``o`` reads the ``w = C / groups`` channels from ``start(o)`` on.

    With ``shift = w - floor(overlap * w)`` and ``D = C / gcd(C, shift)`` distinct windows, output ``o`` of ``O``
    reads window ``k``, the channels ``(k * shift + i) mod C`` for ``i = 0 .. w - 1``, where ``k = o mod D`` in
    interleaved order and ``k = floor(o / (O / D))`` in blocked order. ``overlap * w`` is rounded down after adding
    1e-9, so that 1/3 of 6 is 2. One group is a plain pointwise convolution.

    Shapes: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)). The weight has the
    shape (out_channels, w, 1, 1); column ``i`` belongs to the ``i``-th channel of the row's window.

    There are two implementations, equal up to rounding. ``windows`` lays the D windows side by side and runs one
    grouped convolution: it executes exactly ``H * W * out_channels * w`` multiply-accumulates. ``dense``
    runs an ordinary 1x1 convolution whose weight is zero outside the windows: ``groups`` times the arithmetic,
    without the copies.

    ``auto`` takes ``windows`` in eval mode, so that what is counted is what the layer is meant to cost, and in
    training mode what was measured to be faster on one core (``benchmarks/rolling_pointwise.py``): ``dense`` up to 256
    input channels, and ``windows`` above. Where windows would hold more than four copies of the input (overlaps above
    3/4, or that do not divide the window), ``auto`` takes ``dense``, whatever the mode.

    Args:
        in_channels: width of the input, a multiple of ``groups``.
        out_channels: width of the output; in blocked order a multiple of D.
        groups: one window holds this part of the channels.
        overlap: the part of a window that the next one reads again, in [0, 1).
        order: ``"interleaved"`` or ``"blocked"``.
        bias: add a learned value per output.
        stride: reads every ``stride``-th position.
        implementation: ``"auto"``, ``"windows"`` or ``"dense"``.
        device: where the parameters lie.
        dtype: their type.

    Raises:
        ValueError: an argument is out of range, or channels do not divide.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int = 2,
        overlap: float = 0.5,
        order: str = "interleaved",
        bias: bool = True,
        stride: int | tuple[int, int] = 1,
        implementation: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        shift, windows = window_plan(in_channels, out_channels, groups, overlap, order)
        if implementation not in IMPLEMENTATIONS:
            raise ValueError(f"implementation is one of {', '.join(IMPLEMENTATIONS)}, not {implementation!r}")
        # Not called `groups`: tools that resize networks take that for the group count of a convolution of torch.
        self.channel_groups = groups
        self.overlap, self.order, self.implementation = overlap, order, implementation
        self.stride = (stride, stride) if isinstance(stride, int) else tuple(stride)
        self.windows = windows
        window = in_channels // groups
        # Whether windows are whole runs of blocks of `shift` channels; then all sizes follow from the weight's shape,
        # and the layer can be resized block by block.
        self.regular = in_channels == windows * shift and window % shift == 0
        self._shift, self._blocks = shift, window // shift
        self.weight = nn.Parameter(torch.empty(out_channels, window, 1, 1, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias uniformly from +-1 / sqrt(window)."""
        bound = 1 / math.sqrt(self.window)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    @property
    def in_channels(self) -> int:
        """Width of the input."""
        return self.channel_groups * self.window

    @property
    def out_channels(self) -> int:
        """Width of the output."""
        return self.weight.shape[0]

    @property
    def window(self) -> int:
        """Channels that one output reads."""
        return self.weight.shape[1]

    @property
    def shift(self) -> int:
        """Channels from the start of one window to the start of the next."""
        return self.window // self._blocks if self.regular else self._shift

    def channels(self) -> Tensor:
        """Return the input channel behind each weight, shape (out_channels, window)."""
        number = torch.arange(self.out_channels, device=self.weight.device)
        return self.channels_of(window_of(number, self.out_channels, self.windows, self.order))

    def channels_of(self, windows: Tensor) -> Tensor:
        """Return the input channels in some windows, shape (len(windows), window)."""
        return channels_of(windows, self.in_channels, self.window, self.shift)

    def dense_weight(self) -> Tensor:
        """Return the equal weight of an ordinary 1x1 convolution, shape (out_channels, in_channels, 1, 1)."""
        if self.windows == 1:
            return self.weight
        empty = self.weight.new_zeros(self.out_channels, self.in_channels)
        return empty.scatter(1, self.channels(), self.weight.flatten(1))[:, :, None, None]

    @property
    def copies(self) -> int:
        """How often the windows hold each input channel, rounded up."""
        return -(-self.windows * self.window // self.in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x, (N, in_channels, H, W)."""
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"expected an input of shape (N, {self.in_channels}, H, W), not {tuple(x.shape)}")
        if self._chosen() == "dense":
            return F.conv2d(x, self.dense_weight(), self.bias, self.stride)
        if self.stride != (1, 1):
            # The positions that a 1x1 filter skips need no windows. Copied, since to reshape a view with steps is
            # to ask whether they divide the size, and the exported layer would be bound to the answer.
            x = x[:, :, :: self.stride[0], :: self.stride[1]].clone(memory_format=torch.contiguous_format)
        if self.windows == 1:
            return F.conv2d(x, self.weight, self.bias)
        whole = self.out_channels // self.windows * self.windows
        parts = [self._grouped(x, 0, whole)] if whole else []
        if whole < self.out_channels:  # the last round of interleaved windows is not complete
            parts.append(self._grouped(x, whole, self.out_channels))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _chosen(self) -> str:
        if self.implementation != "auto":
            return self.implementation
        if self.windows == 1:
            return "windows"
        few = self.training and self.in_channels <= _DENSE_UP_TO
        return "dense" if few or self.copies > MOST_COPIES else "windows"

    def _grouped(self, x: Tensor, start: int, end: int) -> Tensor:
        """Return outputs ``start`` to ``end`` by one grouped convolution, one group per window."""
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if self.out_channels % self.windows:
            # Selected, not sliced, although it is a slice: the channel analysis takes a slice for something that can be
            # resized on its own, but with another number of outputs the incomplete round is another one.
            rows = torch.arange(start, end, device=weight.device)
            weight, bias = weight.index_select(0, rows), None if bias is None else bias.index_select(0, rows)
        windows = min(self.windows, end - start)
        rounds = (end - start) // windows
        swap = self.order == "interleaved" and rounds > 1
        if swap:  # filters of one window lie side by side in a grouped convolution
            weight, bias = _swap(weight, 0, rounds), None if bias is None else _swap(bias, 0, rounds)
        y = F.conv2d(self._windows(x, windows), weight, bias, groups=windows)
        return _swap(y, 1, windows) if swap else y

    def _windows(self, x: Tensor, windows: int) -> Tensor:
        """Lay the first ``windows`` windows side by side: (N, C, H, W) -> (N, windows * w, H, W)."""
        if not self.regular:
            return x.index_select(1, self.channels_of(torch.arange(windows, device=x.device)).flatten())
        if self._blocks > 1:
            blocks = x.reshape(x.shape[0], self.windows, self.shift, *x.shape[2:])
            x = torch.cat([blocks, *(blocks.roll(-turn, 1) for turn in range(1, self._blocks))], 2).flatten(1, 2)
        return x if windows == self.windows else x[:, : windows * self.window]

    def extra_repr(self) -> str:
        """Return what ``print`` shows inside the parentheses."""
        return (
            f"{self.in_channels}, {self.out_channels}, groups={self.channel_groups}, overlap={self.overlap}, "
            f"order={self.order!r}, bias={self.bias is not None}, stride={self.stride}"
        )


def _swap(x: Tensor, axis: int, rows: int) -> Tensor:
    """Take an axis as a table of ``rows`` rows and read it column by column."""
    table = x.reshape(*x.shape[:axis], rows, -1, *x.shape[axis + 1 :])
    return table.transpose(axis, axis + 1).flatten(axis, axis + 1)


def window_plan(in_channels: int, out_channels: int, groups: int, overlap: float, order: str) -> tuple[int, int]:
    """Return the shift from window to window and the number of distinct windows.

    Raises:
        ValueError: an argument is out of range, or channels do not divide.
    """
    if min(in_channels, out_channels, groups) < 1:
        raise ValueError(f"channels and groups are at least 1, not {in_channels}, {out_channels} and {groups}")
    if in_channels % groups:
        raise ValueError(f"{in_channels} input channels do not divide into {groups} groups")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is at least 0 and less than 1, not {overlap}")
    if order not in ORDERS:
        raise ValueError(f"order is one of {', '.join(ORDERS)}, not {order!r}")
    window = in_channels // groups
    shift = max(1, window - math.floor(overlap * window + 1e-9))
    if groups == 1:  # one window of all channels does not roll: that would only reorder its weight
        shift = window
    windows = in_channels // math.gcd(in_channels, shift)
    if order == "blocked" and out_channels % windows:
        raise ValueError(
            f"blocked order needs output channels in multiples of its {windows} windows, not {out_channels}"
        )
    return shift, windows


def window_of(outputs: Tensor, out_channels: int, windows: int, order: str) -> Tensor:
    """Return the number of the window that each output reads."""
    return outputs % windows if order == "interleaved" else outputs // (out_channels // windows)


def channels_of(windows: Tensor, in_channels: int, window: int, shift: int) -> Tensor:
    """Return the channels in some windows, shape (len(windows), window)."""
    return (windows[:, None] * shift + torch.arange(window, device=windows.device)) % in_channels
