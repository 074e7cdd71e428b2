"""The report as Markdown: the same content, tables instead of pictures."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence

from convwright.report.content import Content, Heat, Networks, Trial
from convwright.tables import markdown_table


def as_markdown(report: Content) -> str:
    """Return a report as Markdown, with a table per section."""
    return "\n".join(_lines(report)).rstrip() + "\n"


def _lines(report: Content) -> Iterator[str]:
    yield from (f"# {_plain(report.title)}", "")
    for each in report.warnings:
        yield from (
            f"> **Warning: {_plain(each.what)}.** Likely cause: {_plain(each.cause)}. Next: {_plain(each.remedy)}.",
            "",
        )
    yield from (f"**{_plain(report.status)}**", "")
    if report.asked:
        yield from _table(("asked", ""), [(f.name, f.value) for f in report.asked])
    yield from _result(report)
    if report.networks is not None:
        yield from _networks(report.networks)
    if report.trials:
        yield from ("## Search", "")
        heads = ("trial", "what", "validation", *report.metrics, "epochs", "seconds", "")
        rows = [_trial(t, report) for t in report.trials]
        yield from _table(heads, rows, right=range(2, len(heads) - 1))
    if report.widths is not None:
        yield from ("## Widths over the trials", "")
        yield from _heat(report.widths, "group", "")
    for heat in report.conflicts:
        yield from (f"## Conflicts, {heat.title}", "", "Share of the images in conflict.", "")
        yield from _heat(heat, "block", ".1%")
    for heat in report.quality:
        yield from (f"## Channel quality QC, {heat.title}", "")
        yield from _heat(heat, "layer", ".3f")
    for curve in report.curves:
        yield from (f"## Training: {_plain(curve.name)}", "")
        columns = (curve.train_loss, curve.val_loss, curve.train_acc, curve.val_acc)
        epochs = enumerate(zip(*columns, strict=True), start=1)
        rows = [(str(number), *(_number(value, ".4f") for value in epoch)) for number, epoch in epochs]
        name = report.judged_by.name
        heads = ("epoch", "train loss", "validation loss", f"train {name}", f"validation {name}")
        yield from _table(heads, rows, right=range(5))
    if report.decisions:
        yield from ("## Decisions", "")
        words = (f"{d.phase}: {d.reason}" if d.phase else d.reason for d in report.decisions)
        yield from (f"{n}. {_plain(text)}" for n, text in enumerate(words, start=1))
        yield ""
    if report.plan:
        yield from ("## Plan", "", "```text", report.plan, "```", "")
    yield from _origin(report)


def _result(report: Content) -> Iterator[str]:
    if report.compared:
        yield from ("## Result", "")
        rows = [(row.name, row.before, row.after, row.change) for row in report.compared]
        yield from _table(("", "untouched", "result", "change"), rows, right=(1, 2, 3))
    if report.limits:
        judged = {True: "met", False: "**broken**", None: "not judged yet"}
        limits = [(t.metric, t.limit, t.found, judged[t.met]) for t in report.limits]
        yield from _table(("budget", "limit", "result", ""), limits, right=(1, 2))
    if report.deviation:
        yield from (report.deviation, "")
    if report.classes:
        yield from (f"## Classes of the {report.classes_of} part, the largest loss first", "")
        classes = [
            (c.name, f"{c.images:,}", f"{c.before:.1%}", f"{c.after:.1%}", f"{c.points:+.1f}") for c in report.classes
        ]
        yield from _table(("class", "images", "untouched", "result", "points"), classes, right=(1, 2, 3, 4))


def _networks(networks: Networks) -> Iterator[str]:
    yield from ("## Layers", "")
    heads = ("layer", "what", "channels", "MACs", "parameters", "sees", "coupled")
    rows = []
    for change in networks.layers:
        one, two = change.before, change.after
        pairs = [_pair(getattr(one, n, None), getattr(two, n, None)) for n in ("channels", "macs", "params")]
        now = two or one
        field = "x".join(map(str, now.field)) if now is not None and now.field else "all"
        rows.append((change.name, change.state, *pairs, field, change.coupled))
    yield from _table(heads, rows, right=(2, 3, 4, 5))
    if networks.couplings:
        yield from ("## Changed together", "")
        couplings = [(c.letter, f"{c.before} → {c.after}", ", ".join(c.layers)) for c in networks.couplings]
        yield from _table(("group", "channels", "layers"), couplings, right=(1,))


def _pair(before: int | None, after: int | None) -> str:
    if before is None or after is None or before == after:
        value = before if after is None else after
        return f"{value:,}"
    return f"{before:,} → {after:,}"


def _trial(trial: Trial, report: Content) -> tuple[str, ...]:
    score = trial.status if trial.score is None else report.judged_by.shown(trial.score, trial.stderr)
    costs = [f"{trial.costs[m]:,}" if m in trial.costs else "" for m in report.metrics]
    marks = {"result": trial.chosen, "trained to the end": trial.ended, "front": trial.front and not trial.chosen}
    mark = ", ".join(name for name, holds in marks.items() if holds)
    return (str(trial.number), trial.words, score, *costs, str(trial.epochs), f"{trial.seconds:.1f}", mark)


def _heat(heat: Heat, what: str, form: str) -> Iterator[str]:
    """Yield a table; with many columns, the first, the last and some between."""
    count = len(heat.columns)
    shown = range(count) if count <= 12 else sorted({round(i * (count - 1) / 11) for i in range(12)})
    heads = (what, *(heat.columns[i] for i in shown))
    rows = [(name, *(_number(row[i], form) for i in shown)) for name, row in zip(heat.rows, heat.values, strict=True)]
    yield from _table(heads, rows, right=range(1, len(heads)))


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _origin(report: Content) -> Iterator[str]:
    yield from ("## Origin", "")
    if report.uncounted:
        yield from (f"Not counted: {', '.join(report.uncounted)}.", "")
    if report.provenance:
        yield from _table(("", ""), [(f.name, f.value) for f in report.provenance])
    if report.recipe:
        yield from _table(("recipe", ""), [(f.name, f.value) for f in report.recipe])
    yield from (f"- {sentence}" for sentence in report.missing.values())


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Container[int] = ()) -> Iterator[str]:
    yield markdown_table([*map(_plain, heads)], [[*map(_plain, row)] for row in rows], right)
    yield ""


def _plain(text: str) -> str:
    """Return text of one line that is no HTML."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("<", "&lt;")
