"""Work side by side in processes of this machine; no process outlives the one that started it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, TypeVar

from convwright.errors import RunError
from convwright.tether import TetheredProcess

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")
_ENOUGH = 5.0  # seconds in which an idle process ends by itself


@dataclass(frozen=True)
class Lost:
    """In place of the result of a job whose process ended without a word, `how` says by what."""

    how: str


@dataclass(eq=False)
class _Worker(Generic[_Job]):
    """A process, its number among those at work, and the job that it has, with the count of attempts."""

    number: int
    process: SpawnProcess
    connection: Connection
    work: tuple[_Job, int] | None = None


class Pool(Generic[_Job, _Result]):
    """Calls a function for `size` jobs at a time, each in a process of its own.

    A process that was killed, by the system when memory is short or by a person, is replaced, and its job begun again.
    Of several GPUs each process uses one, by turns.

    Args:
        function: Other processes can import it; what it raises ends the work.
        size: Processes, each started when there is something for it.
        sent: Returns what the function gets of a job.
        attempts: Times that a job is begun whose process is lost each time.
        again: Called with a job that is about to be begun again, and with how its process ended.
    """

    def __init__(
        self,
        function: Callable[[Any], _Result],
        size: int,
        sent: Callable[[_Job], object] = lambda job: job,
        attempts: int = 1,
        again: Callable[[_Job, str], object] = lambda job, how: None,
    ) -> None:
        self.function, self.size, self.sent, self.attempts, self.again = function, size, sent, attempts, again
        self.gpus = gpus()
        # Spawned, not forked: torch's threads do not survive a fork.
        self.context = multiprocessing.get_context("spawn")
        self.workers: list[_Worker[_Job]] = []

    def results(self, jobs: Iterable[_Job]) -> Iterator[tuple[_Job, _Result | Lost]]:
        """Yield each job with its result as it comes; the processes stay for the next jobs.

        Args:
            jobs: Taken one by one, each when it is about to begin.
        """
        waiting, again = ((job, 1) for job in jobs), list[tuple[_Job, int]]()
        while True:
            self._fill(waiting, again)
            busy = {worker.connection: worker for worker in self.workers if worker.work is not None}
            if not busy:
                return
            for ready in wait(list(busy)):
                worker = busy[ready]  # type: ignore[index]  # only connections are waited for
                assert worker.work is not None
                (job, attempt), result = worker.work, self._received(worker)
                worker.work = None
                if isinstance(result, Lost) and attempt < self.attempts:
                    self.again(job, result.how)
                    again.append((job, attempt + 1))
                else:
                    yield job, result

    def close(self) -> None:
        """End all processes: idle ones by themselves, working ones at once."""
        for worker in self.workers:
            worker.connection.close()
            if worker.work is not None:
                worker.process.kill()
        for worker in list(self.workers):
            self._buried(worker)

    def _fill(self, waiting: Iterator[tuple[_Job, int]], again: list[tuple[_Job, int]]) -> None:
        """Give every process something to do, as long as there is something."""
        while True:
            idle = next((worker for worker in self.workers if worker.work is None), None)
            if idle is None and len(self.workers) >= self.size:
                return
            work = again.pop(0) if again else next(waiting, None)
            if work is None:
                return
            worker = idle or self._hired()
            worker.work = work
            try:
                worker.connection.send(self.sent(work[0]))
            except OSError:  # it was killed while it had nothing to do
                self._buried(worker)
                again.insert(0, work)

    def _hired(self) -> _Worker[_Job]:
        ours, theirs = self.context.Pipe()
        number = next(n for n in range(self.size) if n not in {worker.number for worker in self.workers})
        process = TetheredProcess(target=_serve, args=(theirs, self.function, number, self.gpus))
        worker = _Worker[_Job](number, process, ours)
        with _interrupts_held_back():
            process.start()
            self.workers.append(worker)
        theirs.close()
        return worker

    def _received(self, worker: _Worker[_Job]) -> _Result | Lost:
        try:
            answer, trace = worker.connection.recv()
        except (EOFError, OSError):
            return Lost(self._buried(worker))
        if trace is not None:
            raise answer from RuntimeError(trace)
        result: _Result = answer
        return result

    def _buried(self, worker: _Worker[_Job]) -> str:
        """Forget a process that is gone or about to go; return how it ended."""
        worker.connection.close()
        worker.process.join(_ENOUGH)
        worker.process.kill()
        worker.process.join()
        self.workers.remove(worker)
        code = worker.process.exitcode
        return f"by signal {-code}" if code is not None and code < 0 else f"with code {code}"


def in_turn_or_side_by_side(
    function: Callable[[_Job], _Result], jobs: Sequence[_Job], size: int
) -> Iterator[tuple[_Job, _Result]]:
    """Yield each job with its result as it comes: from this process, or from several.

    Args:
        function: A function of a module, so that other processes can import it.
        jobs: What to work on, in the order in which they are begun.
        size: Processes; 1: this one, in order.

    Raises:
        RunError: A process ended without a word, such as one killed for lack of memory. All others end, too.
    """
    if size == 1:
        yield from ((job, function(job)) for job in jobs)
        return
    pool: Pool[_Job, _Result] = Pool(function, size)
    try:
        for job, result in pool.results(jobs):
            if isinstance(result, Lost):
                raise RunError(
                    "a training's process ended without a word, as when memory is short; what is finished is kept: "
                    "give the command again, with fewer --jobs"
                )
            yield job, result
    finally:
        pool.close()


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Start processes that do not hear Ctrl-C, which reaches every process of a terminal: the first one decides."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def gpus() -> tuple[str, ...]:
    """Return the CUDA devices that this process sees, by the names that ``CUDA_VISIBLE_DEVICES`` takes."""
    torch = sys.modules.get("torch")  # where nobody has imported it nobody trains
    count = torch.cuda.device_count() if torch is not None else 0
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(named.split(",")[:count]) if named else tuple(map(str, range(count)))


def take_gpu(number: int, devices: Sequence[str]) -> None:
    """Let this process see one GPU, by turns; to be called before CUDA is used.

    Args:
        number: Of the process, from 0.
        devices: See `gpus`; where there are fewer than two, nothing changes.
    """
    if len(devices) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]


def _serve(connection: Connection, function: Callable[[Any], Any], number: int, devices: Sequence[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout = sys.stderr  # standard output is the driver's: what a network's code prints does not belong there
    take_gpu(number, devices)
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        try:
            connection.send((function(job), None))
        except Exception as error:
            connection.send((error, traceback.format_exc()))
