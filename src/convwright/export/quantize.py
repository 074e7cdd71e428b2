"""ONNX in int8 by ONNX Runtime: calibrated on training images, and judged beside the network on images held out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convwright.architecture.capture.pytrees import Inputs
from convwright.cost.budget import human
from convwright.cost.latency import Spread, in_turns, spread, wall_timer
from convwright.cost.runtimes import Target
from convwright.cost.runtimes.onnxruntime import OnnxRuntime, onnx_session, quantized_onnx
from convwright.errors import ConvwrightError, first_line
from convwright.export.card import card
from convwright.export.opened import Exportable
from convwright.export.programs import export_onnx, onnx_runner
from convwright.export.registry import Exported, ExportError
from convwright.ranking import Metric
from convwright.runs.directory.files import write, write_text
from convwright.runs.quantized import IMAGES, AsNetwork
from convwright.training.data.data import ImageData, check_fits, load_data
from convwright.training.data.images import Images
from convwright.training.data.normalisation import normalised
from convwright.training.evaluate import eval_mode, evaluate
from convwright.training.statistics import calibration
from convwright.training.tasks import BaseTask, Task, task_of
from convwright.training.tasks.base import TaskPart

TOLERANCE = 0.01  # of the metric that int8 may lose without a warning: MLPerf's limit for quantized networks
_BATCH = 32
_SECONDS = 3.0  # of the measurement of latency


@dataclass(frozen=True)
class Quantized:
    """What int8 changed; pairs are before and after.

    Attributes:
        calibrated_on: Training images that the ranges of the activations come from.
        snr: Power of the outputs over that of their error, in decibels, on images of `part`.
        difference: Largest difference of an output, as a share of the largest output, on the same images.
        part: What it was judged on, ``"test"`` or ``"validation"``; ``""``: the data have no such part.
        metric: What it was judged by.
        scores: Values of the metric so that more is better; (): not judged.
        samples: Images that it was judged on.
        latency: Of the example input in ONNX Runtime, measured in turns.
        ratio: Latency after over before, paired turn by turn.
        file_bytes: Sizes of the files.
    """

    calibrated_on: int
    snr: float
    difference: float
    part: str
    metric: Metric = field(repr=False)
    scores: tuple[float, ...]
    samples: int
    latency: tuple[Spread, Spread]
    ratio: Spread
    file_bytes: tuple[int, int]

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """What is compared, before and after."""
        judged = f"{self.part} {self.metric.name} ({self.samples} samples)"
        return [
            *([(judged, *map(self.metric.shown, self.scores))] if self.scores else []),
            ("latency", *(human(round(each.median * 1e9), "latency") for each in self.latency)),
            ("file", *(human(each, "weights") for each in self.file_bytes)),
        ]

    @property
    def closeness(self) -> str:
        """How far the outputs are from the network's."""
        return f"signal to noise {self.snr:.1f} dB, largest difference {self.difference:.1%} of the largest output"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user must know before the file is used."""
        found = []
        if self.scores and self.scores[0] - self.scores[1] > TOLERANCE * abs(self.scores[0]):
            lost = f"changes the {self.part} {self.metric.name} by {self.metric.change(*self.scores)}"
            found.append(f"int8 {lost}, more than {TOLERANCE:.0%} of its value")
        if self.ratio.lower > 1:
            found.append(f"int8 takes {self.ratio.median:.2f} times as long as float32 on this machine")
        return tuple(found)

    def __str__(self) -> str:
        changes = ", ".join(f"{what} {before} -> {after}" for what, before, after in self.rows)
        return f"int8: {changes}; {self.closeness}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        scores = [self.metric.score(each) for each in self.scores]
        return asdict(self) | {"metric": self.metric.name, "scores": scores, "warnings": list(self.warnings)}


def export_int8(run: Exportable, folder: Path, data: Any = None, data_dir: str | Path | None = None) -> Exported:
    """Write ``model.onnx`` and, quantized by ONNX Runtime, ``model.int8.onnx``, which is run and judged.

    Args:
        run: The network.
        folder: Where to write.
        data: As for `load_data`, or a task; None: those that the run records.
        data_dir: As for `load_data`.

    Raises:
        ConvwrightError: The extra ``int8`` is not installed, the data cannot be read, or as `export_onnx` raises.
        ExportError: ONNX Runtime cannot quantize the network or run what it made.
    """
    OnnxRuntime().check(Target("onnxruntime", int8=True))
    images = data_of(run, data, data_dir)
    done = export_onnx(run, folder)
    before = done.files[0].read_bytes()
    size = onnx_session(before).get_inputs()[0].shape[0]  # a number, or the name of an axis of any length
    size = size if isinstance(size, int) else _BATCH
    try:
        batches = calibration(images.train, IMAGES, batch=size)
        after = quantized_onnx(before, [Inputs.of(each) for each in batches])
        found = _compared(run, images, (before, after), size, sum(map(len, batches)))
    except ConvwrightError:
        raise
    except Exception as error:  # ONNX Runtime's own errors
        raise ExportError(f"{run.folder}: ONNX Runtime cannot quantize the network: {first_line(error)}") from error
    path = folder / "model.int8.onnx"
    write(path, lambda to: to.write_bytes(after))
    write_text(folder / "README.md", card(run, "onnx", found))
    return replace(done, files=(done.files[0], path, *done.files[1:]), int8=found)


def data_of(run: Exportable, data: Any = None, data_dir: str | Path | None = None) -> BaseTask:
    """Return the data of a run, fed as they were to the network."""
    given = data if data is not None else re.sub(r" \(\d+ training .*\)$", "", str(run.record.get("data", "")))
    recipe: Mapping[str, Any] = run.record.get("trained_with") or run.record.get("recipe") or {}
    shape, held = run.input_shape, recipe.get("val_fraction", 0.1)
    try:
        found = task_of(given, size=shape[1:], val_fraction=held)
        if not isinstance(found, BaseTask):
            size = (shape[0], shape[1], shape[2])
            found = load_data(found, data_dir, input_shape=size, val_fraction=held, resize=run.resize)
    except ConvwrightError as error:
        if data is not None:
            raise
        hint = "int8 is calibrated on training images; name them with --data"
        raise ExportError(f"{run.folder}: {hint} ({error})") from error
    if isinstance(found, ImageData):
        check_fits(found, tuple(run.arch.example_input.shape), len(run.class_names) or found.num_classes)
    numbers = run.usage[0]
    fed: BaseTask = found if numbers is None or isinstance(found, Task) else normalised(found, numbers, run.model)
    return fed


def _compared(run: Exportable, images: BaseTask, files: tuple[bytes, bytes], size: int, calibrated: int) -> Quantized:
    part, held = _held_out(run, images)
    own, again = run.model, AsNetwork(run.model, run.arch.example_input, onnx_runner(files[1]))
    with eval_mode(own), torch.no_grad():
        batches = calibration(held or images.train, IMAGES, batch=size)
        wanted, found = (torch.cat([_flat(model(each)) for each in batches]) for model in (own, again))
    error = (wanted - found).double()
    judged = [evaluate(model, held, batch_size=size) for model in (own, again)] if held is not None else []
    latency, ratio = _latency(files, run.arch.example_input)
    return Quantized(
        calibrated_on=calibrated,
        snr=float(10 * torch.log10(wanted.double().square().sum() / error.square().sum().clamp_min(1e-30))),
        difference=float(error.abs().max() / wanted.abs().max()),
        part=part,
        metric=run.metric,
        scores=tuple(each.accuracy for each in judged),
        samples=judged[0].samples if judged else 0,
        latency=latency,
        ratio=ratio,
        file_bytes=(len(files[0]), len(files[1])),
    )


def _held_out(run: Exportable, images: BaseTask) -> tuple[str, Images | TaskPart | None]:
    """Return what it is judged on: the test part, which an unfinished run does not read, else validation."""
    if images.has_test and run.kind != "unfinished":
        return "test", images.test
    return ("validation", images.val) if images.val is not None else ("", None)


def _flat(output: Any) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in Inputs((output,)).tensors if tensor.is_floating_point()])


def _latency(files: tuple[bytes, bytes], example: Tensor) -> tuple[tuple[Spread, Spread], Spread]:
    target, timer = Target("onnxruntime"), wall_timer(example.device)
    one, two = (OnnxRuntime().opened("the file", each, Inputs.of(example), target) for each in files)
    for each in (one, two):
        each.time(3, timer)  # the first runs are slower
    turns = in_turns({each: partial(each.time, 1, timer) for each in (one, two)}, _SECONDS, 200)
    ratios = [after / before for before, after in zip(turns[one], turns[two], strict=True)]
    return (spread(turns[one]), spread(turns[two])), spread(ratios)
