"""Tables on runs, reports and exports, for make_tables.py: from ``benchmarks/results/*.json`` and nothing else."""

from __future__ import annotations

from collections import Counter

from table_kit import load, markdown, missing, provenance, table


@table("workers")
def workers() -> str:
    """Candidates per hour: one process, two processes, two Ray workers."""
    data = load("workers")
    if not data:
        return missing("workers")
    rows = [(r["way"], f"{r['per_hour']:,}", f"{r['speedup']:.2f}", _seconds(r["seconds"])) for r in data["rows"]]
    same = "All evidence is the same." if data["same_evidence"] else "The evidence differs."
    words = (
        f"{data['candidates']} candidates of `{data['network']}`, {data['steps']} steps each, in turns, "
        f"load {data['load'][0]:.1f}. {same}\n\n"
    )
    head = ("way", "candidates per hour", "times one process", "seconds of each round")
    return words + markdown(head, rows, right=(1, 2)) + "\n\n" + provenance(data)


@table("kills")
def kills() -> str:
    """Searches that were killed again and again, beside undisturbed ones."""
    data = load("kills")
    if not data:
        return missing("kills")
    rows = [
        (
            row["run"],
            row["jobs"],
            row["kills"]["driver"],
            row["kills"]["worker"],
            row["searches"],
            "yes" if row["equal"] else "no",
        )
        for row in data["rows"]
    ]
    head = ("run", "jobs", "kills of the driver", "kills of a worker", "searches", "all as undisturbed")
    return markdown(head, rows, right=(0, 1, 2, 3, 4)) + "\n\n" + provenance(data)


@table("search-loop")
def search_loop() -> str:
    """Seconds per trial beside training, at the beginning and at the end of a long search."""
    data = load("search_loop")
    if not data:
        return missing("search_loop")
    times = ("first", "last", "cpu_first", "cpu_last")
    rows = [
        (r["storage"], *(f"{1e3 * r[name]:.0f} ms" for name in times), f"{r['resumed']:.1f} s") for r in data["rows"]
    ]
    trials, window = data["rows"][0]["trials"], data["window"]
    words = f"{trials:,} trials, medians of the first and the last {window}, load {data['load'][0]:.1f}.\n\n"
    head = ("storage", "a trial at first", "at the end", "processor at first", "at the end", "all resumed in")
    return words + markdown(head, rows, right=(1, 2, 3, 4, 5)) + "\n\n" + provenance(data)


@table("report")
def report() -> str:
    """Size and times of the page of a large run."""
    data = load("report")
    if not data:
        return missing("report")
    opened = data["opening_seconds"]
    rows = [
        ("trials", f"{data['trials']}"),
        ("size", f"{data['bytes'] / 1e6:.2f} MB"),
        ("made in", f"{data['making_seconds']:.2f} s"),
        ("drawn by headless Chromium in", "not measured" if opened is None else f"{opened:.2f} s"),
    ]
    words = f"Medians of {data['rounds']} rounds, load {data['load']:.1f}.\n\n"
    return words + markdown(("what", "measured"), rows, right=(1,)) + "\n\n" + provenance(data)


@table("export")
def export() -> str:
    """Networks that are exported and compute the same, and those that are not, with the reason."""
    data = load("export")
    if not data:
        return missing("export")
    rows, failed = [], []
    for target, found in data["summary"].items():
        mine = [row for row in data["rows"] if row["target"] == target]
        if not mine:
            continue
        where = Counter(row["network"].partition(":")[0] for row in mine)
        share = f"{found['done']} of {found['of']} ({100 * found['done'] / found['of']:.0f} %)"
        rows.append((target, share, ", ".join(f"{count} {name}" for name, count in sorted(where.items()))))
        failed += [(row["network"], target, row.get("reason") or _off(row)) for row in mine if not row["done"]]
    text = markdown(("target", "the same", "tried"), rows)
    if failed:
        text += "\n\n" + markdown(("not exported", "target", "why"), failed)
    return text + "\n\n" + provenance(data)


def _off(row: dict[str, object]) -> str:
    return f"largest difference {row['max_difference']:.1e} beside outputs up to {row['largest_output']:.1e}"


def _seconds(values: list[float]) -> str:
    return ", ".join(f"{value:.0f}" for value in values)
