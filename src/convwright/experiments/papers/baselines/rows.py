"""``rivals``: method auto beside each method alone and beside other tools, at one budget and one total of compute.

What is equal. Every row of a table is within the same budget of MACs, is trained by the same recipe, and sees the same
number of images times MACs of its networks, search and final training together (`Rest`): a row that searches less
trains longer. The total is that of a first training of the untouched network, a search and a final training, as
`Course` plans them. Rows that keep trained weights begin with the first training, which counts; the others begin with
new weights and save it. Method auto has a first training and a search of its own lengths within the total. Searches
are carried out once: the seeds are those of the final trainings, so the deviation does not say how much another search
would have found.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from convwright.experiments.designs.design import Design, OptimizedKernels, UniformRatio
from convwright.experiments.designs.search_design import Searched
from convwright.experiments.papers.baselines.designs import Kept, LatencyStudy, MovedUnits, Phases, Rest, Tpe
from convwright.experiments.papers.baselines.torch_pruning import MOST, Pruned
from convwright.experiments.papers.small_networks import cifar_recipe
from convwright.experiments.results_table import spread
from convwright.experiments.row import Conclusion, Row, Size, experiment, seeds_of, trial_fields
from convwright.plots import Series, lines
from convwright.tables import Json, Sheet
from convwright.training import Recipe

PERCENTS = (50, 25)


@dataclass(frozen=True)
class Base:
    """A network to be made smaller.

    Attributes:
        model: Its name.
        options: Of its builder, at each size.
        data: What it is trained on, at each size.
        shapes: (c, h, w) of the images, at each size.
        precision: In which it is faster on the processors at hand.
        most_pruned: Share of a layer's channels that torch-pruning may remove.
        timed: Sizes at which it has budgets of time.
    """

    model: str
    options: Mapping[Size, Mapping[str, Any]]
    data: Mapping[Size, str]
    shapes: Mapping[Size, tuple[int, int, int]]
    precision: str
    most_pruned: float = MOST
    timed: tuple[Size, ...] = ("standard", "full")


@dataclass(frozen=True)
class Course:
    """How long is trained at a size.

    Attributes:
        first: Epochs of the first training of the untouched network.
        auto: Of method auto: epochs of its first training, and of all its candidates, each about as large as the
            budget.
        search: Epochs of all candidates of the other searches.
        trial: Epochs of a trial, where all are equally long.
        final: Epochs of the final training that the total is planned for.
        held: Share of the training images that searches are judged on, and do not train on.
        seconds: How long a latency is measured.
        percents: Budgets, in percent of the MACs.
        rounds: Of method auto, after its race.
        latencies: Budgets, in percent of the latency: method auto beside the untouched network, as no other row has a
            budget of time.
    """

    first: int
    auto: tuple[int, int]
    search: int
    trial: int
    final: int
    held: float
    seconds: float
    percents: tuple[int, ...] = PERCENTS
    rounds: int = 2
    latencies: tuple[int, ...] = (50,)

    def total(self, percent: int) -> int:
        """Return what each row may spend, in whole epochs of the untouched network over all training images."""
        share = percent / 100
        return math.ceil((1 - self.held) * (self.first + self.search * share) + self.final * share - 1e-9)

    @property
    def trials(self) -> int:
        """How many trials a search of equally long ones has."""
        return self.search // self.trial


COURSES: Mapping[Size, Course] = {
    "quick": Course(1, (1, 3), 3, 1, 1, 0.2, 0.1, (50,), latencies=()),
    "standard": Course(2, (1, 3), 16, 1, 14, 0.1, 2.0, rounds=0),
    "full": Course(60, (60, 400), 400, 10, 80, 0.1, 6.0),
}

_QUICK = {"in_channels": 1, "width": 0.25, "depths": [1, 2, 2]}  # one network, and no download
_MINI, _GREY, _COLOUR = "fashion-mini", (1, 28, 28), (3, 32, 32)
BASES: Mapping[str, Base] = {
    "resnet": Base(
        "zoo:resnet20",
        {"quick": _QUICK, "standard": {"width": 0.5}, "full": {}},
        {"quick": _MINI, "standard": "cifar10-10k", "full": "cifar10"},
        {"quick": _GREY, "standard": _COLOUR, "full": _COLOUR},
        "bf16",
    ),
    # At standard size its many small layers cost more time than their MACs say: a narrow one, on smaller maps.
    "mobilenet": Base(
        "zoo:mobilenet-v2",
        {"standard": {"width": 0.25, "depths": [1, 1, 2, 2, 1, 1, 1], "stem_stride": 2}, "full": {}},
        {"standard": "cifar10-10k", "full": "cifar10"},
        {"standard": _COLOUR, "full": _COLOUR},
        "fp32",
        timed=("full",),  # at standard size calls of its layers, few of which can go, take more than half of the time
        most_pruned=0.75,  # with 95 % its stem is left with one channel, and the training stays at chance
    ),
    "fashion": Base(
        "zoo:resnet20",
        {"standard": {"width": 0.5, "depths": [2, 2, 2], "in_channels": 1}, "full": {"in_channels": 1}},
        {"standard": "fashion-mnist-10k", "full": "fashion-mnist"},
        {"standard": _GREY, "full": _GREY},
        "bf16",
    ),
}


def recipe_of(base: Base, epochs: int) -> Recipe:
    """Return the recipe of all trainings; only their length differs."""
    return cifar_recipe(epochs, precision=base.precision)


def trial_recipe(base: Base, course: Course) -> dict[str, Any]:
    """Return the fields of the recipe of a search's trainings; a part of the images is held out."""
    return trial_fields(recipe_of(base, 1), course.held)


