"""Replace: put another operator in the place of a layer."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import nn

from convwright.architecture import Architecture
from convwright.cost import count_by_torch
from convwright.edits.constraints import check_alone
from convwright.edits.edit import Edit, Options, Outcome, carries_out, check_distinct, refusal
from convwright.edits.equivalence import measure
from convwright.edits.operators import OPERATORS, Site, build
from convwright.edits.structure import Structure, Succession, macs_of_layers, predicted_steps, put
from convwright.edits.surgery import check_room, weight_bytes
from convwright.errors import EditError


@dataclass(frozen=True, init=False)
class Replace(Edit):
    """Put another operator in the place of a layer, begun by least squares from its weights.

    Attributes:
        target: the layer: a module that is called with one tensor.
        operator: a name from the operator registry, e.g. ``"dw_rpw"``.
        options: the operator's options, given as keyword arguments.
        approximate: the result differs from the original; set when the edit is applied.

    Examples:
        >>> import convwright as cw
        >>> arch = cw.read("zoo:resnet20")
        >>> new = arch.apply(cw.Replace("layer2.1.conv2", "dw_separable"))
        >>> new.changes[0].edit.approximate, new.profile().macs < arch.profile().macs
        (True, True)
    """

    kind: ClassVar[str] = "replace"

    target: str
    operator: str
    options: Mapping[str, Any]
    approximate: bool = False

    def __init__(self, target: str, operator: str, approximate: bool = False, **options: Any) -> None:
        object.__setattr__(self, "target", target)
        object.__setattr__(self, "operator", operator)
        object.__setattr__(self, "options", MappingProxyType(dict(options)))
        object.__setattr__(self, "approximate", approximate)

    def __reduce__(self) -> tuple[Any, ...]:
        again = partial(Replace, self.target, self.operator, self.approximate, **self.options)
        return again, ()  # built again in another process, or in a copy: its read-only options cannot be pickled

    def __hash__(self) -> int:
        return hash((self.target, self.operator, tuple(sorted(self.options.items())), self.approximate))

    def to_dict(self) -> dict[str, Any]:
        """Return the edit as plain JSON values, its options beside the other fields."""
        marked = {"approximate": True} if self.approximate else {}
        return {"edit": self.kind, "target": self.target, "operator": self.operator, **self.options, **marked}


@carries_out(Replace)
def carry_out(architecture: Architecture, edits: Sequence[Replace], options: Options) -> Outcome:
    """Replace layers in a copy of the model."""
    check_distinct([edit.target for edit in edits], "replaced twice")
    plans = [_Replacement.of(architecture, edit) for edit in edits]
    before = weight_bytes(architecture.model)
    more = sum(weight_bytes(p.built) - weight_bytes(architecture.model.get_submodule(p.site.layer)) for p in plans)
    check_room(before, before + more, options.verify, f"{len(edits)} replaced layers")
    surgery = Structure(tuple(plan.act for plan in plans))
    difference = measure(architecture, surgery) if options.verify else None
    model, moved = surgery.operate(architecture.model)
    known = [OPERATORS[edit.operator].approximate for edit in edits]
    inexact = known if difference is None else [not difference.exact] * len(edits)
    return Outcome(
        model=model,
        edits=tuple(
            Replace(e.target, e.operator, approximate, **e.options)
            for e, approximate in zip(edits, inexact, strict=True)
        ),
        max_difference=difference,
        steps=predicted_steps(architecture, [plan.sketch for plan in plans], [plan.more_macs for plan in plans]),
        coupled=((),) * len(edits),
        notes=tuple(("another operator, begun from the old weights",) if i else () for i in inexact),
        moved=moved,
        keeps=(True,) * len(edits),
    )


@dataclass(frozen=True, eq=False)
class _Replacement:
    """One layer's replacement: how it is built, and a first copy that tells what it costs."""

    edit: Replace
    site: Site
    built: nn.Module
    more_macs: int

    @classmethod
    def of(cls, architecture: Architecture, edit: Replace) -> _Replacement:
        site, calls = _site(architecture, edit)
        example = architecture.example_input
        built = build(edit.operator, architecture.model.get_submodule(site.layer), site, edit.options)
        tensor = next(built.parameters(), example)
        each = count_by_torch(built, torch.empty(site.input_shape, dtype=tensor.dtype, device=tensor.device))
        return cls(edit, site, built, each * len(calls) - macs_of_layers(architecture, calls))

    def act(self, model: nn.Module) -> Sequence[Succession]:
        old = model.get_submodule(self.site.layer)
        kind = next((p.dtype for p in model.parameters() if p.is_floating_point()), self.site.dtype)
        site = dataclasses.replace(self.site, dtype=kind)  # the copy that is measured has float64
        put(model, site.layer, build(self.edit.operator, old, site, self.edit.options))
        return ()

    def sketch(self, model: nn.Module) -> Sequence[Succession]:
        put(model, self.site.layer, copy.deepcopy(self.built).to("meta"))
        return ()


def why_not_replaceable(architecture: Architecture, edit: Replace) -> str | None:
    """Return why a layer cannot be replaced, without computing new weights; ``None`` if it can."""

    def check() -> None:
        site, _ = _site(architecture, edit)
        empty = copy.deepcopy(architecture.model.get_submodule(site.layer)).to("meta")
        build(edit.operator, empty, site, edit.options)

    return refusal(check)


def _site(architecture: Architecture, edit: Replace) -> tuple[Site, list[str]]:
    layer = architecture.layer(edit.target)
    check_alone(architecture, layer.name)
    modules = dict(architecture.model.named_modules())
    if layer.name not in modules or len(layer.input_shapes) != 1:
        raise EditError(f"{edit.target} is not a module called with one tensor, so nothing can take its place.")
    calls = [other for other in architecture.layers if other.name.partition("#")[0] == layer.name]
    if any(other.input_shapes != layer.input_shapes for other in calls):
        raise EditError(f"{edit.target} is called with inputs of different shapes; it cannot be replaced as one layer.")
    maps = {architecture.flow.flattened_map(call) for call in calls if layer.kind == "linear"}
    map_shape = maps.pop() if len(maps) == 1 else ()
    shapes, example = (layer.input_shapes[0], layer.output_shape), architecture.example_input
    return Site(layer.name, *shapes, example.device, example.dtype, map_shape), [call.name for call in calls]
