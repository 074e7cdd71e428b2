"""``greedy``: where further MACs go, found step by step, beside rules that scale the whole network, and chance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from convwright.experiments.designs.design import Design
from convwright.experiments.designs.search_design import At, Searched
from convwright.experiments.papers.small_networks import cifar_recipe
from convwright.experiments.results_table import beside_cost, spread
from convwright.experiments.row import Conclusion, Row, Size, experiment, seeds_of, trial_fields
from convwright.plots import Series, lines
from convwright.tables import Json, Sheet
from convwright.training import Recipe

NEAR = 0.02  # all networks of a table use at least 98 % of the budget, and no more than it


@dataclass(frozen=True)
class GreedyBase:
    """A small network to enlarge, and what the method needs to turn its knobs.

    Attributes:
        model: Its name.
        options: Of its builder.
        side: Of the images it begins with.
        budget: Four times its MACs.
        knobs: Options of `GreedyEnlarging`: how violent a step may be.
        precision: In which it is faster on the processors at hand.
        epochs: Of final trainings.
        trial_steps: Of a candidate, from new weights.
        samples: Random allocations that cost about what the search's candidates cost.
    """

    model: str
    options: Mapping[str, Any]
    side: int
    budget: str
    knobs: Mapping[str, Any]
    precision: str
    epochs: Mapping[Size, int]
    trial_steps: Mapping[Size, int]
    samples: Mapping[Size, int]


# Images of 20 pixels leave the resolution something to gain: CIFAR's own are 32. A stage needs a block that keeps the
# shape, or it cannot be deepened by copies. A step of 26 % of the MACs in one place nearly doubles a stage's width.
# The ghost network as published divides the side by 32 and has a head of 1280 channels: for images of 32 pixels it
# divides by 8 here, so that the last maps have 4 x 4, and the head is five times the last stage.
BASES: Mapping[str, GreedyBase] = {
    "resnet": GreedyBase(
        "zoo:resnet20",
        {"widths": [8, 16, 32], "depths": [1, 2, 2]},
        20,
        "macs<=8.74M",
        {"steps": 6, "tolerance": 0.06, "width_growth": 2.0, "resolution_step": 4},
        "bf16",
        {"quick": 1, "standard": 3, "full": 100},
        {"quick": 6, "standard": 500, "full": 7000},
        {"quick": 3, "standard": 20, "full": 24},
    ),
    "ghostnet": GreedyBase(
        "zoo:ghostnet-large",
        {
            "widths": [8, 12, 20, 28, 32, 40],
            "depths": [1, 1, 2, 2, 1, 2],
            "num_classes": 10,
            "stem_stride": 1,
            "strides": [1, 2, 2, 2, 1, 1],
            "head_width": 64,
        },
        32,
        "macs<=7.71M",
        {"steps": 4, "tolerance": 0.1, "width_growth": 2.5, "depth_growth": 2.0, "resolution_step": 8, "quantum": 4},
        "fp32",
        {"quick": 1, "standard": 1, "full": 100},
        {"quick": 6, "standard": 200, "full": 7000},
        {"quick": 3, "standard": 10, "full": 16},
    ),
}
_QUICK: Mapping[str, Any] = {"steps": 2, "tolerance": 0.3}
_QUICK_STEPS = 8
# Share of the training images that candidates are judged on, and not trained on.
_VALIDATION: Mapping[Size, float] = {"quick": 0.01, "standard": 0.1, "full": 0.1}
LESS = 4  # inherited weights: so many times fewer steps per candidate
_RULES: Mapping[str, str] = {
    "compound": "EfficientNet's rule: depth, width and resolution together",
    "width": "widths alone",
    "depth": "depths alone",
    "resolution": "the resolution alone",
}


def recipe_of(base: GreedyBase, size: Size, **fields: Any) -> Recipe:
    """Return the recipe of final trainings; at the size ``quick`` a few steps of it."""
    short = {"max_steps": _QUICK_STEPS} if size == "quick" else {}
    common = {"precision": base.precision, "batch_size": 64, "lr": 0.1, "crop_padding": 3}
    return cifar_recipe(base.epochs[size], **{**common, **short, **fields})


def search_of(base: GreedyBase, size: Size, method: str, seed: int = 0, **options: Any) -> Searched:
    """Return a search on nine tenths of the training images."""
    return Searched(method, options, base.budget, trial_fields(recipe_of(base, size), _VALIDATION[size]), seed)


def greedy_of(base: GreedyBase, size: Size, weights: str) -> Searched:
    """Return the search from new weights, or from inherited ones with a quarter of the steps."""
    steps = base.trial_steps[size] if weights == "fresh" else max(2, base.trial_steps[size] // LESS)
    short = _QUICK if size == "quick" else {}
    common = {**base.knobs, "trial_epochs": _epochs_for(steps), "trial_steps": steps, "weights": weights}
    return search_of(base, size, "greedy", **{**common, "rescore": 1, "contenders": 3, "ties": "score", **short})


def random_of(base: GreedyBase, size: Size, seed: int = 0, **options: Any) -> Searched:
    """Return the short trainings of random allocations, of which the best one is taken."""
    steps = base.trial_steps[size]
    common = {"rule": "random", "trial_epochs": _epochs_for(steps), "trial_steps": steps}
    return search_of(base, size, "scaling", seed, **{**common, "samples": base.samples[size], **options})


def _epochs_for(steps: int) -> int:
    """Return the epochs that so many steps of 64 images need at most: an epoch has 703 (of 45,000 images)."""
    return -(-steps // 703)


def _designs(base: GreedyBase, size: Size) -> Iterator[tuple[str, Design, str]]:
    """Yield name, design and note of each row that is enlarged."""
    yield "greedy", greedy_of(base, size, "fresh"), "each candidate from new weights, ties with a second seed"
    words = f"candidates with their parent's function, {LESS} times fewer steps"
    yield "greedy-inherit", greedy_of(base, size, "inherit"), words
    for rule, told in _RULES.items():
        yield rule, search_of(base, size, "scaling", rule=rule), told
    count = base.samples[size]
    yield "random", random_of(base, size), f"the best of {count} random shares of the further MACs, by width and depth"


def conclude(content: Json) -> Conclusion:
    """Return what each row's network is and what finding it cost, how the two searches decided, and pictures."""
    cells: list[tuple[str, ...]] = []
    values: dict[str, Any] = {}
    pictures: dict[str, str] = {}
    agreed: list[tuple[str, ...]] = []
    for name, base in BASES.items():
        rows = [row for row in content["rows"] if row["name"].startswith(f"{name}-") and row["mean"] is not None]
        enlarged = [row for row in rows if row.get("searches")]
        limit = float(base.budget.partition("<=")[2].rstrip("M")) * 1e6
        cells += [_line(row, limit) for row in sorted(enlarged, key=lambda r: -r["mean"])]
        if enlarged:
            values[name] = {row["name"].removeprefix(f"{name}-"): _value(row, limit) for row in enlarged}
            called = {row["name"].removeprefix(f"{name}-"): [row] for row in rows}
            pictures[f"greedy-{name}-macs"] = beside_cost(called, f"{name}: test accuracy beside millions of MACs")
        searches = {row["name"]: row["searches"][-1] for row in enlarged}
        both = [f"{name}-{kind}" for kind in ("greedy", "greedy-inherit") if f"{name}-{kind}" in searches]
        pictures |= {f"{each}-course": _course(each, searches[each]) for each in both}
        agreed += _decisions(name, [searches[each] for each in both])
    if not cells:
        return Conclusion()
    columns = (
        "row", "stage widths", "depths", "pixels", "MACs", "of the budget", "accuracy", "trials", "search, image-MACs",
        "search, seconds",
    )  # fmt: skip
    notes = (
        "Best first. Accuracy: test images, last epoch. Image-MACs: images seen in training times MACs of one image "
        f"forwards. Every network uses {1 - NEAR:.0%} to 100 % of the budget, or it is said.",
    )
    tables = [Sheet("Where the MACs went", columns, tuple(cells), tuple(range(3, 10)), notes)]
    if agreed:
        heads = ("base", "step", "from new weights", "with inherited weights")
        told = ("What each search turned at each step; after the first difference they stand at different networks.",)
        tables.append(Sheet("Decisions of the two searches", heads, tuple(agreed), (1,), told))
    return Conclusion(tuple(tables), values, pictures)


