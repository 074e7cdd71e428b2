"""Write the generated tables of README.md and docs/: measured results, the zoo, the command line.

    python tools/make_tables.py [--check]

A table stands between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``; what lies between is replaced. Results come
from ``benchmarks/results/*.json`` and from nowhere else; where a file is missing, the table says so. ``--check``
changes nothing and ends with code 1 if a table is out of date.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

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


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()) -> str:
    """Return a table; columns in ``right`` are set flush right."""
    rule = ["---:" if i in right else "---" for i in range(len(header))]
    lines = [header, rule, *[[str(cell).replace("|", "\\|") for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


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
    from convwright.runs.machine import portable

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


# ------------------------------------------------------------------ README


@table("results")
def results() -> str:
    """The short table of README: one line per claim, with where to look."""
    parts = (
        _demo(),
        _results_page.headlines(load),
        _results_page.compared(load),
        _widths(),
        _labels(),
        _cost_model(),
        _latency(),
        _training(),
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
    for key, words in (("x0.5", "halved"), ("x2.0", "doubled"), ("x1.5", "grown by half")):
        cell = found.get(key)
        if cell:
            inexact, statistic = cell["ran"] - cell["exact"], cell["inexact_with_statistic"]
            rest = f", {inexact} marked inexact ({statistic} by a statistic across channels)" if inexact else ""
            yield (
                f"torchvision convnets with every free group {words}",
                f"{cell['ran']} of {found['networks']} ran: {cell['exact']} exact to 1e-10{rest}",
                "`benchmarks/widths.py`",
            )


def _labels() -> Iterator[tuple[str, str, str]]:
    data = load("labels")
    if data:
        found = data["summary"]
        yield (
            f"channel analysis of {found['networks']} torchvision convnets, after export",
            f"median {found['labels_median']:.3f} s, slowest {found['labels_max']:.2f} s",
            "`benchmarks/labels.py`",
        )


def _cost_model() -> Iterator[tuple[str, str, str]]:
    data = load("cost_model")
    if data:
        rate = data["candidates_per_second"]["macs_and_params"]
        name = data["network"].partition(":")[2]
        yield f"{name} width candidates costed, exactly", f"{rate:,} per second", "`benchmarks/cost_model.py`"


def _latency() -> Iterator[tuple[str, str, str]]:
    data = load("latency")
    if data and _besides(data) < 0.5:  # measured beside other work, it is no claim
        row = data["rows"][0]
        left = row["counts"]["counted"]["macs"] / row["counts"]["before"]["macs"]
        yield (
            f"{row['network'].partition(':')[2]} with all widths halved: MACs left, time left",
            f"{percent(left, 0)}, {percent(row['ratio']['median'], 0)}; estimated without building it "
            f"{100 * row['estimate_error']:+.0f} %",
            "`benchmarks/latency.py`",
        )


def _training() -> Iterator[tuple[str, str, str]]:
    data = load("training")
    if data:
        over, load_ = data["overhead"][0], data["loading"][0]
        yield (
            f"trainer against a bare loop, {data['network']}, {over['precision']}",
            f"{100 * (over['cpu_ratio'] - 1):+.1f} % processor time (median; quartiles "
            f"{', '.join(f'{100 * (q - 1):+.1f} %' for q in over['cpu_ratio_quartiles'])}); "
            f"loading is {percent(load_['share'])} of a step",
            "`benchmarks/training.py`",
        )


# ------------------------------------------------------------------ docs/benchmarks.md, docs/quickstart.md


@table("demo")
def demo() -> str:
    """The table that the demonstration ends with."""
    data = load("demo")
    if not data:
        return missing("demo")
    from convwright.runs.result import rows

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


@table("labels")
def labels() -> str:
    """The analysis times, network by network."""
    data = load("labels")
    if not data:
        return missing("labels")
    rows = [
        (
            row["network"],
            row["groups"],
            row["free_groups"],
            f"{row['export']:.2f}",
            f"{row['labels']:.3f}",
            f"{row['torch_pruning']:.3f}" if isinstance(row.get("torch_pruning"), float) else "did not finish",
        )
        for row in data["rows"]
    ]
    head = ("network", "groups", "free", "export, s", "labels, s", "torch-pruning, s")
    return markdown(head, rows, right=(1, 2, 3, 4, 5)) + "\n\n" + provenance(data)


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
        "Streamed, bytes per sample and layer beyond the batch: what is kept, and by how much the peak of counting, "
        "`result` and `verify` grows from a fifth of the samples to all. The last column is what does not grow with "
        "the samples."
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
    """Sums against wholes, and halved networks against their estimates."""
    data = load("latency")
    if not data:
        return missing("latency")
    rows = [
        (
            row["network"].partition(":")[2],
            f"{row['operators']} in {row['table_seconds']:.0f} s",
            f"{row['whole']['median_ms']:.1f}",
            f"{row['sum_over_whole']:.2f}",
            _milliseconds(row["before"]),
            _milliseconds(row["after"]),
            f"{row['estimate_in_turns_ms']:.1f} ({100 * row['estimate_error']:+.0f} %)",
            percent(row["counts"]["counted"]["macs"] / row["counts"]["before"]["macs"], 0),
            percent(row["ratio"]["median"], 0),
        )
        for row in data["rows"]
    ]
    head = (
        "network", "operators measured", "whole, ms", "sum / whole", "in turns: original, ms", "halved, ms",
        "halved, estimated, ms", "MACs left", "time left",
    )  # fmt: skip
    shown = markdown(head, rows, right=tuple(range(2, 9)))
    words = "In brackets: the 95% interval of the median."
    if _besides(data) >= 0.5:
        words += (
            f" **Other processes were running**, about {_besides(data):.1f} besides this one on "
            f"{data['machine']['cores']} cores. Long operators were interrupted more often than short ones, so the "
            "sums and estimates show the load as well as the networks."
        )
    return f"{shown}\n\n{words}\n\n{provenance(data)}"


def _besides(data: Json) -> float:
    """Return how many other processes were running, by the load average."""
    return float(data["machine"]["load_after"][0]) - float(data["machine"]["threads_used"])


def _milliseconds(found: Json) -> str:
    low, high = found["interval_ms"]
    return f"{found['median_ms']:.1f} ({low:.1f} to {high:.1f})"


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


# ------------------------------------------------------------------ docs/zoo.md


@table("zoo")
def zoo() -> str:
    """Every registered network, built on empty weights and counted by torch's own counter."""
    import torch

    from convwright import zoo as registry
    from convwright.cost import count_by_torch

    rows = []
    for name in registry.names():
        entry = registry.entry(name)
        with torch.device("meta"):
            model, image = registry.create(name), torch.zeros(1, *entry.input_shape)
        params = sum(p.numel() for p in model.parameters())
        shape = "x".join(map(str, entry.input_shape))
        macs = count_by_torch(model, image)
        rows.append((f"`zoo:{name}`", shape, entry.num_classes, f"{params:,}", f"{macs:,}", entry.source))
    return markdown(("name", "image", "classes", "parameters", "MACs", "source"), rows, right=(2, 3, 4))


