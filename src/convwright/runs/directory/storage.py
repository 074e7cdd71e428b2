"""The Optuna storage of a run: a file in its directory, or a database that other machines reach, too."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from convwright.errors import RunError, first_line
from convwright.passwords import HIDDEN, public_url, secrets_of, without
from convwright.runs.directory.files import there

if TYPE_CHECKING:
    import optuna
    import sqlalchemy

NAME = "run"  # of the study in run.db
ANEW = "start anew in another folder"
_DIALECTS = ("postgresql", "sqlite")
_WRITE_WAIT = 60.0  # seconds that SQLite waits for another one's write, such as a dashboard's
# Words of databases, what they mean, and what to do.
_SAID = (
    (("database is locked", "database table is locked", "could not obtain lock", "lock timeout"),
     "locked by another process", "end that one, and continue with --resume"),
    (("disk is full", "no space left", "disk full"), "cannot be written", "free space, and continue with --resume"),
    (("no longer compatible", "table schema", "alembic", "can't locate revision"),
     "written by another version of Optuna",
     "install that version, or bring the storage up to date with `optuna storage upgrade`"),
    (("password", "could not translate host", "connection"), "the database cannot be reached",
     "check --storage, and that it runs"),
)  # fmt: skip


class Storage:
    """An open storage and the one study in it; a context manager.

    All trials are read once. What is written afterwards is kept beside it: until `refresh` nobody else writes to this
    study, and to ask the database again for every trial would cost more with each of them.

    Args:
        url: As of SQLAlchemy: ``sqlite:///...`` or ``postgresql://user@host/database``.
        name: Of the study.
        called: What it is called in messages: the file, or the URL without a password.
        remedy: What to do where it cannot be opened.
        shared: Whether other directories and machines may use it: then the study itself is kept for this process.

    Raises:
        RunError: It does not answer, is locked, damaged, of another version, or another process works at the study.
    """

    def __init__(self, url: str, name: str, called: str, remedy: str, *, shared: bool = False) -> None:
        self.named = partial(_named, called, remedy, secrets_of(url))
        self.called = called
        with ExitStack() as stack:
            self.storage = stack.enter_context(_connected(url, self.named, called))
            with self.named():
                self._lock = stack.enter_context(_owned(self.storage, name, called)) if shared else lambda: True
            with self.named(), quiet():
                import optuna

                self.study = optuna.create_study(
                    storage=self.storage, study_name=name, direction="maximize", load_if_exists=True
                )
            self.refresh()
            self._held = stack.pop_all()

    def refresh(self) -> None:
        """Read all trials anew: where several processes share a run, others have written some."""
        with self.named():
            found = _checked(self.storage.get_all_trials(self.study._study_id, deepcopy=False))
        self._trials = {trial.number: trial for trial in found}

    def close(self) -> None:
        """Let everything go."""
        self._held.close()

    def check(self) -> None:
        """See whether the study is still ours.

        Raises:
            RunError: The connection that kept it was lost: another process may have taken it.
        """
        if not self._lock():
            raise RunError(
                f"{self.called}: the connection that kept other processes out was lost; what is finished is kept: "
                "continue with --resume"
            )

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """Return all trials in the order of their numbers."""
        return list(self._trials.values())

    def trial(self, number: int) -> optuna.trial.FrozenTrial:
        """Return a trial."""
        return self._trials[number]

    def begin(self, attributes: dict[str, Any]) -> int:
        """Record a new trial with all its attributes at once; return its number."""
        from optuna.trial import TrialState, create_trial

        with self.named():
            blank = create_trial(state=TrialState.RUNNING, user_attrs=attributes)
            trial = self.storage.get_trial(self.storage.create_new_trial(self.study._study_id, template_trial=blank))
        self._trials[trial.number] = trial
        return trial.number

    def note(self, number: int, name: str, value: Any) -> None:
        """Set an attribute of a trial."""
        trial = self._trials[number]
        with self.named():
            self.storage.set_trial_user_attr(trial._trial_id, name, value)
        trial.set_user_attr(name, value)

    def note_of_study(self, name: str, value: Any) -> None:
        """Set an attribute of the study."""
        with self.named():
            self.study.set_user_attr(name, value)

    def notes_of_study(self) -> dict[str, Any]:
        """Return the attributes of the study."""
        with self.named():
            return self.study.user_attrs

    def tell(self, number: int, score: float | None, *, pruned: bool = False) -> None:
        """Finish a trial.

        Args:
            number: The trial.
            score: What it was found to be worth; None: it failed.
            pruned: Whether it was only the first part of a training: the score is not to be compared with others'.
        """
        from optuna.trial import TrialState

        trial = self._trials[number]
        state = TrialState.FAIL if score is None else TrialState.PRUNED if pruned else TrialState.COMPLETE
        with self.named():
            if pruned and score is not None:
                self.storage.set_trial_intermediate_value(trial._trial_id, 1, score)
            self.storage.set_trial_state_values(trial._trial_id, state, None if score is None else [score])
        trial.state = state


def read_trials(folder: Path, where: Mapping[str, Any] | None, url: str | None = None) -> list[dict[str, Any]]:
    """Return the attributes of a run's trials, in order of their numbers; nothing is written anywhere.

    Args:
        folder: The run directory.
        where: What its ``run.json`` says about its storage; None: the trials are in ``run.db``.
        url: Of that storage, with its password; None: as recorded, the password being asked for as psycopg does.

    Raises:
        RunError: It is missing, damaged or does not answer; names it.
    """
    file = folder / "run.db"
    check_storage(folder, where, url)
    if where is None and not check_file(folder):
        return []
    url = url or (str(where["url"]) if where else f"sqlite:///{file}")
    called, name = (check_url(url), str(where["study"])) if where else (str(file), NAME)
    remedy = "give the --storage of this run" if where else ANEW
    named = partial(_named, called, remedy, secrets_of(url))
    with _connected(url, named, called, reading=True) as storage, named(), quiet():
        study = storage.get_study_id_from_name(name)
        found = [dict(trial.user_attrs) for trial in _checked(storage.get_all_trials(study, deepcopy=False))]
    if not found and there(folder / "trials"):
        raise RunError(f"{called}: has no trials of study {name!r}; {remedy}")
    return found


def check_storage(folder: Path, where: Mapping[str, Any] | None, url: str | None) -> None:
    """Refuse a storage for a run that keeps its trials in its own directory.

    Raises:
        RunError: It is one.
    """
    if where is None and url is not None:
        raise RunError(f"{folder}: the trials of this run are in {folder / 'run.db'}; leave --storage out")


def check_file(folder: Path) -> bool:
    """Return whether there is a ``run.db``.

    Raises:
        RunError: There is none, or an empty one, in a directory of a run that has begun trials.
    """
    file = folder / "run.db"
    if file.is_file() and file.stat().st_size:
        return True
    if there(file) and not file.is_file():
        raise RunError(f"{file}: not a file that can be read; {ANEW}")
    if any(there(folder / name) for name in ("trials", "result.json")):
        raise RunError(f"{file}: {'empty' if there(file) else 'missing'}; {ANEW}")
    return False


def _checked(trials: list[optuna.trial.FrozenTrial]) -> list[optuna.trial.FrozenTrial]:
    """Refuse, by a ValueError or a TypeError, trials that no run wrote: a database may hold anything."""
    for number, trial in enumerate(trials):
        if trial.number != number:
            raise ValueError(f"trial {number} is missing")
        for name in ("candidate", "evidence", "place"):
            if not isinstance(trial.user_attrs.get(name, {}), dict):
                raise TypeError(f"the {name} of trial {number} is no object")
    return trials


@contextmanager
def _named(called: str, remedy: str, secrets: tuple[str, ...]) -> Iterator[None]:
    """Say in one line what a database says in many, and what to do."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    kinds = (SQLAlchemyError, StorageInternalError, sqlite3.Error, OSError, RuntimeError, AssertionError)
    try:
        yield
    # What lies in a damaged database may be of any type.
    except (*kinds, LookupError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise _explained(error, called, remedy, secrets) from error


@contextmanager
def _connected(
    url: str, named: Callable[[], AbstractContextManager[None]], called: str, *, reading: bool = False
) -> Iterator[optuna.storages.RDBStorage]:
    """Open a database, for reading only if that is all that is wanted; closed at the end."""
    import optuna
    from sqlalchemy.engine import make_url

    if url.startswith("postgresql://"):  # which driver that means differs between versions of SQLAlchemy
        url = url.replace("postgresql://", "postgresql+psycopg://", 1)
    file = make_url(url).database if url.startswith("sqlite") else None
    options: dict[str, Any] = {"connect_args": {"timeout": _WRITE_WAIT}} if file else {"pool_pre_ping": True}
    if reading and file:
        address = f"{Path(file).resolve().as_uri()}?mode=ro"
        url, options = "sqlite://", {"creator": lambda: sqlite3.connect(address, uri=True, timeout=_WRITE_WAIT / 6)}
    elif reading:
        options["connect_args"] = {"options": "-c default_transaction_read_only=on"}
    try:
        with named(), quiet():
            storage = optuna.storages.RDBStorage(url, engine_kwargs=options, skip_table_creation=reading)
    except ImportError as error:
        raise RunError(
            f"{called}: no driver for this database is installed; pip install 'convwright[postgresql]'"
        ) from error
    try:
        with _quick_journal(storage.engine) if file and not reading else nullcontext():
            yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


@contextmanager
def _quick_journal(engine: sqlalchemy.Engine) -> Iterator[None]:
    """Have SQLite empty its journal after each write, and remove it only at the end.

    As safe as to remove it each time, and several times as fast: 6 ms a write instead of 31 on a virtual disk.
    """
    from sqlalchemy import event
    from sqlalchemy.exc import SQLAlchemyError

    @event.listens_for(engine, "connect")
    def _set(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA journal_mode = TRUNCATE")

    engine.dispose()  # the connections from before
    try:
        yield
    finally:
        with suppress(SQLAlchemyError), engine.connect() as connection:  # else an empty file is left, which is harmless
            connection.exec_driver_sql("PRAGMA journal_mode = DELETE")


def _explained(error: Exception, called: str, remedy: str, secrets: tuple[str, ...]) -> RunError:
    chain = [error, *([error.__cause__] if error.__cause__ is not None else [])]
    text = " ".join(str(each) for each in chain)
    reason = without(first_line(chain[-1]), secrets)
    known = text.lower()
    what, advice = next((said for words, *said in _SAID if any(word in known for word in words)), ("damaged", remedy))
    return RunError(f"{called}: {what} ({reason}); {advice}")


def check_url(url: str) -> str:
    """Return how a storage is called: its URL without a password.

    Raises:
        RunError: It is not a URL of a database that a run can be recorded in.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    called = public_url(url)
    try:
        made = None if called.endswith(f"://{HIDDEN}") else make_url(url)
    except (ArgumentError, ValueError):
        made = None
    backend = made.get_backend_name() if made is not None else ""
    if made is None or (backend == "sqlite" and made.host):  # what it says may be a password
        raise RunError(
            "--storage: not the URL of a database; write it like postgresql://user@host:5432/runs (in a password, "
            "@ is %40 and : is %3A, or leave it out and set PGPASSWORD)"
        )
    if backend not in _DIALECTS:
        raise RunError(f"--storage: {backend} is not known; give postgresql://... or sqlite:///FILE")
    return called


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna's notices to itself: what is wrong is raised, too; its level is the user's afterwards."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _owned(storage: optuna.storages.RDBStorage, name: str, called: str) -> Iterator[Any]:
    """Keep other drivers out of a study, on whatever machine; yields what tells whether we still do."""
    engine = storage.engine
    number = int.from_bytes(hashlib.sha256(f"convwright {name}".encode()).digest()[:8], "big") >> 1  # 63 bits
    busy = RunError(f"{called}: another process is working at study {name!r}; wait for it, or start anew with --out")
    if engine.dialect.name != "sqlite":
        with _advisory(engine, number, busy) as held:
            yield held
        return
    file = engine.url.database
    lock: AbstractContextManager[object] = (
        filelock.FileLock(f"{file}.{number:x}.lock", timeout=0) if file else nullcontext()
    )
    try:
        with lock:
            yield lambda: True
    except filelock.Timeout as error:
        raise busy from error


@contextmanager
def _advisory(engine: Any, key: int, busy: RunError) -> Iterator[Any]:
    """Hold an advisory lock of PostgreSQL: the server frees it as soon as the connection ends, by any kill."""
    from sqlalchemy import text
    from sqlalchemy.exc import SQLAlchemyError

    connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    try:
        if not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}).scalar():
            raise busy

        def held() -> bool:
            try:
                found = connection.execute(
                    text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()")
                )
                return bool(found.scalar())
            except SQLAlchemyError:
                return False

        yield held
    finally:
        connection.invalidate()  # closed, not given back to the pool: that would keep the lock
        connection.close()
