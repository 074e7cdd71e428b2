"""Reading a run directory without touching it: what is there, checked; another process may still be working in it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convwright.edits import Plan
from convwright.errors import ConvwrightError, RunError
from convwright.methods import Candidate, Evidence
from convwright.runs.directory.files import read_json
from convwright.runs.directory.network_record import FILE as NETWORKS
from convwright.runs.directory.network_record import FORMAT as NETWORKS_FORMAT
from convwright.runs.directory.result import FORMAT as RESULT
from convwright.runs.directory.study import DECISIONS, DECISIONS_FORMAT
from convwright.runs.directory.study import FORMAT as RUN
from convwright.runs.evaluate import HISTORY
from convwright.runs.train import FORMAT as TRAINING
from convwright.training.checkpoint import FILE as CHECKPOINT
from convwright.training.checkpoint import read_checkpoint
from convwright.training.outcome import EpochRecord

Json = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class RecordedTrial:
    """A trial as it is recorded; without evidence it is not finished."""

    number: int
    candidate: Candidate
    evidence: Evidence | None


@dataclass(frozen=True, eq=False)
class Recorded:
    """What a run directory holds.

    Attributes:
        folder: The directory.
        kind: ``optimize`` or ``train``.
        run: The content of ``run.json``; of a training, that of ``training.json`` or nothing.
        result: The content of ``result.json``; None where the run is not finished.
        trials: In the order of asking.
        networks: The content of ``networks.json``, if there is one.
        plan: The result's plan, if there is one.
        decided: Where the method's decisions are: the result, or the record on the way to it; None: there is none.
        histories: Epochs by trial; a training's own go by -1.
    """

    folder: Path
    kind: str
    run: Json
    result: Json | None
    trials: tuple[RecordedTrial, ...] = ()
    networks: Json | None = None
    plan: Plan | None = None
    decided: Json | None = None
    histories: Mapping[int, tuple[Json, ...]] = field(default_factory=dict)


def read_run(folder: str | Path) -> Recorded:
    """Read a run directory.

    Args:
        folder: Of an ``optimize``, finished or not, or of a ``train``.

    Raises:
        RunError: It is no run directory, or a file in it is damaged; names the file.
    """
    path = Path(folder)
    if not path.is_dir():
        raise RunError(f"{path}: no such folder; give the run directory of an `optimize` or a `train`")
    if (path / "run.json").is_file():
        return _optimize(path)
    if (path / "training.json").is_file() or (path / CHECKPOINT).is_file():
        return _training(path)
    raise RunError(f"{path}: holds no run (neither run.json nor training.json); give the folder that --out named")


def _optimize(folder: Path) -> Recorded:
    run = read_json(folder / "run.json", RUN)
    if not isinstance(run.get("settings"), dict):
        raise RunError(f"{folder / 'run.json'}: damaged, it has no settings; start anew in another folder")
    result = _result(folder / "result.json") if (folder / "result.json").is_file() else None
    trials = _trials(folder / "run.db")
    if result is not None and len(trials) != len(result["trials"]):
        raise RunError(
            f"{folder / 'run.db'}: damaged, it has {len(trials)} trials and result.json has {len(result['trials'])}; "
            "start anew in another folder"
        )
    return Recorded(
        folder,
        "optimize",
        run,
        result,
        trials,
        _json_if_there(folder / NETWORKS, NETWORKS_FORMAT),
        _plan(folder / "plan.json"),
        _json_if_there(folder / DECISIONS, DECISIONS_FORMAT) if result is None else result,
        {trial.number: found for trial in trials if (found := _history(folder, trial.number))},
    )


def _result(path: Path) -> Json:
    found = read_json(path, RESULT)
    needed = ("baseline", "result", "trials", "budget_met", "limits")
    lacking = [name for name in needed if not isinstance(found.get(name), dict | list)]
    if lacking:
        raise RunError(f"{path}: damaged, it has no {lacking[0]}; start anew in another folder")
    return found


def _json_if_there(path: Path, what: str) -> Json | None:
    return read_json(path, what) if path.is_file() else None


def _plan(path: Path) -> Plan | None:
    if not path.is_file():
        return None
    try:
        return Plan.load(path)
    except ConvwrightError as error:
        raise RunError(f"{path}: damaged ({error}); start anew in another folder") from error


# ------------------------------------------------------------------ trials


def _trials(path: Path) -> tuple[RecordedTrial, ...]:
    """Return the trials of a storage that is only read."""
    if not path.is_file():
        if (path.parent / "trials").is_dir():
            raise RunError(f"{path}: missing; start anew in another folder")
        return ()  # stopped before its first trial
    found = []
    for number, attributes in enumerate(_attributes(path)):
        if "candidate" in attributes:  # else it was killed between two writes
            candidate = Candidate.from_dict(attributes["candidate"])
            told = attributes.get("evidence")
            evidence = None if told is None else Evidence.from_dict(told, candidate)
            found.append(RecordedTrial(number, candidate, evidence))
    return tuple(found)


def _attributes(path: Path) -> list[dict[str, Any]]:
    """Return the user attributes of Optuna's trials, in order; the file is opened for reading only."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    address = f"{path.resolve().as_uri()}?mode=ro"
    engine: dict[str, Any] = {"creator": lambda: sqlite3.connect(address, uri=True, timeout=10)}
    storage = None
    try:
        storage = optuna.storages.RDBStorage("sqlite://", engine_kwargs=engine)
        studies = storage.get_all_studies()
        trials = storage.get_all_trials(studies[0]._study_id, deepcopy=False) if studies else []
        return [dict(trial.user_attrs) for trial in trials]
    except (SQLAlchemyError, sqlite3.Error, RuntimeError, AssertionError, KeyError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"{path}: damaged ({reason}); start anew in another folder") from error
    finally:
        if storage is not None:
            storage.remove_session()
            storage.engine.dispose()


# ------------------------------------------------------------------ epochs


def _history(folder: Path, number: int) -> tuple[Json, ...]:
    """Return the epochs of a trial; of an unfinished one, those of its checkpoint."""
    trial = folder / "trials" / f"{number:04d}"
    path = trial / HISTORY
    return _epochs(path) if path.is_file() else _checkpoint(trial)


def _epochs(path: Path) -> tuple[Json, ...]:
    try:
        return tuple(_epoch(each) for each in json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path}: damaged, it holds no epochs; remove it, and its curve is left out") from error


def _epoch(values: Json) -> Json:
    return {name: values[name] for name in ("train_loss", "train_acc", "val_loss", "val_acc", "seconds")}


def _checkpoint(folder: Path) -> tuple[Json, ...]:
    found = read_checkpoint(folder)
    if found is None:
        return ()
    try:
        return tuple(vars(EpochRecord(*values)) for values in found["history"])
    except (KeyError, TypeError) as error:
        raise RunError(f"{folder / CHECKPOINT}: damaged; remove it to train from the beginning") from error


def _training(folder: Path) -> Recorded:
    path = folder / "training.json"
    if not path.is_file():
        return Recorded(folder, "train", {}, None, histories={-1: _checkpoint(folder)})
    found = read_json(path, TRAINING)
    lacking = [name for name in ("model", "data", "recipe", "history") if name not in found]
    if lacking:
        raise RunError(f"{path}: damaged, it has no {lacking[0]}; train anew in another folder")
    try:
        epochs = tuple(_epoch(each) for each in found["history"])
    except (TypeError, KeyError) as error:
        raise RunError(f"{path}: damaged, its history holds no epochs; train anew in another folder") from error
    return Recorded(folder, "train", found, found, plan=_plan(folder / "plan.json"), histories={-1: epochs})