_PlannedRow = tuple[str, tuple[Design, ...], str]  # its name, what decides its network, and a note


def _made(base: Base, course: Course, percent: int) -> Iterator[_PlannedRow]:
    """Yield the rows of one base and budget; what spends the rest comes later."""
    budget, recipe, first = f"macs<={percent}%", trial_recipe(base, course), course.first
    equal: dict[str, Any] = {"trials": course.trials, "trial_epochs": course.trial}
    to_budget = UniformRatio(budget)

    def search(method: str, within: str = budget, **options: Any) -> Searched:
        return Searched(method, options, within, recipe)

    yield _auto(base, course, budget)
    response = search("channel-search", rule="response", **equal)
    yield "channel-search", (response,), "rule response: trials from new weights"
    greedy = search("greedy", trial_epochs=course.trial, weights="fresh", **GREEDY[course.search])
    yield "greedy", (UniformRatio(f"macs<={percent / 2:g}%"), greedy), "half the budget by one ratio, then enlarged"
    phased = Phases(budget=budget, recipe=recipe, options={"epochs": first, "tune_epochs": course.trial})
    yield "phased", (Kept(phased),), "the phases, without techniques"
    conflicts = search("conflicts", within="", epochs=first)
    yield "conflicts", (conflicts, to_budget), "blocks in conflict removed; then one ratio for all widths"
    yield "receptive-field", (MovedUnits(), to_budget), "units moved between stages; then one ratio"
    yield "kernel", (OptimizedKernels(budget=budget), to_budget), "cheaper operators; then one ratio"
    one_ratio = search("uniform", epochs=first)
    yield "uniform", (Kept(one_ratio),), "one ratio for all widths, trained weights kept"
    yield "uniform-new", (to_budget,), "one ratio for all widths, from new weights"
    for importance, words in (("magnitude", "L1 norm of filters"), ("group-norm", "L2 norm of groups")):
        pruned = Pruned(
            first=one_ratio, budget=budget, recipe=recipe, importance=importance,  # type: ignore[arg-type]
            epochs=course.trial, most=base.most_pruned,
        )  # fmt: skip
        yield f"torch-pruning-{importance}", (pruned,), f"{words}, in {pruned.steps} steps, fine-tuned"
    tpe = Tpe(budget=budget, recipe=recipe, options=equal)
    yield "tpe", (tpe,), "Optuna: a width factor and a depth per stage, trials from new weights"


def _auto(base: Base, course: Course, budget: str) -> _PlannedRow:
    begun, searched = course.auto
    lengths = {"epochs": begun, "search_epochs": searched, "tune_epochs": course.final, "rounds": course.rounds}
    design = Kept(Searched("auto", lengths, budget, trial_recipe(base, course)))
    return "auto", (design,), "all methods' proposals"


# Steps of greedy enlarging by the epochs of a search: each tries some seven candidates, smaller than the budget.
GREEDY: Mapping[int, Mapping[str, Any]] = {
    3: {"steps": 1, "tolerance": 0.5, "width_growth": 2.0, "resolution_step": 4},
    16: {"steps": 3, "tolerance": 0.2, "width_growth": 2.0, "resolution_step": 4},
    400: {"steps": 6, "tolerance": 0.1, "width_growth": 2.0, "resolution_step": 4},
}


