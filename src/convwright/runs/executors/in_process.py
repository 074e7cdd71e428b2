"""One candidate after the other, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from convwright.methods import Candidate, Evidence
from convwright.runs.executors.executor import Task

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
