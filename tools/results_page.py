"""Tables of docs/results.md and of the training pipeline, for make_tables.py: from result files and nothing else."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from functools import partial

from table_kit import Json, load, markdown, missing, provenance, table

EXPERIMENTS = (
    "mnist-1500", "cifar10-140k", "mnist-phases", "mnist-techniques", "cifar10-techniques", "3drf", "3drf-rank",
    "conetv2", "conetv2-rank", "conetv2-transfer", "conflicts-lesion", "conflicts-tune",
    "conflicts-boundary", "greedy", "greedy-rank", "rivals", "compress",
)  # fmt: skip
# Of an experiment that draws more than a page can show; the others show all.
SHOWN = {
    "conetv2": (
        "conetv2-resnet20-macs",
        "conetv2-mobilenet-macs",
        "conetv2-resnet20-search-macs-widths",
        "conetv2-resnet20-search-macs-quality",
        "conetv2-resnet20-parity-macs-score",
    ),
    "conflicts-lesion": (
        "conflicts-lesion-residual",
        "conflicts-lesion-residual-sparse",
        "conflicts-flags-no-shortcuts",
    ),
}

# The ways of experiment compress that README shows, with its words.
WAYS = {
    "ours": "convwright", "ours-no-labels": "the same, without labels", "torch-pruning-taylor": "torch-pruning, Taylor",
    "torch-pruning-magnitude": "torch-pruning, magnitude", "resolution": "smaller images",
    "uniform": "one ratio for all widths", "scratch": "one ratio, from new weights",
}  # fmt: skip
_SEEDS = 3


def experiment(name: str) -> str:
    """Return an experiment's table, from a copy of the ``result.json`` that `convwright reproduce` wrote."""
    data = load(f"reproduce/{name}")
    if not data:
        return missing(f"reproduce/{name}")
    from convwright.experiments.results_table import reproduced
    from convwright.plots import plotted

    words = "" if data["size"] == "standard" else f"Size: {data['size']}.\n\n"
    shown = "".join(f"![{plotted(text)['title']}](images/{drawn}.svg)\n\n" for drawn, text in pictures(data).items())
    return f"{words}{reproduced(data).markdown()}\n\n{shown}{provenance(data)}"


def pictures(data: Json) -> dict[str, str]:
    """Return the pictures of an experiment's result that its page shows, as SVG by name."""
    from convwright.experiments.papers import EXPERIMENTS

    conclude = EXPERIMENTS[data["name"]].conclude
    drawn = dict(conclude(data).pictures) if conclude is not None else {}
    return {name: drawn[name] for name in SHOWN.get(data["name"], tuple(drawn)) if name in drawn}


@table("pipeline")
def pipeline() -> str:
    """Return the images per second of every way to train."""
    data = load("pipeline")
    if not data:
        return missing("pipeline")
    rows = [
        (
            row["name"],
            f"{row['images_per_second']:,.0f}",
            " to ".join(f"{rate:,.0f}" for rate in row["quartiles"]),
            f"{row['against_usual']:.2f}",
            " to ".join(f"{ratio:.2f}" for ratio in row["against_usual_quartiles"]),
        )
        for row in data["rows"]
    ]
    words = (
        f"`{data['network']}`, {data['data']}, batches of {data['batch_size']}, {data['rounds']} rounds of "
        f"{data['seconds']:g} s per way; our settings: {data['precision']}, {data['memory_format']}; "
        f"{data['workers']} workers."
    )
    busy = data["machine"]["load_after"][0] - data["machine"]["threads"] - data["workers"]
    if busy >= 0.5:
        words += f" **Other processes were running**, about {busy:.1f} besides these."
    head = ("way", "images per second", "quartiles", "against usual", "quartiles of it")
    return f"{words}\n\n{markdown(head, rows, right=(1, 2, 3, 4))}\n\n{provenance(data)}"


def headlines() -> Iterator[tuple[str, str, str]]:
    """The rows of the papers' tables that were set a target."""
    for name in ("mnist-1500", "cifar10-140k"):
        for row in (load(f"reproduce/{name}") or {"rows": []})["rows"]:
            if row["target"] is not None and row["mean"] is not None:
                count = len(row["seeds"])
                seeds = f"{count} seed{'s' * (count != 1)}"
                spread = f" ± {100 * row['deviation']:.2f}" if row["deviation"] is not None else ""
                yield (
                    f"{row['data']} with {row['params']:,} parameters ({row['name']}); the paper "
                    f"{100 * row['paper']['accuracy']:.2f} % with {row['paper']['params']:,}",
                    f"{100 * row['mean']:.2f}{spread} %, last epoch, {seeds}",
                    f"`convwright reproduce {name}`",
                )


