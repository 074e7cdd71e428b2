"""Which recorded trial is which of the candidates that a method asks for.

A method numbers its candidates from 0. With another budget it asks for others, so that a number alone says nothing:
each trial is recorded with a key of all that its result depends on, and with its number in each course that it is part
of.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from convwright.errors import RunError
from convwright.methods import Candidate
from convwright.runs.directory.storage import Storage

CHANGEABLE = ("budget", "limits", "time")  # settings that may be others when a run is resumed
_ADOPTED = "adopted"  # adopted.COURSE.NUMBER: a candidate of that course is a trial that another one began
_NO_MATTER = ("parent", "role")  # the parent counts by its own content; the role is what the method calls it


class TrialIndex:
    """The trials of one course of a run.

    Args:
        storage: Where all trials are recorded.
        course: The number of the course.
        damaged: Makes the error for a record that cannot be.
    """

    def __init__(self, storage: Storage, course: int, damaged: Callable[[str], RunError]) -> None:
        self.storage, self.course, self.damaged = storage, str(course), damaged
        self._blank: list[int] = []  # begun by a process that was killed before it said what for
        self._places: dict[int, dict[str, Any]] = {}  # by record
        self._alike: dict[str, list[int]] = {}  # records by key
        self._records: dict[int, int] = {}  # by number in this course
        self._keys: dict[int, str] = {}  # likewise, of what is asked for now
        self._asked: Counter[str] = Counter()
        self._end = 0  # the number after the last one in this course
        try:
            self._read()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self.damaged(f"its trials cannot be understood ({type(error).__name__}: {error})") from error

    def record(self, number: int) -> int:
        """Return the number under which a candidate is recorded."""
        return self._records.get(number, number)

    def enter(self, number: int, candidate: Candidate) -> None:
        """Find or make the record of a candidate.

        Raises:
            RunError: This number was another candidate.
        """
        key = self._key(number, candidate)
        known = self._records.get(number)
        if known is not None:
            if self._places[known]["key"] != key:
                raise self.damaged(f"trial {number} is another candidate than the method now asks for")
            return
        if number < self._end:
            raise self.damaged(f"trial {number} is missing")
        alike = self._alike.get(key, ())
        found = next((record for record in alike if self.course not in self._places[record]["courses"]), None)
        if found is None:
            found = self._begun(key, number, candidate)
        else:
            # Of the study, since a finished trial of Optuna's stays as it is.
            self.storage.note_of_study(f"{_ADOPTED}.{self.course}.{number}", found)
            self._places[found]["courses"][self.course] = number
        self._records[number] = found
        self._end = number + 1

    def _begun(self, key: str, number: int, candidate: Candidate) -> int:
        place = {"key": key, "course": self.course, "number": number}
        attributes = {"candidate": candidate.to_dict(), "place": place}
        if self._blank:
            found = self._blank.pop(0)
            for name, value in attributes.items():
                self.storage.note(found, name, value)
        else:
            found = self.storage.begin(attributes)
        self._place(found, place)
        return found

    def _place(self, record: int, place: Mapping[str, Any]) -> None:
        self._places[record] = {"key": place["key"], "courses": {place["course"]: place["number"]}}
        self._alike.setdefault(place["key"], []).append(record)

    def _key(self, number: int, candidate: Candidate) -> str:
        """Return the key of a candidate; the same content asked for again in one course is another trial."""
        origin = None if candidate.parent is None else self._keys.get(candidate.parent, str(candidate.parent))
        content = key_of(candidate.to_dict(), origin)
        before = self._keys.get(number, "")
        if before.partition("-")[0] == content:  # told again from the beginning, in one process
            return before
        self._asked[content] += 1
        times = self._asked[content]
        self._keys[number] = content if times == 1 else f"{content}-{times}"
        return self._keys[number]

    def _read(self) -> None:
        """Read the places of all records; older runs have none: they took one course, in order."""
        keys, seen = dict[int, str](), Counter[str]()
        for trial in self.storage.trials():
            candidate, place = trial.user_attrs.get("candidate"), trial.user_attrs.get("place")
            if candidate is None:
                self._blank.append(trial.number)
                continue
            if place is None:
                origin = candidate.get("parent")
                key = key_of(candidate, None if origin is None else keys.get(origin, str(origin)))
                times = seen[key] + 1
                place = {"key": key if times == 1 else f"{key}-{times}", "course": "0", "number": trial.number}
            keys[trial.number] = place["key"]
            seen[place["key"].partition("-")[0]] += 1
            self._place(trial.number, place)
        for name, record in self.storage.notes_of_study().items():
            kind, _, where = name.partition(".")
            if kind == _ADOPTED:
                course, _, number = where.partition(".")
                self._places[record]["courses"][course] = int(number)
        self._records = {
            place["courses"][self.course]: record
            for record, place in self._places.items()
            if self.course in place["courses"]
        }
        self._end = max(self._records, default=-1) + 1


def key_of(candidate: dict[str, Any], parent: str | None) -> str:
    """Return a digest of all that the result of a candidate depends on.

    Args:
        candidate: As `Candidate.to_dict` gives it.
        parent: The key of the candidate whose weights it gets.
    """
    content = {name: value for name, value in candidate.items() if name not in _NO_MATTER}
    text = json.dumps({**content, "parent": parent}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
