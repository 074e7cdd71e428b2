"""What `Auto` proposes for a network, a budget and a first training: designs in the order of what is expected of them.

Every method of the package has a say: uniform widths, depth by conflicts and by receptive fields, widths by channel
quality, the stage and the kernel optimizer, enlarging. Each proposal is a structure brought to the budget by widths,
so all cost the same and accuracy alone decides. One is what is expected to be best, fewer blocks together with the maps
that widths move to; each of the others changes one thing, and those that prove good are combined.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from convwright.architecture import Architecture
from convwright.edits import AddBlock, Edit, RemoveBlock, Resolution
from convwright.edits.depth import why_not_removable
from convwright.errors import ConvwrightError, EditError
from convwright.methods.auto.designs import (
    DesignBuilder,
    ProposedDesign,
    Shape,
    inner,
    ranked,
    tapered,
    together,
    weighed,
)
from convwright.methods.channel_search.updates import relative_values
from convwright.methods.conflicts.blocks import BlockGroups
from convwright.methods.receptive_field.kernel_optimizer import optimize_kernels
from convwright.methods.receptive_field.organizer import organize
from convwright.methods.receptive_field.unit_moves import Rule
from convwright.methods.shared.stage_knobs import StageKnob, Stages
from convwright.metrics.receptive_field.analysis import receptive_field

_TAPER = 0.25  # widths times the fourth root of (side of the image / side of the map): about MACs to later stages
_STEEP = 0.5  # the same of what is expected to be best where most work is done on tiny maps: each stage half the MACs
_INNER = 1.4  # widths inside blocks against those between blocks
_LOWER, _HIGHER = 0.75, 1.25  # sides of the input that are tried, over the present one
_NARROWEST, _WIDEST = 0.3, 3.0  # mean ratio of widths beyond which a structure is out of proportion to the budget
_TINY = 4  # side of a map
_CROWDED = 1 / 3  # share of MACs on tiny maps from which on larger maps and images are expected to be better
_ROUND = 4  # sides are multiples of this

_Cut = tuple[RemoveBlock, ...]


@dataclass(frozen=True)
class Findings:
    """What is known of the network before anything is proposed.

    Attributes:
        groups: Its blocks by stage, and which cannot go.
        blind: Blocks that keep their shape and whose kernels all see nothing new, by the 3D receptive field.
        blind_layers: How many layers see nothing new.
        conflicts: Block -> share of samples in conflict in the first epochs; those above 0.
        quality: Channel group -> quality of its kernels over the mean, 0.5 to 2; empty where nothing was measured.
        norms: Channel group -> norms of its channels over their mean; empty where none were looked at.
        notes: What could not be found out, and why.
    """

    groups: BlockGroups
    blind: tuple[str, ...] = ()
    blind_layers: int = 0
    conflicts: Mapping[str, float] = field(default_factory=dict)
    quality: Mapping[str, float] = field(default_factory=dict)
    norms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def structure_of(arch: Architecture) -> Findings:
    """Find what the structure alone tells: blocks, and which of them see nothing new."""
    groups = BlockGroups.of(arch)
    try:
        fields = receptive_field(arch)
    except ConvwrightError as error:
        return Findings(groups, notes=(f"receptive fields are not known: {error}",))
    marked = {each.name for each in fields.wasted}
    kernels = {each.name for each in fields.layers if each.kernel}
    inside = {name: kernels & set(arch.block(name).layers) for stage in groups.stages for name in stage}
    blind = tuple(n for n, layers in inside.items() if layers and layers <= marked and n not in groups.fixed)
    return Findings(groups, blind, len(marked))


def qualities(values: Mapping[str, float]) -> dict[str, float]:
    """Return qualities over their mean, held within 0.5 and 2; empty where all kernels show noise only."""
    return relative_values(values) if values and any(value > 0 for value in values.values()) else {}


# ------------------------------------------------------------------ the proposals


def proposals(bench: DesignBuilder, findings: Findings, most: int | None = None) -> tuple[ProposedDesign, ...]:
    """Return the designs worth a training, the most promising first; equal networks once.

    The first is one ratio for all widths. Where widths alone do not bring the network to the budget (as with latency:
    a call of a layer takes its time, however narrow), it has as few blocks less as that takes, and so have all others.
    Those whose widths are out of proportion (the structure is far too large or small for the budget) are dropped.

    Args:
        bench: The network and the budget.
        findings: What is known of it.
        most: So many at most; None: all.
    """
    plain, base = _plain(bench, findings)
    distinct, usual = ({_key(plain): plain}, plain.ratio) if plain else ({}, 1.0)
    for design in _drafts(bench, findings, base):
        if most is not None and len(distinct) >= most:
            break
        if design is None:
            continue
        if not min(_NARROWEST, usual) <= design.ratio <= max(_WIDEST, usual):
            bench.dropped[design.words] = f"its widths would be {design.ratio:.2f} times those of the network"
            continue
        distinct.setdefault(_key(design), design)
    return tuple(distinct.values())


def _plain(bench: DesignBuilder, findings: Findings) -> tuple[ProposedDesign | None, _Cut]:
    """Return what the others are to beat, and the blocks that all of them are without."""
    uniform = bench.uniform("uniform widths")
    if uniform is not None and not (bench.limits.measures and uniform.ratio < _NARROWEST):
        return uniform, ()
    for share in () if bench.widths_only else (1 / 3, 2 / 3, 1.0):
        cut = tuple(map(RemoveBlock, _cut(findings, share)))
        design = bench.design(_said("uniform widths, fewer blocks", cut), cut) if cut else None
        if design is not None and design.ratio >= _NARROWEST:
            return design, cut
    return uniform, ()


def _key(design: ProposedDesign) -> frozenset[str]:
    return frozenset(map(str, design.edits))


def _drafts(bench: DesignBuilder, findings: Findings, base: _Cut) -> Iterator[ProposedDesign | None]:
    """Yield what is expected to be best, then designs that change one thing each; all are without blocks of `base`."""
    depths = _cuts(bench, findings, base)
    few = depths.get("fewer blocks", ())
    # On maps of at most 4 x 4 a kernel of 3 x 3 sees more padding than image.
    macs = {layer.name: layer.macs for layer in bench.arch.profile().layers}
    tiny = [n.name for n in bench.arch.layers if 1 < math.prod(n.output_shape[2:]) <= _TINY**2]
    crowded = sum(macs.get(name, 0) for name in tiny) / max(1, sum(macs.values())) > _CROWDED
    tapers = {"wider on large maps": tapered(-_TAPER), "wider on small maps": tapered(_TAPER)}
    order = tuple(tapers) if crowded else tuple(tapers)[::-1]
    sizes = tuple(_sizes(bench, crowded))
    growing = _grows(bench)
    if growing:
        yield from _deeper(bench, "more blocks")
    elif few:
        yield _expected(bench, few, crowded, sizes[:1])
    if few:
        yield bench.design(_said("fewer blocks", few), few, factor="depth")

    def widths(words: str, shape: Shape, factor: str) -> ProposedDesign | None:
        return bench.design(_said(words, base) if base else words, base, shape, factor)

    for words in order:
        yield widths(words, tapers[words], "maps")
    for side, edit in sizes:
        yield bench.design(f"{side} pixels", (edit, *base), factor="resolution")
    if findings.norms and not growing:
        yield widths("widths by channel norms", ranked(findings.norms), "norms")
    if findings.quality:
        yield widths("widths by channel quality", weighed(findings.quality), "quality")
    yield widths("narrower inside blocks", inner(1 / _INNER), "inside")
    yield widths("wider inside blocks", inner(_INNER), "inside")
    for words in ("without blocks in conflict", "without blocks that see nothing new", "fewest blocks"):
        if words in depths:
            yield bench.design(_said(words, depths[words]), depths[words], factor="depth")
    if not bench.widths_only:
        yield from _of_optimizers(bench)
    if not growing:
        yield from _deeper(bench, "more blocks, narrower")


def _expected(
    bench: DesignBuilder, few: _Cut, crowded: bool, sizes: Sequence[tuple[int, Edit]]
) -> ProposedDesign | None:
    """Return what is expected to be best; where most work is done on tiny maps, all that leads away from these."""
    if not crowded:
        return bench.design(_said("fewer blocks, wider on small maps", few), few, tapered(_TAPER), "depth+maps")
    words = ", ".join((*(f"{side} pixels" for side, _ in sizes), "fewer blocks, much wider on large maps"))
    factor = "+".join((*("resolution" for _ in sizes), "depth", "maps"))
    return bench.design(_said(words, few), (*(edit for _, edit in sizes), *few), tapered(-_STEEP), factor)


def _said(words: str, cut: Sequence[Edit]) -> str:
    names = [edit.target for edit in cut if isinstance(edit, RemoveBlock)]
    return f"{words} ({len(names)} removed: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"


def _grows(bench: DesignBuilder) -> bool:
    """Whether the budget leaves room for more than the network is."""
    try:
        return bench.scene(()).use < 0.95
    except KeyError:  # a limit on what is not counted
        return False


# ------------------------------------------------------------------ depth


def _cuts(bench: DesignBuilder, findings: Findings, base: _Cut) -> dict[str, _Cut]:
    """Return which blocks go, by what decides it; those of `base` go in any case."""
    if bench.widths_only:
        return {}
    gone = tuple(edit.target for edit in base)
    third, most = (_cut(findings, share) for share in (1 / 3, 1.0))
    conflicting = tuple(n for n in findings.conflicts if n not in findings.groups.fixed)
    named = {
        "fewer blocks": third if len(third) > len(gone) else gone,
        "without blocks in conflict": findings.groups.going((*gone, *conflicting)),
        "without blocks that see nothing new": findings.groups.going((*gone, *findings.blind)),
        "fewest blocks": most,
    }
    return {words: tuple(map(RemoveBlock, names)) for words, names in named.items() if names}


def _cut(findings: Findings, share: float) -> tuple[str, ...]:
    """Return a share of each stage's removable blocks: first those in conflict, then those that see nothing new."""
    chosen = []
    for stage in findings.groups.stages:
        free = [n for n in reversed(stage) if n not in findings.groups.fixed]
        order = sorted(free, key=lambda n: (-findings.conflicts.get(n, 0.0), n not in findings.blind))
        count = min(math.ceil(len(free) * share), len(stage) - 1)
        gone = set(order[:count])
        chosen += [name for name in stage if name in gone]
    return tuple(chosen)


