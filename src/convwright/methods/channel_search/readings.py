"""What a trial's probe says about channel groups: plain numbers in, plain numbers out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convwright.architecture import Architecture
from convwright.errors import ConvwrightError, RunError
from convwright.methods.base import Evidence
from convwright.methods.shared.width_surface import Family
from convwright.metrics.quality.channel_quality import Member, group_qualities, network_quality

PROBE = "channel-quality"
_SIDES = {"in": 0, "out": 1}

Members = Mapping[str, Sequence[Member]]
Side = float | None


@dataclass(frozen=True)
class Reading:
    """The qualities that a trial showed.

    Attributes:
        evidence: Of the trial.
        groups: Of each channel group that has one.
        families: Of each family of groups; those without a measured layer go along with the mean.
        network: Mean over the groups.
        remarks: What is odd about them, in words.
    """

    evidence: Evidence
    groups: Mapping[str, float]
    families: Mapping[str, float]
    network: float
    remarks: tuple[str, ...] = ()


def check_measurable(arch: Architecture, members: Members) -> None:
    """Refuse a network in which no convolution writes or reads a free group.

    Raises:
        ConvwrightError: Nothing can be measured.
    """
    convs = {layer.name for layer in arch.layers if layer.kind == "conv"}
    if not any(member.layer in convs for listed in members.values() for member in listed):
        raise ConvwrightError(
            f"channel-search measures the kernels of convolutions, and none of {arch.source} writes or reads a channel "
            "group that can change; use method 'uniform'"
        )


def read_trial(
    evidence: Evidence, members: Members, families: Sequence[Family], metric: str, highest: bool
) -> Reading | None:
    """Return the qualities that a trial showed; None where it failed.

    Args:
        evidence: Of the trial.
        members: Of each group.
        families: Groups that change together.
        metric: Which quality.
        highest: Take the highest over the epochs, as published; else the last epoch's.

    Raises:
        RunError: The trial is done, and nothing was observed or what was is damaged.
    """
    if not evidence.usable or not math.isfinite(evidence.score):
        return None
    layers = _layers(evidence, metric, highest)
    measured = {
        name: [m for m in listed if layers.get(m.layer, (None, None))[_SIDES[m.mode]] is not None]
        for name, listed in members.items()
    }
    groups = group_qualities({name: listed for name, listed in measured.items() if listed}, layers)
    known = {f.name: [groups[name] for name in f.groups if name in groups] for f in families}
    found = {name: math.fsum(values) / len(values) for name, values in known.items() if values}
    mean = math.fsum(found.values()) / len(found) if found else 0.0
    of_families = {f.name: found.get(f.name, mean) for f in families}
    return Reading(evidence, groups, of_families, network_quality(groups), _odd(groups))


def _odd(groups: Mapping[str, float]) -> tuple[str, ...]:
    if not groups:
        return ("no kernel has a finite quality",)
    zeros = [name for name, value in groups.items() if value == 0]
    if len(zeros) == len(groups):
        return ("quality 0 everywhere: the kernels show noise only, or are zero or not finite",)
    return (f"quality 0 in {len(zeros)} of {len(groups)} groups ({', '.join(zeros[:3])})",) if zeros else ()


def _layers(evidence: Evidence, metric: str, highest: bool) -> dict[str, tuple[Side, Side]]:
    """Return (input, output) per layer from the probe's table of epochs x layers x sides."""
    table: Any = evidence.probes.get(PROBE)
    if table is None:
        raise RunError(f"trial {evidence.trial} was not observed by probe {PROBE}: the search cannot go on")
    try:
        names, epochs = list(table["layers"]), list(table["metrics"][metric])
        return {name: (_value(epochs, i, 0, highest), _value(epochs, i, 1, highest)) for i, name in enumerate(names)}
    except (KeyError, IndexError, TypeError) as error:
        raise RunError(f"what probe {PROBE} observed in trial {evidence.trial} is damaged ({error!r})") from error


def _value(epochs: Sequence[Any], layer: int, side: int, highest: bool) -> Side:
    """Return one side's value over the epochs; what is not finite is none."""
    row = [epoch[layer][side] for epoch in (epochs if highest else epochs[-1:])]
    finite = [float(value) for value in row if value is not None and math.isfinite(value)]
    return max(finite, default=None)