def _line(row: Json, limit: float) -> tuple[str, ...]:
    found = row["searches"][-1]
    end, used = found["history"][-1], row["macs"] / limit
    broken = "" if 1 - NEAR <= used <= 1 else ": OUTSIDE"
    spent = (str(len(found["trials"])), f"{found['image_macs'] / 1e12:.3g} T", f"{found['seconds']:,.0f}")
    return (
        row["name"],
        "-".join(map(str, end["stage_widths"])),
        "-".join(map(str, end["depths"])),
        str(end["resolution"]),
        f"{row['macs']:,}",
        f"{used:.1%}{broken}",
        spread(row["mean"], row["deviation"]),
        *(spent if found["trials"] else ("", "", "")),
    )


def _value(row: Json, limit: float) -> Json:
    found = row["searches"][-1]
    return {
        **{key: found["history"][-1][key] for key in ("stage_widths", "depths", "resolution")},
        "used": row["macs"] / limit,
        "mean": row["mean"],
        "trials": len(found["trials"]),
        "image_macs": found["image_macs"],
        "seconds": found["seconds"],
    }


def _decisions(name: str, searched: Sequence[Json]) -> list[tuple[str, ...]]:
    """Return what both searches turned, level by level; nothing unless both are there."""
    told = [{h["level"]: h["turned"] for h in found["history"][1:]} for found in searched]
    if len(told) < 2:
        return []
    levels = sorted({level for each in told for level in each})
    return [(name, str(level), *(each.get(level, "carried over") for each in told)) for level in levels]


