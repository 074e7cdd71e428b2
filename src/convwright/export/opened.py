"""A run directory as one network: built anew from its original, its plan and its weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convwright.architecture import Architecture, read
from convwright.edits import InexactEditWarning, Plan, apply
from convwright.errors import RunError, counted, first_line
from convwright.ranking import Metric, metric_of
from convwright.report.recorded import recorded_trials
from convwright.runs.directory.files import load_weights, read_json, there
from convwright.runs.directory.result import load_result, metrics_of
from convwright.runs.directory.study import WEIGHTS, read_settings, trial_folder
from convwright.runs.train import FORMAT as TRAINING
from convwright.runs.weights_note import KEYS, recorded
from convwright.training.data.folders import Resize
from convwright.training.data.normalisation import Normalisation


@dataclass(frozen=True, eq=False)
class Exportable:
    """A network that is exported, and where it comes from.

    Attributes:
        arch: the network, with its weights, in eval mode.
        plan: the edits from the original to it.
        folder: the run directory.
        record: ``result.json``, ``training.json`` or, of an unfinished run, its settings.
        kind: ``"result"``, ``"training"`` or ``"unfinished"``.
        trial: of an unfinished run, the number of the trial that is exported.
        trial_score: of an unfinished run, its score on the validation part.
    """

    arch: Architecture = field(repr=False)
    plan: Plan = field(repr=False)
    folder: Path
    record: Mapping[str, Any] = field(default_factory=dict, repr=False)
    kind: str = "result"
    trial: int | None = None
    trial_score: float | None = None

    @property
    def usage(self) -> tuple[Normalisation | None, tuple[str, ...]]:
        """What images are normalised by, and the names of the classes; None and () where it was not recorded."""
        numbers, names = recorded(self.record, self.folder)[0], self.class_names
        if numbers is None and "class_names" in self.record and self.arch.given is None:  # a task's own floats
            count = self.input_shape[0]
            numbers = Normalisation(mean=(0.0,) * count, std=(1.0,) * count)
        return numbers, names

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the outputs; () where there are none."""
        return tuple(map(str, self.record.get("class_names", ())))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample of the (first) input, such as (3, 224, 224)."""
        return tuple(self.arch.example_input.shape[1:])

    @property
    def model(self) -> nn.Module:
        """The network, of the original's class, with its weights, in eval mode."""
        return self.arch.model

    @property
    def metrics(self) -> dict[str, float]:
        """Costs, and values of the metric as ``validation`` and ``test``, as far as they are recorded."""
        return metrics_of(self.record)

    def preprocess(self, images: Tensor) -> Tensor:
        """Return images (n, c, h, w), bytes or floats from 0 to 1, as the network takes them.

        Raises:
            RunError: It is not recorded how they were normalised.
        """
        numbers = self.usage[0]
        if numbers is None:
            raise RunError(f"{self.folder}: does not say how its inputs were made; make them as for the training")
        mean, std = (images.new_tensor(v, dtype=torch.float32).view(1, -1, 1, 1) for v in (numbers.mean, numbers.std))
        return ((images / 255 if images.dtype == torch.uint8 else images) - mean) / std

    @property
    def resize(self) -> Resize:
        """How photographs of a folder became images of one size."""
        return recorded(self.record, self.folder)[1]

    @property
    def metric(self) -> Metric:
        """What networks were ranked by."""
        return metric_of(self.record)

    @property
    def title(self) -> str:
        """Say in a few words what it is."""
        changed = f", redesigned by {counted(len(self.plan.edits), 'edit')}" if self.plan.edits else ""
        return f"{self.plan.model}{changed}"


def load(
    folder: str | Path,
    model: nn.Module | Callable[[], nn.Module] | str | None = None,
    example_input: Any = None,
) -> Exportable:
    """Put plan and weights of a run onto the original network's class.

    Args:
        folder: Of `optimize` or `train`, or one network of a front; as for `open_run`.
        model: The original network, or the class that makes it; None: the one that the run names.
        example_input: What it is read with, where a plan cannot say it: whole numbers, lists and nests, such as
            ``task.example_inputs()``.

    Returns:
        ``model``, ``plan``, ``metrics``, ``class_names``, ``input_shape``, and ``preprocess(images)``.

    Raises:
        ConvwrightError: As for `open_run`.

    Examples:
        >>> found = cw.load("runs/photos", model=Net)  # doctest: +SKIP
        >>> scores = found.model(found.preprocess(images))  # doctest: +SKIP
    """
    try:
        made = model if model is None or isinstance(model, nn.Module | str) else model()
    except TypeError as error:
        raise RunError(f"{model} cannot be called without arguments ({first_line(error)}); give a network") from error
    return open_run(Path(folder), made, example_input=example_input)


