"""Stages as knobs: one width and one depth each, and what they do to every channel group and block.

A stage is a run of blocks at one spatial size whose outputs have one width (GhostNet has six). Its *width* is the
number of channels that leave it. What lies inside its blocks goes along in proportion: with the width that enters the
block where the network's expansions are multiples of that (inverted residuals), else with the width that leaves it.
Stem and head stay, unless they carry a stage's own channels. A network's generator may say it otherwise (`Layers`).

Which inner width follows which is our reading of the network, not something that the papers state.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from convwright.architecture import Architecture, Block
from convwright.architecture.blocks import outermost
from convwright.architecture.stages import find_stages
from convwright.cost.forms import FormMaker
from convwright.cost.stage_costs import Side, StageCosts
from convwright.edits import AddBlock, Edit, RemoveBlock, Resolution, Width
from convwright.edits.constraints import Divisor, DivisorLike, why_resolution_stays, width_range
from convwright.edits.depth import why_not_removable, why_not_repeatable
from convwright.edits.surgery import MOST_CHANNELS
from convwright.errors import BudgetError, ConvwrightError, EditError, check_given_counts
from convwright.zoo.ghostnet import large_layers

Layers = Callable[[Sequence[int]], Mapping[str, int]]  # widths of the stages -> output channels of layers by name
_GENERATED = frozenset(
    f"zoo:{n}" for n in ("ghostnet-large", "s-ghostnet-b1", "s-ghostnet-b4", "s-ghostnet-eval-b1", "s-ghostnet-example")
)
_NOBODY = -1  # what no stage's width moves


@dataclass(frozen=True)
class StageKnob:
    """A stage whose width, depth or both can change.

    Attributes:
        name: of the stage: ``stage1``, ...
        blocks: its blocks, in execution order.
        width: channels that leave it.
        quantum: widths are multiples of this; 0: the width cannot change.
        least: smallest width that the user's constraints allow.
        most: largest.
        unit: what widths are multiples of at least, so that every group on it is whole.
        template: the block that is copied to make it deeper; empty if none can be.
        removable: blocks that can go, from the last on.
        reasons: why a knob is missing, by ``width`` and ``depth``.
        fan: channel groups that leave it, with how many of its channels each holds.
    """

    name: str
    blocks: tuple[str, ...]
    width: int
    quantum: int
    template: str
    removable: tuple[str, ...]
    reasons: Mapping[str, str]
    fan: Mapping[str, int] = field(default_factory=dict, hash=False)
    least: int = 1
    most: int = MOST_CHANNELS
    unit: int = 1

    def grown(self, width: float) -> int:
        """Return the width nearest to one that the stage can grow to, or the present one."""
        found = min(round(width / self.quantum), self.most // self.quantum) * self.quantum
        return found if found >= max(self.width, self.least) else self.width

    @property
    def depth(self) -> int:
        """How many blocks it has."""
        return len(self.blocks)


@dataclass(frozen=True, eq=False)
class Stages:
    """A network as stages with a width and a depth each, at one resolution.

    Attributes:
        arch: the network.
        knobs: its stages, from input to output.
        costs: exact costs of any setting.
        drivers: free group -> the stage whose width moves it, or -1.
        layers: the generator's own rule for the widths of layers, if there is one.
        divisor: inner widths are rounded to multiples of this.
        quantum: what the widths of all stages were to be multiples of; None: nothing was said.
    """

    arch: Architecture
    knobs: tuple[StageKnob, ...]
    stage_costs: StageCosts
    drivers: Mapping[str, int]
    layers: Layers | None = None
    divisor: Divisor = Divisor(1)  # noqa: RUF009 - frozen
    quantum: int | None = None
    _sizes: dict[tuple[tuple[int, ...], float], dict[str, int]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        arch: Architecture,
        *,
        quantum: int | None = None,
        divisor: DivisorLike = 1,
        merge_equal_resolution: bool = False,
        layers: Layers | None = None,
    ) -> Stages:
        """Find the stages of a network.

        Args:
            arch: the network.
            quantum: widths of stages are multiples of this; None: of `divisor`, and where that is 1, of 4 (of 2 or 1
                in networks narrower than 16 or 8).
            divisor: widths inside the blocks are rounded to multiples of this; ``auto`` begins with the coarsest, see
                `finer`.
            merge_equal_resolution: all blocks at one spatial size are one stage, whatever their widths; then its
                width is that of its last block, and the others go along in proportion.
            layers: how wide each layer is for given widths of the stages, by name; groups that no such layer makes
                first follow as ever. None: the zoo's own rule, if it has one for this network.

        Raises:
            ConvwrightError: the network has no stages with blocks, or a number is out of its range.
        """
        check_given_counts(quantum=quantum)
        found = [s for s in find_stages(arch.flow, split_by_width=not merge_equal_resolution) if s.blocks]
        runs = [outermost(arch.flow, [arch.block(name) for name in stage.blocks]) for stage in found]
        if not runs:
            raise ConvwrightError(f"{arch.source} has no blocks, so it has no stages that could be enlarged.")
        fans = _fans(arch, runs)
        drivers = _drivers(arch, runs, fans)
        knobs = tuple(_knob(arch, s.name, run, fan) for s, run, fan in zip(found, runs, fans, strict=True))
        first = Divisor.of(divisor)
        knobs = _in_steps(knobs, first, quantum)
        names = [n for knob in knobs for n in dict.fromkeys((knob.template, *knob.removable)) if n]
        rule = layers or (_zoo_rule(arch, knobs) if not merge_equal_resolution else None)
        return cls(arch, knobs, StageCosts.of(arch, names), drivers, rule, first, quantum)

    @property
    def finer(self) -> Stages | None:
        """The same stages with finer widths, where ``auto`` chose them and there are such."""
        divisor = self.divisor.finer
        if divisor is None:
            return None
        return replace(self, knobs=_in_steps(self.knobs, divisor, self.quantum), divisor=divisor, _sizes={})

    # ------------------------------------------------------------------ where it stands

    @property
    def widths(self) -> tuple[int, ...]:
        """Present widths."""
        return tuple(knob.width for knob in self.knobs)

    @property
    def depths(self) -> tuple[int, ...]:
        """Present depths."""
        return tuple(knob.depth for knob in self.knobs)

    @property
    def resolution(self) -> int:
        """Present side of the input: its height."""
        return self.stage_costs.side[0]

    @cached_property
    def fixed_resolution(self) -> str:
        """Why the resolution cannot change; empty if it can."""
        side = self.stage_costs.side
        if stays := why_resolution_stays(self.arch):
            return stays
        if len(set(side)) != 1:
            return f"inputs of {'x'.join(map(str, side))} are not square"
        return self.stage_costs.refusal(side[0] + 8)

    # ------------------------------------------------------------------ another setting

    def sizes(self, widths: Sequence[int], ends: float = 1.0) -> dict[str, int]:
        """Return the sizes of all free groups.

        Args:
            widths: of the stages, each a multiple of the stage's quantum or the present one.
            ends: what stem and head are multiplied by, as far as no stage moves them.

        Raises:
            BudgetError: a width is none that its stage can have.
        """
        key = tuple(widths), ends
        if key in self._sizes:
            return self._sizes[key]
        self._check(widths)
        named = self.layers(widths) if self.layers is not None else {}
        sizes: dict[str, int] = {}
        for group in self.arch.free_groups:
            driver = self.drivers[group.name]
            ratio = ends if driver == _NOBODY else widths[driver] / self.knobs[driver].width
            layer = group.name.partition("[")[0]
            if layer in named:
                ratio = named[layer] / self.arch.layer(layer).output_shape[1]
            inner = driver == _NOBODY or group.name not in self.knobs[driver].fan
            divisor = self.divisor if inner and layer not in named else Divisor(1)
            allowed = width_range(self.arch.channels, group, divisor)
            sizes[group.name] = group.size if ratio == 1 else allowed.nearest(group.size * ratio)
        return self._sizes.setdefault(key, sizes)

    def _check(self, widths: Sequence[int]) -> None:
        if len(widths) != len(self.knobs):
            raise BudgetError(f"{len(widths)} widths are given for {len(self.knobs)} stages; give one per stage.")
        for knob, width in zip(self.knobs, widths, strict=True):
            if width == knob.width:
                continue
            if not knob.quantum:
                raise BudgetError(f"the width of {knob.name} cannot change: {knob.reasons['width']}.")
            if width < 1 or width % knob.quantum or not knob.least <= width <= knob.most:
                within = "" if knob.most == MOST_CHANNELS else f" from {knob.least} to {knob.most}"
                raise BudgetError(
                    f"{knob.name} cannot have {width} channels; it takes positive multiples of {knob.quantum}{within}."
                )

    def bears(self, widths: Sequence[int]) -> bool:
        """Return whether widths of the stages are within the user's constraints."""
        return all(k.width == w or k.least <= w <= k.most for k, w in zip(self.knobs, widths, strict=True))

    def copies(self, depths: Sequence[int]) -> dict[str, int]:
        """Return further copies of each block (-1: it is absent) that give the stages these depths.

        Raises:
            BudgetError: a depth is none that its stage can have.
        """
        if len(depths) != len(self.knobs):
            raise BudgetError(f"{len(depths)} depths are given for {len(self.knobs)} stages; give one per stage.")
        found: dict[str, int] = {}
        for knob, depth in zip(self.knobs, depths, strict=True):
            more = depth - knob.depth
            if more > 0 and not knob.template:
                raise BudgetError(f"{knob.name} cannot be deeper: {knob.reasons['depth']}.")
            if -more > len(knob.removable) or depth < 1:
                raise BudgetError(f"{knob.name} cannot have {depth} blocks: at most {len(knob.removable)} can go.")
            found |= {knob.template: more} if more > 0 else dict.fromkeys(knob.removable[:-more] if more else (), -1)
        return found

    def costs(
        self, widths: Sequence[int], depths: Sequence[int], resolution: int | Side, ends: float = 1.0
    ) -> dict[str, int]:
        """Return the ``macs`` and ``params`` of a setting, per sample, as the built network is counted.

        Args:
            widths: channels that leave each stage.
            depths: blocks of each stage.
            resolution: side of the input.
            ends: what stem and head are multiplied by, as far as no stage moves them.

        Raises:
            BudgetError: the network cannot be had like this; the message names the stage.
        """
        return self.stage_costs.costs(self.sizes(widths, ends), self.copies(depths), resolution)

    def edits(
        self, widths: Sequence[int], depths: Sequence[int], resolution: int, ends: float = 1.0
    ) -> tuple[Edit, ...]:
        """Return the edits that lead there: widths, then blocks, then the resolution."""
        sizes = self.sizes(widths, ends)
        changed = [Width(g.name, sizes[g.name]) for g in self.arch.free_groups if sizes[g.name] != g.size]
        copies = self.copies(depths)
        gone = [RemoveBlock(name) for name, more in copies.items() if more < 0]
        added = [AddBlock(name, copies=more) for name, more in copies.items() if more > 0]
        sized = [Resolution(resolution)] if resolution != self.resolution else []
        return (*changed, *gone, *added, *sized)


