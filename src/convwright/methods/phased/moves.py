"""What the phases of the phased design can propose: pure functions from a network to drafts of plans."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

from torch import nn

from convwright.architecture import Architecture, Block
from convwright.cost.budget import Limits, costs_of
from convwright.cost.cost_model import CostModel
from convwright.edits import Edit, RemoveBlock, Replace, Width, check_execution
from convwright.edits.depth import why_not_removable
from convwright.edits.operators import OPERATORS
from convwright.errors import EditError, ReadError
from convwright.methods.shared.uniform_widths import solved

_SMALLER = 2 / 3  # a stage ends where the map's side falls to so much or less: not where an unpadded kernel trims it
_OTHERS = 0.25  # weight of all other groups where those at the ends of stages are narrowed first
_FILLED = 0.98  # share of the budget from which growing is not worth a training

Weights = Mapping[str, float]
_E = TypeVar("_E", bound=Edit)


@dataclass(frozen=True)
class Draft:
    """One way to go on from a network.

    Attributes:
        words: What it is, for a person.
        edits: Edits of structure.
        weights: How the widths are then brought to the phase's level, as in `uniform_widths`; None: all alike.
        grows: Whether widths may also grow to that level.
    """

    words: str
    edits: tuple[Edit, ...] = ()
    weights: Weights | None = field(default=None, hash=False)
    grows: bool = False


@dataclass(frozen=True, eq=False)
class Scene:
    """The network that a phase begins with. Its weights mean nothing; only its structure is looked at.

    Attributes:
        arch: The network.
        limits: The budget.
        known: Its costs, where they are known before it is read.
    """

    arch: Architecture
    limits: Limits
    known: Mapping[str, int] | None = None

    @cached_property
    def counted(self) -> Mapping[str, int]:
        """What it costs, by metric, but for what is measured."""
        return costs_of(self.arch.profile()) if self.known is None else self.known

    @cached_property
    def costs(self) -> Mapping[str, int]:
        """What it costs, by metric; estimated where that is measured and something estimates it."""
        unknown = [m for m in self.limits.limits if m not in self.counted and m in self.limits.networks]
        return {**self.counted, **{metric: self.limits.networks[metric](self.arch) for metric in unknown}}

    @property
    def use(self) -> float:
        """Share of the tightest limit that is used; above 1 the budget is broken."""
        return self.use_of(self.costs)

    @property
    def metric(self) -> str:
        """The tightest limit's metric."""
        return max(self.limits.limits, key=lambda m: self.costs[m] / self.limits.limits[m])

    def use_of(self, costs: Mapping[str, float]) -> float:
        """Return the share of the tightest limit that such costs use."""
        return max(costs[metric] / limit for metric, limit in self.limits.limits.items())

    def after(self, edits: Sequence[Edit]) -> Scene:
        """Return the network after edits of structure.

        Raises:
            EditError: An edit is refused, or the changed network cannot be read.
        """
        if not edits:
            return self
        built = self.arch.apply(*map(sketched, edits), importance="first", verify=False)
        try:
            after = Scene(built, self.limits)
            after.counted  # noqa: B018 - reads it
        except ReadError as error:
            raise EditError(f"the changed network cannot be read: {error}") from error
        # Where the code fixes the widths of groups, those of the changed network are frozen anew.
        return replace(after, arch=check_execution(after.arch).architecture) if self.arch.fixed else after

    def tried(self, edits: Sequence[Edit]) -> Scene | None:
        """Return the network after edits of structure; None if they are refused."""
        try:
            return self.after(edits)
        except EditError:
            return None

    def narrowed(self, widths: Sequence[Width]) -> Scene:
        """Return the network after changes of width; its costs come from the cost model, it is not read yet.

        Raises:
            EditError: A change is refused.
        """
        if not widths:
            return self
        found = CostModel.of(self.arch).costs(solved(self.arch, widths))
        costs = {metric: int(cost) for metric, cost in found.items()}
        built = self.arch.apply(*widths, importance="first", verify=False)
        return Scene(built.evolved(fixed=self.arch.fixed), self.limits, costs)


def sketched(edit: Edit) -> Edit:
    """Return an edit that gives the same shapes without computing weights from weights."""
    if not isinstance(edit, Replace) or "init" not in getattr(OPERATORS.get(edit.operator), "options", {}):
        return edit
    return Replace(edit.target, edit.operator, edit.approximate, **{**edit.options, "init": "fresh"})


# ------------------------------------------------------------------ phase 1: the head


