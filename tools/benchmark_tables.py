"""Tables of README.md and of what is measured: from ``benchmarks/results/*.json`` and from nowhere else."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import results_page
from table_kit import ROOT, Json, accuracy, load, markdown, missing, percent, provenance, table

from convwright.training.tasks import Metric

COMMAND = "python benchmarks/tasks.py --data-dir DATA"

# ------------------------------------------------------------------ README


@table("results")
def results() -> str:
    """The short table of README: one line per claim, with where to look."""
    parts = (
        _demo(),
        results_page.headlines(),
        results_page.automatic(),
        _widths(),
        _latency(),
    )
    rows = [row for part in parts for row in part]
    if not rows:
        return "No result files are in this checkout."
    return markdown(("what", "measured", "command"), rows)


def _demo() -> Iterator[tuple[str, str, str]]:
    data = load("demo")
    if data:
        one, two = data["baseline"], data["result"]
        yield (
            f"{data['model']} on {data['data'].split()[0]}, {', '.join(data['budget'])}: MACs",
            f"{one['costs']['macs']:,} → {two['costs']['macs']:,}, both counts",
            "`make demo`",
        )
        if one.get("test"):
            yield (
                "the same: test accuracy, equal training",
                f"{accuracy(one, 'test')} → {accuracy(two, 'test')}",
                "`make demo`",
            )


def _widths() -> Iterator[tuple[str, str, str]]:
    data = load("widths")
    if not data:
        return
    found = data["summary"]
    if cell := found.get("x0.5"):  # others: on the page
        inexact, statistic = cell["ran"] - cell["exact"], cell["inexact_with_statistic"]
        rest = f", {inexact} marked inexact ({statistic} by a statistic across channels)" if inexact else ""
        yield (
            "torchvision convnets with every free group halved",
            f"{cell['ran']} of {found['networks']} ran: {cell['exact']} exact to 1e-10{rest}",
            "`benchmarks/widths.py`",
        )


def _latency() -> Iterator[tuple[str, str, str]]:
    data = load("latency_budgets")
    if data and len(done := [row for row in data["rows"] if "ratio" in row]) >= 10:
        used = [row["used"] for row in done if row["met"]]
        yield (
            f"`latency<=50%` in ONNX Runtime and OpenVINO, {len(done)} runs on "
            f"{len({row['network'] for row in done})} networks",
            f"{len(used)} met when measured, {percent(statistics.median(used), 0)} of the budget used (median)",
            "`benchmarks/latency_budgets.py`",
        )


# ------------------------------------------------------------------ docs/benchmarks.md, docs/quickstart.md


@table("demo")
def demo() -> str:
    """The table that the demonstration ends with."""
    data = load("demo")
    if not data:
        return missing("demo")
    from convwright.runs.directory.result import rows

    lines = [(row.name, row.baseline, row.result, row.change) for row in rows(data)]
    shown = markdown(("", "baseline", "result", "change"), lines, right=(1, 2, 3)) + "\n\n" + provenance(data)
    drawn = (ROOT / "docs" / "images" / "demo.svg").is_file()  # by tools/draw_pictures.py
    return shown + ("\n\n![MACs and channels per layer, before and after](images/demo.svg)" if drawn else "")


@table("widths")
def widths() -> str:
    """Every network of the width sweep."""
    data = load("widths")
    if not data:
        return missing("widths")
    ratios = ("x0.5", "x2.0", "x1.5")
    rows = [
        (row["network"], row.get("statistics", ""), *(_cell(row.get(r)) for r in ratios), _share(row.get("x0.5")))
        for row in data["rows"]
    ]
    head = ("network", "statistics across channels", "halved", "doubled", "grown by half", "parameters when halved")
    return markdown(head, rows, right=(1, 5)) + "\n\n" + provenance(data)


def _cell(cell: Json | None) -> str:
    if cell is None:
        return "not run"
    if not cell.get("ok"):
        return f"failed: {cell.get('error', 'no reason recorded')[:80]}"
    return "exact" if cell["exact"] else f"inexact, {cell['max_difference']:.2g}"


def _share(cell: Json | None) -> str:
    return percent(cell["params_share"]) if cell and cell.get("ok") else ""


@table("reading")
def reading() -> str:
    """Seconds of reading and changing, network by network, beside torch-pruning."""
    data = load("reading")
    if not data:
        return missing("reading")
    columns = ("read", "export", "change", "change_proved", "torch_pruning")
    rows = [
        (row["network"].partition(":")[2], *(f"{row[key]:.3f}" if key in row else "fails" for key in columns))
        for row in data["rows"]
    ]
    found = data["summary"]
    said = (
        f"Times of torch-pruning's, median (largest) of {found['torch_pruning_done']} networks: change "
        f"{found['change_ratio_median']} ({found['change_ratio_max']}), with proof "
        f"{found['change_proved_ratio_median']} ({found['change_proved_ratio_max']}).\n\n"
    )
    head = ("network", "read, s", "by export", "change", "with proof", "torch-pruning")
    return said + markdown(head, rows, right=(1, 2, 3, 4, 5)) + "\n\n" + provenance(data)


@table("task-runs")
def task_runs() -> str:
    """One real run per kind of task: the untouched network, tuned as long, beside the one at half its MACs."""
    data = load("tasks")
    if not data:
        return missing("tasks")
    found: dict[str, list[Json]] = {}
    for row in data["rows"]:
        found.setdefault(row["task"], []).append(row)
    lines = []
    for name, rows in found.items():
        metric = Metric(**rows[0]["metric"])
        sides = [[row[side]["test"]["accuracy"] for row in rows] for side in ("baseline", "result")]
        before, after = (statistics.fmean(side) for side in sides)
        change = metric.change(before, after)
        if len(rows) > 1:  # of the paired differences
            spread = statistics.stdev(two - one for one, two in zip(*sides, strict=True))
            change += f" ± {100 * spread:.2f}" if metric.unit == "%" else f" ± {spread:.3g}"
        shares = (row["result"]["costs"]["macs"] / row["baseline"]["costs"]["macs"] for row in rows)
        shown = metric.shown(before), metric.shown(after), change, percent(max(shares)), len(rows)
        lines.append((name, metric.name, *shown, f"{statistics.fmean(r['seconds']['all'] for r in rows) / 60:.0f}"))
    head = ("task", "ranked by", "untouched, test", "ours, test", "change", "MACs", "seeds", "minutes")
    first = data["rows"][0]
    return markdown(head, lines, right=(2, 3, 4, 5, 6, 7)) + "\n\n" + provenance({**first, "command": COMMAND})


@table("own-loop")
def own_loop() -> str:
    """Searches around a plain loop, and by a shell command."""
    data = load("own_loop")
    if not data:
        return missing("own_loop")
    rows = [
        (
            each["way"],
            *(percent(each["validation"][side]) for side in ("untouched", "ours")),
            percent(each["macs"]["ours"] / each["macs"]["untouched"]),
            f"{each['seconds']:.0f}",
        )
        for each in data["rows"]
    ]
    head = ("way", "untouched, trained as long", "ours", "MACs", "seconds")
    return markdown(head, rows, right=(1, 2, 3, 4)) + "\n\n" + provenance(data)


@table("yolo")
def yolo() -> str:
    """Ways to half of a YOLO's MACs, by network: means over seeds, and deviations where there are several."""
    data, lines = load("yolo"), []
    if not data:
        return missing("yolo")
    rows = data["rows"]
    for network in dict.fromkeys(row["network"] for row in rows):
        mine = [row for row in rows if row["network"] == network]
        lines.append((network, "as it came", *_yolo(mine, "first"), "100 %", "x 1"))
        for way in dict.fromkeys(row["way"] for row in mine):
            found = [row for row in mine if row["way"] == way and "failed" not in row]
            shares = [statistics.mean(row[key] for row in found) if found else 0.0 for key in ("macs", "latency")]
            said = percent(shares[0]), f"x {shares[1]:.2f}"
            lines.append((network, way, *(_yolo(found, "test") + said if found else ("0", "failed", "", "", ""))))
    head = ("network", "way", "seeds", "test mAP50", "test mAP50-95", "MACs", "ONNX Runtime")
    own = {**rows[0], "command": data["command"]}
    return markdown(head, lines, right=(2, 3, 4, 5, 6)) + "\n\n" + provenance(own)


