"""What a method wants observed during a training: probes, made by name, and the rule that ends a training early.

A new probe is one class under ``@probe("name")``, here or in a file that is imported somewhere. It says when it is due
and what it measures; weights, buffers, modes and random states are as before afterwards, and what it keeps is plain
JSON, so that a resumed training observes the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import torch
from torch import nn

from convwright.architecture.capture.graph import kept_modes
from convwright.architecture.capture.pytrees import joined
from convwright.errors import RecipeError, did_you_mean, look_up
from convwright.metrics.quality.channel_quality import channel_qualities, kernels
from convwright.training.data.loader import derived_seed
from convwright.training.outcome import EpochRecord
from convwright.training.recipe.recipe import Recipe
from convwright.training.settings import untouched_random
from convwright.training.tasks.base import BaseTask, Batch
from convwright.training.tasks.loader import drawn, loader_of

_SAMPLE = 2**34  # a stream of random numbers of its own


@dataclass(frozen=True)
class Moment:
    """When something is observed.

    Attributes:
        event: ``start`` is before the first step (not of a resumed training), ``step`` after an optimizer step,
            ``epoch`` after an epoch's last step.
        epoch: Epochs finished.
        step: Steps finished.
        learning_rate: Of the last step; 0 before the first.
    """

    event: Literal["start", "step", "epoch"]
    epoch: int
    step: int
    learning_rate: float


@dataclass(frozen=True, eq=False)
class Watched:
    """What a probe may look at.

    Attributes:
        model: The network in training; to be left as it is.
        data: Its data.
        recipe: How it is trained.
        device: Where it is.
        channels_last: Layout of its batches.
        workers: Processes that read a streamed data set.
        calibration: Training images for what is measured on a sample of them.
    """

    model: nn.Module
    data: BaseTask
    recipe: Recipe
    device: torch.device
    channels_last: bool = False
    workers: int | None = None
    calibration: int = 512

    def batches(self, count: int, batch_size: int) -> list[Batch]:
        """Return the same training samples at every call and in a resumed training: drawn by the seed, not augmented.

        They are read at every call: keep them where that is often.

        Args:
            count: How many; all of them where there are not so many.

            batch_size: Samples per batch.

        Returns:
            Pairs (inputs, targets) on the device: of images (n, c, h, w) float32, normalised, and (n,) int64 labels.
        """
        part = drawn(self.data.train, count, derived_seed(self.recipe.seed, _SAMPLE), ordered=True)
        how = {"device": self.device, "channels_last": self.channels_last, "workers": self.workers}
        return list(loader_of(part, batch_size, shuffle=False, **how))

    def sample(self, count: int) -> Batch:
        """Return the same training samples as one batch."""
        return joined(self.batches(count, count))  # type: ignore[no-any-return]


class Probe:
    """Observes one training. Derive, and file the class under a name with `probe`.

    It is a context: what it puts on the network when it is entered (hooks on layers), it takes off at the end.

    Attributes:
        metrics: What a `StopRule` can name; the first one stands for the probe.
    """

    metrics: ClassVar[tuple[str, ...]] = ()

    def __init__(self, watched: Watched) -> None:
        self.watched = watched

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *error: object) -> None:
        """Take everything off the network again."""

    def due(self, moment: Moment) -> bool:
        """Return whether to measure now; after every epoch unless overridden. Asked often: keep it cheap."""
        return moment.event == "epoch"

    def measure(self, moment: Moment) -> None:
        """Observe the network, without gradients; modes and random states are put back afterwards."""
        raise NotImplementedError

    def found(self) -> dict[str, Any]:
        """Return everything that was observed, as plain JSON values."""
        raise NotImplementedError

    def value(self, metric: str) -> float:
        """Return one of `metrics` at the last measurement as one number; NaN where there is none."""
        return math.nan

    def state_dict(self) -> Any:
        """Return what a resumed training needs, as plain JSON values; what was found, unless overridden."""
        return self.found()

    def load_state_dict(self, state: Any) -> None:
        """Continue where `state` was taken."""
        raise NotImplementedError


@dataclass(frozen=True)
class Entry:
    """A probe in the registry: its class, and the name that what it finds goes by."""

    make: Callable[[Watched], Probe]
    metrics: tuple[str, ...]
    key: str


PROBES: dict[str, Entry] = {}
_Kind = TypeVar("_Kind", bound=type[Probe])


def probe(name: str, key: str = "") -> Callable[[_Kind], _Kind]:
    """Return a decorator that files a class of probes under a name.

    Args:
        name: As in `Candidate.probes`.
        key: What is found goes by this name in the evidence; its own unless given. Variants of a measurement share one.
    """

    def file(kind: _Kind) -> _Kind:
        PROBES[name] = Entry(kind, kind.metrics, key or name)
        return kind

    return file


class Probes:
    """The probes of one training; a context, as each of them is.

    Raises:
        RecipeError: See `check_observed`.
    """

    def __init__(self, names: Sequence[str], watched: Watched) -> None:
        check_observed(names, None)
        self.watched = watched
        self._made = {PROBES[name].key: PROBES[name].make(watched) for name in names}
        self._entered = ExitStack()

    def __enter__(self) -> Probes:
        with ExitStack() as stack:
            for made in self._made.values():
                stack.enter_context(made)
            self._entered = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._entered.__exit__(*error)

    def observe(self, moment: Moment) -> None:
        """Let those measure that are due."""
        due = [made for made in self._made.values() if made.due(moment)]
        if not due:
            return
        with kept_modes(self.watched.model), untouched_random(self.watched.device), torch.no_grad():
            for made in due:
                made.measure(moment)

    def found(self) -> dict[str, Any]:
        """Return by name what was observed, as plain JSON values; numbers that are not finite are None."""
        return {key: plain(made.found()) for key, made in self._made.items()}

    def value(self, path: str) -> float:
        """Return the last value of ``name`` or ``name.metric``."""
        key, _, metric = path.partition(".")
        made = self._made[PROBES[key].key if key in PROBES else key]
        return made.value(metric or made.metrics[0])

    def to_json(self) -> str:
        """Return what a resumed training needs."""
        return json.dumps({key: made.state_dict() for key, made in self._made.items()})

    def restore(self, text: str, source: str) -> None:
        """Continue where `to_json` was called.

        Raises:
            RecipeError: A probe did not observe the training up to here; names it and the `source`.
        """
        states = json.loads(text)
        for key, made in self._made.items():
            if key not in states:
                raise RecipeError(f"{source}: trained without probe {key!r} up to here; train without resume")
            made.load_state_dict(states[key])


def plain(value: Any) -> Any:
    """Return JSON values; NaN and infinity are not JSON."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class StopRule(Protocol):
    """When to end a training early; `convwright.methods.Stop` is one."""

    @property
    def probe(self) -> str:
        """What is looked at: see `check_observed`."""

    @property
    def threshold(self) -> float:
        """What it must pass."""

    @property
    def above(self) -> bool:
        """Whether it passes upwards."""

    @property
    def epoch(self) -> int:
        """Not before so many epochs."""


