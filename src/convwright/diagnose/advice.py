"""Advice: the edit that takes out a kernel which sees nothing new, and exactly what it saves.

A diagnosis from reconstructed receptive fields, not a proof: such a layer meets no new *positions*, but it may still
help as depth, as one more nonlinearity. What an edit costs in accuracy, only a training tells.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from convwright.architecture import Architecture, Block, Layer
from convwright.architecture.capture.graph import argument
from convwright.edits import Edit, Kernel, RemoveBlock
from convwright.edits.depth import needs_measuring, why_not_removable
from convwright.edits.edit import Options
from convwright.edits.kernel import why_not_kernel
from convwright.edits.plan import passages
from convwright.edits.summary import shape_words
from convwright.errors import EditError
from convwright.metrics import LayerField, ReceptiveField


@dataclass(frozen=True)
class Advice:
    """What to do about layers whose kernels see nothing new.

    Attributes:
        layers: the marked layers that it concerns.
        edit: the edit; ``None`` where nothing is named.
        macs: multiply-accumulates per sample that it saves.
        params: parameters that it saves.
        reason: why nothing is named; empty beside an edit.
        notes: what else the edit takes away.
    """

    layers: tuple[str, ...]
    edit: Edit | None
    macs: int = 0
    params: int = 0
    reason: str = ""
    notes: tuple[str, ...] = ()

    @property
    def python(self) -> str:
        """The edit in Python, ``cw.Kernel("layer1.0.conv1", 1)``; empty where nothing is named."""
        if self.edit is None:
            return ""
        values = [getattr(self.edit, item.name) for item in fields(self.edit)]
        words = [f'"{value}"' if isinstance(value, str) else repr(value) for value in values]
        return f"cw.{type(self.edit).__name__}({', '.join(words)})"

    @property
    def plan(self) -> str:
        """The edit as a plan has it, one line of JSON; empty where nothing is named."""
        return "" if self.edit is None else json.dumps(self.edit.to_dict())

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values; ``edit`` is as a plan has it."""
        return {
            "layers": list(self.layers),
            "edit": None if self.edit is None else self.edit.to_dict(),
            "python": self.python,
            "macs_saved": self.macs,
            "params_saved": self.params,
            "reason": self.reason,
            "notes": list(self.notes),
        }


def advise(arch: Architecture, field: ReceptiveField) -> tuple[Advice, ...]:
    """Name, for each layer that sees nothing new, the edit that would help, or why there is none.

    A block goes as a whole if it keeps its shape and all its kernels see nothing new; of other convolutions the
    centre of the kernel stays (1x1). Only edits that their own checks accept are named, and all of them
    together can be applied: ``arch.apply(*edits_of(advice))``.

    Args:
        arch: the network.
        field: its receptive fields.

    Returns:
        Removals of blocks, then kernels, then layers for which nothing is named, each in execution order. Each
        marked layer stands in exactly one.

    Examples:
        >>> import convwright as cw
        >>> from convwright.diagnose.advice import advise
        >>> arch = cw.read("zoo:mobilenet-v1")
        >>> [each.python for each in advise(arch, cw.receptive_field(arch))][:2]
        ['cw.RemoveBlock("stage4.2")', 'cw.RemoveBlock("stage4.3")']
    """
    marked = {each.name: each for each in field.wasted}
    removals, left = _removals(arch, field, marked)
    kernels, nothing = _kernels(arch, left, marked)
    return (*removals, *kernels, *nothing)


def edits_of(advice: Iterable[Advice]) -> tuple[Edit, ...]:
    """Return the edits that advice names, in an order in which they can be applied together."""
    return tuple(each.edit for each in advice if each.edit is not None)


def _removals(
    arch: Architecture, field: ReceptiveField, marked: Mapping[str, LayerField]
) -> tuple[list[Advice], dict[str, str]]:
    """Return removals, and the marked layers that are left -> why the removal of their block was refused."""
    kernels = {each.name for each in field.layers if each.kernel}
    chosen: list[Block] = []
    for block in sorted(arch.blocks, key=lambda b: -len(b.layers)):  # of nested blocks the outer one
        inside = kernels & set(block.layers)
        nested = any(set(block.layers) & set(o.layers) or block.name.startswith(f"{o.name}.") for o in chosen)
        fits = inside and inside <= set(marked) and not nested and not _is_shared(arch, block)
        if fits and why_not_removable(arch, block) is None:
            chosen.append(block)
    order = [layer.name for layer in arch.layers]
    chosen.sort(key=lambda b: order.index(b.layers[0]))
    drafts = [
        Advice(
            layers=tuple(name for name in block.layers if name in marked),
            edit=RemoveBlock(block.name),
            notes=_notes_on_block(arch, block, marked),
        )
        for block in chosen
    ]
    priced = _priced(arch, drafts, measured=any(needs_measuring(arch, block) for block in chosen))
    refused = {name: each.reason for each in priced if each.edit is None for name in each.layers}
    named = [each for each in priced if each.edit is not None]
    done = {name for each in named for name in each.layers}
    return named, {name: refused.get(name, "") for name in marked if name not in done}