def _yolo(rows: list[Json], side: str) -> tuple[str, ...]:
    """Return the number of seeds, and mean and deviation of both scores."""
    rows = list({row["seed"]: row for row in rows}.values())
    texts = []
    for key in ("mAP50", "mAP"):
        values = [row[side][key] for row in rows]
        texts.append(
            f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(rows) > 1 else "") + " %"
        )
    return str(len(rows)), *texts


@table("cost-model")
def cost_model() -> str:
    """Candidates per second."""
    data = load("cost_model")
    if not data:
        return missing("cost_model")
    rows = [(what.replace("_", " "), f"{rate:,}") for what, rate in data["candidates_per_second"].items()]
    words = f"`{data['network']}`, {data['groups']} free groups, arrays of {data['candidates']:,} candidates:\n\n"
    return words + markdown(("costs evaluated", "candidates per second"), rows, right=(1,)) + "\n\n" + provenance(data)


@table("receptive-field")
def receptive_field() -> str:
    """Receptive fields, network by network, beside gradients."""
    data = load("receptive_field")
    if not data:
        return missing("receptive_field")
    rows = [
        (
            row["network"],
            row["layers"],
            row["skipped"],
            f"{row['fields']:.3f}",
            f"{row['oracle']:.1f} ({row['oracle_units']} units)" if "oracle" in row else "",
        )
        for row in data["rows"]
    ]
    head = ("network", "layers", "not followed", "fields, s", "by gradients, s")
    return markdown(head, rows, right=(1, 2, 3, 4)) + "\n\n" + provenance(data)


