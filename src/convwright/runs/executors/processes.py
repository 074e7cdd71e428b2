"""Candidates side by side in processes of this machine; one that is lost is replaced, and its candidate begun again."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from convwright.methods import Evidence
from convwright.runs.executors.executor import ATTEMPTS, Store, Task, lost
from convwright.runs.executors.worker import Setup, WorkerResult, WorkerTask, answered
from convwright.runs.executors.workers import gpus, interrupts_held_back, live_as_long_as, take_gpu

_ENOUGH = 5.0  # seconds in which an idle process ends by itself


@dataclass(eq=False)
class _Worker:
    """A process, its number among those at work, and what it is working on."""

    number: int
    process: SpawnProcess
    connection: Connection
    task: Task | None = None

    def give(self, task: Task, errand: WorkerTask) -> None:
        self.task = task
        self.connection.send(errand)

    def answer(self) -> WorkerResult | None:
        """Return the answer; None if the process is gone."""
        try:
            found: WorkerResult = self.connection.recv()
        except (EOFError, OSError):
            return None
        return found


class Processes:
    """Works on `jobs` candidates at a time, each in a process of its own.

    A process that was killed, by the system when memory is short or by a person, is replaced. Its candidate goes on
    from its last checkpoint, at most `ATTEMPTS` times; after that it has failed and the search goes on. Of several GPUs
    each process uses one, by turns.

    Args:
        jobs: Processes.
        setup: What is the same for all candidates.
        store: Where their weights lie.
        say: Called with lines for a person.

    Raises:
        RunError: Network or data cannot be sent to another process.
    """

    def __init__(self, jobs: int, setup: Setup, store: Store, say: Callable[[str], object] = lambda text: None) -> None:
        self.jobs, self.store, self.say = jobs, store, say
        self.packed, self.gpus = setup.packed(), gpus()
        # Spawned, not forked: torch's threads do not survive a fork.
        self.context = multiprocessing.get_context("spawn")
        self.ours, self.theirs = self.context.Pipe()
        self.workers: list[_Worker] = []

    def carry_out(self, tasks: Iterable[Task]) -> Iterator[Evidence]:
        """Yield evidence as it comes."""
        waiting, again = iter(tasks), list[Task]()
        attempts: Counter[int] = Counter()
        while True:
            self._fill(waiting, again)
            busy = {worker.connection: worker for worker in self.workers if worker.task is not None}
            if not busy:
                return
            for ready in wait(list(busy)):
                worker = busy[ready]  # type: ignore[index]  # only connections are waited for
                task, answer = worker.task, worker.answer()
                assert task is not None
                worker.task = None
                if answer is not None:
                    yield answer.evidence(task)
                    continue
                how = self._buried(worker)
                attempts[task.number] += 1
                if attempts[task.number] >= ATTEMPTS:
                    yield lost(task, f"its process ended {how}; memory may be short: give fewer --jobs")
                    continue
                self.say(f"trial {task.number}: its process ended {how}; begun again from its last checkpoint")
                again.append(task)

    def close(self) -> None:
        """End all processes: idle ones by themselves, working ones at once."""
        busy = any(worker.task is not None for worker in self.workers)
        if busy:
            self.ours.close()
        for worker in self.workers:
            worker.connection.close()
        for worker in self.workers:
            worker.process.join(_ENOUGH)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self.workers.clear()
        self.ours.close()
        self.theirs.close()

    def _fill(self, waiting: Iterator[Task], again: list[Task]) -> None:
        """Give every process something to do, as long as there is something."""
        while True:
            idle = next((worker for worker in self.workers if worker.task is None), None)
            if idle is None and len(self.workers) >= self.jobs:
                return
            task = again.pop(0) if again else next(waiting, None)
            if task is None:
                return
            worker = idle or self._hired()
            try:
                worker.give(task, WorkerTask.of(task, self.store.trial_folder))
            except OSError:  # it was killed while it had nothing to do
                worker.task = None
                self._buried(worker)
                again.insert(0, task)

    def _hired(self) -> _Worker:
        ours, theirs = self.context.Pipe()
        number = next(n for n in range(self.jobs) if n not in {worker.number for worker in self.workers})
        given = (theirs, self.theirs, self.packed, number, self.gpus)
        process = self.context.Process(target=_serve, args=given, daemon=True)
        with interrupts_held_back():
            process.start()
        theirs.close()
        worker = _Worker(number, process, ours)
        self.workers.append(worker)
        return worker

    def _buried(self, worker: _Worker) -> str:
        """Forget a process that is gone; return how it ended."""
        worker.connection.close()
        worker.process.join(_ENOUGH)
        worker.process.kill()
        self.workers.remove(worker)
        code = worker.process.exitcode
        return f"by signal {-code}" if code is not None and code < 0 else f"with code {code}"


def _serve(connection: Connection, lifeline: Connection, packed: bytes, number: int, devices: Sequence[str]) -> Any:
    """Do errands until there are no more."""
    live_as_long_as(lifeline)
    take_gpu(number, devices)
    while True:
        try:
            errand: WorkerTask = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(answered(packed, errand))