def _course(name: str, found: Json) -> str:
    """Draw every knob over the steps, as a multiple of where it began."""
    steps = found["history"]
    start = steps[0]

    def line(words: str, value: Any) -> Series:
        return Series(words, tuple((number, value(step)) for number, step in enumerate(steps)))

    stages = range(len(start["depths"]))
    series = [
        *(line(f"width {i + 1}", lambda s, i=i: s["stage_widths"][i] / start["stage_widths"][i]) for i in stages),
        *(line(f"depth {i + 1}", lambda s, i=i: s["depths"][i] / start["depths"][i]) for i in stages),
        line("resolution", lambda s: s["resolution"] / start["resolution"]),
    ]
    moved = [each for each in series if any(y != 1 for _, y in each.points)]
    title = f"{name}: what grew at each step"
    return lines(moved or series, title, "step; the last one is the trim to the budget", "times its first value")


@experiment(
    "greedy",
    title="Small networks enlarged to four times the MACs, CIFAR-10: step by step, by rules, and at random",
    source="Liu et al. 2021 (arXiv 2108.00177): the aim is known, the algorithm is reconstructed; networks and sizes "
    "are ours, ImageNet results are not reproduced",
    conclude=conclude,
)
def greedy(size: Size) -> tuple[Row, ...]:
    """Return per base the network as it is, and what searches, rules and chance make of it; all trained alike."""
    return tuple(row for name, base in BASES.items() for row in _rows(name, base, size))


def _rows(name: str, base: GreedyBase, size: Size) -> Iterator[Row]:
    begin = (At(base.side),)
    before = Row(
        f"{name}-before", base.model, "cifar10", recipe_of(base, size), seeds_of(size), base.options, begin,
        fresh=True, note=f"the network as it is, {base.side} pixels",
    )  # fmt: skip
    yield before
    for kind, design, note in _designs(base, size):
        control = f"{name}-before" if kind == "compound" else f"{name}-compound"
        row = replace(before, name=f"{name}-{kind}", design=(*begin, design))
        yield replace(row, note=f"{base.budget}: {note}", control=control)
