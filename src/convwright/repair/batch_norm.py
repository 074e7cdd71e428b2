"""Running statistics of batch norms, estimated anew for the weights that a network has now.

They belong to the weights they were gathered with. An edit that cuts something away, averaged weights, or a training of
fewer steps than their memory leave a network that is judged with the statistics of another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from convwright.architecture.capture.graph import kept_modes
from convwright.architecture.capture.pytrees import joined, run_model, samples_in
from convwright.edits.importance import evaluated

STALE = 0.01  # share of statistics from before a training above which they are not those of its weights


def norms_of(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms that keep running statistics and update them (momentum 0 holds them on purpose)."""
    norms = (module for module in model.modules() if isinstance(module, _BatchNorm))
    return [norm for norm in norms if norm.running_mean is not None and norm.momentum != 0]


def _moving(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms whose running statistics a training moves: not those that `train()` leaves frozen."""
    with kept_modes(model):
        model.train()
        return [norm for norm in norms_of(model) if norm.training]


def stale(model: nn.Module, steps: int) -> bool:
    """Return whether more than 1 % of a batch norm's running statistics are from before these steps of training."""
    return any(norm.momentum is not None and (1 - norm.momentum) ** steps > STALE for norm in _moving(model))


def reestimate_batch_norm(
    model: nn.Module, images: Iterable[Any], forward: Callable[[Any], object] | None = None, *, frozen: bool = True
) -> int:
    """Replace the running statistics of batch norms by their averages over batches.

    Everything else stays, weights, modes, momenta and random generators; all other layers are in eval mode meanwhile. A
    batch of one image, which has no variance on a map of one pixel, joins the next; one image alone changes nothing.

    Args:
        model: Changed in place.
        images: Batches (n, ...) as the network takes them, on its device; all count the same.
        forward: How to run the model, e.g. in mixed precision; None: ``model(batch)``, a tuple being all arguments.
        frozen: Whether batch norms that the model's own ``train()`` leaves in eval mode are re-estimated, too: after an
            edit theirs fit no better, but a training has used them as they are.

    Returns:
        The number of images; 0 where there are no running statistics.

    Examples:
        >>> import torch, convwright as cw
        >>> from convwright.repair import reestimate_batch_norm
        >>> model = cw.read("zoo:resnet20").apply(cw.RemoveBlock("layer2.1")).model
        >>> reestimate_batch_norm(model, torch.randn(4, 8, 3, 32, 32))
        32
    """
    norms, count = norms_of(model) if frozen else _moving(model), 0
    if not norms:
        return 0
    before = [(norm.momentum, [buffer.clone() for buffer in norm.buffers()]) for norm in norms]
    with evaluated(model), torch.no_grad():
        try:
            for batch in _of_several(images):
                for norm in norms if not count else ():
                    norm.reset_running_stats()
                    norm.momentum = None  # the cumulative average
                    norm.train()
                forward(batch) if forward else run_model(model, batch)
                count += samples_in(batch)
        finally:
            for norm, (momentum, buffers) in zip(norms, before, strict=True):
                norm.momentum = momentum
                if norm.num_batches_tracked is None or not int(norm.num_batches_tracked):  # was not run, as an aux head
                    for now, value in zip(norm.buffers(), buffers, strict=True):
                        now.copy_(value)
    return count


def _of_several(batches: Iterable[Any]) -> Iterator[Any]:
    held: list[Any] = []
    for batch in batches:
        held.append(batch)
        if sum(map(samples_in, held)) > 1:
            yield joined(held)
            held.clear()


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Put the running statistics of batch norms back as they were."""
    norms = (module for module in model.modules() if isinstance(module, _BatchNorm))
    kept = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    try:
        yield
    finally:
        for buffer, before in kept:
            buffer.copy_(before)