# ------------------------------------------------------------------ finding them


def _zoo_rule(arch: Architecture, knobs: Sequence[StageKnob]) -> Layers | None:
    """Return the rule of a zoo network's generator, if it gives the widths that the network has now."""
    depths = [knob.depth for knob in knobs]
    if arch.source not in _GENERATED or len(knobs) != 6 or any(not k.quantum or k.quantum % 4 for k in knobs):
        return None

    known = {layer.name: layer.output_shape[1] for layer in arch.layers if layer.kind == "conv"}
    present, hidden = large_layers([knob.width for knob in knobs], depths)["hidden"], known.get("hidden", 0)
    # A head of another width than published was built with a least width of its own.
    head = {"head_width": hidden} if hidden != present else {}

    def rule(widths: Sequence[int]) -> Mapping[str, int]:
        return large_layers(widths, depths, **head)

    named = rule([knob.width for knob in knobs])
    return rule if all(known.get(name) == width for name, width in named.items()) else None


def refused(arch: Architecture, names: Sequence[str]) -> str | None:
    """Return why blocks cannot be removed, by removing them; None if they can."""
    try:
        arch.apply(*map(RemoveBlock, names))
    except EditError as error:
        return str(error)
    return None


def _leaving(arch: Architecture, node: str) -> dict[str, int]:
    """Return how many of a value's channels lie in each free group."""
    value = arch.channels.follower.values[node]
    form = FormMaker(arch.channels).length(value[0] if isinstance(value, list) else value, 1)
    return {arch.free_groups[column].name: count for column, count in form.shares}