def open_run(
    folder: Path, model: nn.Module | str | None = None, storage: str | None = None, example_input: Any = None
) -> Exportable:
    """Build the network of a run directory.

    Args:
        folder: of `optimize` or `train`. Of an unfinished search, the trained trial of the highest validation
            accuracy, or the best other metric, is taken.
        model: the original network; None: the one that the run names.
        storage: URL of the database with the trials of an unfinished run; None: as the run recorded it, without a
            password.
        example_input: as for `load`.

    Raises:
        RunError: there is no run, or nothing trained in it yet; or the weights do not fit.
        EditError: the plan is damaged, or the network has no name and `model` is not given.
        ReadError: the network cannot be made.
    """
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; give the run directory of `convwright optimize` or `train`")
    result = load_result(folder)
    if result is not None:
        plan = Plan.load(folder / "plan.json")
        return Exportable(_built(plan, folder / WEIGHTS, result, model, example_input), plan, folder, result)
    if there(folder / "training.json"):
        record = read_json(folder / "training.json", TRAINING)
        plan = _plan_of_training(folder, record, model, example_input)
        arch = _built(plan, folder / WEIGHTS, record, model, example_input)
        return Exportable(arch, plan, folder, record, "training")
    if there(folder / "run.json"):
        return _unfinished(folder, model, storage, example_input)
    if any(folder.glob("checkpoint*")):
        raise RunError(f"{folder}: the training is not finished; continue it with `convwright train --resume`")
    raise RunError(f"{folder}: holds no run (no result.json, training.json or run.json); give a run directory")


def _plan_of_training(folder: Path, record: Mapping[str, Any], model: nn.Module | str | None, example: Any) -> Plan:
    if there(folder / "plan.json"):
        return Plan.load(folder / "plan.json")
    shape = record.get("input_shape")
    named = model if model is not None else str(record["model"])
    options = dict(record.get("options", {})) if isinstance(named, str) else {}
    arch = read(named, example if example is not None or shape is None else tuple(shape), **options)
    return Plan.empty(arch)


def _built(
    plan: Plan, weights: Path, record: Mapping[str, Any], model: nn.Module | str | None, example: Any
) -> Architecture:
    if model is None and ":" not in plan.model:
        raise RunError(
            f"{weights.parent}: the run was made with a {plan.model} that has no name to build it by; "
            "give the original network with --model FILE.py:CLASS, or model= in Python"
        )
    named = model if model is not None else plan.model
    options = dict(record.get("options", {})) if isinstance(named, str) and named == plan.model else {}
    with warnings.catch_warnings():  # the weights come from the file: what an edit kept does not matter here
        warnings.simplefilter("ignore", InexactEditWarning)
        arch = apply(plan, named, example, verify=False, **options)
    load_weights(arch.model, weights)
    broken = next((name for name, tensor in arch.model.state_dict().items() if tensor.isnan().any()), None)
    if broken is not None:
        raise RunError(f"{weights}: damaged, {broken} holds NaN; train anew in another folder")
    arch.model.eval()
    return arch


def _unfinished(folder: Path, model: nn.Module | str | None, storage: str | None, example: Any) -> Exportable:
    run = read_settings(folder)
    known = [t.evidence for t in recorded_trials(folder, run, storage) if t.evidence is not None and t.evidence.usable]
    trained = [e for e in known if (trial_folder(folder, e.trial) / WEIGHTS).is_file()]
    if not trained:
        raise RunError(f"{folder}: unfinished, and no trial has weights yet; continue it with --resume")
    best = max(trained, key=lambda e: e.score)
    settled = run.get("settled", {})
    settings = {**run["settings"], **{key: settled[key] for key in KEYS if key in settled}}
    arch = _built(best.candidate.plan, trial_folder(folder, best.trial) / WEIGHTS, settings, model, example)
    return Exportable(arch, best.candidate.plan, folder, settings, "unfinished", best.trial, best.score)