@experiment(
    "rivals",
    title="Method auto, each method alone and other tools at 50 % and 25 % of the MACs, at equal total compute",
    source="a comparison of ours: no paper has these rows; torch-pruning 1.6 and Optuna as published",
    conclude=lambda content: conclude(content),
)
def rivals(size: Size) -> tuple[Row, ...]:
    """Return per network and budget the untouched network and what each method and tool makes of it."""
    course, found = COURSES[size], list[Row]()
    for name, base in ((name, base) for name, base in BASES.items() if size in base.options):
        for percent in course.percents:
            found += _rows(f"{name}{percent}", base, size, percent, _made(base, course, percent))
        for percent in course.latencies if size in base.timed else ():  # with the compute of the same share of MACs
            timed = _auto(base, course, f"latency<={percent}%")
            found += _rows(f"{name}{percent}ms", base, size, percent, (timed,))
    return tuple(found)


def _rows(table: str, base: Base, size: Size, percent: int, rows: Iterable[_PlannedRow]) -> Iterator[Row]:
    """Yield the rows of a table, the two untouched ones first."""
    options, course = base.options[size], COURSES[size]
    total = course.total(percent)
    study = LatencyStudy(base.model, options, base.shapes[size], course.seconds)
    start = Row("", base.model, base.data[size], recipe_of(base, 1), seeds_of(size), options, fresh=True, study=study)
    long, words = f"{table}-baseline-long", f"untouched, {course.first} epochs"
    yield replace(start, name=f"{table}-baseline", design=(Rest(course.first),), note=words, control=long)
    yield replace(start, name=long, design=(Rest(total),), note="untouched, with all the compute")
    for kind, design, note in rows:
        design = (*design, Rest(total))
        yield replace(start, name=f"{table}-{kind}", design=design, note=note, control=f"{table}-auto")


OURS = "auto"
UNTOUCHED = ("baseline", "baseline-long")


def conclude(content: Json) -> Conclusion:
    """Return the tables, who wins, and a picture per network."""
    tables: dict[str, list[Json]] = {}
    untrained: dict[str, list[str]] = {}
    for row in content["rows"]:
        table, kind = _split(row)
        if row["mean"] is None:
            untrained.setdefault(table, []).append(kind)
        else:
            tables.setdefault(table, []).append(row)
    sheets = tuple(_sheet(name, rows, untrained.get(name, ())) for name, rows in tables.items())
    values = {name: verdict(rows) for name, rows in tables.items()}
    networks: dict[str, list[Json]] = {}
    for name, rows in tables.items():
        network, _, metric = of_table(name)
        if metric == "MACs":
            networks.setdefault(network, []).extend(rows)
    pictures = {f"rivals-{name}": _picture(name, rows) for name, rows in networks.items() if len(rows) > 1}
    return Conclusion(sheets, values, pictures, complete=True)


def _split(row: Json) -> tuple[str, str]:
    """Return the table that a row is in, such as ``resnet50``, and what it is called there."""
    table, _, kind = str(row["name"]).partition("-")
    return table, kind


def of_table(name: str) -> tuple[str, int, str]:
    """Return the network of a table, the budget in percent and of what.

    Examples:
        >>> of_table("resnet50"), of_table("mobilenet25ms")
        (('resnet', 50, 'MACs'), ('mobilenet', 25, 'latency'))
    """
    network, percent, unit = re.fullmatch(r"(\D+)(\d+)(ms)?", name).groups()  # type: ignore[union-attr]
    return network, int(percent), "latency" if unit else "MACs"


def compute(row: Json) -> dict[str, float]:
    """Return what a row's search and its final training cost, in epochs of the untouched network.

    Args:
        row: Of ``result.json``, trained.
    """
    known = next(study for study in row["studies"] if study is not None)
    epoch = known["images"] * known["macs"]
    searched = math.fsum(each["image_macs"] for each in row.get("searches") or ()) / epoch
    final = row["form"]["epochs"] * row["macs"] / known["macs"]
    return {"search": searched, "final": final, "total": searched + final}


# ------------------------------------------------------------------ who wins


def verdict(rows: Sequence[Json]) -> dict[str, Any]:
    """Return how ``auto`` stands in a table; without it, only who is first.

    The deviation that a lead is held against is that of the difference of two single trainings: the root of the sum of
    both rows' squared deviations; None where a row has one seed. As accurate as the untouched network is what loses no
    more than the deviation against it.
    """
    by_kind = {_split(row)[1]: row for row in rows}
    within = [row for kind, row in by_kind.items() if kind not in UNTOUCHED]
    if not within:
        return {}
    order = sorted(within, key=lambda row: -row["mean"])
    found: dict[str, Any] = {"first": _split(order[0])[1]}
    long = by_kind.get("baseline-long")
    if long is not None:
        leads = [(row, lead_of(row, long)) for row in within]
        near = [row for row, lead in leads if lead["lead"] >= -(lead["deviation"] or 0.0)]
        found["as_accurate"] = {_split(row)[1]: latency(row) for row in near}
    ours = by_kind.get(OURS)
    if ours is not None and long is not None:
        found["auto_ahead_of_untouched"] = lead_of(ours, long)
    others = [row for row in order if row is not ours]
    if ours is None or not others:
        return found
    lead = lead_of(ours, others[0])
    above = {_split(row)[1]: lead_of(ours, row) for row in others}
    found |= {"auto_ahead_of_next": {"row": _split(others[0])[1], **lead}, "auto_ahead": above}
    found["auto_above_every_row"] = all(clear(each) for each in above.values())
    return found


