"""Progress of a training: a bar on a terminal, one line per epoch elsewhere; and a line while something takes long."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_STEPS = 10  # between two updates of the bar: drawing must not cost training time


class ProgressLine:
    """Shows steps and epochs on standard error; a context manager."""

    def __init__(self, total: int, done: int, show: bool, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.show = show
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        off = not (show and self.console.is_terminal)
        self.bar = Progress(*columns, console=self.console, transient=True, disable=off)
        self.task = self.bar.add_task("training", total=total, completed=done)

    def __enter__(self) -> ProgressLine:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def step(self, done: int) -> None:
        """Note that `done` steps are finished."""
        if done % _STEPS == 0:
            self.bar.update(self.task, completed=done)

    def line(self, text: str) -> None:
        """Write one line (above the bar)."""
        if self.show:
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)


_EVERY = 10.0  # seconds


def tell(text: str) -> None:
    """Write a line for a person to standard error."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def still(doing: str, say: Callable[[str], object], every: float = _EVERY) -> Iterator[None]:
    """Say that something is still going on, and for how long, until the block ends."""
    done, start = threading.Event(), time.monotonic()

    def tell() -> None:
        while not done.wait(every):
            say(f"still {doing} ({time.monotonic() - start:.0f} s)")

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