def pooled_heads(scene: Scene, target: float) -> Iterator[Draft]:
    """Yield global average pooling before the linear layer that reads a flattened map."""
    for layer in scene.arch.layers if "global_pool" in OPERATORS else ():
        edit = Replace(layer.name, "global_pool")
        if layer.kind == "linear" and accepted(scene, edit):
            yield Draft(f"global pooling before {layer.name}", (edit,))
            return


def accepted(scene: Scene, *edits: Edit) -> bool:
    """Return whether a network takes edits."""
    try:
        scene.arch.apply(*map(sketched, edits), importance="first", verify=False)
    except EditError:
        return False
    return True


# ------------------------------------------------------------------ phase 2: transitions


def narrow_transitions(scene: Scene, target: float) -> Iterator[Draft]:
    """Yield narrower ends of stages, alone and with all other groups a little narrower."""
    ends = stage_ends(scene.arch)
    if not ends:
        return
    shown = ", ".join(ends[:3]) + (f" and {len(ends) - 3} more" if len(ends) > 3 else "")
    yield Draft(f"ends of stages narrowed ({shown})", weights=dict.fromkeys(ends, 1.0))
    others = {g.name: _OTHERS for g in scene.arch.free_groups}
    if len(others) > len(ends):
        yield Draft(f"ends of stages narrowed most ({shown})", weights={**others, **dict.fromkeys(ends, 1.0)})


def stage_ends(arch: Architecture) -> list[str]:
    """Return the free groups that cross the border of a stage: what a stage hands to a much smaller map."""
    layers = {layer.name: layer for layer in arch.layers}
    free = {group.name for group in arch.free_groups}
    found: dict[str, None] = {}
    for stage, following in zip(arch.stages, arch.stages[1:], strict=False):
        smaller, side = (math.prod(each.size) ** (1 / len(each.size)) for each in (following, stage))
        if smaller <= _SMALLER * side:
            found.update(dict.fromkeys(layers[stage.layers[-1]].groups))
    return [name for name in found if name in free]


# ------------------------------------------------------------------ phase 3: depth


def fewer_blocks(scene: Scene, target: float) -> Iterator[Draft]:
    """Yield networks without the last removable block, and without as many as the target needs."""
    cuts = {RemoveBlock(name): widths for name, widths in reversed(removable(scene.arch).items())}
    savings = _savings(scene, cuts)
    last, enough = _taken(scene, savings, math.inf), _taken(scene, savings, target)
    for cut in dict.fromkeys((last, enough)):
        if cut:
            widths = dict.fromkeys(width for edit in cut for width in cuts[edit])
            yield Draft(f"without {', '.join(e.target for e in cut)}", (*widths, *cut))


def removable(arch: Architecture) -> dict[str, tuple[Width, ...]]:
    """Return the blocks that can be removed, in execution order, with the changes of width that this needs.

    A plain unit that narrows, at one spatial size, can go where what enters it is narrowed to what leaves it.
    """
    found: dict[str, tuple[Width, ...]] = {}
    for block in arch.blocks:
        if why_not_removable(arch, block) is None:
            found[block.name] = ()
        elif block.kind == "plain" and (width := _narrowed_entry(arch, block)) is not None:
            found[block.name] = (width,)
    return found


def _narrowed_entry(arch: Architecture, block: Block) -> Width | None:
    """Return the change of width with which a narrowing unit gets what it gives."""
    before, after = block.input_shape, block.output_shape
    if len(before) != len(after) or before[2:] != after[2:] or before[1] <= after[1]:
        return None
    value = arch.channels.follower.values.get(block.entry)
    if value is None or isinstance(value, list):
        return None
    names = {name for plane in value.planes for name in arch.channels.groups_on(plane.labels)}
    if len(names) != 1:
        return None
    group = arch.group(names.pop())
    return Width(group.name, after[1]) if not group.frozen and group.size == before[1] else None


# ------------------------------------------------------------------ phase 4: operators


def separable(scene: Scene, target: float) -> Iterator[Draft]:
    """Yield depthwise separable convolutions in place of the most expensive dense ones: enough of them, and all."""
    by_cost = {cost.name: cost.macs if scene.metric == "macs" else cost.params for cost in scene.arch.profile().layers}
    names = sorted(dense_convolutions(scene.arch), key=lambda name: -by_cost[name])
    savings = _savings(scene, {Replace(name, "dw_separable"): () for name in names})
    enough, every = _taken(scene, savings, target), _taken(scene, savings, 0.0)
    for cut in dict.fromkeys((enough, every)):
        if cut:
            shown = ", ".join(e.target for e in cut[:3]) + (f" and {len(cut) - 3} more" if len(cut) > 3 else "")
            yield Draft(f"depthwise separable {shown}", tuple(cut))


