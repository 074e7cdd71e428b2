"""How the command line leaves: exit codes, one line per error or warning, and what to type after Ctrl-C."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from convwright.errors import ConvwrightError
from convwright.passwords import public_command, public_words

_err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
_CTRL_C = 130
_arguments: list[str] = []  # of this call, without --debug: what the record and the resume command name


class _InterruptedError(Exception):
    """Ctrl-C, with the command that goes on; empty if there is nothing to continue."""


def say(text: str) -> None:
    """Write one line for a person to standard error, without passwords."""
    _err.print(public_command(text))


def command() -> str:
    """Return this call as it was typed, without passwords."""
    return public_words(["convwright", *_arguments])


@contextmanager
def resumable(folder: Path | None, command: str, flag: str = "--resume") -> Iterator[None]:
    """Turn Ctrl-C into the command that continues the work in a folder: with `flag`, or the same where it is empty."""
    try:
        yield
    except KeyboardInterrupt as error:
        started = folder is not None and any((folder / name).exists() for name in ("run.json", "checkpoint.pt", "rows"))
        again = command if not flag or flag in command.split() else f"{command} {flag}"
        raise _InterruptedError(again if started else "") from error


def run(app: Callable[..., Any], given: list[str]) -> int:
    """Return the exit code of a call; errors made on purpose become one line."""
    debug = "--debug" in given
    _arguments[:] = [word for word in given if word != "--debug"]
    try:
        with _own_warnings():
            app(args=list(_arguments), prog_name="convwright")
    except SystemExit as leave:
        if leave.code == _CTRL_C:  # while the words of the call were still read, typer leaves without a word
            say("convwright: interrupted")
        return leave.code if isinstance(leave.code, int) else 0
    except _InterruptedError as interrupted:
        again = str(interrupted)
        say(f"convwright: interrupted; continue with: {again}" if again else "convwright: interrupted")
        return _CTRL_C
    except ConvwrightError as error:
        if debug:
            traceback.print_exc()
        say(f"convwright: error: {' '.join(str(error).split())}")
        # A broken promise is not wrong input.
        return 3 if type(error).__name__ == "BrokenBudgetError" else 2
    return 0


@contextmanager
def _own_warnings() -> Iterator[None]:
    """Print our own warnings as one line each; a place in our code would tell the user nothing."""
    shown = warnings.showwarning

    def show(message: Any, category: type[Warning], *rest: Any, **named: Any) -> None:
        if category.__module__.partition(".")[0] == "convwright":
            say(f"convwright: warning: {' '.join(str(message).split())}")
        else:
            shown(message, category, *rest, **named)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = shown
