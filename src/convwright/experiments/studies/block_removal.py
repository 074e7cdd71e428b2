"""How many blocks of a trained residual network can go: decided on held-out training images, read on the test images.

After the analysis of Peer et al. 2021, which draws blocks at random among those that conflict and judges them on the
test images. Orders by loss, greedy orders, the graded conflict, statistics anew and the choice on held-out images are
ours.
"""

from __future__ import annotations

import copy
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convwright.architecture import Architecture, read
from convwright.cost import profile
from convwright.cost.budget import costs_of
from convwright.cost.latency import compare_latency
from convwright.edits import RemoveBlock
from convwright.errors import ConvwrightError
from convwright.experiments.studies.lesion import Lesions, Measure, conflict_of
from convwright.methods.conflicts.blocks import BlockGroups
from convwright.training import ImageData, Recipe, evaluate, train
from convwright.training.data.images import Images
from convwright.training.data.loader import derived_seed
from convwright.training.probes.base import Watched
from convwright.training.probes.bundle_reading import BundleReading, Points, find_points, read_bundles
from convwright.training.settings import to_layout

GRADES = 11  # readings of the graded conflict, each with a grid four times as coarse as the one before


def by_conflict(names: Sequence[str], points: Points, reading: BundleReading) -> tuple[str, ...]:
    """Return blocks by the share of samples in conflict in their branch, the highest first.

    Args:
        names: Of blocks, in the order of execution; of two alike the deeper one goes first.
        points: Where bundles were counted.
        reading: What was counted.
    """
    place = {
        name: (-conflict_of(points, reading, name), reading.points[points.own[name]].count, -number)
        for number, name in enumerate(names)
    }
    return tuple(sorted(names, key=place.__getitem__))


def graded_conflicts(
    model: nn.Module,
    points: Points,
    sample: tuple[Tensor, Tensor],
    names: Sequence[str],
    *,
    learning_rate: float,
    batch_size: int,
    grades: int = GRADES,
) -> dict[str, float]:
    """Return per block the mean share of samples in conflict over coarser and coarser grids.

    The published test says yes or no. A smaller learning rate has a coarser grid, so that sooner or later every branch
    conflicts; how soon orders blocks that all pass the published test. It is 0 for a block that keeps all samples
    apart on every grid.

    Args:
        model: The network, as it was read.
        points: Where to look.
        sample: Training images (n, c, h, w), normalised, and labels (n,).
        names: Of blocks.
        learning_rate: Of training: that of the first grid.
        batch_size: Of training.
        grades: Grids, the first being the published one.
    """
    total = dict.fromkeys(names, 0.0)
    for grade in range(grades):
        rate = learning_rate / 4**grade
        reading = read_bundles(model, points, *sample, learning_rate=rate, batch_size=batch_size)
        for name in names:
            total[name] += conflict_of(points, reading, name)
    return {name: value / grades for name, value in total.items()}


def by_value(names: Sequence[str], values: Mapping[str, float]) -> tuple[str, ...]:
    """Return blocks by a value, the highest first; of two alike the deeper one."""
    place = {name: (-values[name], -number) for number, name in enumerate(names)}
    return tuple(sorted(names, key=place.__getitem__))


def greedily(names: Sequence[str], measure: Measure, *, fall: float = 0.3) -> tuple[str, ...]:
    """Return blocks so that each next one costs least, given those that are out already.

    Args:
        names: Of blocks, in the order of execution.
        measure: Gives accuracy and loss without some blocks. Not on test images: it decides.
        fall: Where the accuracy is lower than the whole network's by so much, the rest follows in the order of the
            last comparison: nobody would remove as many.
    """
    left, out = list(names), list[str]()
    least = measure(frozenset()).accuracy - fall
    while left:
        loss = {name: measure(frozenset((*out, name))).loss for name in left}
        ranked = sorted(left, key=lambda name: (loss[name], -names.index(name)))
        out.append(ranked[0])
        left.remove(ranked[0])
        if measure(frozenset(out)).accuracy < least:
            out += ranked[1:]
            break
    return tuple(out)