def lead_of(one: Json, other: Json) -> dict[str, Any]:
    """Return by how much one row is ahead of another, and the deviation of the difference of two single trainings."""
    both = one["deviation"], other["deviation"]
    deviation = None if None in both else math.hypot(*both)
    return {"lead": one["mean"] - other["mean"], "deviation": deviation}


def clear(lead: Json) -> bool:
    """Return whether a lead is larger than its deviation; never where that is not known."""
    return lead["deviation"] is not None and lead["lead"] > lead["deviation"]


def latency(row: Json) -> float | None:
    """Return the latency of a row's network over that of the untouched one: the median over seeds."""
    known = [study["ratio"] for study in row.get("studies") or () if study is not None]
    return statistics.median(known) if known else None


def _told(found: Json) -> tuple[str, ...]:
    if not found:
        return ()
    said = [f"First: {found['first']}."]
    if next_one := found.get("auto_ahead_of_next"):
        told = f"auto against the best other row, {next_one['row']}: {100 * next_one['lead']:+.2f} points"
        noise = next_one["deviation"]
        if noise is None:
            said.append(f"{told}; one seed says nothing of the noise.")
        else:
            word = "more" if clear(next_one) else "no more"
            said.append(f"{told}, {word} than the deviation of the difference, {100 * noise:.2f}.")
        behind = [kind for kind, lead in found["auto_ahead"].items() if not clear(lead)]
        if behind and noise is not None:
            said.append(f"Rows that auto is not clearly above: {', '.join(behind)}.")
    if lead := found.get("auto_ahead_of_untouched"):
        noise = "" if lead["deviation"] is None else f" (deviation of the difference {100 * lead['deviation']:.2f})"
        said.append(f"auto against the untouched network, all the compute: {100 * lead['lead']:+.2f} points{noise}.")
    if "as_accurate" in found:
        fast = [f"{kind} ({ratio:.2f})" for kind, ratio in found["as_accurate"].items() if ratio is not None]
        said.append(
            "As accurate as the untouched network with all the compute, with latency beside it: "
            f"{', '.join(fast) or 'none'}."
        )
    return (" ".join(said),)


# ------------------------------------------------------------------ tables and pictures


def _sheet(name: str, rows: Sequence[Json], untrained: Sequence[str]) -> Sheet:
    network, percent, metric = of_table(name)
    columns = (
        "row", "accuracy", "seeds", "MACs", "parameters", "latency", "search", "final", "total", "final, own epochs",
    )  # fmt: skip
    cells = tuple(_cells(row) for row in sorted(rows, key=lambda r: -r["mean"]))
    notes = (
        "Accuracy: test images, mean ± standard deviation over seeds of the final training. Latency: over that of the "
        "untouched network, measured in turns. Search, final and total: images seen times MACs of the network, in "
        "epochs of the untouched network over all training images.",
        *_told(verdict(rows)),
        *([f"Not trained, so not compared: {', '.join(untrained)}."] if untrained else []),
    )
    return Sheet(f"{network} at {percent} % of its {metric}", columns, cells, tuple(range(2, len(columns))), notes)


def _cells(row: Json) -> tuple[str, ...]:
    ratio, spent = latency(row), compute(row)
    return (
        _split(row)[1],
        spread(row["mean"], row["deviation"]),
        str(len(row["seeds"])),
        f"{row['macs']:,}",
        f"{row['params']:,}",
        "" if ratio is None else f"x {ratio:.2f}",
        *(f"{spent[part]:.2f}" for part in ("search", "final", "total")),
        str(row["form"]["epochs"]),
    )


def _picture(name: str, rows: Sequence[Json]) -> str:
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        points.setdefault(_split(row)[1], []).append((row["macs"] / 1e6, 100 * row["mean"]))
    series = [Series(kind, tuple(each), joined=False) for kind, each in points.items()]
    return lines(series, f"{name}: test accuracy beside millions of MACs", "millions of MACs", "test accuracy, %, mean")
