"""The probe ``bundles``: which layers make samples of several labels one, seen while the network trains."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from convwright.architecture import read
from convwright.errors import ReadError, RecipeError
from convwright.training.probes.base import Moment, Probe, Watched, plain, probe
from convwright.training.probes.bundle_reading import BundleReading, Points, find_points, read_bundles
from convwright.training.settings import untouched_random

WINDOWS = 100
_KEPT = ("count", "conflicting", "in_conflict", "excess", "entropy", "ceiling", "diverged")


@dataclass(frozen=True)
class ConflictSettings:
    """What the probe measures, and when.

    Attributes:
        samples: training images, the same at every measurement; published: 512 or 64.
        every: also after every so many steps; 0: at the start and after each epoch only.
        start: whether to measure before the first step.
        layers: names of layers to look at; None: branch and output of each block.
        scaled: whether branches are scaled as published, see ``read_bundles``.

    Raises:
        RecipeError: a number is out of its range.
    """

    samples: int = 512
    every: int = 0
    start: bool = True
    layers: tuple[str, ...] | None = None
    scaled: bool = True

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("every", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise RecipeError(f"probe bundles: {name}={value!r} must be a whole number from {least} on")


@probe("bundles")
class ConflictProbe(Probe):
    """Bundles of each block's branch and output on the same training images: at the start and after every epoch.

    Found: ``points`` (``block``, ``role``), ``own`` (per block the point that judges it), ``times`` (event, epoch,
    step), ``samples``, ``learning_rate``, ``batch_size``, ``amplitude`` per time, ``skipped`` (block -> why it is not
    looked at), ``inputs`` (samples that conflict in the images themselves), and per time a row over the points of
    ``count``, ``conflicting`` (bundles), ``in_conflict`` (samples), ``excess`` (share of samples in conflict beyond
    those of the inputs), ``entropy`` (nats), ``ceiling`` (accuracy that is left) and ``diverged`` (samples with a NaN).

    A rule to stop can name ``last``, the excess of the last block, or ``any``, the highest of all blocks; ``last-3``
    and ``any-3`` are these within the first three epochs, and nothing later. A network that diverged counts as
    infinite, so that it is ended, too. A residual block is judged by its branch, any other by its output.
    """

    metrics: ClassVar[tuple[str, ...]] = (
        "last",
        "any",
        *(f"{what}-{epochs}" for what in ("last", "any") for epochs in range(1, WINDOWS + 1)),
    )
    settings: ClassVar[ConflictSettings] = ConflictSettings()

    def __init__(self, watched: Watched) -> None:
        super().__init__(watched)
        self.times: list[dict[str, Any]] = []
        self.rows: dict[str, list[list[Any]]] = {name: [] for name in _KEPT}
        self.amplitudes: list[float] = []
        self.inputs = 0

    @cached_property
    def points(self) -> Points:
        """Where is looked; the network is read at first, from a copy."""
        # In double precision or half the network is read as it is: its images must have its type.
        images = self.sample[0][:1].contiguous()
        with untouched_random(self.watched.device):
            arch = read(copy.deepcopy(self.watched.model), images)
            found = find_points(arch, self.settings.layers)
        if not found.points:
            raise ReadError(
                f"probe bundles: {arch.source} has no blocks and no layers with weights before its last one; "
                "there is nothing that could conflict"
            )
        return found

    @cached_property
    def sample(self) -> tuple[Tensor, Tensor]:
        """The images and labels, drawn once."""
        images, labels = self.watched.sample(self.settings.samples)
        kind = next((p.dtype for p in self.watched.model.parameters()), torch.float32)
        return images.to(kind), labels

    def due(self, moment: Moment) -> bool:
        """Return whether to measure now."""
        if moment.event == "step":
            return self.settings.every > 0 and moment.step % self.settings.every == 0
        return moment.event == "epoch" or self.settings.start

    def measure(self, moment: Moment) -> None:
        """Measure all points in one pass."""
        reading = read_bundles(
            self.watched.model, self.points, *self.sample, scaled=self.settings.scaled, **self._threshold()
        )
        self.times.append({"event": moment.event, "epoch": moment.epoch, "step": moment.step})
        self.amplitudes.append(reading.amplitude)
        self.inputs = reading.inputs.samples_in_conflict
        for name, row in rows_of(reading).items():
            self.rows[name].append(row)

    def _threshold(self) -> dict[str, Any]:
        # The highest rate of the schedule: with its own every network would conflict where that comes near 0.
        return {"learning_rate": self.watched.recipe.rate, "batch_size": self.watched.recipe.batch_size}

    def found(self) -> dict[str, Any]:
        """Return all measurements."""
        return {
            "points": [{"block": p.name, "role": p.role} for p in self.points.points],
            "own": dict(self.points.own),
            "skipped": dict(self.points.skipped),
            "samples": len(self.sample[1]),
            "inputs": self.inputs,
            **self._threshold(),
            "times": self.times,
            "amplitude": self.amplitudes,
            **self.rows,
        }

    def value(self, metric: str) -> float:
        """Return the excess of the last block or of the worst; infinite where it diverged."""
        what, _, epochs = metric.partition("-")
        if not self.times or (epochs and self.times[-1]["epoch"] > int(epochs)):
            return math.nan
        row = [self.rows["excess"][-1][place] for place in self.points.own.values()]
        values = [math.inf if each is None or math.isnan(each) else each for each in row]
        return float(values[-1] if what == "last" else max(values))

    def state_dict(self) -> dict[str, Any]:
        """Return the measurements, as plain JSON values."""
        return {"times": self.times, "amplitude": self.amplitudes, "inputs": self.inputs, **plain(self.rows)}

    def load_state_dict(self, state: Any) -> None:
        """Take over the measurements."""
        self.times, self.inputs = list(state["times"]), int(state["inputs"])
        self.amplitudes = list(state["amplitude"])
        self.rows = {name: [list(row) for row in state[name]] for name in _KEPT}


def rows_of(reading: BundleReading) -> dict[str, list[Any]]:
    """Return a measurement as rows over the points."""
    found = reading.points
    return {
        "count": [each.count for each in found],
        "conflicting": [each.conflicting_bundles for each in found],
        "in_conflict": [each.samples_in_conflict for each in found],
        "excess": list(reading.excess),
        "entropy": [each.entropy for each in found],
        "ceiling": [each.accuracy_ceiling for each in found],
        "diverged": [each.diverged_samples for each in found],
    }


def conflict_probe(name: str, settings: ConflictSettings | None = None, **changes: Any) -> None:
    """File a variant of the probe under a name; what it finds goes by ``bundles`` as well.

    Args:
        name: As in `Candidate.probes`.
        settings: What it measures, and when.
        changes: Fields of the settings.

    Examples:
        >>> from convwright.training.probes.bundles import conflict_probe
        >>> conflict_probe("bundles-often", every=10)
    """
    made = replace(settings or ConflictSettings(), **changes)
    members = {"settings": made, "__doc__": ConflictProbe.__doc__}
    kind: type[ConflictProbe] = type("ConflictProbe", (ConflictProbe,), members)
    probe(name, key="bundles")(kind)


conflict_probe("bundles-64", samples=64)  # the published sample of the later versions: one batch
