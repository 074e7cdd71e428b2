"""Batch norm over the whole batch of several processes, on any device.

torch's own SyncBatchNorm refuses tensors on the CPU, and replaces the user's modules. Here the modules stay, and only
their ``forward`` is exchanged while training runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def synchronised(model: nn.Module, processes: int) -> Iterator[None]:
    """Let every batch norm of `model` normalise by the batch of all processes; with one process do nothing."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)] if processes > 1 else []
    try:
        for norm in norms:
            norm.__dict__["forward"] = partial(_forward, norm)
        yield
    finally:
        for norm in norms:
            norm.__dict__.pop("forward", None)


def _forward(norm: _BatchNorm, images: Tensor) -> Tensor:
    if not norm.training:
        return type(norm).forward(norm, images)
    values = images.float() if images.dtype in (torch.bfloat16, torch.float16) else images
    mean, variance, count = batch_statistics(values)
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        seen = norm.num_batches_tracked.add_(1) if norm.num_batches_tracked is not None else None
        share = norm.momentum
        if share is None:  # the cumulative average
            share = 1.0 / float(seen) if seen is not None else 0.0
        unbiased = variance.detach() * count / (count - 1).clamp(min=1)
        norm.running_mean.lerp_(mean.detach().to(norm.running_mean.dtype), share)
        norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), share)
    shape = (1, -1, *(1,) * (values.ndim - 2))
    normal = (values - mean.view(shape)) * torch.rsqrt(variance.view(shape) + norm.eps)
    if norm.affine:
        normal = normal * norm.weight.view(shape) + norm.bias.view(shape)
    return normal.to(images.dtype)


def batch_statistics(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean (c,), biased variance (c,) and count () of (n, c, ...) values over all processes.

    Gradients flow through all three sums, as they would in one process.
    """
    dims = [0, *range(2, values.ndim)]
    own = torch.tensor(float(values.numel() // values.shape[1]), device=values.device)
    # One message for sum and count; the squares are summed around the mean, else large means would cancel them.
    summed: Tensor = _Sum.apply(torch.cat([values.sum(dims), own.to(values.dtype)[None]]))
    mean, count = summed[:-1] / summed[-1], summed[-1].detach()
    shape = (1, -1, *(1,) * (values.ndim - 2))
    squares: Tensor = _Sum.apply((values - mean.view(shape)).square().sum(dims))
    return mean, squares / count, count


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes; every process's loss depends on it, so gradients add up, too."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return _added(part)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _added(gradient)


def _added(part: Tensor) -> Tensor:
    whole = part.contiguous().clone()
    torch.distributed.all_reduce(whole)
    return whole
