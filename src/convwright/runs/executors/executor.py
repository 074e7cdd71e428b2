"""What an executor is: it is handed tasks and yields evidence, in any order and from anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from convwright.methods import Candidate, Evidence

ATTEMPTS = 5  # times that a candidate is begun whose process or machine is lost each time


@dataclass(frozen=True)
class Task:
    """A candidate to be worked on.

    Attributes:
        number: The trial.
        candidate: What to try.
        parents: The candidates of earlier trials by number.
    """

    number: int
    candidate: Candidate
    parents: Mapping[int, Candidate]


class Store(Protocol):
    """Where the weights and checkpoints of trials lie."""

    def trial_folder(self, number: int) -> Path:
        """Return the folder of a trial."""

    def weights(self, number: int) -> Path:
        """Return the file of a finished trial's weights."""


@runtime_checkable
class Executor(Protocol):
    """Works on independent candidates. Which one works where and when must not change what is found out."""

    def carry_out(self, tasks: Iterable[Task]) -> Iterator[Evidence]:
        """Yield the evidence on every task as it comes; the weights are in the run directory by then.

        Args:
            tasks: Taken one by one, each when it is about to begin.

        Raises:
            RunError: What no other attempt would change: a full disk, a network that cannot be sent, no cluster.
        """

    def close(self) -> None:
        """End what was started; what is under way is given up."""


@dataclass(frozen=True, eq=False)
class Completed:
    """An executor whose evidence gets something added here, where the driver is.

    Attributes:
        inner: What works on the candidates.
        complete: Returns the evidence with what is added.
    """

    inner: Executor
    complete: Callable[[Evidence], Evidence]

    def carry_out(self, tasks: Iterable[Task]) -> Iterator[Evidence]:
        """Yield the completed evidence."""
        return map(self.complete, self.inner.carry_out(tasks))

    def close(self) -> None:
        """Close the inner one."""
        self.inner.close()


def lost(task: Task, why: str) -> Evidence:
    """Return the evidence on a candidate that was lost as often as it was begun; the search goes on without it."""
    message = f"lost {ATTEMPTS} times: {why}"
    return Evidence(task.candidate, task.number, float("nan"), 0.0, {}, status="failed", message=message)