@table("techniques")
def techniques() -> str:
    """The card of every technique, with its options and their defaults."""
    from convwright.techniques import TECHNIQUES

    parts = []
    for name, entry in sorted(TECHNIQUES.items()):
        options = entry.fields if entry.kind is None else {k: f.default for k, f in entry.kind.model_fields.items()}
        where = "fields of the recipe" if entry.kind is None else "options"
        shown = ", ".join(f"`{key}: {_yaml(value)}`" for key, value in options.items()) or "none"
        card = entry.card
        lines = [f"### {name}", "", card.does, ""]
        told = (("Cost", card.cost), ("Helps", card.helps), ("Does not help", card.hurts), ("Source", card.source))
        lines += [f"- **{title}**: {text}" for title, text in told]
        parts.append("\n".join([*lines, f"- **{where.capitalize()}**: {shown}"]))
    return "\n\n".join(parts)


def _yaml(value: object) -> str:
    return json.dumps(value) if not isinstance(value, str) else value


def automatic() -> Iterator[tuple[str, str, str]]:
    """Method auto beside the untouched network and the best other row: of each network its smallest budget of MACs."""
    from convwright.experiments.papers.baselines.rows import of_table

    data = load("reproduce/rivals") or {"rows": [], "conclusion": {"values": {}}}
    rows = {row["name"]: row for row in data["rows"] if row["mean"] is not None and len(row["seeds"]) >= _SEEDS}
    smallest: dict[str, tuple[int, str]] = {}
    for name, found in data["conclusion"]["values"].items():
        network, percent, metric = of_table(name)
        whole = "auto_ahead_of_next" in found and {f"{name}-auto", f"{name}-baseline-long"} <= rows.keys()
        if metric == "MACs" and whole:
            smallest[network] = min(smallest.get(network, (percent, name)), (percent, name))
    for percent, name in smallest.values():
        auto, untouched = rows[f"{name}-auto"], rows[f"{name}-baseline-long"]
        next_one = data["conclusion"]["values"][name]["auto_ahead_of_next"]["row"]
        network = auto["model"].partition(":")[2]
        yield (
            f"{network} (narrow) on {auto['data']} at {percent} % of the MACs by `auto`, equal total compute",
            f"{_spread(untouched)} → {_spread(auto)}; next best, {next_one}: {_spread(rows[f'{name}-{next_one}'])}",
            "`convwright reproduce rivals`",
        )


@table("compressed")
def compressed() -> str:
    """Return test accuracy and latency of every way to halve and quarter a network trained on photographs."""
    data = load("reproduce/compress") or {"rows": []}
    rows = {row["name"]: row for row in data["rows"] if row["mean"] is not None and len(row["seeds"]) >= _SEEDS}
    untouched = rows.get("clothing-untouched")
    if untouched is None:
        return missing("reproduce/compress")
    cells = []
    for way, words in WAYS.items():
        half, quarter = (rows.get(f"clothing{share}-{way}") for share in (50, 25))
        if half or quarter:
            found = [(_spread(row), _tuned_from(row), _times(row)) if row else ("", "", "") for row in (half, quarter)]
            cells.append((words, *found[0], *found[1]))
    head = ("way", "half the MACs: test", "before tuning", "latency", "a quarter: test", "before tuning", "latency")
    words = (
        "EfficientNet-Lite0 with ImageNet weights, trained on 3,068 photographs of clothes of 96x96 pixels. Tuned for "
        f"as long, the untouched network comes to {_spread(untouched)} of 372 test photographs. Latency: ONNX Runtime, "
        "one thread, times that of the untouched network. Means and deviations of three seeds: "
        "`convwright reproduce compress`."
    )
    return f"{words}\n\n{markdown(head, cells, right=tuple(range(1, 7)))}"


def _tuned_from(row: Json) -> str:
    ends = [histories[-1][-1]["test"] for histories in row["histories"] if len(histories[-1]) > 1]
    return f"{100 * statistics.fmean(ends):.1f} %" if ends else ""


def _times(row: Json) -> str:
    ratios = [study["ONNX Runtime"]["ratio"]["median"] for study in row["studies"] if study is not None]
    return f"x {statistics.median(ratios):.2f}" if ratios else ""


def _spread(row: Json) -> str:
    return f"{100 * row['mean']:.2f} ± {100 * row['deviation']:.2f} %"


for _name in EXPERIMENTS:
    table(f"reproduce-{_name}")(partial(experiment, _name))