def _is_shared(arch: Architecture, block: Block) -> bool:
    """Whether modules or weights of a block are used outside it, too: there they would be missing."""
    inside = set(block.layers)
    own = [layer for layer in arch.layers if layer.name in inside]
    modules = {layer.name.partition("#")[0] for layer in own if layer.parameters}
    tensors = {name for layer in own for name in layer.parameters}
    outside = [layer for layer in arch.layers if layer.name not in inside and layer.parameters]
    return any(layer.name.partition("#")[0] in modules or tensors & set(layer.parameters) for layer in outside)


def _notes_on_block(arch: Architecture, block: Block, marked: Mapping[str, LayerField]) -> tuple[str, ...]:
    others = [arch.layer(name) for name in block.layers if name not in marked]
    mixing = [layer.name for layer in others if layer.kind in ("conv", "linear")]
    count = f"{len(mixing)} layer{'' if len(mixing) == 1 else 's'}"
    along = (f"with {count} for channels alone",) if mixing else ()
    return (*_notes_on_branches(marked[name] for name in block.layers if name in marked), *along)


def _notes_on_branches(layers: Iterable[LayerField]) -> tuple[str, ...]:
    return ("by its widest branches only",) if any(each.saturation == "some" for each in layers) else ()


def _kernels(
    arch: Architecture, left: Mapping[str, str], marked: Mapping[str, LayerField]
) -> tuple[list[Advice], list[Advice]]:
    """Return crops of kernels to 1x1, and the layers for which nothing is named."""
    drafts: list[Advice] = []
    nothing: list[Advice] = []
    done: set[str] = set()
    for name, refused in left.items():
        if name in done:
            continue
        layer = arch.layer(name)
        calls = _calls(arch, layer)
        done.update(calls)
        reason = _why_not(arch, layer, calls, marked)
        if reason:
            nothing += [Advice((call,), None, reason=refused or reason) for call in calls if call in marked]
        else:
            notes = (*_notes_on_branches(marked[call] for call in calls), *_notes_on_kernel(arch, layer))
            drafts.append(Advice(calls, Kernel(name, 1), notes=notes))
    priced = _priced(arch, drafts)
    named = [each for each in priced if each.edit is not None]
    return named, nothing + [each for each in priced if each.edit is None]


def _calls(arch: Architecture, layer: Layer) -> tuple[str, ...]:
    own = set(layer.parameters)
    alike = (other for other in arch.layers if other.kind == layer.kind)
    return tuple(other.name for other in alike if other.name == layer.name or own & set(other.parameters))


def _why_not(arch: Architecture, layer: Layer, calls: Sequence[str], marked: Mapping[str, LayerField]) -> str:
    """Return why a layer's kernel cannot become 1x1; empty if it can."""
    if layer.kind == "pool":
        smaller = layer.output_shape[2:] != layer.input_shapes[0][2:]
        return "a pool: no edit crops its window" + (", and what follows needs its size" if smaller else "")
    seeing = [call for call in calls if call not in marked]
    if seeing:
        return f"its kernel is used by {', '.join(seeing)}, too, which does see something new"
    return why_not_kernel(arch, Kernel(layer.name, 1)) or ""


def _notes_on_kernel(arch: Architecture, layer: Layer) -> tuple[str, ...]:
    before, after = layer.input_shapes[0][2:], layer.output_shape[2:]
    groups = argument(arch.flow.nodes[arch.flow.place[layer.node]], "groups", 1)
    skips = any(b > a for b, a in zip(before, after, strict=False))
    return (
        *((f"it then reads {shape_words(after)} of its {shape_words(before)} positions",) if skips else ()),
        *(("depthwise: one factor per channel is left",) if 1 < groups == layer.input_shapes[0][1] else ()),
    )


def _priced(arch: Architecture, drafts: Sequence[Advice], measured: bool = False) -> list[Advice]:
    """Fill in what each edit saves, by carrying all of one kind out on a copy that nobody reads again."""
    if not drafts:
        return []
    try:
        passage = next(iter(passages(arch, edits_of(drafts), Options(verify=measured))))
    except EditError as error:
        if len(drafts) == 1:
            return [replace(drafts[0], edit=None, reason=str(error), notes=())]
        return [one for draft in drafts for one in _priced(arch, [draft], measured)]
    changes = passage.after.changes[len(arch.changes) :]
    return [
        replace(draft, macs=change.macs[0] - change.macs[1], params=change.params[0] - change.params[1])
        for draft, change in zip(drafts, changes, strict=True)
    ]
