"""Where tensors lie, and the one way by which their values come to the host."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a network's weights; the CPU if it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def to_host(tensor: Tensor) -> Tensor:
    """Return a result on the CPU, without gradients: where NumPy goes on, or a file is written.

    Everything else is computed where the network is. The tests allow no copy from a device but by this function.
    """
    return tensor.detach().cpu()
