"""The tables of ``docs/support.md``, from ``docs/support.json``; used by ``tools/make_tables.py``."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Json = dict[str, Any]
Markdown = Callable[..., str]

MATRIX = Path(__file__).resolve().parent.parent / "docs" / "support.json"
MISSING = "Not measured in this checkout: there is no `docs/support.json`; run `make zoo`."
EDITS = {
    "shrink": "halved",
    "grow": "grown by half",
    "remove_block": "block out",
    "add_block": "block in",
    "kernel_up": "kernel up",
    "kernel_down": "kernel down",
    "replace": "replace",
    "resolution": "resolution",
    "composed": "composed",
}
BEYOND = {"loss": "own loss and backward", "outputs": "outputs", "onnx": "ONNX"}  # of what is no classifier
SIGNS = {"fail": "✗", "not applicable": "n/a", "inexact": "≈", "exact": "✓", "done": "✓"}
LIBRARIES = ("torchvision", "timm")
FAMILIES = ("ultralytics", "detection", "segmentation", "smp", "timm-features")


def matrix() -> Json | None:
    """Return the committed matrix; None if it is not there (yet)."""
    return json.loads(MATRIX.read_text(encoding="utf-8")) if MATRIX.is_file() else None


# ------------------------------------------------------------------ in short


def summary(markdown: Markdown) -> str:
    """Return how many networks pass, by edit and family, and what a step of 50 % takes."""
    data = matrix()
    if data is None:
        return MISSING
    rows = data["rows"]
    head = ["", *(f"{library}: {word}" for library in LIBRARIES for word in ("done", "exact", "not applicable"))]
    lines = [[words, *_shares(rows, kind)] for kind, words in EDITS.items()]
    counts = ", ".join(f"{count} of {name}" for name in (*LIBRARIES, *FAMILIES) if (count := len(_of(rows, name))))
    free = statistics.median(row.get("free_macs", 0.0) for row in rows)
    said = f"{len(rows)} networks: {counts}. In the median one, {100 * free:.1f} % of the MACs can change."
    table = markdown(head, lines, right=range(1, len(head)))
    parts = (said, table, _families(rows, markdown), _rival(rows, markdown), _made(data))
    return "\n\n".join(part for part in parts if part)


def _families(rows: Sequence[Json], markdown: Markdown) -> str:
    """Return what holds of networks that are no classifiers: a line per family."""
    lines = []
    for family in FAMILIES:
        held = _of(rows, family)
        if not held:
            continue
        exact = [sum(row["edits"].get(k, {}).get("status") == "exact" for row in held) for k in ("shrink", "grow")]
        cells = {kind: [row["edits"][kind]["status"] for row in held if kind in row["edits"]] for kind in BEYOND}
        tried = [[status for status in found if status != "not applicable"] for found in cells.values()]
        done = [f"{sum(status in ('done', 'exact') for status in found)} of {len(found)}" for found in tried]
        read = [row["read_seconds"] for row in held if "read_seconds" in row]
        free = statistics.median(row.get("free_macs", 0.0) for row in held)
        times = [f"{statistics.median(read):.1f}", f"{max(read):.1f}"] if read else ["", ""]
        lines.append([family, str(len(held)), *map(str, exact), *done, f"{100 * free:.1f} %", *times])
    head = ("", "networks", "halved: exact", "grown: exact", *BEYOND.values(), "free MACs", "read, s", "slowest, s")
    return markdown(head, lines, right=range(1, len(head))) if lines else ""


def _shares(rows: Sequence[Json], kind: str) -> list[str]:
    shares = []
    for library in LIBRARIES:
        cells = [row["edits"][kind]["status"] for row in _of(rows, library) if kind in row["edits"]]
        applicable = len(cells) - cells.count("not applicable")
        done = cells.count("exact") + cells.count("inexact")
        shares += [f"{done} of {applicable}", str(cells.count("exact")), str(cells.count("not applicable"))]
    return shares


def _of(rows: Sequence[Json], library: str) -> list[Json]:
    return [row for row in rows if row["network"].startswith(f"{library}:")]


def _rival(rows: Sequence[Json], markdown: Markdown) -> str:
    """Return the table of a 50 % step: ours, reading included, and torch-pruning's."""
    lines = []
    for library in (*LIBRARIES, *FAMILIES):
        both = [row for row in _of(rows, library) if "torch_pruning" in row]
        if not both:
            continue
        ours = [_halved(row) for row in both]
        theirs = [row["torch_pruning"].get("seconds") if row["torch_pruning"]["ok"] else None for row in both]
        lines += [
            [library, "convwright", *_step(ours, len(both))],
            [library, "torch-pruning", *_step(theirs, len(both))],
        ]
    head = ("networks", "tool", "pass", "median, s", "largest, s")
    return markdown(head, lines, right=(2, 3, 4)) if lines else ""