@table("bundles")
def bundles() -> str:
    """Conflicting bundles beside the published loop, and what the streamed count holds."""
    data = load("bundles")
    if not data:
        return missing("bundles")
    rows = [
        (
            row["array"],
            f"{row['bundles']:.3f}",
            *(f"{row[way]:.1f}" if way in row else "" for way in ("published_loop", "lean_loop", "unique")),
        )
        for row in data["time"]
    ]
    head = ("rows x numbers", "`cw.bundles`, s", "published loop in NumPy, s", "without its mask, s", "`np.unique`, s")
    held = [
        (
            f"{row['samples']:,} x {row['layers']}",
            f"{row['bundles']:,}",
            f"{row['kept_per_sample']:.1f}",
            f"{max(row['growth_per_sample'].values()):.1f}",
            f"{max(row['fixed'].values()) / 1e6:.1f}",
        )
        for row in data["memory"]
    ]
    words = "Seconds of processor time on one thread. All ways give the same number of bundles."
    more = (
        "Streamed, bytes per sample and layer beyond the batch: what is kept, and by how much the peak of counting and "
        "`result` grows from a fifth of the samples to all. The last column is what does not grow with the samples."
    )
    kept = ("samples x layers", "bundles", "kept, bytes", "growth of the peak, bytes", "besides, MB")
    shown = (markdown(head, rows, right=(1, 2, 3, 4)), more, markdown(kept, held, right=(1, 2, 3, 4)))
    return "\n\n".join((words, *shown, provenance(data)))


@table("conflict-probe")
def conflict_probe() -> str:
    """What the probe of conflicts costs beside bare passes."""
    data = load("conflict_probe")
    if not data:
        return missing("conflict_probe")
    rows = [
        (
            row["case"],
            row["points"],
            f"{row['bare_seconds']:.2f}",
            f"{row['probed_seconds']:.2f}",
            f"{row['ratio']:.2f}",
        )
        for row in data["cases"]
    ]
    head = ("weights", "values looked at", "bare passes, s", "probed, s", "ratio")
    words = f"Processor time of `{data['model']}` on {data['samples']} images, batches of {data['batch_size']}."
    made = f"- command: `{data['command']}`\n- versions: python {data['python']}, torch {data['torch']}"
    return f"{words}\n\n{markdown(head, rows, right=(1, 2, 3, 4))}\n\n{made}"


@table("channel-quality")
def channel_quality() -> str:
    """The channel quality of a whole network, beside the published procedure."""
    data = load("channel_quality")
    if not data:
        return missing("channel_quality")
    rows = [(row["what"], f"{row['processor_seconds']:.2f}", f"{row['seconds']:.2f}") for row in data["rows"]]
    found, rounds = data["agreement"], len(data["rows"][0]["seconds_all"])
    words = f"All {data['kernels']} kernels of `{data['network']}`, the least of {rounds} rounds, "
    words += f"beside other work (load {data['load'][0]:.0f}):\n\n"
    same = f"{found['ranks_equal']} of {found['modes']} unfoldings"
    after = f"\n\nParity and the published procedure agree on the rank in {same}.\n\n"
    return words + markdown(("what", "processor time, s", "clock, s"), rows, right=(1, 2)) + after + provenance(data)


@table("latency")
def latency() -> str:
    """Estimated against measured latencies of random designs."""
    data = load("latency")
    if not data:
        return missing("latency")
    rows = [
        (
            row["network"].partition(":")[2],
            row["target"],
            f"{row['whole_ms']:.2f}",
            f"{row['fitted_in_s']:.0f}",
            str(row["step"]),
            str(row["designs"]),
            f"{min(b for _, b in row['pairs']):.2f} to {max(b for _, b in row['pairs']):.2f}",
            percent(row["median_error"]),
            percent(row["error_95"]),
            percent(row["floor_median"]),
            percent(row["floor_95"]),
        )
        for row in data["rows"]
    ]
    head = (
        "network", "runtime", "untouched, ms", "fitted in, s", "step", "designs", "time left", "median error",
        "95 % below", "floor: median", "95 % below",
    )  # fmt: skip
    return f"{markdown(head, rows, right=tuple(range(2, 11)))}\n\n{provenance(data)}"


