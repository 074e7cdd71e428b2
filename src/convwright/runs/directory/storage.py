"""The Optuna storage of a run: a file in its directory, or a database that other machines reach, too."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from convwright.errors import RunError

if TYPE_CHECKING:
    import optuna

_DIALECTS = ("postgresql", "sqlite")
_WRITE_WAIT = 60.0  # seconds that SQLite waits for another one's write, such as a dashboard's
_BUSY = ("database is locked", "database table is locked", "could not obtain lock", "lock timeout")
_FULL = ("disk is full", "no space left", "disk full")
_VERSION = ("no longer compatible", "table schema", "alembic", "can't locate revision")


class Storage:
    """An open storage and the one study in it; a context manager.

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
        self.called, self.remedy = called, remedy
        with ExitStack() as stack:
            self.storage = self._opened(url)
            stack.callback(self.storage.engine.dispose)
            stack.callback(self.storage.remove_session)
            self._lock = stack.enter_context(_owned(self.storage, name, called)) if shared else lambda: True
            with self.named(), quiet():
                import optuna

                self.study = optuna.create_study(
                    storage=self.storage, study_name=name, direction="maximize", load_if_exists=True
                )
                self.study.get_trials(deepcopy=False)
            self._held = stack.pop_all()

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
        with self.named():
            return self.study.get_trials(deepcopy=False)

    def begin(self, attributes: dict[str, Any]) -> int:
        """Record a new trial with all its attributes at once; return its number."""
        from optuna.trial import TrialState, create_trial

        with self.named():
            blank = create_trial(state=TrialState.RUNNING, user_attrs=attributes)
            identity = self.storage.create_new_trial(self.study._study_id, template_trial=blank)
            return self.storage.get_trial(identity).number

    def note(self, number: int, name: str, value: Any) -> None:
        """Set an attribute of a trial."""
        trial = self.trials()[number]
        with self.named():
            self.storage.set_trial_user_attr(trial._trial_id, name, value)

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

        with self.named():
            if score is None:
                self.study.tell(number, state=TrialState.FAIL)
            elif pruned:
                trial = self.study.get_trials(deepcopy=False)[number]
                self.storage.set_trial_intermediate_value(trial._trial_id, 1, score)
                self.study.tell(number, state=TrialState.PRUNED)
            else:
                self.study.tell(number, score)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Say in one line what a database says in many.

        Raises:
            RunError: Names the storage, what is wrong with it and what to do.
        """
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (SQLAlchemyError, StorageInternalError, RuntimeError, AssertionError, KeyError, ValueError) as error:
            raise _explained(error, self.called, self.remedy) from error

    def _opened(self, url: str) -> optuna.storages.RDBStorage:
        import optuna

        if url.startswith("postgresql://"):  # which driver that means differs between versions of SQLAlchemy
            url = url.replace("postgresql://", "postgresql+psycopg://", 1)
        sqlite = url.startswith("sqlite")
        options = {"connect_args": {"timeout": _WRITE_WAIT}} if sqlite else {"pool_pre_ping": True}
        try:
            with self.named(), quiet():
                return optuna.storages.RDBStorage(url, engine_kwargs=options)
        except ImportError as error:
            raise RunError(
                f"{self.called}: no driver for this database is installed; pip install 'convwright[postgresql]'"
            ) from error


def _explained(error: Exception, called: str, remedy: str) -> RunError:
    chain = [error, *([error.__cause__] if error.__cause__ is not None else [])]
    text = " ".join(str(each) for each in chain)
    reason = (str(chain[-1]).strip().splitlines() or [type(error).__name__])[0]
    known = text.lower()
    if any(word in known for word in _BUSY):
        return RunError(f"{called}: locked by another process ({reason}); end that one, and continue with --resume")
    if any(word in known for word in _FULL):
        return RunError(f"{called}: cannot be written ({reason}); free space, and continue with --resume")
    if any(word in known for word in _VERSION):
        return RunError(
            f"{called}: written by another version of Optuna ({reason}); install that version, or bring the storage "
            "up to date with `optuna storage upgrade`"
        )
    if "password" in known or "could not translate host" in known or "connection" in known:
        return RunError(f"{called}: the database cannot be reached ({reason}); check --storage, and that it runs")
    return RunError(f"{called}: damaged ({reason}); {remedy}")


def check_url(url: str) -> str:
    """Return how a storage is called: its URL without a password.

    Raises:
        RunError: It is not a URL of a database that a run can be recorded in.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        made = make_url(url)
    except ArgumentError as error:
        raise RunError(
            f"--storage {url}: not the URL of a database; write it like postgresql://user@host:5432/runs"
        ) from error
    if made.get_backend_name() not in _DIALECTS:
        raise RunError(f"--storage: {made.get_backend_name()} is not known; give postgresql://... or sqlite:///FILE")
    return made._replace(password=None).render_as_string()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna's notice about a new study to itself; its level is the user's afterwards."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


# ------------------------------------------------------------------ one driver per study


@contextmanager
def _owned(storage: optuna.storages.RDBStorage, name: str, called: str) -> Iterator[Any]:
    """Keep other drivers out of a study, on whatever machine; yields what tells whether we still do.

    Raises:
        RunError: Another process works at it.
    """
    engine = storage.engine
    busy = RunError(f"{called}: another process is working at study {name!r}; wait for it, or start anew with --out")
    if engine.dialect.name == "sqlite":
        file = engine.url.database
        if not file:
            yield lambda: True
            return
        lock = filelock.FileLock(Path(f"{file}.{_number(name):x}.lock"), timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise busy from error
        try:
            yield lambda: True
        finally:
            lock.release()
        return
    with _advisory(engine, _number(name)) as held:
        if held is None:
            raise busy
        yield held


@contextmanager
def _advisory(engine: Any, key: int) -> Iterator[Any]:
    """Hold an advisory lock of PostgreSQL: the server frees it as soon as the connection ends, by any kill."""
    from sqlalchemy import text
    from sqlalchemy.exc import SQLAlchemyError

    connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    try:
        if not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}).scalar():
            yield None
            return

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


def _number(name: str) -> int:
    """Return 63 bits that stand for a study."""
    return int.from_bytes(hashlib.sha256(f"convwright {name}".encode()).digest()[:8], "big") >> 1
