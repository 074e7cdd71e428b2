"""Where things are: the packages and their arrows, from the import contract and the packages' own first lines."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from table_kit import ROOT, table

SOURCE = ROOT / "src" / "convwright"


def layers() -> list[tuple[str, ...]]:
    """Return the layers of the import contract, the highest first; those of one layer do not import each other."""
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^layers = (\[.*?^\])", contract, re.MULTILINE | re.DOTALL)
    if listed is None:
        raise SystemExit("pyproject.toml: the import contract has no layers")
    lines = (line.replace("convwright.", "").split(" | ") for line in ast.literal_eval(listed[1]))
    return [tuple(names) for names in lines]


@table("arrows")
def arrows() -> str:
    """The contract in one line."""
    return f"```text\n{' -> '.join(', '.join(names) for names in layers())}\n```"


@table("where")
def where() -> str:
    """A line for each package and for each package in it, in the order of the contract."""
    lines = [line for names in layers() for name in names for line in _lines(name)]
    width = max(len(name) for name, _ in lines)
    listed = "\n".join(f"{name:{width}}  {about}" for name, about in lines)
    return f"```text\nsrc/convwright/\n{listed}\n```"


def _lines(name: str) -> Iterator[tuple[str, str]]:
    if (file := SOURCE / f"{name}.py").is_file():
        yield f"  {file.name}", _first_line(file)
        return
    yield f"  {name}/", _first_line(SOURCE / name / "__init__.py")
    for file in sorted((SOURCE / name).glob("*/__init__.py")):
        yield f"    {file.parent.name}/", _first_line(file)


def _first_line(file: Path) -> str:
    """Return the first line of a module's docstring, without the marks of code: the text stands in a block."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].replace("`", "")