def _fans(arch: Architecture, runs: Sequence[Sequence[Block]]) -> list[dict[str, int]]:
    """Return what leaves each stage and no earlier one, by group."""
    taken: set[str] = set()
    fans = []
    for run in runs:
        fan = {name: n for name, n in _leaving(arch, run[-1].exit).items() if name not in taken}
        taken |= fan.keys()
        fans.append(fan)
    return fans


def _in_steps(knobs: Sequence[StageKnob], divisor: Divisor, quantum: int | None) -> tuple[StageKnob, ...]:
    """Return stages whose widths are multiples of a quantum; None: of the divisor, or of few channels where it is 1."""
    narrowest = min(knob.width for knob in knobs)
    few = 4 if narrowest >= 16 else 2 if narrowest >= 8 else 1

    def step(knob: StageKnob) -> int:
        asked = divisor.of_width(knob.width)
        usual = quantum or (asked if asked > 1 and divisor.stated else max(asked, few))
        return math.lcm(usual, knob.unit) if knob.unit else 0

    return tuple(replace(knob, quantum=step(knob)) for knob in knobs)


def _knob(arch: Architecture, name: str, run: Sequence[Block], fan: Mapping[str, int]) -> StageKnob:
    reasons = {}
    width = arch.flow.width(arch.flow.place[run[-1].exit])
    unit, reason = _width_unit(arch, width, fan)
    ranges = [(width_range(arch.channels, arch.group(group)), width / arch.group(group).size) for group in fan]
    least = max((math.ceil(allowed.least * share) for allowed, share in ranges), default=1)
    most = min((math.floor(allowed.most * share) for allowed, share in ranges), default=MOST_CHANNELS)
    if reason:
        reasons["width"] = reason
    refusals = {b.name: why_not_repeatable(arch, b) for b in reversed(run)}
    template = next((block for block, why in refusals.items() if why is None), "")
    if not template:
        reasons["depth"] = str(refusals[run[-1].name]).rstrip(".")
    removable = tuple(b.name for b in reversed(run) if why_not_removable(arch, b) is None)[: len(run) - 1]
    more = (reasons, dict(fan), least, min(most, MOST_CHANNELS), unit)
    return StageKnob(name, tuple(b.name for b in run), width, unit, template, removable, *more)