def _deeper(bench: DesignBuilder, words: str) -> Iterator[ProposedDesign | None]:
    blocks = ((knob.template, max(1, round(knob.depth / 3))) for knob in _stages(bench) if knob.template)
    more = tuple(AddBlock(template, copies=copies) for template, copies in blocks)
    if more:
        yield bench.design(f"{words} (after {', '.join(e.target for e in more[:4])})", more, factor="depth")


def _stages(bench: DesignBuilder) -> tuple[StageKnob, ...]:
    """Return the stages whose depth can change; none where there are no blocks, or widths alone may change."""
    try:
        return () if bench.widths_only else Stages.of(bench.arch).knobs
    except ConvwrightError:
        return ()


# ------------------------------------------------------------------ maps and resolution, operators


def _sizes(bench: DesignBuilder, larger_first: bool) -> Iterator[tuple[int, Edit]]:
    shape = bench.arch.example_input.shape
    if bench.widths_only or len(shape) != 4 or shape[-1] != shape[-2]:
        return
    side = int(shape[-1])
    for factor in (_HIGHER, _LOWER) if larger_first else (_LOWER, _HIGHER):
        new = int(side * factor / _ROUND + 0.5) * _ROUND
        if new < 8 or new == side:
            continue
        try:
            bench.scene((Resolution(new),))
        except EditError as error:
            bench.dropped[f"{new} pixels"] = str(error).rstrip(".")
            continue
        yield new, Resolution(new)