@table("latency-budgets")
def latency_budgets() -> str:
    """Budgets on latency: met and used, by network and runtime."""
    data = load("latency_budgets")
    if not data:
        return missing("latency-budgets")
    groups: dict[tuple[str, str], list[Json]] = {}
    for row in data["rows"]:
        groups.setdefault((row["network"], row["target"]), []).append(row)
    rows = []
    for (network, target), found in groups.items():
        done = [row for row in found if "ratio" in row]
        used = " ".join(f"{100 * row['used']:.0f}" for row in done)
        left = " ".join(f"{100 * row['macs']:.0f}" for row in done)
        met = f"{sum(row['met'] for row in done)} of {len(done)}"
        rows.append((network.partition(":")[2], target, met, used, left, str(len(found) - len(done))))
    head = ("network", "runtime", "met", "used, %", "MACs left, %", "refused")
    return f"{markdown(head, rows, right=(2, 5))}\n\n{provenance(data)}"


@table("int8")
def int8() -> str:
    """What 8 bits change, by runtime."""
    data = load("int8")
    if not data:
        return missing("int8")
    rows = []
    for name, row in data["rows"].items():
        judged = (percent(row["accuracy"][part]) for part in data["samples"])
        ratio = f"{row['ratio']['median']:.2f} ({row['ratio']['lower']:.2f} to {row['ratio']['upper']:.2f})"
        changed = (f"{row['snr']:.0f} dB", percent(row["same_class"]), ratio) if "int8" in name else ("", "", "")
        runtime = name.removesuffix(",threads=1")
        rows.append((f"`{runtime}`", *judged, f"{1e3 * row['latency']['median']:.2f} ms", *changed))
    parts = (f"{part} ({count})" for part, count in data["samples"].items())
    shown = markdown(("", *parts, "latency", "signal to noise", "same class", "time by float's"), rows, range(1, 7))
    load_average = f"- load average while it was measured: {data['machine']['load'][0]:.1f}"
    return f"{shown}\n\n{provenance(data)}\n{load_average}"


@table("trainer-overhead")
def trainer_overhead() -> str:
    """What the trainer adds to a bare loop, by kind of task."""
    data = load("trainer_overhead")
    if not data:
        return missing("trainer_overhead")
    rows = [
        (
            row["task"],
            f"{row['bare_step_ms']:.1f}",
            f"{row['cpu_ratio']:.3f}",
            " to ".join(f"{q:.3f}" for q in row["cpu_ratio_quartiles"]),
            "yes" if row["same_weights"] else "no",
        )
        for row in data["tasks"]
    ]
    header = ("task", "bare step, ms", "processor time ratio", "quartiles", "same weights as the bare loop")
    return "\n\n".join((markdown(header, rows, right=(1, 2, 3)), provenance(data)))


@table("training")
def training() -> str:
    """What the trainer adds to a bare loop."""
    data = load("training")
    if not data:
        return missing("training")
    over = [
        (
            f"{row['precision']}, {row['memory_format']}",
            f"{row['cpu_ratio']:.3f}",
            " to ".join(f"{q:.3f}" for q in row["cpu_ratio_quartiles"]),
            f"{row['wall_ratio']:.3f}",
            "yes" if row["same_weights"] else "no",
        )
        for row in data["overhead"]
    ]
    loading = [
        (
            f"{row['precision']}, {row['memory_format']}",
            f"{row['load_ms']:.1f}",
            f"{row['step_ms']:.1f}",
            percent(row["share"]),
        )
        for row in data["loading"]
    ]
    return "\n\n".join(
        (
            f"`{data['network']}`, batches of {data['batch_size']}, {data['repeats']} interleaved pairs. "
            "A ratio of 1 means no overhead; below 1 is noise of a shared machine, not a gain.",
            markdown(
                ("settings", "processor time ratio", "quartiles", "wall ratio", "same weights as the bare loop"),
                over,
                right=(1, 2, 3),
            ),
            markdown(("settings", "loading and augmentation, ms", "whole step, ms", "share"), loading, right=(1, 2, 3)),
            provenance(data),
        )
    )
