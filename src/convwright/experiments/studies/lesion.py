"""Leaving blocks of a trained residual network out at inference, in the live network and without any training.

After the published code of Peer, Stabinger and Rodríguez-Sánchez ("Auto-tuning of Deep Neural Networks by Conflicting
Layer Removal", arXiv 2103.04331): a branch gives zero, so its shortcut goes on, with the projection where it has one.
Where ``RemoveBlock`` can remove the block, that is the same network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from convwright.architecture import Architecture, Block
from convwright.architecture.blocks import outermost
from convwright.errors import ConvwrightError
from convwright.repair import kept_statistics, reestimate_batch_norm
from convwright.training.data.images import Images
from convwright.training.data.loader import Loader
from convwright.training.evaluate import eval_mode
from convwright.training.probes.bundle_reading import BundleReading, Points, branch_tap
from convwright.training.probes.taps import Tap, Tapped
from convwright.training.settings import autocast, single_tensor
from convwright.training.tasks.base import Metrics
from convwright.training.tasks.losses import count_right

_HELD = 1 << 27  # numbers: so many are kept in memory as batches
_BATCH = 500
_IDLE = (nn.Conv2d, _BatchNorm)  # what is not computed in a branch that is left out

Measure = Callable[[frozenset[str]], Metrics]


def conflict_of(points: Points, reading: BundleReading, name: str) -> float:
    """Return the share of samples in conflict in a block's branch beyond that of the images; 1 where it diverged."""
    excess = reading.excess[points.own[name]]
    return 1.0 if math.isnan(excess) else excess


class Lesions:
    """Leaves blocks of a live network out.

    Args:
        arch: the network.

    Attributes:
        taps: block -> where its branch ends; residual blocks in the order of execution.
        macs: block -> multiply-accumulates of its branch for one image.
        skipped: block -> why it cannot be left out.
    """

    def __init__(self, arch: Architecture) -> None:
        self.arch = arch
        self.taps: dict[str, Tap] = {}
        self.skipped: dict[str, str] = {}
        self.macs: dict[str, int] = {}
        self._idle: dict[str, dict[nn.Module, tuple[int, ...]]] = {}
        costs = {cost.name: cost.macs for cost in arch.profile().layers}
        for block in outermost(arch.flow, arch.blocks):
            tap = branch_tap(arch, block) if block.kind == "residual" else None
            if tap is None:
                why = "several branches meet in its addition" if block.kind == "residual" else "it has no shortcut"
                self.skipped[block.name] = why
                continue
            self.taps[block.name] = tap
            self.macs[block.name] = sum(costs.get(name, 0) for name in block.branch)
            self._idle[block.name] = _idle(arch, block)

    @contextmanager
    def measuring(
        self, images: Images, *, precision: str = "fp32", channels_last: bool = False, anew: Images | None = None
    ) -> Iterator[Measure]:
        """Give a function from names of blocks to accuracy and loss without them; equal sets are judged once.

        Args:
            images: To judge on.
            precision: fp32 or bf16 (mixed).
            channels_last: Layout of the batches; the network's own has to be the same to gain by it.
            anew: Images from which the statistics of batch norms are taken anew after the blocks were left out; no
                weight is trained. None: they stay.
        """
        known: dict[frozenset[str], Metrics] = {}
        batches = _batches(self.arch.model, images, channels_last)
        again = _batches(self.arch.model, anew, channels_last) if anew is not None else None
        device = next(self.arch.model.parameters(), torch.empty(0)).device
        with eval_mode(self.arch.model), torch.no_grad(), autocast(device, precision):

            def measure(removed: frozenset[str]) -> Metrics:
                if removed not in known:
                    with self.without(removed) as run, kept_statistics(self.arch.model):
                        if again:
                            reestimate_batch_norm(self.arch.model, (x for x, _ in again), run)
                        known[removed] = _measured(run, batches, len(images))
                return known[removed]

            yield measure

    @contextmanager
    def without(self, removed: Collection[str]) -> Iterator[Callable[[Tensor], Any]]:
        """Give the network without some blocks, as a function of images; afterwards it is whole again.

        Raises:
            ConvwrightError: a block cannot be left out.
        """
        for name in removed:
            if name not in self.taps:
                why = self.skipped.get(name, "there is no such block")
                raise ConvwrightError(f"{self.arch.source}: block {name!r} cannot be left out: {why}")
        idle = {module: shape for name in removed for module, shape in self._idle[name].items()}
        taps = [self.taps[name] for name in sorted(removed)]
        try:
            for module, shape in idle.items():
                module.forward = _nothing(shape)  # the result is not used: no reason to compute it
            with Tapped(self.arch.model, taps, lambda _, value: torch.zeros_like(value)) as run:
                yield run
        finally:
            for module in idle:
                del module.forward


def _idle(arch: Architecture, block: Block) -> dict[nn.Module, tuple[int, ...]]:
    """Return what a branch computes in modules that are called once, with the shape of what they give."""
    modules, names = dict(arch.model.named_modules()), {layer.name for layer in arch.layers}
    flow, span = arch.flow, arch.flow.span(block)
    found = {}
    for name in block.branch:
        layer, module = arch.layer(name), modules.get(name)
        inside = set(flow.users[flow.place[layer.node]]) <= span
        once = isinstance(module, _IDLE) and f"{name}#2" not in names and "forward" not in vars(module)
        if module is not None and inside and once:
            found[module] = tuple(layer.output_shape[1:])
    return found


def _nothing(shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """Return what gives zeros in the layout of its input, so that what follows stays as quick as it was."""

    def forward(images: Tensor) -> Tensor:
        last = images.ndim == 4 and images.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last and not images.is_contiguous() else torch.contiguous_format
        return images.new_zeros((len(images), *shape)).contiguous(memory_format=layout)

    return forward


def _measured(run: Callable[[Tensor], Any], batches: Any, count: int) -> Metrics:
    loss, right = 0.0, 0
    for images, labels in batches:
        scores = single_tensor(run(images)).float()
        loss += float(F.cross_entropy(scores, labels, reduction="sum"))
        right += int(count_right(scores, labels))
    return Metrics(right / count, loss / count, count)


def _batches(model: nn.Module, images: Images, channels_last: bool = False) -> Any:
    """Return the batches to judge on: kept in memory where they are few, else read each time."""
    device = next(model.parameters(), torch.empty(0)).device
    loader = Loader(images, _BATCH, shuffle=False, device=device, channels_last=channels_last)
    return list(loader) if len(images) * math.prod(images.shape) <= _HELD else loader
