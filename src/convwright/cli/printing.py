"""What all sub-commands share: how they print, and how they leave."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from convwright.cli import leaving
from convwright.passwords import public_command

_documents: list[TextIO] = []  # where JSON goes


@contextmanager
def _document_alone() -> Iterator[None]:
    """With ``--json``, let what a network's own code prints go to standard error: standard output is one document."""
    if _documents or "--json" not in leaving.words():  # groups lie in groups
        yield
        return
    _documents.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _documents.pop()


class Commands(TyperGroup):
    """The sub-commands; Ctrl-C in any of them leaves by our own way, not by typer's."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        with leaving.resumable(None, ""), leaving.exits_of_others(), _document_alone():
            try:
                return super().invoke(ctx)
            except Exception as error:  # typer tells which word it cannot use: that may be a URL
                if isinstance(getattr(error, "message", None), str):
                    error.message = public_command(error.message)  # type: ignore[attr-defined]
                raise


def show(*parts: object) -> None:
    """Print tables and the like on standard output, as it is now: tests and pipes replace it."""
    for part in parts:
        Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(
            part,
            soft_wrap=isinstance(part, Text),  # a message stays one line, also for grep
        )


def print_json(content: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(content, indent=2, allow_nan=False), file=_documents[-1] if _documents else None)
