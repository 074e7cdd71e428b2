"""What an executor is: handed tasks, it yields evidence in any order and from anywhere. And the one in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

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


def lost(task: Task, why: str) -> Evidence:
    """Return the evidence on a candidate that was lost as often as it was begun; the search goes on without it."""
    message = f"lost {ATTEMPTS} times: {why}"
    return Evidence(task.candidate, task.number, float("nan"), 0.0, {}, status="failed", message=message)


Evaluate = Callable[[int, Candidate, Mapping[int, Candidate]], Evidence]


@dataclass(frozen=True, eq=False)
class InProcess:
    """Calls a function for one candidate after the other.

    Attributes:
        evaluate: Called with trial, candidate and the earlier candidates by number.
        threads: Threads of the function; None: as many as there are.
    """

    evaluate: Evaluate
    threads: int | None = None

    def carry_out(self, tasks: Iterable[Task]) -> Iterator[Evidence]:
        """Yield the evidence in the order of the tasks."""
        for task in tasks:
            with threads_of(self.threads):
                found = self.evaluate(task.number, task.candidate, task.parents)
            yield found

    def close(self) -> None:
        """Nothing was started."""


@contextmanager
def threads_of(count: int | None) -> Iterator[None]:
    """Have torch use so many threads inside; None: as it is."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
