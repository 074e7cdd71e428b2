"""What stands where a block was, or where one block became several, and the block is called with more than a tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Skip(nn.Module):
    """Hands its input on, whatever else it is called with.

    Args:
        then: what is left of the block behind its addition, e.g. an activation.
    """

    def __init__(self, then: nn.Module | None = None) -> None:
        super().__init__()
        self.then = then

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the input, or what ``then`` makes of it."""
        if self.then is None:
            return x
        result: Tensor = self.then(x)
        return result


class Chain(nn.Sequential):
    """A ``Sequential`` that hands further arguments to each of its modules."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Return what the last module gives."""
        for module in self:
            x = module(x, *args, **kwargs)
        return x


class Zero(nn.Module):
    """Gives zeros of its input's shape: a branch that has been removed where only its modules could be exchanged."""

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros; no gradient flows back."""
        return torch.zeros_like(x)
