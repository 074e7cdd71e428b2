"""What all generated tables share: result files, Markdown, and where tables are registered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convwright.tables import markdown_table as markdown

__all__ = [
    "RESULTS", "ROOT", "TABLES", "Json", "accuracy", "load", "markdown", "missing", "percent", "provenance", "table",
]  # fmt: skip

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
Json = dict[str, Any]

TABLES: dict[str, Callable[[], str]] = {}


def table(name: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Register what makes the text between a pair of markers."""

    def file(make: Callable[[], str]) -> Callable[[], str]:
        TABLES[name] = make
        return make

    return file


# ------------------------------------------------------------------ what is measured


def load(name: str) -> Json | None:
    """Return a result file's content; None if it is not there (yet)."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def provenance(data: Json) -> str:
    """Say how a result was made: command, machine, versions."""
    known = data.get("machine", {})
    processor = known.get("cpu") or known.get("processor") or known.get("architecture") or "unknown processor"
    threads = known.get("threads_used") or known.get("threads")
    cores = known.get("cores") or known.get("cpus")
    where = ", ".join(
        part
        for part in (
            str(processor),
            f"{cores} cores" if cores else "",
            f"{threads} thread{'s' * (threads != 1)} used" if threads else "",
            str(known.get("system") or ""),
        )
        if part
    )
    names = ", ".join(f"{name} {number}" for name, number in data.get("versions", {}).items())
    from convwright.runs.directory.provenance import portable

    return f"- command: `{portable(data.get('command') or 'not recorded')}`\n- machine: {where}\n- versions: {names}"


def missing(name: str) -> str:
    """Say that there is no result."""
    return f"Not measured in this checkout: there is no `benchmarks/results/{name}.json`."


def percent(share: float, places: int = 1) -> str:
    """Write a share as a percentage."""
    return f"{share:.{places}%}".replace("%", " %")


def accuracy(side: Json, part: str) -> str:
    """Write an accuracy with its standard error."""
    found = side[part]
    return f"{100 * found['accuracy']:.2f} ± {100 * found['stderr']:.2f} %"
