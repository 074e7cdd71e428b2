"""Where tensors lie, the one way by which their values come to the host, and memory that is short."""

from __future__ import annotations

import gc

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


# Of the CPU, of CUDA, and of its libraries, whose handles need memory, too.
_SHORT = ("out of memory", "can't allocate memory", "cannot allocate memory", "status_alloc_failed")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _SHORT)


def let_go() -> None:
    """Give back what the try before held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