def _of_optimizers(bench: DesignBuilder) -> Iterator[ProposedDesign | None]:
    """Yield what the stage and the kernel optimizer decide; where one refuses, that is noted."""
    limits = bench.limits if bench.limits.limits.keys() <= {"macs", "params"} else None
    for words, factor, decide in (
        ("blocks by 3D receptive field", "depth", lambda: organize(bench.arch, Rule("greedy", score="log"))),
        ("cheaper operators where no field is lost", "operators", lambda: optimize_kernels(bench.arch, limits=limits)),
    ):
        try:
            edits = decide().edits
        except ConvwrightError as error:
            bench.dropped[words] = str(error).rstrip(".")
            continue
        replaced = f" ({len(edits)} replaced)" if factor == "operators" else ""
        yield bench.design(words + replaced, edits, factor=factor) if edits else None


# ------------------------------------------------------------------ combinations and neighbours


def combinations(
    bench: DesignBuilder, present: ProposedDesign, others: Sequence[ProposedDesign], most: int
) -> tuple[ProposedDesign, ...]:
    """Return designs that join to a design what made others better, back on the budget.

    The first is joined by the best of the others, the next by the two best, then by the second alone, and so on.

    Args:
        bench: Whose network is the design's own, so that edits come after the design's.
        present: What is joined.
        others: Designs for the network before, the best first; those that change what `present` changes, or what a
            better one does, are left out.
        most: So many at most.
    """
    known, distinct = {*present.factor.split("+")}, list[ProposedDesign]()
    for design in others:
        if known.isdisjoint(factors := design.factor.split("+")):
            known.update(factors)
            distinct.append(design)
    orders = [distinct[i:end] for end in range(1, len(distinct) + 1) for i in range(end)]
    found = dict[frozenset[str], ProposedDesign]()
    for joined in orders:
        if len(found) >= most:
            break
        words = "; ".join((present.words, *(each.words for each in joined)))
        factor = "+".join(each.factor for each in (present, *joined) if each.factor)
        shapes = [each.shape for each in joined if each.shape is not None]
        made = bench.design(words, _structure(present, joined), together(shapes) if shapes else None, factor)
        if made is not None and made.edits:
            found.setdefault(_key(made), made)
    return tuple(found.values())