# ------------------------------------------------------------------ docs/greedy-enlarging.md


@table("enlarging")
def enlarging() -> str:
    """What the decisions of a whole greedy run cost."""
    data = load("enlarging")
    if not data:
        return missing("enlarging")
    rows = [
        (f"`pairs={row['pairs']}`", row["candidates"], f"{row['costed']:,}", f"{row['processor_seconds']:.2f} s")
        for row in data["rows"]
    ]
    text = markdown(("", "candidates", "networks costed", "processor time"), rows, right=(1, 2, 3))
    course = f"a run of `{data['network']}` to {data['target'] / 1e6:.0f}M MACs in {data['steps']} steps"
    begin = (
        f"All decisions and plans of {course}, without training; "
        f"reading the network takes {data['reading_processor_seconds']:.1f} s before it."
    )
    return f"{begin}\n\n{text}\n\n{provenance(data)}"


# ------------------------------------------------------------------ docs/stage-shares.md


@table("stage-shares")
def stage_shares() -> str:
    """Where each network puts its MACs: stem, stages, head."""
    import torch
    import torchvision

    from convwright import zoo as registry

    networks = [(f"zoo:{n}", registry.entry(n).input_shape[-1], partial(registry.create, n)) for n in _STAGED]
    networks += [(f"torchvision:{n}", 224, getattr(torchvision.models, n)) for n in _STAGED_TORCHVISION]
    rows = []
    for name, side, make in networks:
        with torch.device("meta"):
            model, image = make().eval(), torch.zeros(1, 3, side, side)
        counts = _child_macs(model, image)
        total = sum(counts.values())
        places = [i for i, child in enumerate(counts) if re.fullmatch(r"(stage|layer)\d+", child)]
        values = list(counts.values())
        stages = [values[i] for i in places]
        ends = sum(values[: places[0]]), sum(values[places[-1] + 1 :])
        shares = "/".join(f"{100 * value / total:.1f}" for value in (ends[0], *stages, ends[1]))
        rows.append((f"`{name}`", side, f"{total:,}", shares))
    return markdown(("network", "image side", "MACs", "stem / stages / head, %"), rows, right=(1, 2))


