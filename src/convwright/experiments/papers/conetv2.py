"""Channel searches beside what any of them has to beat: one common ratio, and widths drawn at random (``conetv2``).

``conetv2-transfer`` asks what carrying weights from trial to trial is worth, on one and the same course of widths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, get_args

from convwright.experiments.designs.design import Design, UniformRatio
from convwright.experiments.designs.search_design import Searched, Transfer, Walked
from convwright.experiments.papers.small_networks import cifar_recipe
from convwright.experiments.results_table import MILLIONS, beside_cost, pictures_of
from convwright.experiments.row import Conclusion, Row, Size, experiment, seeds_of, trial_fields
from convwright.plots import Series, lines
from convwright.tables import Json, Sheet
from convwright.training import Recipe

BUDGETS: Mapping[str, str] = {"macs": "macs<=50%", "params": "params<=50%"}


_EPOCHS: Mapping[Size, int] = {"quick": 1, "standard": 4, "full": 200}
_TRIALS: Mapping[Size, int] = {"quick": 3, "standard": 12, "full": 36}
_TRIAL_EPOCHS: Mapping[Size, int] = {"quick": 1, "standard": 1, "full": 2}


@dataclass(frozen=True)
class _Network:
    """A network, how it is made at each size, how long it is trained, and the precision in which it is faster here."""

    model: str
    options: Mapping[Size, Mapping[str, Any]]
    precision: str
    epochs: Mapping[Size, int] = field(default_factory=lambda: _EPOCHS)
    trials: Mapping[Size, int] = field(default_factory=lambda: _TRIALS)


# At standard size its many small layers cost more time than their MACs say: smaller maps, fewer epochs and trials.
_NARROW_MOBILENET: Mapping[str, Any] = {"width": 0.25, "depths": [1, 1, 2, 2, 1, 1, 1], "stem_stride": 2}
NETWORKS: Mapping[str, _Network] = {
    "resnet20": _Network("zoo:resnet20", {"quick": {"width": 0.25}, "standard": {"width": 0.5}, "full": {}}, "bf16"),
    "mobilenet": _Network(
        "zoo:mobilenet-v2",
        {"quick": {"width": 0.125, "divisor": 4, "depths": [1] * 7}, "standard": _NARROW_MOBILENET, "full": {}},
        "fp32",
        {**_EPOCHS, "standard": 3},
        {**_TRIALS, "standard": 8},
    ),
}

_QUICK_STEPS = 8
# The published rate is 0.03, for weights that begin as PyTorch draws them. The zoo's begin 2.4 times as large, and
# behind batch norm a rate counts relative to the squared weights. At 0.05 a whole epoch left no layer of the half-width
# ResNet-20 with a rank above its initial noise; at 0.2 the mean QC is 0.22 (0.41 with PyTorch's draw and 0.1).
_TRIAL_RATE = 0.2
_VALIDATION = 0.1  # share of the training images that trials are judged on, and not trained on

# The published search begins with 16 channels, adds 16 and stays below 256, for a network of 64 to 512. The narrow
# ResNet-20 has 8 to 32: the same numbers to its scale.
_PARITY: Mapping[Size, Mapping[str, Any]] = {
    "quick": {"start": 2, "step": 2, "min_width": 2, "max_width": 8},
    "standard": {"start": 4, "step": 4, "min_width": 4, "max_width": 32},
    "full": {"start": 16, "step": 16, "min_width": 16, "max_width": 256},
}


def recipe_of(size: Size, epochs: int, precision: str = "bf16") -> Recipe:
    """Return the recipe of final trainings; at the size ``quick`` a few steps of it."""
    return cifar_recipe(epochs, precision=precision, **({"max_steps": _QUICK_STEPS} if size == "quick" else {}))


def trial_recipe(size: Size, precision: str = "bf16", *, constant: bool = True) -> dict[str, Any]:
    """Return the fields of the recipe of trials; a part of the images is held out.

    Args:
        size: Of the experiment.
        precision: Of the trainings.
        constant: Constant rates, as published, for trials that go on from each other; else the cycle of the final
            trainings, whose accuracy says more of the widths and less of where the last steps led.
    """
    fields = trial_fields(recipe_of(size, _TRIAL_EPOCHS[size], precision), _VALIDATION)
    return {**fields, "schedule": "constant", "warmup": 0.0, "lr": _TRIAL_RATE} if constant else fields


def search_of(
    size: Size, method: str, budget: str, precision: str = "bf16", *, constant: bool = True, **options: Any
) -> Searched:
    """Return a search of as many trials as the size has; see `trial_recipe` for the rates."""
    common = {"trials": _TRIALS[size], "trial_epochs": _TRIAL_EPOCHS[size]}
    return Searched(method, {**common, **options}, budget, trial_recipe(size, precision, constant=constant))


def _designs(name: str, size: Size, budget: str) -> Iterator[tuple[str, tuple[Design, ...], str]]:
    """Yield name, design and note of each row with a budget."""
    precision, trials = NETWORKS[name].precision, NETWORKS[name].trials[size]
    yield "uniform", (UniformRatio(budget),), "one ratio for all widths"
    search = search_of(size, "channel-search", budget, precision, trials=trials, rule="greedy")
    yield "search", (search,), "corrected: qualities set the proportions, the budget the size"
    annealing = search_of(size, "channel-search", budget, precision, trials=trials, rule="annealing")
    yield "annealing", (annealing,), "corrected, with shaken widths and Metropolis' acceptance by validation"
    response = search_of(size, "channel-search", budget, precision, constant=False, trials=trials, rule="response")
    yield "response", (response,), "ours: trials from new weights, their accuracy fitted as a function of all widths"
    chance = search_of(size, "random", budget, precision, constant=False, trials=trials)
    yield "random", (chance,), "the most accurate of as many random widths, trained as in response"
    if (name == "resnet20" and budget == BUDGETS["macs"]) or size == "full":
        published = search_of(size, "channel-search", "", precision, mode="parity", **_PARITY[size])
        words = "as published, no budget; narrowed by one ratio if it breaks it"
        yield "parity", (published, UniformRatio(budget, widen=False)), words


def conclude(content: Json) -> Conclusion:
    """Return the pictures of each search, and of accuracy beside cost."""
    pictures: dict[str, str] = {}
    known: dict[str, tuple[str, Json]] = {}  # each search once, with the first row that it decided
    for row in content["rows"]:
        for found in row.get("searches") or ():
            known.setdefault(str(found["asked"]), (row["name"], found))
    for name, found in known.values():
        pictures |= pictures_of(f"conetv2-{name}", found)
    for network in NETWORKS:
        rows = [r for r in content["rows"] if r["name"].startswith(f"{network}-") and r["mean"] is not None]
        if len(rows) > 1:
            for cost, words in MILLIONS.items():
                called = {row["name"].removeprefix(f"{network}-"): [row] for row in rows}
                title = f"{network}: test accuracy beside {words}"
                pictures[f"conetv2-{network}-{cost}"] = beside_cost(called, title, cost)
    return Conclusion(pictures=pictures)


@experiment(
    "conetv2",
    title="Channel searches at half the MACs or parameters, CIFAR-10, beside uniform and random widths",
    source="Wang et al. 2021 (arXiv 2110.06830): algorithm read from the published code, tables not available; rows "
    "search, annealing and response are ours, parity is the published search",
    conclude=conclude,
)
def conetv2(size: Size) -> tuple[Row, ...]:
    """Return per network the original, and per budget what designs its widths; all trained alike, from new weights."""
    return tuple(row for name in NETWORKS for row in _rows(name, size))


def _rows(name: str, size: Size) -> Iterator[Row]:
    network = NETWORKS[name]
    recipe, options = recipe_of(size, network.epochs[size], network.precision), network.options[size]
    before = Row(
        f"{name}-before", network.model, "cifar10", recipe, seeds_of(size), options, fresh=True,
        note="the network as it is",
    )  # fmt: skip
    yield before
    for short, budget in BUDGETS.items():
        control = f"{name}-uniform-{short}"
        for kind, design, note in _designs(name, size, budget):
            label = f"{name}-{kind}-{short}"
            compared = before.name if label == control else control
            yield replace(before, name=label, design=design, note=f"{budget}: {note}", control=compared)


# ------------------------------------------------------------------ weights from trial to trial

_TRANSFER_START: Mapping[Size, int] = {"quick": 2, "standard": 4, "full": 16}
_TRANSFERS: Mapping[str, str] = {
    "svd": "as published: truncated SVD where a layer shrinks, its last channels again where it grows; norms and "
    "classifier restart",
    "net2wider": "ours: the function is kept where a layer grows; norms and classifier are carried",
    "fresh": "no transfer: new weights in each trial",
}


def conclude_transfer(content: Json) -> Conclusion:
    """Return accuracy and seconds of each trial under each transfer."""
    walks = {row["name"]: row["searches"][-1] for row in content["rows"] if row.get("searches")}
    if not walks:
        return Conclusion()
    steps = enumerate(zip(*(found["trials"] for found in walks.values()), strict=True), start=1)
    cells = tuple(
        (str(number), f"{same[0]['macs']:,}", *(f"{100 * trial['score']:.2f} %" for trial in same))
        for number, same in steps
    )
    mean = ("mean", "", *(f"{100 * fmean(_scores(f)):.2f} %" for f in walks.values()))
    seconds = ("seconds in all", "", *(f"{f['seconds']:,.0f}" for f in walks.values()))
    columns = ("trial", "MACs", *walks)
    notes = ("Validation accuracy after each trial's training; all walk through the same widths with the same seeds.",)
    right = tuple(range(1, len(columns)))
    table = Sheet("Accuracy after each trial", columns, (*cells, mean, seconds), right, notes)
    values = {
        name: {"scores": _scores(found), "seconds": [trial["seconds"] for trial in found["trials"]]}
        for name, found in walks.items()
    }
    series = [
        Series(name, tuple((i, 100 * score) for i, score in enumerate(_scores(found), start=1)))
        for name, found in walks.items()
    ]
    title = "resnet20: accuracy over the trials of one search, by transfer of weights"
    picture = lines(series, title, "trial", "validation accuracy, %")
    return Conclusion((table,), values, {"conetv2-transfer": picture})


def _scores(found: Json) -> list[float]:
    return [trial["score"] for trial in found["trials"]]


@experiment(
    "conetv2-transfer",
    title="Weights from trial to trial: published SVD transfer, Net2Wider and none, on the same widths",
    source="Wang et al. 2021; its authors' web page claims that transfer makes the search about 50 % faster",
    conclude=conclude_transfer,
)
def conetv2_transfer(size: Size) -> tuple[Row, ...]:
    """Return one row per transfer: the corrected search from tiny widths is carried out once, then walked again."""
    network = NETWORKS["resnet20"]
    search = search_of(
        size, "channel-search", BUDGETS["macs"], network.precision, rule="greedy", start=_TRANSFER_START[size]
    )
    return tuple(
        Row(
            transfer, network.model, "cifar10", None, options=network.options[size],
            design=(Walked(search, transfer),), note=_TRANSFERS[transfer],
        )
        for transfer in get_args(Transfer)
    )  # fmt: skip