def _structure(present: ProposedDesign, joined: Sequence[ProposedDesign]) -> tuple[Edit, ...]:
    """Return the structure of several: a new resolution first, and nothing for blocks that are gone."""
    edits = [edit for each in joined for edit in each.structure]
    gone = tuple(f"{e.target}." for e in (*present.structure, *edits) if isinstance(e, RemoveBlock))
    left = [e for e in edits if isinstance(e, RemoveBlock) or not str(getattr(e, "target", "")).startswith(gone)]
    return tuple(sorted(left, key=lambda edit: not isinstance(edit, Resolution)))


def neighbours(
    bench: DesignBuilder, design: ProposedDesign, quality: Mapping[str, float]
) -> tuple[ProposedDesign, ...]:
    """Return designs near one: some of its width moved, or one block more or less, back on the budget.

    Args:
        bench: Whose network is the design's own, so that edits come after the design's.
        design: Where they are near to.
        quality: Channel group -> relative quality, where it was measured.
    """
    found = [
        bench.design(f"{design.words}; some width moved to smaller maps", shape=tapered(_TAPER / 2)),
        bench.design(f"{design.words}; some width moved to larger maps", shape=tapered(-_TAPER / 2)),
        *_other_depths(bench, design),
        bench.design(f"{design.words}; wider inside blocks", shape=inner(1.2)),
        bench.design(f"{design.words}; narrower inside blocks", shape=inner(1 / 1.2)),
    ]
    if quality:
        mild = {name: math.sqrt(value) for name, value in quality.items()}
        found.insert(0, bench.design(f"{design.words}; widths moved by channel quality", shape=weighed(mild)))
    distinct = {each.edits: each for each in found if each is not None and each.edits}
    return tuple(distinct.values())


def _other_depths(bench: DesignBuilder, design: ProposedDesign) -> list[ProposedDesign | None]:
    """Return one block less where most are, and one more there where fewest are, with the widths solved again."""
    knobs = _stages(bench)
    less = max((k for k in knobs if k.removable), key=lambda k: k.depth, default=None)
    more = min((k for k in knobs if k.template), key=lambda k: k.depth, default=None)
    found: list[ProposedDesign | None] = []
    if less is not None and why_not_removable(bench.arch, bench.arch.block(less.removable[0])) is None:
        edit = RemoveBlock(less.removable[0])
        found.append(bench.design(f"{design.words}; without {edit.target}", (edit,)))
    if more is not None:
        found.append(bench.design(f"{design.words}; a block more after {more.template}", (AddBlock(more.template),)))
    return found
