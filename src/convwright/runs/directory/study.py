"""The record of a run: one directory, one Optuna study, one process at a time.

Layout::

    run.json              the settings that the run was started with, how it judges, versions and machine
    run.db                Optuna's SQLite storage: one trial per candidate, plan and evidence as attributes
    initial.safetensors   the weights that the run started from
    trials/0003/          weights of a finished trial; the training checkpoint of an unfinished one
    decisions.json        what the method has decided so far, for a report on the way
    plan.json model.safetensors result.json   the result, once it is proved
    front/0012/           the same three of each network that a Pareto search trained to the end
    earlier/0/            the result for another budget or time, before it was changed

A run that is continued with another budget or time takes another course: its method asks for other candidates. Each
course numbers them anew; one that was tried in another course is found again by its content, and not tried again.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from convwright.errors import RunError
from convwright.methods import Candidate, Evidence
from convwright.passwords import public_command, public_url
from convwright.runs.directory.files import LOCK, owned, read_json, refuse_file, there, write_json
from convwright.runs.directory.provenance import JUDGEMENT, machine, versions
from convwright.runs.directory.storage import ANEW, NAME, Storage, check_file, check_storage, check_url
from convwright.runs.directory.trial_index import CHANGEABLE, TrialIndex
from convwright.training.recipe.recipe import Recipe

FORMAT = "convwright run"
VERSION = 1
DECISIONS = "decisions.json"
DECISIONS_FORMAT = "convwright decisions"
WEIGHTS = "model.safetensors"
# First what says that all are whole.
_RESULT = ("result.json", "plan.json", WEIGHTS, DECISIONS, "networks.json", "report.html", "front")


def check_folder(folder: Path, resume: bool) -> None:
    """Refuse a directory before any work is done.

    Raises:
        RunError: It holds something and `resume` is off, or holds no run and `resume` is on.
    """
    refuse_file(folder)
    if resume and not there(folder / "run.json"):
        raise RunError(f"{folder}: no run to resume (there is no run.json); start without --resume")
    # A process that was killed before it wrote anything leaves only its lock.
    if not resume and folder.is_dir() and any(p.name != LOCK for p in folder.iterdir()):
        hint = "continue it with --resume, or" if there(folder / "run.json") else "it is not empty:"
        raise RunError(f"{folder}: already exists; {hint} choose another folder with --out")


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the content of ``run.json``.

    Raises:
        RunError: It is missing or damaged.
    """
    content = read_json(folder / "run.json", FORMAT)
    where = content.get("storage", {"url": "", "study": ""})
    if not all(isinstance(where.get(name), str) for name in ("url", "study")):
        raise RunError(f"{folder / 'run.json'}: damaged, it has no URL of its storage; {ANEW}")
    if not all(isinstance(course, dict) for course in content.get("courses", ())):
        raise RunError(f"{folder / 'run.json'}: damaged, its courses are no objects; {ANEW}")
    return content


def trial_folder(folder: Path, record: int) -> Path:
    """Return the folder of a trial by the number under which it is recorded."""
    return folder / "trials" / f"{record:04d}"