_STAGED = (
    "ghostnet", "ghostnet-large", "s-ghostnet-b1", "s-ghostnet-eval-b1", "s-ghostnet-b4", "s-ghostnet-example",
    *(f"efficientnet-b{number}" for number in range(8)),
)  # fmt: skip
_STAGED_TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101")


def _child_macs(model: Any, image: Any) -> dict[str, int]:
    """Count the MACs of each child of a network, in the order of their names, by torch's own counter."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    found: dict[str, int] = {}
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.BatchNorm2d):  # no MACs, and by far the slowest on empty weights
                setattr(module, name, torch.nn.Identity())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for name, child in model.named_children():
            child.register_forward_pre_hook(lambda *_, n=name: found.update({n: -counter.get_total_flops() // 2}))
            child.register_forward_hook(lambda *_, n=name: found.update({n: found[n] + counter.get_total_flops() // 2}))
        model(image)
    return found


# ------------------------------------------------------------------ docs/support.md


@table("support-summary")
def support_summary() -> str:
    """How many networks each kind of edit works on."""
    return _neighbour("support_page").summary(markdown)


@table("support")
def support() -> str:
    """The matrix itself, a line per network."""
    return _neighbour("support_page").table(markdown)


@table("support-reasons")
def support_reasons() -> str:
    """Why cells of the matrix are not exact."""
    return _neighbour("support_page").reasons()


def _neighbour(name: str) -> Any:
    """Return a file beside this one as a module, wherever this tool is run from."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_results_page = _neighbour("results_page")
_results_page.register(TABLES, load, missing, provenance, markdown)


# ------------------------------------------------------------------ docs/cli.md


@table("cli")
def command_line() -> str:
    """Every command with its arguments and options, from the program itself."""
    import typer.main

    from convwright.cli import app

    group: Any = typer.main.get_command(app)
    return "\n\n".join(_command(name, command) for name, command in _leaves(group))


def _leaves(group: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the commands of a group by their full names, those of groups in it included."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _leaves(command, f"{above}{name} ")
        else:
            yield above + name, command


def _command(name: str, command: Any) -> str:
    rows = [
        (
            f"`{_spelling(p)}`",
            "yes" if p.required else "no",
            _default(p),
            getattr(p, "help", None) or "",
        )
        for p in command.params
        if p.name != "help"
    ]
    usage = " ".join(_spelling(p) for p in command.params if p.required)
    head = f"### {name}\n\n{command.help}\n\n```text\nconvwright {name}{' ' + usage if usage else ''} [options]\n```"
    listed = markdown(("argument or option", "required", "default", "meaning"), rows) if rows else "No options."
    return f"{head}\n\n{listed}"


def _spelling(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return parameter.name.upper()
    text = parameter.opts[0]
    if getattr(parameter, "is_flag", False):
        return text
    return f"{text} {parameter.name.upper().removesuffix('_SHAPE').replace('_', '-')}"


def _default(parameter: Any) -> str:
    value = parameter.default
    plain = isinstance(value, (str, int)) and not isinstance(value, bool)
    return f"`{value}`" if plain else ""


# ------------------------------------------------------------------ the files


def pages() -> list[Path]:
    """Return the files that may hold generated tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def updated(text: str) -> str:
    """Return a page with all of its tables made anew."""
    for name in re.findall(r"<!-- ([a-z0-9-]+):begin -->", text):
        if name not in TABLES:
            raise SystemExit(f"no table is called {name!r}; known are {', '.join(TABLES)}")
        between = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        body = TABLES[name]()
        text = between.sub(lambda match, body=body: f"{match[1]}\n{body}\n\n{match[2]}", text)
    return text


def out_of_date() -> list[tuple[Path, str]]:
    """Return the pages that the generator would change, with their new text."""
    pairs = [(page, page.read_text(encoding="utf-8")) for page in pages()]
    return [(page, new) for page, old in pairs if (new := updated(old)) != old]


def main() -> None:
    """Bring all pages up to date."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if something is out of date")
    check = parser.parse_args().check
    changed = out_of_date()
    for page, text in changed:
        print(("out of date: " if check else "updated ") + str(page.relative_to(ROOT)))
        if not check:
            page.write_text(text, encoding="utf-8")
    sys.exit(int(check and bool(changed)))


if __name__ == "__main__":
    main()