def _width_unit(arch: Architecture, width: int, fan: Mapping[str, int]) -> tuple[int, str]:
    """Return what the width must be a multiple of so that every group on it is whole; 0 and why, if it is stuck."""
    if sum(fan.values()) != width:
        return 0, "some channels that leave it are frozen, or are those of an earlier stage"
    tied = next((name for name in fan if arch.group(name).tied), None)
    if tied is not None:
        return 0, f"the channels of {tied} are tied in size to other channels"
    groups = [arch.group(name) for name in fan]
    unit = width // math.gcd(width, *(group.units for group in groups))
    asked = [group.bounds.divisor * width // group.size for group in groups if group.bounds and group.bounds.divisor]
    return math.lcm(unit, *asked), ""


def _drivers(arch: Architecture, runs: Sequence[Sequence[Block]], fans: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Return which stage's width moves each free group."""
    leaving = {name: i for i, fan in enumerate(fans) for name in fan}
    entering = _votes(arch, runs, leaving)
    drivers = {}
    homes = {layer: (i, b) for i, run in [*enumerate(runs)][::-1] for b in reversed(run) for layer in b.layers}
    for group in arch.free_groups:
        layer = group.name.partition("[")[0]
        if group.name in leaving:
            drivers[group.name] = leaving[group.name]
        elif layer not in homes or group.tied:
            drivers[group.name] = _NOBODY
        else:
            stage, block = homes[layer]
            # The stage whose width enters the block; nobody's if these are channels of the stem.
            before = max((leaving.get(name, _NOBODY) for name in _leaving(arch, block.entry)), default=_NOBODY)
            drivers[group.name] = before if entering[layer.removeprefix(block.name)] and _changes(block) else stage
    return drivers


def _changes(block: Block) -> bool:
    return block.input_shape[1] != block.output_shape[1]


def _votes(arch: Architecture, runs: Sequence[Sequence[Block]], leaving: Mapping[str, int]) -> dict[str, bool]:
    """Return, per place within a block, whether its width is a multiple of what enters rather than of what leaves.

    Blocks that change the width tell, beside a block of the same stage that does not: which of the two ratios is
    nearer to the one there? The majority decides for the whole network.
    """
    votes: dict[str, int] = defaultdict(int)
    inner = [g for g in arch.free_groups if g.name not in leaving]
    sizes = {(b.name, g.name.partition("[")[0].removeprefix(b.name)): g.size for run in runs for b in run for g in inner
             if g.name.partition("[")[0] in b.layers}  # fmt: skip
    for run in runs:
        steady = next((b for b in run if not _changes(b)), None)
        for block in run:
            if steady is None or not _changes(block):
                continue
            for (name, rest), size in sizes.items():
                if name == block.name and (steady.name, rest) in sizes:
                    usual = sizes[steady.name, rest] / steady.output_shape[1]
                    off = [abs(math.log(size / shape[1] / usual)) for shape in (block.input_shape, block.output_shape)]
                    votes[rest] += 1 if off[0] < off[1] else -1
    return defaultdict(bool, {rest: count > 0 for rest, count in votes.items()})