class Study:
    """A run directory that this process owns; a context manager.

    Args:
        folder: The directory; made if it is not there.
        settings: Plain JSON values that the results depend on. A resumed run must have the same; only ``budget``,
            ``limits`` and ``time`` may be others.
        resolve: Returns what a new run settles once for all trials, by measurement: plain JSON values. A
            resumed run keeps what was settled.
        resume: Continue the run that is there.
        command: How to name this run to a person.
        storage: URL of a database for the trials; None: ``run.db`` in the directory.
        join: Seconds to wait for other processes, which share the directory: each works at it in its `turn`. The run is
            continued if it is there, whoever began it. None: the directory is this process's alone.

    Raises:
        RunError: Another process owns it; it is damaged; it was started with other settings, or judged by another
            version; the database does not answer.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        resolve: Callable[[], Mapping[str, Any]] = dict,
        *,
        resume: bool = False,
        command: str = "",
        storage: str | None = None,
        join: float | None = None,
    ) -> None:
        if join is None:
            check_folder(folder, resume)
        called = check_url(storage) if storage is not None else None
        settled = {} if resume else resolve()  # before the folder is made: what fails here leaves nothing behind
        self.folder, self._patience = folder, join or 0
        self.command = public_command(command)
        with ExitStack() as stack:
            first = stack.enter_context(ExitStack())
            first.enter_context(owned(folder, self._patience))
            resume = resume if join is None else there(folder / "run.json")
            check_folder(folder, resume)  # another process may just have finished its run here
            self.settings = dict(settings)
            content = self._stored() if resume else self._begun(settled, called)
            self.settled: dict[str, Any] = content["settled"]
            try:
                self._storage = self._opened(content, storage, called, resume, shared=join is None)
            except RunError:
                if not resume:  # nothing has begun: the same command works as soon as the database answers
                    for name in ("run.json", "run.db", "run.db-journal"):
                        (folder / name).unlink(missing_ok=True)
                raise
            stack.callback(self._storage.close)
            self._number = self._course(content, resume)
            self._courses = TrialIndex(self._storage, self._number, self._damaged)
            if join is not None:
                first.close()
            self._held = stack.pop_all()
        self.storage, self.study = self._storage.storage, self._storage.study

    def __enter__(self) -> Study:
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    @contextmanager
    def turn(self) -> Iterator[Study]:
        """Work at a shared record, as the others have left it, and keep them out meanwhile."""
        with owned(self.folder, self._patience):
            self._storage.refresh()
            self._courses = TrialIndex(self._storage, self._number, self._damaged)
            yield self

    def _begun(self, settled: Mapping[str, Any], called: str | None) -> dict[str, Any]:
        content = {"format": FORMAT, "version": VERSION, "judgement": JUDGEMENT, "command": self.command}
        more = {"settings": self.settings, "settled": dict(settled), "versions": versions(), "machine": machine()}
        where = {"storage": {"url": called, "study": f"convwright-{uuid.uuid4().hex[:12]}"}} if called else {}
        write_json(self.folder / "run.json", content | more | where)
        return content | more | where

    def _stored(self) -> dict[str, Any]:
        """Check the stored settings and return all that is stored."""
        content = read_settings(self.folder)
        stored = content["settings"]
        now = json.loads(json.dumps(self.settings))
        now, stored = _with_whole_recipe(now), _with_whole_recipe(stored)
        names = [name for name in {**now, **stored} if now.get(name) != stored.get(name) and name not in CHANGEABLE]
        if names:
            said = "; ".join(_difference(name, stored.get(name), now.get(name)) for name in names)
            raise RunError(f"{self.folder}: the run was started with {said}; give the same, or another --out")
        judged = content.get("judgement", 1)
        finished = there(self.folder / "result.json") and all(now.get(n) == stored.get(n) for n in CHANGEABLE)
        if judged != JUDGEMENT and not finished:
            raise RunError(
                f"{self.folder}: its networks were judged by version {judged} of the judgement, and this convwright "
                f"has version {JUDGEMENT}: such scores do not compare; start anew in another folder, or continue with "
                "the version of convwright that began it"
            )
        return content

    def _opened(
        self, content: Mapping[str, Any], url: str | None, called: str | None, resume: bool, *, shared: bool
    ) -> Storage:
        """Open the storage that the run was started with."""
        where = content.get("storage")
        file = self.folder / "run.db"
        check_storage(self.folder, where, url)
        if not where:
            if resume:
                check_file(self.folder)
            opened = Storage(f"sqlite:///{file}", NAME, str(file), ANEW)
        elif url is None or called is None:
            asked = public_url(where["url"])
            raise RunError(f"{self.folder}: the trials of this run are in {asked}; give it with --storage")
        else:
            opened = Storage(url, where["study"], called, ANEW, shared=shared)
        if resume and not opened.trials() and there(self.folder / "trials"):
            opened.close()
            name, remedy = (where["study"], "give the --storage of this run") if where else (NAME, ANEW)
            raise RunError(f"{called or file}: has no trials of study {name!r}; {remedy}")
        return opened

    def _course(self, content: dict[str, Any], resume: bool) -> int:
        """Return the number of the course with these budgets and this time; put results of another one aside."""
        changeable = [name for name in CHANGEABLE if name in {**self.settings, **content["settings"]}]
        of = (self.settings, content["settings"], *(content.get("courses") or [content["settings"]]))
        wanted, before, *known = json.loads(json.dumps([{name: each.get(name) for name in changeable} for each in of]))
        if resume:
            self._clean()
        if wanted == before:
            return int(known.index(wanted)) if wanted in known else 0
        self._put_aside(known.index(before) if before in known else 0)
        known = known if wanted in known else [*known, wanted]
        write_json(self.folder / "run.json", {**content, "settings": self.settings, "courses": known})
        return int(known.index(wanted))

    def _put_aside(self, course: int) -> None:
        aside = self.folder / "earlier" / str(course)
        for name in _RESULT:
            if (self.folder / name).exists():
                aside.mkdir(parents=True, exist_ok=True)
                if (aside / name).is_dir():  # a folder is not replaced by another, as a file is
                    shutil.rmtree(aside / name)
                (self.folder / name).replace(aside / name)

    def _clean(self) -> None:
        """Remove what killed processes were writing."""
        for file in (*self.folder.glob(".*"), *self.folder.glob("trials/*/.*")):
            if re.fullmatch(r"\..+\.\d+", file.name):
                with suppress(OSError):
                    file.unlink()

    def trial_folder(self, number: int) -> Path:
        """Return the folder of a trial."""
        return trial_folder(self.folder, self._courses.record(number))

    def weights(self, number: int) -> Path:
        """Return the file of a finished trial's weights."""
        return self.trial_folder(number) / WEIGHTS

    def enter(self, number: int, candidate: Candidate) -> None:
        """Record that a candidate is asked for: as a new trial, or as one of an earlier process or course.

        Raises:
            RunError: The trial of that number was another candidate.
        """
        self._storage.check()
        self._courses.enter(number, candidate)

    def finished(self, number: int, candidate: Candidate) -> Evidence | None:
        """Return what was found out about a candidate earlier; None if it is still to be done."""
        trial = self._storage.trial(self._courses.record(number))
        done = trial.state.is_finished()
        if "evidence" not in trial.user_attrs:
            if done:
                raise self._damaged(f"trial {number} is finished and has no evidence")
            return None
        try:
            evidence = replace(Evidence.from_dict(trial.user_attrs["evidence"], candidate), trial=number)
        except RunError as error:
            raise self._damaged(f"trial {number}: {error}") from error
        if evidence.usable and not self.weights(number).is_file():
            raise RunError(f"{self.weights(number)}: damaged, the weights of trial {number} are missing; {ANEW}")
        if not done:  # killed between the two writes
            self._told(evidence)
        return evidence

    def finish(self, evidence: Evidence) -> None:
        """Record evidence, and remove the checkpoint that is no longer needed."""
        self._storage.check()
        self._storage.note(self._courses.record(evidence.trial), "evidence", evidence.to_dict())
        self._told(evidence)

    def decided(self, decisions: Sequence[Mapping[str, Any]], log: Sequence[str]) -> None:
        """Record what the method has decided so far: of a run that is not finished nothing else tells it.

        Args:
            decisions: As JSON values.
            log: The same in sentences, also of methods that say no more.
        """
        content = {"format": DECISIONS_FORMAT, "version": VERSION, "decisions": list(decisions), "log": list(log)}
        write_json(self.folder / DECISIONS, content)

    def _told(self, evidence: Evidence) -> None:
        # Before it is told: a trial that is told is not looked at again.
        for file in self.trial_folder(evidence.trial).glob("checkpoint*"):
            file.unlink()
        score = evidence.score if evidence.usable else None
        self._storage.tell(self._courses.record(evidence.trial), score, pruned=evidence.candidate.short)

    def _damaged(self, what: str) -> RunError:
        return RunError(f"{self._storage.called}: damaged, {what}; {ANEW}")


def _with_whole_recipe(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings whose recipe has all fields: a recorded one lacks those that have been added since."""
    recipe = settings.get("recipe")
    return {**settings, "recipe": Recipe.completed(recipe)} if isinstance(recipe, dict) else settings


def _difference(name: str, then: Any, now: Any) -> str:
    if isinstance(then, dict) and isinstance(now, dict):
        inner = [key for key in {**then, **now} if then.get(key) != now.get(key)]
        return "; ".join(_difference(f"{name}.{key}", then.get(key), now.get(key)) for key in inner)
    return f"{name}={_brief(then)}, not {_brief(now)}"


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
