"""Work side by side in processes of its own; no process outlives the one that started it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.sharedctypes import Synchronized
from typing import TypeVar

from convwright.errors import RunError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_turn_or_side_by_side(
    function: Callable[[_Item], _Result], items: Sequence[_Item], jobs: int
) -> Iterator[tuple[_Item, _Result]]:
    """Yield each item with its result as it comes: from this process, or from `jobs` processes.

    Args:
        function: A function of a module, so that other processes can import it.
        items: What to work on, in the order in which they are begun.
        jobs: Processes; 1: this one, in order.

    Raises:
        RunError: A process ended without a word, such as one killed for lack of memory. All others end, too.
    """
    if jobs == 1:
        for item in items:
            yield item, function(item)
        return
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    try:
        begun = (theirs, context.Value("i", 0), gpus())
        with ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=begun) as pool:
            try:
                with interrupts_held_back():  # what was held back is raised at its end
                    futures = {pool.submit(function, item): item for item in items}
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BaseException:  # Ctrl-C too: what runs is stopped at once, and goes on from its checkpoint
                ours.close()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except BrokenProcessPool as error:
        raise RunError(
            "a training's process ended without a word, as when memory is short; what is finished is kept: "
            "give the command again, with fewer --jobs"
        ) from error
    finally:
        ours.close()
        theirs.close()


@contextmanager
def interrupts_held_back() -> Iterator[None]:
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


def _begin(lifeline: Connection, begun: Synchronized[int], devices: Sequence[str]) -> None:
    live_as_long_as(lifeline)
    with begun.get_lock():
        number = begun.value
        begun.value += 1
    take_gpu(number, devices)


def live_as_long_as(connection: Connection) -> None:
    """Begin a worker: it ends as soon as the other side of the connection is gone, by Ctrl-C or by any kill."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        wait([connection])
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