_RECORDED = ("train_loss", "train_acc", "val_loss", "val_acc")


def check_observed(names: Sequence[str], stop: StopRule | None) -> None:
    """Refuse what cannot be observed, before any training.

    A rule to stop names a number of the epoch's record (``train_loss``, ``train_acc``, ``val_loss``, ``val_acc``), a
    probe that observes the training, or one of its metrics: ``channel-quality.rank``.

    Raises:
        RecipeError: A probe is unknown, two go by one name, or the rule to stop names nothing that is observed.
    """
    keys: dict[str, str] = {}
    for name in names:
        key = look_up(name, PROBES, "probe", RecipeError).key
        if key in keys:
            raise RecipeError(f"probes {keys[key]!r} and {name!r} both go by {key!r}; ask for one of them")
        keys[key] = name
    if stop is None or stop.probe in _RECORDED:
        return
    known: list[str] = []
    for name in names:
        entry = PROBES[name]
        called = dict.fromkeys((name, entry.key) if entry.metrics else ())
        known += [*called, *(f"{word}.{metric}" for word in called for metric in entry.metrics)]
    if stop.probe not in known:
        raise RecipeError(
            f"the rule to stop early names {stop.probe!r}, which is not observed; name one of "
            f"{', '.join(_RECORDED)}, or a probe that is asked for.{did_you_mean(stop.probe, known)}"
        )


def reached(stop: StopRule, record: EpochRecord, probes: Probes) -> bool:
    """Return whether a training is to end after the epoch of `record`. What is not a number ends nothing."""
    if record.epoch < stop.epoch:
        return False
    value = getattr(record, stop.probe) if stop.probe in _RECORDED else probes.value(stop.probe)
    return value is not None and bool(value > stop.threshold if stop.above else value < stop.threshold)


@probe("channel-quality")
class ChannelQuality(Probe):
    """Rank, knowledge gain, mapping condition and QC of every convolution after each epoch (CONetV2).

    Found: ``layers``, the names of the convolutions, and ``metrics``, per metric a list of epochs x layers x
    (input, output); None where an unfolding has one row, as the input side of a depthwise convolution.
    """

    metrics: ClassVar[tuple[str, ...]] = ("qc", "rank", "knowledge_gain", "condition", "new_qc")
    parity: ClassVar[bool] = False

    def __init__(self, watched: Watched) -> None:
        super().__init__(watched)
        self.layers = tuple(kernels(watched.model))
        self.rows: dict[str, list[list[list[float | None]]]] = {metric: [] for metric in self.metrics}

    def measure(self, moment: Moment) -> None:
        """Add a row to every metric."""
        qualities = channel_qualities(kernels(self.watched.model), parity=self.parity)
        for metric, rows in self.rows.items():
            sides = [(qualities[layer].input, qualities[layer].output) for layer in self.layers]
            rows.append([[None if s is None else float(getattr(s, metric)) for s in pair] for pair in sides])

    def found(self) -> dict[str, Any]:
        """Return layers and metrics."""
        return {"layers": list(self.layers), "metrics": self.rows}

    def value(self, metric: str) -> float:
        """Return the mean over all layers and unfoldings of the last epoch."""
        rows = self.rows[metric]
        values = [number for pair in rows[-1] for number in pair if number is not None] if rows else []
        return math.fsum(values) / len(values) if values else math.nan

    def load_state_dict(self, state: Any) -> None:
        """Take over the rows."""
        self.rows = {metric: state["metrics"][metric] for metric in self.metrics}


@probe("channel-quality-parity", key="channel-quality")
class PublishedChannelQuality(ChannelQuality):
    """The same by the numbers of the published code, with its defects."""

    parity: ClassVar[bool] = True
