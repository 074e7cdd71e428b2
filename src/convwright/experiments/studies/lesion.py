"""Lesion study: what blocks of a trained residual network are worth, by leaving them out at inference.

After the analysis of Peer, Stabinger and Rodríguez-Sánchez ("Auto-tuning of Deep Neural Networks by Conflicting Layer
Removal", arXiv 2103.04331), whose published code draws blocks at random among those that conflict, among the others
and among all, 15 times, without any training afterwards. Beside these, blocks are taken in the order of their conflict
and in that of the loss that each causes alone; both are ours.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from convwright.architecture import Architecture, Block
from convwright.architecture.blocks import outermost
from convwright.errors import ConvwrightError, check_counts
from convwright.plots import Series, lines
from convwright.repair import kept_statistics, reestimate_batch_norm
from convwright.training.data.images import Images
from convwright.training.data.loader import Loader, derived_seed
from convwright.training.evaluate import eval_mode
from convwright.training.probes.bundle_reading import BundleReading, Points, branch_tap, find_points, read_bundles
from convwright.training.probes.taps import Tap, Tapped
from convwright.training.settings import autocast, single_tensor
from convwright.training.tasks.base import Metrics
from convwright.training.tasks.losses import count_right

_HELD = 1 << 27  # numbers: so many are kept in memory as batches
_BATCH = 500
_IDLE = (nn.Conv2d, _BatchNorm)  # what is not computed in a branch that is left out
ORDERS = ("conflict", "loss", "random", "among conflicting", "among others")


@dataclass(frozen=True)
class BlockFacts:
    """One block of the study.

    Attributes:
        name: of the block.
        conflict: share of the sample in conflict in its branch, beyond that of the images themselves.
        entropy: bundle entropy of its branch, nats; NaN if it diverged.
        bundles: of its branch.
        accuracy: of the network without this block alone.
        macs: of its branch: what leaving it out saves.
    """

    name: str
    conflict: float
    entropy: float
    bundles: int
    accuracy: float
    macs: int


@dataclass(frozen=True)
class LesionPoint:
    """The network without `removed` blocks: accuracy over the draws, mean and standard deviation; mean MACs saved."""

    removed: int
    mean: float
    deviation: float
    draws: int
    macs: float


@dataclass(frozen=True)
class Lesion:
    """What a lesion study found, as plain data.

    Attributes:
        accuracy: of the whole network, 0..1.
        stderr: its standard error (binomial).
        samples: images that were judged.
        sampled: training images that bundles were counted of.
        blocks: those that were left out, in the order of execution.
        curves: order -> points by number of blocks; see ``ORDERS``.
        skipped: blocks that cannot be left out -> why.
        seed: of the draws.
    """

    accuracy: float
    stderr: float
    samples: int
    sampled: int
    blocks: tuple[BlockFacts, ...]
    curves: Mapping[str, tuple[LesionPoint, ...]]
    skipped: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0

    def removable(self, order: str, tolerance: float | None = None) -> int:
        """Return the most blocks in an order, without a gap, whose mean accuracy stays near the whole network's.

        Args:
            order: a name in `curves`.
            tolerance: how much may be lost; None: two standard errors.
        """
        least = self.accuracy - (2 * self.stderr if tolerance is None else tolerance)
        kept = takewhile(lambda point: point.mean >= least, self.curves[order])
        return max((point.removed for point in kept), default=0)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values; NaN is None."""
        values = asdict(self)
        for block in values["blocks"]:
            block["entropy"] = None if math.isnan(block["entropy"]) else block["entropy"]
        return {**values, "removable": {order: self.removable(order) for order in self.curves}}

    def picture(self, title: str = "Blocks left out at inference") -> str:
        """Return the curves as SVG: means, and for draws also one deviation below and above."""
        series = []
        for name, points in self.curves.items():
            if not points:
                continue
            whole = ((0.0, 100 * self.accuracy),)
            series.append(Series(name, (*whole, *((p.removed, 100 * p.mean) for p in points))))
            if any(p.deviation for p in points):
                for sign, word in ((-1, "-"), (1, "+")):
                    edge = ((p.removed, 100 * (p.mean + sign * p.deviation)) for p in points)
                    series.append(Series(f"{name}, {word} deviation", tuple(edge), joined=False))
        return lines(series, title, "blocks left out", "test accuracy, %")