def dense_convolutions(arch: Architecture) -> list[str]:
    """Return the dense 2-D convolutions with a kernel above 1x1 but the first, which reads few channels."""
    modules = dict(arch.model.named_modules())
    names = [layer.name for layer in arch.layers if layer.kind == "conv" and layer.name in modules]
    convs = {name: modules[name] for name in names}
    dense = [n for n, c in convs.items() if isinstance(c, nn.Conv2d) and c.groups == 1 and max(c.kernel_size) > 1]
    return [name for name in dense if name != names[0]]


# ------------------------------------------------------------------ phase 5: widths


def narrow_all(scene: Scene, target: float) -> Iterator[Draft]:
    """Yield all widths alike, and widths that narrow where they cost most; growth where budget is left over."""
    if scene.use <= 1:
        if scene.use < _FILLED:
            yield Draft("as it is")
            yield Draft("all widths grown alike", grows=True)
        return
    yield Draft("all widths alike")
    yield Draft("widths narrowed where they cost most", weights=elasticities(scene))


def elasticities(scene: Scene) -> dict[str, float]:
    """Return per group how steeply the tightest cost falls with its width, relative to the steepest."""
    model, metric = CostModel.of(scene.arch), scene.metric
    now = scene.costs[metric]
    steep = {}
    for group in scene.arch.free_groups:
        half = group.step * max(1, group.units // 2)
        lost = now - int(model.costs({group.name: half})[metric])
        steep[group.name] = lost / now / (1 - half / group.size) if half < group.size else 0.0
    most = max(steep.values(), default=0.0)
    return {name: value / most for name, value in steep.items() if value > 0} if most > 0 else {}


def _savings(scene: Scene, cuts: Mapping[_E, Sequence[Width]]) -> dict[_E, dict[str, int]]:
    """Return about what each cut saves by metric, each with the changes of width that come before it.

    Cuts that are refused, or save nothing that is limited, are left out.
    """
    try:
        ready = scene.narrowed(list(dict.fromkeys(w for widths in cuts.values() for w in widths)))
    except EditError:  # widths that do not fit together
        return _savings(scene, {cut: () for cut, widths in cuts.items() if not widths})
    fit = list(cuts) if cuts and accepted(ready, *cuts) else [cut for cut in cuts if accepted(ready, cut)]
    if not fit:
        return {}
    changed = ready.arch.apply(*map(sketched, fit), importance="first", verify=False)
    found = {}
    for cut, change in zip(fit, changed.changes[-len(fit) :], strict=True):
        macs, params = (before - after for before, after in (change.macs, change.params))
        saved = {"macs": macs, "params": params, "weights": 4 * params, "activations": 0}
        narrower = scene.narrowed(cuts[cut]).costs
        saved = {metric: amount + scene.costs[metric] - narrower[metric] for metric, amount in saved.items()}
        if any(saved[metric] > 0 for metric in scene.limits.limits):
            found[cut] = saved
    return found


def _taken(scene: Scene, savings: Mapping[_E, Mapping[str, int]], target: float) -> tuple[_E, ...]:
    """Take edits in order until a target is reached.

    One that would leave less than the budget is passed over: what is left over could only be filled with copies of
    channels, which learn the same as their originals.
    """
    costs: dict[str, float] = {metric: scene.costs[metric] for metric in scene.limits.limits}
    taken: list[_E] = []
    for edit, saved in savings.items():
        after = {metric: cost - saved[metric] for metric, cost in costs.items()}
        if scene.use_of(after) >= 1:
            costs = after
            taken.append(edit)
        if taken and scene.use_of(costs) <= target:
            break
    return tuple(taken)


@dataclass(frozen=True)
class Phase:
    """One phase.

    Attributes:
        name: What it does.
        propose: Drafts for a network and a target (a share of the budget).
        apt: Whether there is anything to propose, without trying it.
    """

    name: str
    propose: Callable[[Scene, float], Iterator[Draft]]
    apt: Callable[[Scene], bool]


PHASES = (
    Phase("global pooling head", pooled_heads, lambda scene: bool(list(pooled_heads(scene, 1.0)))),
    Phase("narrow transitions", narrow_transitions, lambda scene: bool(stage_ends(scene.arch))),
    Phase("dropping last convolutions", fewer_blocks, lambda scene: bool(removable(scene.arch))),
    Phase("depthwise separable convolutions", separable, lambda scene: bool(dense_convolutions(scene.arch))),
    Phase("narrowing to the budget", narrow_all, lambda scene: True),
)
