"""The space of greedy enlarging: stage widths, stage depths and the resolution, with exact costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from convwright.cost.budget import MEASURED, Limits
from convwright.errors import BudgetError
from convwright.methods.enlarging.growth import Knob, Point, Step, trimmed
from convwright.methods.shared.stage_knobs import Stages
from convwright.methods.shared.uniform_widths import finest_needed

Metric = Literal["macs", "params", "latency"]
Size = tuple[tuple[int, ...], tuple[int, ...], int]  # widths and depths of all stages, and the resolution
_LARGEST_SIDE = 16_384


@dataclass(frozen=True, eq=False)
class EnlargingSpace:
    """What can grow in a network.

    Attributes:
        stages: the network.
        limits: what it may cost.
        metric: what the budget is in.
        knobs: widths, then depths, then the resolution, as far as there are such.
        dropped: knobs that the network does not have -> why.
        ends: what stem and head are multiplied by.
    """

    stages: Stages
    limits: Limits
    metric: Metric
    knobs: tuple[Knob, ...]
    dropped: dict[str, str]
    ends: float = 1.0
    _costs: dict[Point, dict[str, int]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        stages: Stages,
        limits: Limits,
        objective: Metric | None = None,
        *,
        width_growth: float = math.inf,
        depth_growth: float = math.inf,
        resolution_step: int = 8,
    ) -> EnlargingSpace:
        """List the knobs of a network.

        Args:
            stages: the network.
            limits: what it may cost.
            objective: what the budget is in; None: the first of MACs, parameters and latency that is limited.
            width_growth: a width grows at most by this factor in one step.
            depth_growth: a depth grows at most to this times itself and 1 more.
            resolution_step: resolutions are multiples of this; 0: it stays.

        Raises:
            BudgetError: no such metric is limited, another one cannot be followed, or nothing can grow.
        """
        metric = _metric(limits, objective)
        widths_only = "the latency is estimated for the present layers and inputs only" if limits.measures else ""
        all_knobs = []  # with why there is none
        for i, stage in enumerate(stages.knobs):
            knob = Knob(f"width of {stage.name}", "width", i, stage.quantum, width_growth)
            all_knobs.append((knob, "" if stage.quantum else stage.reasons["width"]))
        for i, stage in enumerate(stages.knobs):
            reason = widths_only or ("" if stage.template else stage.reasons["depth"])
            all_knobs.append((Knob(f"depth of {stage.name}", "depth", i, 1, depth_growth, slack=1), reason))
        reason = widths_only or ("it was to stay" if not resolution_step else stages.fixed_resolution)
        reason = reason or "it costs no parameters" * (metric == "params")
        all_knobs.append((Knob("resolution", "resolution", -1, resolution_step), reason))
        knobs = [knob for knob, reason in all_knobs if not reason]
        dropped = {knob.name: reason for knob, reason in all_knobs if reason}
        if not knobs:
            reasons = "; ".join(f"{name}: {why}" for name, why in dropped.items())
            raise BudgetError(f"nothing in {stages.arch.source} can be enlarged ({reasons}).")
        return cls(stages, limits, metric, tuple(knobs), dropped)

    @property
    def start(self) -> Point:
        """Present values of the knobs."""
        return self.point(self.stages.widths, self.stages.depths, self.stages.resolution)

    @property
    def levels(self) -> tuple[EnlargingSpace, ...]:
        """This space, and the same with finer widths where ``auto`` chose them."""
        finer = self.stages.finer
        if finer is None:
            return (self,)
        knobs = (replace(k, quantum=finer.knobs[k.stage].quantum) if k.kind == "width" else k for k in self.knobs)
        return (self, *replace(self, stages=finer, knobs=tuple(knobs), _costs={}).levels)

    def spent(
        self, point: Point, target: int, tolerance: float, suits: Callable[[EnlargingSpace], bool] = lambda space: True
    ) -> tuple[EnlargingSpace, Point]:
        """Return the widths near a point that spend a target, in the coarsest space that suits and can spend it."""

        def found(space: EnlargingSpace) -> tuple[tuple[EnlargingSpace, Point], float]:
            near = trimmed(space, point, target, tolerance, space.trimming)
            share = space.cost(near) / target
            return (space, near), share if share <= 1 and suits(space) else 0.0

        return finest_needed(self.levels, found)

    @property
    def trimming(self) -> tuple[int, ...]:
        """Indices of the knobs that trim a network to its limit: the widths; the depths where there are none."""
        widths = tuple(i for i, knob in enumerate(self.knobs) if knob.kind == "width")
        return widths or tuple(i for i, knob in enumerate(self.knobs) if knob.kind == "depth")

    def point(self, widths: Sequence[int], depths: Sequence[int], side: int) -> Point:
        """Return the values of the knobs for widths and depths of all stages, and the resolution."""
        values = {"width": widths, "depth": depths, "resolution": (side,)}
        return tuple(values[knob.kind][knob.stage] for knob in self.knobs)

    def parts(self, point: Point) -> Size:
        """Return widths and depths of all stages, and the resolution, of a point."""
        widths, depths, side = list(self.stages.widths), list(self.stages.depths), self.stages.resolution
        for knob, value in zip(self.knobs, point, strict=True):
            if knob.kind == "width":
                widths[knob.stage] = value
            elif knob.kind == "depth":
                depths[knob.stage] = value
            else:
                side = value
        return tuple(widths), tuple(depths), side

    def cost(self, point: Point) -> int:
        """Return what the budget is in; huge for what cannot be built."""
        return self.costs(point)[self.metric]

    def costs(self, point: Point) -> dict[str, int]:
        """Return all limited metrics, and MACs and parameters."""
        if point not in self._costs:
            self._costs[point] = self._found(point)
        return self._costs[point]

    def _found(self, point: Point) -> dict[str, int]:
        widths, depths, side = self.parts(point)
        if not self.stages.bears(widths):
            return dict.fromkeys(("macs", "params", *self.limits.limits), 2**62)
        if side > _LARGEST_SIDE or (side != self.stages.resolution and self.stages.stage_costs.refusal(side)):
            return dict.fromkeys(("macs", "params", *self.limits.limits), 2**62)
        measured = {m: self.limits.estimates[m](self.stages.sizes(widths)) for m in self.limits.limits if m in MEASURED}
        return {**self.stages.costs(widths, depths, side, self.ends), **measured}

    def allows(self, point: Point) -> bool:
        """Return whether the limits on other metrics hold."""
        costs = self.costs(point)
        return all(costs[m] <= limit for m, limit in self.limits.limits.items() if m != self.metric)

    def words(self, step: Step) -> str:
        """Say what a step turned: ``width of stage3 40 to 80``."""
        before = step.parent.point if step.parent is not None else self.start
        return " and ".join(f"{self.knobs[i].name} {before[i]} to {step.point[i]}" for i in step.turned) or "nothing"


def said_sizes(widths: Sequence[int], depths: Sequence[int], side: int) -> str:
    """Say how large a network is: ``widths 16,32,64, depths 3,3,3, 32 pixels``."""
    wide, deep = (",".join(map(str, numbers)) for numbers in (widths, depths))
    return f"widths {wide}, depths {deep}, {side} pixels"


def network_record(level: int, turned: str, size: Size, cost: int) -> dict[str, Any]:
    """Return a network of an enlarging as plain values: what was turned, its size, and what it costs."""
    widths, depths, side = size
    sizes = {"stage_widths": list(widths), "depths": list(depths), "resolution": side}
    return {"level": level, "turned": turned, **sizes, "cost": cost}


def _metric(limits: Limits, objective: Metric | None) -> Metric:
    known: tuple[Metric, ...] = get_args(Metric)
    unknown = [m for m in limits.limits if m not in known]
    if unknown:
        raise BudgetError(f"method greedy cannot follow a limit on {unknown[0]}; limit macs, params or latency.")
    found = objective or next((m for m in known if m in limits.limits), None)
    if found is None or found not in limits.limits:
        raise BudgetError(
            f"the budget does not limit {found or 'anything'}; greedy needs a limit to enlarge the network to."
        )
    missing = [m for m in limits.limits if m in MEASURED and m not in limits.estimates]
    if missing:
        raise BudgetError(f"a limit on {missing[0]} needs an estimate of it: make a LatencyModel.")
    return found
