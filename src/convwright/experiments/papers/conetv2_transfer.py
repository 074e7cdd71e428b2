"""``conetv2-transfer``: what carrying weights from trial to trial is worth, on one and the same course of widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import get_args

from convwright.experiments.designs.search_design import Transfer, Walked
from convwright.experiments.papers.conetv2 import BUDGETS, NETWORKS, search_of
from convwright.experiments.row import Conclusion, Row, Size, experiment
from convwright.plots import Series, lines
from convwright.tables import Json, Sheet

_START: Mapping[Size, int] = {"quick": 2, "standard": 4, "full": 16}
_WORDS: Mapping[str, str] = {
    "svd": "as published: truncated SVD where a layer shrinks, its last channels again where it grows; norms and "
    "classifier restart",
    "net2wider": "ours: the function is kept where a layer grows; norms and classifier are carried",
    "fresh": "no transfer: new weights in each trial",
}


def conclude(content: Json) -> Conclusion:
    """Return accuracy and seconds of each trial under each transfer."""
    walks = {row["name"]: row["searches"][-1] for row in content["rows"] if row.get("searches")}
    if not walks:
        return Conclusion()
    trials = range(max(len(found["trials"]) for found in walks.values()))
    cells = tuple(_line(number, list(walks.values())) for number in trials)
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


def _line(number: int, walks: Sequence[Json]) -> tuple[str, ...]:
    trials = [found["trials"][number] for found in walks]
    return (str(number + 1), f"{trials[0]['macs']:,}", *(f"{100 * trial['score']:.2f} %" for trial in trials))


def _scores(found: Json) -> list[float]:
    return [trial["score"] for trial in found["trials"]]


@experiment(
    "conetv2-transfer",
    title="Weights from trial to trial: published SVD transfer, Net2Wider and none, on the same widths",
    source="Wang et al. 2021; its authors' web page claims that transfer makes the search about 50 % faster",
    conclude=conclude,
)
def conetv2_transfer(size: Size) -> tuple[Row, ...]:
    """Return one row per transfer: the corrected search from tiny widths is carried out once, then walked again."""
    network = NETWORKS["resnet20"]
    search = search_of(size, "channel-search", BUDGETS["macs"], network.precision, rule="greedy", start=_START[size])
    return tuple(
        Row(
            transfer,
            network.model,
            "cifar10",
            None,
            options=network.options[size],
            design=(Walked(search, transfer),),
            note=_WORDS[transfer],
        )
        for transfer in get_args(Transfer)
    )
