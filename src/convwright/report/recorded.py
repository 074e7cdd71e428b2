"""Reading a run directory without touching it: what is there, checked; another process may still be working in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from convwright.edits import Plan
from convwright.errors import ConvwrightError, RunError
from convwright.methods import Candidate, Evidence
from convwright.passwords import public_url
from convwright.runs.directory.files import read_json, there
from convwright.runs.directory.network_record import FILE as NETWORKS
from convwright.runs.directory.network_record import FORMAT as NETWORKS_FORMAT
from convwright.runs.directory.result import load_result
from convwright.runs.directory.storage import read_trials
from convwright.runs.directory.study import DECISIONS, DECISIONS_FORMAT, read_settings, trial_folder
from convwright.runs.history import HISTORY, epoch_of, read_history
from convwright.runs.train import FORMAT as TRAINING
from convwright.tables import Json
from convwright.training.checkpoint import FILE as CHECKPOINT
from convwright.training.checkpoint import read_checkpoint
from convwright.training.outcome import EpochRecord


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


def read_run(folder: str | Path, storage: str | None = None) -> Recorded:
    """Read a run directory.

    Args:
        folder: Of an ``optimize``, finished or not, or of a ``train``.
        storage: URL of the database with its trials; None: as the run recorded it, without a password.

    Raises:
        RunError: It is no run directory, or a file in it is damaged; names the file.
    """
    path = Path(folder)
    if not path.is_dir():
        raise RunError(f"{path}: no such folder; give the run directory of an `optimize` or a `train`")
    if there(path / "run.json"):
        return _optimize(path, storage)
    if there(path / "training.json") or there(path / CHECKPOINT):
        return _training(path)
    raise RunError(f"{path}: holds no run (neither run.json nor training.json); give the folder that --out named")


def _optimize(folder: Path, storage: str | None) -> Recorded:
    run = read_settings(folder)
    result = load_result(folder)
    trials = recorded_trials(folder, run, storage)
    if result is not None and len(trials) != len(result.get("trials", ())):
        where = public_url(run["storage"]["url"]) if run.get("storage") else folder / "run.db"
        raise RunError(
            f"{where}: damaged, it has {len(trials)} trials and {folder / 'result.json'} has "
            f"{len(result.get('trials', ()))}; start anew in another folder"
        )
    networks, plan = _json_if_there(folder / NETWORKS, NETWORKS_FORMAT), _plan(folder / "plan.json")
    decided = _json_if_there(folder / DECISIONS, DECISIONS_FORMAT) if result is None else result
    histories = {trial.number: found for trial in trials if (found := _history(folder, trial.number))}
    return Recorded(folder, "optimize", run, result, trials, networks, plan, decided, histories)


def _json_if_there(path: Path, what: str) -> Json | None:
    return read_json(path, what) if there(path) else None


def _plan(path: Path) -> Plan | None:
    if not there(path):
        return None
    try:
        return Plan.load(path)
    except ConvwrightError as error:
        raise RunError(f"{path}: damaged ({error}); start anew in another folder") from error


def recorded_trials(folder: Path, run: Json, storage: str | None = None) -> tuple[RecordedTrial, ...]:
    """Return the trials of a storage that is only read.

    Args:
        folder: The run directory.
        run: The content of its ``run.json``.
        storage: As for `read_run`.
    """
    where = run.get("storage")
    found = []
    for number, attributes in enumerate(read_trials(folder, where, storage)):
        if "candidate" not in attributes:  # it was killed between two writes
            continue
        try:
            candidate = Candidate.from_dict(attributes["candidate"])
            told = attributes.get("evidence")
            evidence = None if told is None else Evidence.from_dict(told, candidate)
        except RunError as error:
            called = public_url(where["url"]) if where else folder / "run.db"
            raise RunError(f"{called}: damaged, trial {number}: {error}; start anew in another folder") from error
        found.append(RecordedTrial(number, candidate, evidence))
    return tuple(found)


def _history(folder: Path, number: int) -> tuple[Json, ...]:
    """Return the epochs of a trial; of an unfinished one, those of its checkpoint."""
    trial = trial_folder(folder, number)
    path = trial / HISTORY
    return read_history(path) if there(path) else _checkpoint(trial)


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
    if not there(path):
        return Recorded(folder, "train", {}, None, histories={-1: _checkpoint(folder)})
    found = read_json(path, TRAINING)
    lacking = [name for name in ("model", "data", "recipe", "history") if name not in found]
    if lacking:
        raise RunError(f"{path}: damaged, it has no {lacking[0]}; train anew in another folder")
    try:
        epochs = tuple(epoch_of(each) for each in found["history"])
    except (TypeError, KeyError) as error:
        raise RunError(f"{path}: damaged, its history holds no epochs; train anew in another folder") from error
    return Recorded(folder, "train", found, found, plan=_plan(folder / "plan.json"), histories={-1: epochs})
