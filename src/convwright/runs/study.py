"""The record of a run: one directory, one Optuna study, one process at a time.

Layout::

    run.json              the settings that the run was started with, versions and machine
    run.db                Optuna's SQLite storage: one trial per candidate, plan and evidence as attributes
    initial.safetensors   the weights that the run started from
    trials/0003/          weights of a finished trial; the training checkpoint of an unfinished one
    plan.json model.safetensors result.json   the result, once it is proved
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from convwright.errors import RunError
from convwright.methods import Candidate, Evidence
from convwright.runs.files import LOCK, owned, read_json, refuse_file, write_json
from convwright.runs.machine import machine, versions

if TYPE_CHECKING:
    import optuna

FORMAT = "convwright run"
VERSION = 1
WEIGHTS = "model.safetensors"
_NAME = "run"


def check_folder(folder: Path, resume: bool) -> None:
    """Refuse a directory before any work is done.

    Raises:
        RunError: It holds something and `resume` is off, or holds no run and `resume` is on.
    """
    refuse_file(folder)
    if resume and not (folder / "run.json").is_file():
        raise RunError(f"{folder}: no run to resume (there is no run.json); start without --resume")
    # A process that was killed before it wrote anything leaves only its lock.
    if not resume and folder.is_dir() and any(p.name != LOCK for p in folder.iterdir()):
        hint = "continue it with --resume, or" if (folder / "run.json").is_file() else "it is not empty:"
        raise RunError(f"{folder}: already exists; {hint} choose another folder with --out")


class Study:
    """A run directory that this process owns; a context manager.

    Args:
        folder: The directory; made if it is not there.
        settings: Plain JSON values that the results depend on. A resumed run must have the same.
        settle: Returns what a new run settles once for all trials, by measurement: plain JSON values. A
            resumed run keeps what was settled.
        resume: Continue the run that is there.
        command: How to name this run to a person.

    Raises:
        RunError: Another process owns it; it is damaged; it was started with other settings.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        settle: Callable[[], Mapping[str, Any]] = dict,
        *,
        resume: bool = False,
        command: str = "",
    ) -> None:
        check_folder(folder, resume)
        settled = {} if resume else settle()  # before the folder is made: what fails here leaves nothing behind
        self.folder = folder
        self.command = command
        with ExitStack() as stack:
            stack.enter_context(owned(folder))
            check_folder(folder, resume)  # another process may just have finished its run here
            self.settings = dict(settings)
            self.settled = self._stored() if resume else self._begin(settled)
            self.storage, self.study = _open_storage(folder / "run.db", resume)
            stack.callback(_close, self.storage)
            self._held = stack.pop_all()

    def __enter__(self) -> Study:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the storage and let the directory go."""
        self._held.close()

    # ------------------------------------------------------------------ opening

    def _begin(self, settled: Mapping[str, Any]) -> dict[str, Any]:
        content = {"format": FORMAT, "version": VERSION, "command": self.command, "settings": self.settings}
        more = {"settled": dict(settled), "versions": versions(), "machine": machine()}
        write_json(self.folder / "run.json", content | more)
        return dict(settled)

    def _stored(self) -> dict[str, Any]:
        """Check the stored settings and return what was settled."""
        path = self.folder / "run.json"
        content = read_json(path, FORMAT)
        stored, settled = content.get("settings"), content.get("settled")
        if not isinstance(stored, dict) or not isinstance(settled, dict):
            raise RunError(f"{path}: damaged, it has no settings; start anew in another folder")
        now = json.loads(json.dumps(self.settings))
        names = [name for name in {**now, **stored} if now.get(name) != stored.get(name)]
        if names:
            said = "; ".join(_difference(name, stored.get(name), now.get(name)) for name in names)
            raise RunError(f"{self.folder}: the run was started with {said}; give the same, or another --out")
        return settled

    # ------------------------------------------------------------------ trials

    def trial_folder(self, number: int) -> Path:
        """Return the folder of a trial."""
        return self.folder / "trials" / f"{number:04d}"

    def weights(self, number: int) -> Path:
        """Return the file of a finished trial's weights."""
        return self.trial_folder(number) / WEIGHTS

    def enter(self, number: int, candidate: Candidate) -> None:
        """Record that a candidate is asked for: as a new trial, or as the one of an earlier process.

        Raises:
            RunError: The trial of that number was another candidate.
        """
        trials = self.study.get_trials(deepcopy=False)
        if number == len(trials):
            self.study.ask()
            trials = self.study.get_trials(deepcopy=False)
        if number >= len(trials):
            raise self._damaged(f"trial {len(trials)} is missing")
        found = trials[number].user_attrs.get("candidate")
        if found is None:  # killed between the two writes
            self._note(number, "candidate", candidate.to_dict())
        elif found != json.loads(json.dumps(candidate.to_dict())):
            raise self._damaged(f"trial {number} is another candidate than the method now asks for")

    def finished(self, number: int, candidate: Candidate) -> Evidence | None:
        """Return what was found out about a candidate earlier; None if it is still to be done."""
        trial = self.study.get_trials(deepcopy=False)[number]
        if not trial.state.is_finished():
            return None
        if "evidence" not in trial.user_attrs:
            raise self._damaged(f"trial {number} is finished and has no evidence")
        evidence = Evidence.from_dict(trial.user_attrs["evidence"], candidate)
        if evidence.usable and not self.weights(number).is_file():
            raise self._damaged(f"the weights of trial {number} are missing")
        return evidence

    def finish(self, evidence: Evidence) -> None:
        """Record evidence, and remove the checkpoint that is no longer needed."""
        from optuna.trial import TrialState

        number = evidence.trial
        self._note(number, "evidence", evidence.to_dict())
        if evidence.usable:
            self.study.tell(number, evidence.score)
        else:
            self.study.tell(number, state=TrialState.FAIL)
        for file in self.trial_folder(number).glob("checkpoint*"):
            file.unlink()

    def _note(self, number: int, name: str, value: Any) -> None:
        trial = self.study.get_trials(deepcopy=False)[number]
        self.storage.set_trial_user_attr(trial._trial_id, name, value)

    def _damaged(self, what: str) -> RunError:
        return RunError(f"{self.folder}: damaged, {what}; start anew in another folder")


def _difference(name: str, then: Any, now: Any) -> str:
    if isinstance(then, dict) and isinstance(now, dict):
        inner = [key for key in {**then, **now} if then.get(key) != now.get(key)]
        return "; ".join(_difference(f"{name}.{key}", then.get(key), now.get(key)) for key in inner)
    return f"{name}={_brief(then)}, not {_brief(now)}"


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# ------------------------------------------------------------------ Optuna


def _open_storage(path: Path, resume: bool) -> tuple[optuna.storages.RDBStorage, optuna.Study]:
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    if resume and not path.is_file() and (path.parent / "trials").is_dir():
        raise RunError(f"{path}: missing; start anew in another folder")
    storage = None
    try:
        with _quiet():
            storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
            study = optuna.create_study(storage=storage, study_name=_NAME, direction="maximize", load_if_exists=True)
            study.get_trials(deepcopy=False)
    except (SQLAlchemyError, RuntimeError, AssertionError, KeyError, ValueError) as error:
        if storage is not None:
            _close(storage)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"{path}: damaged ({reason}); start anew in another folder") from error
    return storage, study


def _close(storage: optuna.storages.RDBStorage) -> None:
    storage.remove_session()
    storage.engine.dispose()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna's notice about a new study to itself; its level is the user's afterwards."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