def at_random(names: Sequence[str], count: int, seed: int) -> tuple[tuple[str, ...], ...]:
    """Return orders drawn by a seed."""
    drawn = []
    for number in range(count):
        order = list(names)
        random.Random(derived_seed(seed, number)).shuffle(order)
        drawn.append(tuple(order))
    return tuple(drawn)


_FALL = 0.3  # how far accuracy may fall before a curve ends
_LATENCY_SECONDS = 4.0
_ANEW = ("greedy", "greedy, statistics anew")  # the order, and its name where statistics are taken anew
WITH_FIRSTS = "greedy, first blocks too"
Sequences = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class RemovalStudy:
    """What is done with a network when it is trained.

    Attributes:
        deciding: Held-out images that orders by loss are decided on.
        counting: Other held-out images, on which the number of blocks is chosen.
        curves: Test images that the curves are drawn from; chosen networks are judged on all.
        anew: Training images that statistics are taken anew from.
        sample: Training images that bundles are counted of.
        draws: Random orders.
        tolerances: Shares of images, of 1, that may be lost.
        tune_steps: Steps of fine-tuning after the removal; 0: none.
        tune_lr: Its highest learning rate.
        every: Curves on the test images have every so many-th point.
    """

    kind: ClassVar[str] = "removal"
    firsts: ClassVar[bool] = False  # whether there is an order in which a stage's first block can go, too

    deciding: int = 1000
    counting: int = 2000
    curves: int = 2000
    anew: int = 1000
    sample: int = 512
    draws: int = 3
    tolerances: tuple[float, ...] = (0.005, 0.01)
    tune_steps: int = 0
    tune_lr: float = 0.02
    every: int = 2

    def carry_out(self, model: torch.nn.Module, data: ImageData, recipe: Recipe, found: Mapping[str, Any]) -> Any:
        """Return what is found; a network without residual blocks has only its flags.

        Raises:
            ConvwrightError: Nothing is held out.
        """
        flags = flags_of(found["bundles"]) if "bundles" in found else None
        arch = read(copy.deepcopy(model), (1, *data.shape))
        if not any(block.kind == "residual" for block in arch.blocks):
            return {"flags": flags}
        if data.val is None:
            raise ConvwrightError("removal study: no images are held out; give the row a share in `held`")
        return {"flags": flags, **_Study(self, arch, data, recipe).found()}


@dataclass(frozen=True)
class RemovalStudyOfAll(RemovalStudy):
    """The same with one more order, in which also the branch of a stage's first block can go; its projection stays."""

    kind: ClassVar[str] = "removal, first blocks too"
    firsts: ClassVar[bool] = True