def _halved(row: Json) -> float | None:
    """Return the seconds to read and halve a network; ``None`` if it does not pass by torch-pruning's measure."""
    cell = row["edits"]["shrink"]
    done = cell["status"] in ("exact", "inexact") and cell["params_share"] < 0.6
    return row["read_seconds"] + cell["seconds"] if done else None


def _step(seconds: Sequence[float | None], count: int) -> list[str]:
    known = [s for s in seconds if s is not None]
    times = [f"{statistics.median(known):.1f}", f"{max(known):.1f}"] if known else ["", ""]
    return [f"{len(known)} of {count}", *times]


def _made(data: Json) -> str:
    known = data["machine"]
    names = ", ".join(f"{name} {number}" for name, number in data["versions"].items())
    return (
        f"- command: `{data['command']}`\n- machine: {known['processor']}, {known['cores']} cores, "
        f"{known['threads']} thread used, {known['system']}\n- versions: {names}"
    )


# ------------------------------------------------------------------ network by network


def table(markdown: Markdown) -> str:
    """Return a line per network and a column per edit."""
    data = matrix()
    if data is None:
        return MISSING
    head = ("network", "input", "free groups", "free MACs", *EDITS.values(), *BEYOND.values(), "torch-pruning")
    lines = [
        (
            row["network"],
            row.get("input", ""),
            f"{row['free']}/{row['groups']}" if "free" in row else "",
            f"{row['free_macs']:.0%}".replace("%", " %") if "free_macs" in row else "",
            *(_cell(row["edits"].get(kind)) for kind in (*EDITS, *BEYOND)),
            {True: "✓", False: "✗", None: ""}[row.get("torch_pruning", {}).get("ok")],
        )
        for row in data["rows"]
    ]
    return markdown(head, lines, right=(2, 3))


def _cell(cell: Json | None) -> str:
    if cell is None:
        return ""
    measured = cell.get("max_difference") or 0.0
    difference = f"{measured:.0e}".replace("e-0", "e-") if isinstance(measured, float) and measured else "0"
    sign = SIGNS[cell["status"]]
    return f"{sign} {difference}" if cell["status"] in ("exact", "inexact") else sign


def reasons() -> str:
    """Return the reasons of all cells that are not exact, and of what is frozen, each with its networks."""
    data = matrix()
    if data is None:
        return MISSING
    rows = data["rows"]
    parts = [_listed(words, _open_cells(rows, kind)) for kind, words in (EDITS | BEYOND).items()]
    frozen = [("·", r, row["network"]) for row in rows for r in row.get("frozen", {}) if not r.startswith(_ENDS)]
    rivals = [(row["torch_pruning"], row["network"]) for row in rows if "torch_pruning" in row]
    parts.append(_listed("frozen channels", frozen))
    parts.append(_listed("torch-pruning", [("✗", cell["reason"], name) for cell, name in rivals if not cell["ok"]]))
    return "\n\n".join(part for part in parts if part)


_ENDS = ("they are the network's input", "they are the network's output")
Entry = tuple[str, str, str]  # sign, reason, network


def _open_cells(rows: Sequence[Json], kind: str) -> list[Entry]:
    """Return the cells of an edit that are not exact, the worst first."""
    cells = [(row["edits"][kind], row["network"]) for row in rows if kind in row["edits"]]
    return [
        (sign, cell["reason"], name)
        for status, sign in SIGNS.items()
        for cell, name in cells
        if cell["status"] == status not in ("exact", "done")
    ]


def _listed(title: str, entries: Sequence[Entry]) -> str:
    """Return reasons with their networks; the same reason in another layer is the same reason."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for sign, reason, name in entries:
        found.setdefault((sign, _general(reason)), {})[name] = None
    lines = [f"- {sign} {_code(reason)}: {', '.join(names)}" for (sign, reason), names in found.items()]
    return f"### {title[0].upper()}{title[1:]}\n\n" + "\n".join(lines) if lines else ""


def _general(reason: str) -> str:
    """Return a reason without the layers' names and the rest that differs from layer to layer."""
    said = re.sub(r" \(and \d+ more\)$", "", reason.rstrip("."))
    return re.sub(r" in [\w.#]+ \(", " (", said)


def _code(reason: str) -> str:
    """Return a message as code: nothing in it is markup."""
    return f"`` {reason} ``" if "`" in reason else f"`{reason}`"
