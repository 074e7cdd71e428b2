"""Designs of enlarged networks: the resolution that one begins with, and one of the networks that a search tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from convwright.edits import Resolution
from convwright.edits.plan_file import edits_of
from convwright.errors import RunError
from convwright.experiments.designs.design import SEARCH_FORMAT, Form, Setting
from convwright.experiments.designs.search_design import Question, Searched
from convwright.runs.directory.files import read_json


@dataclass(frozen=True)
class At:
    """The network works on images of another size; the data are resized to it.

    Attributes:
        side: Height and width in pixels.
    """

    kind: ClassVar[str] = "at"

    side: int

    def settle(self, model: str, form: Form, setting: Setting) -> Form:
        """Return the form with this resolution."""
        return form.joined((Resolution(self.side),))


@dataclass(frozen=True)
class Tried:
    """One of the networks that a search tried, whatever the search made of it.

    Attributes:
        search: Whose trials.
        number: Which of its candidates, from 0; what it trained to begin with does not count.
        beside: Further searches that tried the same networks in another way; they are recorded with the row.
    """

    kind: ClassVar[str] = "tried"

    search: Searched
    number: int
    beside: tuple[Searched, ...] = ()

    def settle(self, model: str, form: Form, setting: Setting) -> Form:
        """Return the form with the candidate's edits at the end.

        Raises:
            RunError: The search tried fewer networks.
        """
        folders = [
            Question(each, model, form, setting).answered(each.method_for) for each in (self.search, *self.beside)
        ]
        trials = [t for t in read_json(folders[0] / "result.json", SEARCH_FORMAT)["trials"] if t["edits"]]
        if self.number >= len(trials):
            raise RunError(f"{model}: candidate {self.number} was asked for, but the search tried {len(trials)}")
        edits = edits_of([dict(edit) for edit in trials[self.number]["edits"]], "a recorded search")
        return form.joined(tuple(edits), *folders)
