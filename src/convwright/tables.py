"""Tables for the terminal and as Markdown, and the parts that both share."""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any, TypeVar

from pydantic import TypeAdapter
from rich.console import Group
from rich.table import Table
from rich.text import Text

Json = Mapping[str, Any]
_Row = TypeVar("_Row")


@dataclass(frozen=True)
class Sheet:
    """A table of plain text.

    Attributes:
        title: Above the table, on a terminal.
        columns: Headings.
        rows: Cells, one per column.
        right: Columns that are set flush right.
        notes: Lines below the table.
        spare: Columns for which a terminal has no room.
        more: Further tables below it, each with its title.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()
    more: tuple[Sheet, ...] = ()

    def markdown(self) -> str:
        """Return it as Markdown, without its own title."""
        table = markdown_table(self.columns, self.rows, self.right)
        return "\n\n".join([table, *self.notes, *(f"**{more.title}**\n\n{more.markdown()}" for more in self.more)])

    def rich(self) -> Group:
        """Return it for a terminal."""
        shown = [place for place, column in enumerate(self.columns) if column not in self.spare]
        numbers = [self.columns[place] for place in self.right]
        table = new_table(Text(self.title), *[self.columns[place] for place in shown], numbers=numbers)
        for row in self.rows:
            add_row(table, *[row[place] for place in shown])
        return Group(table, *[Text(note) for note in self.notes], *[sheet.rich() for sheet in self.more])

    def without_empty(self) -> Sheet:
        """Return it without the columns that say nothing in any row."""
        kept = [i for i in range(len(self.columns)) if not self.rows or any(row[i] for row in self.rows)]
        return replace(
            self,
            columns=tuple(self.columns[i] for i in kept),
            rows=tuple(tuple(row[i] for i in kept) for row in self.rows),
            right=tuple(new for new, old in enumerate(kept) if old in self.right),
        )

    def as_dict(self) -> Json:
        """Return plain values for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Json) -> Sheet:
        """Return the sheet of such values."""
        return TypeAdapter(Sheet).validate_python(values)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]], right: Container[int] = ()) -> str:
    """Return a table as Markdown; the columns in `right` are set flush right."""
    rule = ["---:" if place in right else "---" for place in range(len(columns))]
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (columns, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (cells[0], rule, *cells[1:]))


def new_table(title: str | Text, *columns: str, numbers: Sequence[str] = ()) -> Table:
    """Return an empty table; columns of numbers are aligned to the right."""
    # Brackets in it are no markup, either.
    table = Table(
        title=Text(title) if isinstance(title, str) else title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
    )
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
