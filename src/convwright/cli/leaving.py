"""How the command line leaves: exit codes, one line per error or warning, and what to type after Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from convwright.errors import ConvwrightError
from convwright.passwords import public_command, public_words

_err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
_CTRL_C = 130
_LONGEST = 2_000  # characters of a message: what a person gave stands in it
_leave_at_once = os._exit
_arguments: list[str] = []  # of this call, without --debug: what the record and the resume command name
_again: list[Callable[[], str]] = []  # what goes on after Ctrl-C, the innermost last


class _InterruptedError(Exception):
    """Ctrl-C, with the command that goes on; empty if there is nothing to continue."""


def say(text: str) -> None:
    """Write one line for a person to standard error, without passwords."""
    _err.print(public_command(text))


def one_line(message: object) -> str:
    """Return a message in one line without anything that a terminal would obey; of a very long one, its two ends."""
    text = " ".join(str(message).split())
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


def words() -> tuple[str, ...]:
    """Return the words of this call."""
    return tuple(_arguments)


def command() -> str:
    """Return this call as it was typed, without passwords."""
    return public_words(["convwright", *_arguments])


@contextmanager
def resumable(folder: Path | None, command: str, flag: str = "--resume") -> Iterator[None]:
    """Turn Ctrl-C into the command that continues the work in a folder: with `flag`, or the same where it is empty."""

    def again() -> str:
        started = folder is not None and any((folder / name).exists() for name in ("run.json", "checkpoint.pt", "rows"))
        return "" if not started else command if not flag or flag in command.split() else f"{command} {flag}"

    _again.append(again)
    try:
        yield
    except KeyboardInterrupt as error:
        raise _InterruptedError(again()) from error
    finally:
        _again.remove(again)


@contextmanager
def exits_of_others() -> Iterator[None]:
    """Turn an exit that a network's own code asks for into an error: the command has not done what it should.

    Raises:
        ConvwrightError: Names the line.
    """
    process, leave = os.getpid(), os._exit

    def ask(status: int) -> NoReturn:
        if os.getpid() != process:  # a process that was forked from this one
            leave(status)
        raise SystemExit(status)

    os._exit = ask
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # rich: nobody reads the output to its end, as with `| head`
            raise
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.name not in ("ask", "__call__")]
        raise ConvwrightError(
            f"{frames[-1].filename}:{frames[-1].lineno}: the network's own code ends the program here; take that out, "
            "or put it under `if __name__ == '__main__':`"
        ) from error
    finally:
        os._exit = leave


def run(app: Callable[..., Any], given: list[str]) -> int:
    """Return the exit code of a call; errors made on purpose become one line."""
    debug = "--debug" in given
    _arguments[:] = [word for word in given if word != "--debug"]
    try:
        with _own_warnings(), _second_interrupt():
            app(args=list(_arguments), prog_name="convwright")
    except SystemExit as leave:
        if leave.code == _CTRL_C:  # while the words of the call were still read, typer leaves without a word
            say("convwright: interrupted")
        return leave.code if isinstance(leave.code, int) else 0
    except _InterruptedError as interrupted:
        _say_interrupted(str(interrupted))
        return _CTRL_C
    except OSError as error:  # the world outside: a path that none can be, a full disk
        if debug:
            traceback.print_exc()
        what = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
        say(f"convwright: error: {one_line(what)}; check the path, and the room on the disk")
        return 2
    except ConvwrightError as error:
        if debug:
            traceback.print_exc()
        say(f"convwright: error: {one_line(error)}")
        # A broken promise is not wrong input.
        return 3 if type(error).__name__ == "BrokenBudgetError" else 2
    return 0


def _say_interrupted(again: str) -> None:
    say(f"convwright: interrupted; continue with: {again}" if again else "convwright: interrupted")


@contextmanager
def _second_interrupt() -> Iterator[None]:
    """Leave at once at a second Ctrl-C: what is being tidied up is made good by --resume, as after any kill."""
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or usual is not signal.default_int_handler:
        yield  # somebody else decides
        return

    def heard(*_: object) -> None:
        signal.signal(signal.SIGINT, leave)
        raise KeyboardInterrupt

    def leave(*_: object) -> None:
        _say_interrupted(next(filter(None, (again() for again in reversed(_again))), ""))
        _leave_at_once(_CTRL_C)

    signal.signal(signal.SIGINT, heard)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


@contextmanager
def _own_warnings() -> Iterator[None]:
    """Print our own warnings as one line each; a place in our code would tell the user nothing."""
    shown = warnings.showwarning

    def show(message: Any, category: type[Warning], *rest: Any, **named: Any) -> None:
        if category.__module__.partition(".")[0] == "convwright":
            say(f"convwright: warning: {one_line(message)}")
        else:
            shown(message, category, *rest, **named)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = shown