def flags_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return which blocks conflicted when: ``steps``, ``blocks``, and ``excess`` per time and block (None: NaN)."""
    own = found["own"]
    return {
        "steps": [time["step"] for time in found["times"]],
        "blocks": list(own),
        "excess": [
            [None if (each := row[place]) is None or each != each else round(each, 5) for place in own.values()]
            for row in found["excess"]
        ],
        "samples": found["samples"],
    }


class _Study:
    def __init__(self, asked: RemovalStudy, arch: Architecture, data: ImageData, recipe: Recipe) -> None:
        self.asked, self.arch, self.data, self.recipe = asked, arch, data, recipe
        self.channels_last = recipe.memory_format == "channels_last"
        self.precision = recipe.precision if recipe.precision != "auto" else "fp32"
        self.surgery = Lesions(arch)
        fixed = BlockGroups.of(arch).fixed
        self.names = tuple(name for name in self.surgery.taps if name not in fixed)
        self.firsts = tuple(name for name in self.surgery.taps if name in fixed) if asked.firsts else ()
        assert data.val is not None
        self.deciding, self.counting = parts(data.val, asked.deciding, asked.counting, recipe.seed)
        self.anew = _some(data.train, asked.anew, recipe.seed)

    def found(self) -> dict[str, Any]:
        start = time.process_time()
        facts, sequences = self._orders()
        ordered = time.process_time()
        self._to_layout(True)
        results = self._curves(sequences)
        self._to_layout(False)
        content: dict[str, Any] = {
            "removable": list(self.names),
            **({"firsts": list(self.firsts)} if self.asked.firsts else {}),
            "residual_blocks": len(self.surgery.taps),
            "layers": sum(layer.kind in ("conv", "linear") for layer in self.arch.layers),
            "blocks": facts,
            "images": {"deciding": len(self.deciding), "counting": len(self.counting), "test": len(self.data.test)},
            **results,
            "processor_seconds": {"orders": ordered - start, "curves": time.process_time() - ordered},
        }
        if self.asked.tune_steps:
            content["removed"] = self._removed(results, sequences)
        return content

    def _orders(self) -> tuple[list[dict[str, Any]], dict[str, Sequences]]:
        watched = Watched(self.arch.model, self.data, self.recipe, torch.device("cpu"))
        sample = watched.sample(self.asked.sample)
        points = find_points(self.arch)
        threshold: dict[str, Any] = {"learning_rate": self.recipe.rate, "batch_size": self.recipe.batch_size}
        reading = read_bundles(self.arch.model, points, *sample, **threshold)
        graded = graded_conflicts(self.arch.model, points, sample, self.names, **threshold)
        self._to_layout(True)
        with self._measuring(self.deciding) as measure:
            alone = {name: measure(frozenset({name})) for name in self.names}
            sequences: dict[str, Sequences] = {
                "conflict": (by_conflict(self.names, points, reading),),
                "graded conflict": (by_value(self.names, graded),),
                "own loss": (by_value(self.names, {name: -found.loss for name, found in alone.items()}),),
                "greedy": (greedily(self.names, measure, fall=_FALL),),
                "random": at_random(self.names, self.asked.draws, self.recipe.seed),
            }
            if self.firsts:
                every = tuple(name for name in self.surgery.taps if name in {*self.names, *self.firsts})
                sequences[WITH_FIRSTS] = (greedily(every, measure, fall=_FALL),)
        self._to_layout(False)
        facts = [
            {
                "name": name,
                "conflict": conflict_of(points, reading, name),
                "graded": graded[name],
                "bundles": reading.points[points.own[name]].count,
                "accuracy": alone[name].accuracy,
                "loss": alone[name].loss,
                "macs": self.surgery.macs[name],
            }
            for name in self.names
        ]
        return facts, sequences

    def _curves(self, sequences: Mapping[str, Sequences]) -> dict[str, Any]:
        """Choose numbers of blocks on held-out images, and read the test images for them."""
        held: dict[str, list[float]] = {}
        chosen: dict[str, dict[str, int]] = {}
        with self._measuring(self.counting) as measure:  # what all are compared with: the network as it was trained
            whole = measure(frozenset()).accuracy
        for name, tried, anew in _variants(sequences):
            with self._measuring(self.counting, anew) as measure:
                held[name] = _along(tried, measure, range(1, len(tried[0]) + 1), whole - _FALL)
            chosen[name] = {str(tolerance): most(held[name], whole - tolerance) for tolerance in self.asked.tolerances}
        as_lists = {name: [list(each) for each in tried] for name, tried in sequences.items()}
        return {"held_whole": whole, "held": held, "sequences": as_lists, **self._tested(sequences, chosen)}

    def _tested(self, sequences: Mapping[str, Sequences], chosen: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
        test, curves, read_off = self.data.test, dict[str, Any](), dict[str, Any]()
        some = _some(test, self.asked.curves, 0)
        with self._measuring(test) as measure:
            whole = measure(frozenset()).accuracy
        for name, tried, anew in _variants(sequences):
            with self._measuring(some, anew) as measure:
                least = measure(frozenset()).accuracy - _FALL
                counts = range(0, len(tried[0]) + 1, self.asked.every)
                values = _along(tried, measure, counts, least)
                curves[name] = [[count, value] for count, value in zip(counts, values, strict=False)]
            with self._measuring(test, anew) as measure:
                for tolerance, count in chosen[name].items():
                    accuracy = _along(tried, measure, (count,), -1.0)[0]
                    read_off.setdefault(name, {})[tolerance] = {"blocks": count, "test": accuracy}
        return {"test": whole, "curves": curves, "chosen": read_off}

    def _measuring(self, images: Images, anew: bool = False) -> Any:
        how: dict[str, Any] = {"precision": self.precision, "channels_last": self.channels_last}
        return self.surgery.measuring(images, **how, anew=self.anew if anew else None)

    def _to_layout(self, fast: bool, model: nn.Module | None = None) -> None:
        layout = torch.channels_last if fast and self.channels_last else torch.contiguous_format
        to_layout(model or self.arch.model, layout)

    def _removed(self, results: Mapping[str, Any], sequences: Mapping[str, Sequences]) -> dict[str, Any]:
        """Remove what the greedy order chose, count and time what is left, and train both networks a little."""
        count = results["chosen"]["greedy"][str(max(self.asked.tolerances))]["blocks"]
        gone = sequences["greedy"][0][:count]
        smaller = self.arch.apply(*(RemoveBlock(name) for name in gone)) if gone else self.arch
        image = torch.zeros(1, *self.data.shape)
        both = {"before": (self.arch.model, image), "after": (smaller.model, image)}
        timed = compare_latency(both, seconds=_LATENCY_SECONDS)
        content: dict[str, Any] = {
            "blocks": list(gone),
            "before": self._costs(self.arch, timed.latencies["before"].nanoseconds),
            "after": self._costs(smaller, timed.latencies["after"].nanoseconds),
            "latency_ratio": timed.ratios["after"].median,
        }
        for name, network in (("before", self.arch), ("after", smaller)):
            model = copy.deepcopy(network.model)
            self._to_layout(True, model)
            how: dict[str, Any] = {"precision": self.precision, "channels_last": self.channels_last}
            content[name]["test"] = evaluate(model, self.data.test, **how).accuracy
            content[name]["tuned"] = self._tuned(network)
        return content

    def _costs(self, network: Architecture, nanoseconds: int) -> dict[str, Any]:
        layers = sum(layer.kind in ("conv", "linear") for layer in network.layers)
        return {**costs_of(profile(network)), "latency": nanoseconds, "layers": layers}

    def _tuned(self, network: Architecture) -> float | None:
        """Return the test accuracy after fine-tuning, always by the plain recipe: no technique, rate falling."""
        steps = self.asked.tune_steps
        epochs = max(1, -(-steps // max(1, len(self.data.train) // self.recipe.batch_size)))
        recipe = self.recipe.updated(
            epochs=epochs, max_steps=steps, lr=self.asked.tune_lr, schedule="cosine", warmup=0.0, techniques={}
        )
        trained = train(copy.deepcopy(network.model), self.data, recipe, progress=False)
        return trained.test.accuracy if trained.test else None


def _variants(sequences: Mapping[str, Sequences]) -> list[tuple[str, Sequences, bool]]:
    """Return name, sequences and whether statistics are taken anew, of all that is judged."""
    order, name = _ANEW
    return [*((key, tried, False) for key, tried in sequences.items()), (name, sequences[order], True)]


def _along(tried: Sequences, measure: Measure, counts: Sequence[int], least: float) -> list[float]:
    """Return the mean accuracy without the first `count` blocks, up to the first that is below `least`."""
    values = []
    for count in counts:
        values.append(statistics.fmean(measure(frozenset(each[:count])).accuracy for each in tried))
        if values[-1] < least:
            break
    return values


def most(values: Sequence[float], least: float) -> int:
    """Return the most blocks with an accuracy of at least so much; `values` begin with one block."""
    return max((count for count, value in enumerate(values, start=1) if value >= least), default=0)


def parts(images: Images, *sizes_and_seed: int) -> tuple[Images, ...]:
    """Return disjoint parts of some images, drawn by a seed: sizes, then the seed.

    Raises:
        ConvwrightError: There are fewer images than parts.
    """
    *sizes, seed = sizes_and_seed
    if len(images) < len(sizes):
        raise ConvwrightError(
            f"removal study: {len(images)} images cannot be divided in {len(sizes)} parts; hold out more"
        )
    share = min(1.0, len(images) / sum(sizes))
    generator = torch.Generator().manual_seed(derived_seed(seed, len(images)))
    order = torch.randperm(len(images), generator=generator)
    found, start = [], 0
    for size in sizes:
        count = max(1, int(size * share))
        found.append(images.subset(order[start : start + count].sort().values))
        start += count
    return tuple(found)


def _some(images: Images, count: int, seed: int) -> Images:
    return parts(images, min(count, len(images)), seed)[0]
