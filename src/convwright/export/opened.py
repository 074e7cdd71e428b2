"""A run directory as one network: built anew from its original, its plan and its weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from convwright.architecture import Architecture
from convwright.edits import InexactEditWarning, Plan, apply
from convwright.errors import ConvwrightError, RunError
from convwright.methods import Candidate
from convwright.runs.directory.files import load_weights, read_json
from convwright.runs.directory.result import load_result
from convwright.runs.directory.study import FORMAT as RUN
from convwright.runs.directory.study import WEIGHTS
from convwright.runs.train import FORMAT as TRAINING
from convwright.runs.weights_note import KEYS, recorded
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
        trial_score: of an unfinished run, its validation accuracy.
    """

    arch: Architecture
    plan: Plan
    folder: Path
    record: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "result"
    trial: int | None = None
    trial_score: float | None = None

    @property
    def usage(self) -> tuple[Normalisation | None, tuple[str, ...]]:
        """What images are normalised by, and the names of the classes; None and () where it was not recorded."""
        return recorded(self.record, self.folder), tuple(map(str, self.record.get("class_names", ())))

    @property
    def title(self) -> str:
        """Say in a few words what it is."""
        changed = f", redesigned by {len(self.plan.edits)} edits" if self.plan.edits else ""
        return f"{self.plan.model}{changed}"


def open_run(folder: Path, model: nn.Module | str | None = None) -> Exportable:
    """Build the network of a run directory.

    Args:
        folder: of `optimize` or `train`. Of an unfinished search, the trained trial of the highest validation
            accuracy is taken.
        model: the original network; None: the one that the run names.

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
        return Exportable(_built(plan, folder / WEIGHTS, result, model), plan, folder, result)
    if (folder / "training.json").is_file():
        record = read_json(folder / "training.json", TRAINING)
        plan = _plan_of_training(folder, record, model)
        return Exportable(_built(plan, folder / WEIGHTS, record, model), plan, folder, record, "training")
    if (folder / "run.json").is_file():
        return _unfinished(folder, model)
    if any(folder.glob("checkpoint*")):
        raise RunError(f"{folder}: the training is not finished; continue it with `convwright train --resume`")
    raise RunError(f"{folder}: holds no run (no result.json, training.json or run.json); give a run directory")


def _plan_of_training(folder: Path, record: Mapping[str, Any], model: nn.Module | str | None) -> Plan:
    if (folder / "plan.json").is_file():
        return Plan.load(folder / "plan.json")
    from convwright.architecture import read

    shape = record.get("input_shape")
    named = model if model is not None else str(record["model"])
    options = dict(record.get("options", {})) if isinstance(named, str) else {}
    arch = read(named, None if shape is None else tuple(shape), **options)
    return Plan.empty(arch)


def _built(plan: Plan, weights: Path, record: Mapping[str, Any], model: nn.Module | str | None) -> Architecture:
    if model is None and ":" not in plan.model:
        raise RunError(
            f"{weights.parent}: the run was made with a {plan.model} that has no name to build it by; "
            "give the original network with --model FILE.py:CLASS"
        )
    named = model if model is not None else plan.model
    options = dict(record.get("options", {})) if isinstance(named, str) and named == plan.model else {}
    with warnings.catch_warnings():  # the weights come from the file: what an edit kept does not matter here
        warnings.simplefilter("ignore", InexactEditWarning)
        arch = apply(plan, named, None, verify=False, **options)
    load_weights(arch.model, weights)
    arch.model.eval()
    return arch


# ------------------------------------------------------------------ a run without a result


def _unfinished(folder: Path, model: nn.Module | str | None) -> Exportable:
    content = read_json(folder / "run.json", RUN)
    settled = content.get("settled", {})
    settings = {**content.get("settings", {}), **{key: settled[key] for key in KEYS if key in settled}}
    best: tuple[float, int, Plan] | None = None
    for number, attributes in _trials(folder):
        evidence, candidate = attributes.get("evidence"), attributes.get("candidate")
        score = evidence.get("score") if isinstance(evidence, dict) else None
        weights = folder / "trials" / f"{number:04d}" / WEIGHTS
        if score is None or candidate is None or not weights.is_file():
            continue
        if best is None or score > best[0]:
            best = (float(score), number, Candidate.from_dict(candidate).plan)
    if best is None:
        raise RunError(f"{folder}: unfinished, and no trial has weights yet; continue it with --resume")
    score, number, plan = best
    arch = _built(plan, folder / "trials" / f"{number:04d}" / WEIGHTS, settings, model)
    return Exportable(arch, plan, folder, settings, "unfinished", number, score)


def _trials(folder: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return number and attributes of the trials of a run, read without taking the directory."""
    import optuna

    content = read_json(folder / "run.json", RUN)
    where = content.get("storage")
    if where is None and not (folder / "run.db").is_file():
        raise RunError(f"{folder}: run.db is missing; the run is damaged, start anew in another folder")
    try:
        url = str(where["url"]) if where else f"sqlite:///{(folder / 'run.db').resolve()}"
        study = optuna.load_study(study_name=str(where["study"]) if where else "run", storage=url)
        return [(trial.number, dict(trial.user_attrs)) for trial in study.get_trials(deepcopy=False)]
    except (ConvwrightError, KeyError):
        raise
    except Exception as error:  # whatever optuna, the database or its driver raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"{folder}: the record of the trials cannot be read ({reason})") from error
