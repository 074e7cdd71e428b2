"""Ghost convolution (Han et al. 2020) in the place of any convolution: few real filters, cheap copies of the rest."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GhostConv2d(nn.Module):
    """A convolution for the first 1 / ratio of the channels, a depthwise one on these for the others.

    Shapes: as ``primary`` gives them, with ``ratio`` times its channels: (N, C, H, W) -> (N, ratio * m, H', W').
    The output holds the ``m`` primary channels, then the ghosts: channel ``m + p * (ratio - 1) + t`` is ghost ``t``
    of primary channel ``p``.

    As in a convolution that it replaces, norm and activation stand behind it, not inside: the published module
    has both after each of its two convolutions.

    Args:
        primary: the convolution that makes the first ``m`` channels; its device, type and bias are those of the
            ghosts, too.
        ratio: how many channels come of each primary one, at least 2.
        cheap_kernel: kernel size of the depthwise convolution, odd.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, primary: nn.Conv2d, ratio: int = 2, cheap_kernel: int = 3) -> None:
        super().__init__()
        if ratio < 2 or cheap_kernel < 1 or cheap_kernel % 2 == 0:
            raise ValueError(f"ratio is at least 2 and cheap_kernel odd and at least 1, not {ratio} and {cheap_kernel}")
        channels = primary.out_channels
        self.primary = primary
        self.cheap = nn.Conv2d(
            channels,
            channels * (ratio - 1),
            cheap_kernel,
            padding=cheap_kernel // 2,
            groups=channels,
            bias=primary.bias is not None,
            device=primary.weight.device,
            dtype=primary.weight.dtype,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the primary channels followed by their ghosts."""
        primary = self.primary(x)
        return torch.cat([primary, self.cheap(primary)], 1)
