"""Parts of which tables for a terminal are made."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import groupby
from typing import TypeVar

from rich.table import Table
from rich.text import Text

_Row = TypeVar("_Row")


def new_table(title: str, *columns: str, numbers: Sequence[str] = ()) -> Table:
    """Return an empty table; columns of numbers are aligned to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return table


def add_row(table: Table, *cells: str) -> None:
    """Add a row whose cells are plain text: brackets in names are no markup."""
    table.add_row(*[Text(cell) for cell in cells])


def folded(rows: Sequence[_Row], key: Callable[[_Row], Hashable], most: int) -> Iterator[list[_Row]]:
    """Join neighbours with one key, where there are more than `most` rows."""
    if len(rows) <= most:
        yield from ([row] for row in rows)
        return
    for _, alike in groupby(rows, key=key):
        yield list(alike)


def brief(names: Sequence[str], count: int = 3) -> str:
    """Return the first names, and how many more there are."""
    shown = ", ".join(names[:count])
    return f"{shown} and {len(names) - count} more" if len(names) > count else shown