def lesion_study(
    arch: Architecture,
    images: Images,
    sample: tuple[Tensor, Tensor],
    *,
    learning_rate: float,
    batch_size: int,
    counts: Sequence[int] | None = None,
    repeats: int = 15,
    seed: int = 0,
    orders: Sequence[str] = ORDERS,
) -> Lesion:
    """Leave blocks of a trained residual network out, without training, and judge what is left.

    A block is left out by putting zero in place of its branch, so its shortcut goes on, with the projection where it
    has one (as published); where ``RemoveBlock`` can remove it, that is the same network. The live model is used:
    nothing is built or read again.

    Args:
        arch: the network with its trained weights; it stays as it is.
        images: what it is judged on.
        sample: training images (n, c, h, w), normalised, and labels (n,), that bundles are counted of.
        learning_rate: of its training.
        batch_size: of its training.
        counts: numbers of blocks to leave out; None: all.
        repeats: draws for each number, in the orders that draw. Published: 15.
        seed: of the draws.
        orders: which curves.

    Returns:
        The study.

    Raises:
        ConvwrightError: the network has no residual block that can be left out, or an argument is out of its range.
    """
    unknown = [order for order in orders if order not in ORDERS]
    if unknown:
        raise ConvwrightError(f"order {unknown[0]!r} is unknown to the lesion study; give some of {', '.join(ORDERS)}")
    check_counts(repeats=repeats)
    surgery = Lesions(arch)
    if not surgery.taps:
        reasons = "; ".join(f"{name}: {why}" for name, why in surgery.skipped.items()) or "it has no residual blocks"
        raise ConvwrightError(f"{arch.source}: no block can be left out at inference ({reasons})")
    points = find_points(arch)
    reading = read_bundles(arch.model, points, sample[0], sample[1], learning_rate=learning_rate, batch_size=batch_size)
    with surgery.measuring(images) as measure:
        whole = measure(frozenset()).accuracy
        facts = tuple(_facts(surgery, points, reading, name, measure) for name in surgery.taps)
        wanted = range(len(facts) + 1) if counts is None else frozenset(counts)
        curves = {
            order: tuple(
                _point(count, sets, surgery, measure)
                for count, sets in _sets(facts, order, repeats, seed)
                if count in wanted
            )
            for order in orders
        }
    stderr = math.sqrt(whole * (1 - whole) / max(len(images), 1))
    return Lesion(whole, stderr, len(images), len(sample[1]), facts, curves, surgery.skipped, seed)


def _facts(surgery: Lesions, points: Points, reading: BundleReading, name: str, measure: Measure) -> BlockFacts:
    found, alone = reading.points[points.own[name]], measure(frozenset({name})).accuracy
    conflict = conflict_of(points, reading, name)
    return BlockFacts(name, conflict, found.entropy, found.count, alone, surgery.macs[name])


def conflict_of(points: Points, reading: BundleReading, name: str) -> float:
    """Return the share of samples in conflict in a block's branch beyond that of the images; 1 where it diverged."""
    excess = reading.excess[points.own[name]]
    return 1.0 if math.isnan(excess) else excess


def _point(count: int, sets: Sequence[frozenset[str]], surgery: Lesions, measure: Measure) -> LesionPoint:
    values = [measure(each).accuracy for each in sets]
    saved = [sum(surgery.macs[name] for name in each) for each in sets]
    deviation = statistics.pstdev(values) if len(values) > 1 else 0.0
    return LesionPoint(count, statistics.fmean(values), deviation, len(values), statistics.fmean(saved))


def _sets(
    facts: Sequence[BlockFacts], order: str, repeats: int, seed: int
) -> Iterator[tuple[int, list[frozenset[str]]]]:
    """Yield numbers of blocks, from 1 on, each with the sets of that size that are left out together."""
    names = [f.name for f in facts]
    if order in ("conflict", "loss"):
        # The deeper of two that conflict alike goes first: it takes fewest others with it.
        keys = [(-f.conflict, f.bundles, -n) if order == "conflict" else (-f.accuracy, -n) for n, f in enumerate(facts)]
        ranked = [name for _, name in sorted(zip(keys, names, strict=True))]
        yield from ((count, [frozenset(ranked[:count])]) for count in range(1, len(ranked) + 1))
        return
    if order != "random":
        names = [f.name for f in facts if (f.conflict > 0) == (order == "among conflicting")]
    stream = ("random", "among conflicting", "among others").index(order)
    for count in range(1, len(names) + 1):
        made = random.Random(derived_seed(seed, stream, count))
        # All is one set, and a set of one block has no more draws than there are blocks.
        times = min(repeats, math.comb(len(names), count))
        yield count, [frozenset(made.sample(names, count)) for _ in range(times)]


# ------------------------------------------------------------------ leaving blocks out

Measure = Callable[[frozenset[str]], Metrics]


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
