"""The types that a network is read into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from convwright.architecture.blocks import block_of_module, find_blocks
from convwright.architecture.capture.capture import RECORDED, capture
from convwright.architecture.capture.graph import Capture, Source
from convwright.architecture.capture.pytrees import Inputs
from convwright.architecture.channels import ChannelGraph, ChannelGroup, Origins, analyse
from convwright.architecture.flow import Block, Flow
from convwright.architecture.layers import Layer, find_layers
from convwright.architecture.stages import Stage, find_stages
from convwright.errors import EditError, did_you_mean

if TYPE_CHECKING:
    from convwright.cost.cost_model import CostModel
    from convwright.cost.counts import Profile
    from convwright.cost.memory import TensorStorage
    from convwright.edits.constraints import BoundConstraints
    from convwright.edits.plan import Change, Edit, Importance, Plan


@dataclass(frozen=True, eq=False)
class Architecture:
    """One reading of a network: what it is made of, and which channels belong together.

    Read-only: edits return a new ``Architecture`` and leave this one, and its model, as they were.

    Attributes:
        model: the network itself, in the user's own class.
        example_input: the (first) input it was read with, shape (n, c, h, w).
        source: the name it was created from (``"torchvision:resnet18"``), or its class name.
        changes: what each edit did, when this architecture is the result of ``apply``.
        applied: the plan behind ``changes``.
        fixed: group name -> why it cannot change, for groups that an execution check has ruled out.
        options: what a named network was created with, e.g. ``{"num_classes": 10}``.
        constraints: what the user wants left as it is; edits pass it on. See ``Constraints.bound``.
        origins: which entries of which tensors of the network as it was read this one has.
        captured: how it is captured: by recording one run, or by ``torch.export``.
        given: all that it is called with, where that is more than ``example_input``, the first tensor in it.
        free_outputs: whether channels that leave the network may change, as those of a backbone.
    """

    model: nn.Module = field(repr=False)
    example_input: Tensor = field(repr=False)
    source: str
    changes: tuple[Change, ...] = ()
    applied: Plan | None = field(default=None, repr=False)
    fixed: Mapping[str, str] = field(default_factory=dict, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    constraints: BoundConstraints | None = field(default=None, repr=False)
    origins: Origins = field(default_factory=Origins, repr=False)
    captured: str = field(default=RECORDED, repr=False)
    given: Inputs | None = field(default=None, repr=False)
    free_outputs: bool = field(default=False, repr=False)

    @cached_property
    def capture(self) -> Capture:
        """The operator graph."""
        found = capture(self.model, self.inputs, self.captured)
        return replace(found, free_outputs=True) if self.free_outputs else found

    @property
    def inputs(self) -> Inputs:
        """All that the network is called with."""
        return Inputs.of(self.example_input) if self.given is None else self.given

    @cached_property
    def channels(self) -> ChannelGraph:
        """The channel analysis behind ``groups``."""
        graph = analyse(self.capture).with_frozen(self.fixed)
        return graph if self.constraints is None else self.constraints.marked(graph, self.model)

    def evolved(self, **fields: Any) -> Architecture:
        """Return a copy with other fields; what was read stays read where model, input and groups stay."""
        new = replace(self, **fields)
        if not fields.keys() & {"model", "example_input", "given"}:
            kept = {"capture": self.capture} if fields.keys() & {"fixed", "constraints"} else self.__dict__
            new.__dict__.update({k: v for k, v in kept.items() if k not in new.__dict__})
        return new

    @cached_property
    def flow(self) -> Flow:
        """Who feeds whom in the operator graph."""
        return Flow(self.model, self.capture, self.channels, self.layers)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Every operator that computes something, in execution order, each with a unique name."""
        return find_layers(self.capture, self.channels)

    @property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """All channel groups, frozen ones included, in the order in which layers produce them."""
        return self.channels.groups

    @property
    def free_groups(self) -> tuple[ChannelGroup, ...]:
        """The groups whose size can change."""
        return tuple(group for group in self.groups if not group.frozen)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Residual blocks and repeated units."""
        return find_blocks(self.flow)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Runs of layers at one spatial size."""
        return find_stages(self.flow)

    def layer(self, name: str) -> Layer:
        """Return the layer called ``name`` (any of its names, where a module is registered under several).

        Raises:
            EditError: if there is none; the message has the nearest names.
        """
        found = self._layer_index.get(name) or self._layer_index.get(self._aliases.get(name, ""))
        if found is None:
            known = [*self._layer_index, *self.channels.index]
            hint = did_you_mean(name, known) or f" Its groups are {', '.join([*self.channels.index][:8])}."
            raise EditError(f"{self.source} has no layer or group called {name!r}.{hint}")
        return found

    def block(self, name: str) -> Block:
        """Return the block called ``name``, or the module of that name as a block.

        Raises:
            EditError: if there is no such block or module, or the module is no unit with one input and one
                output; the message has the nearest names.
        """
        found = next((b for b in self.blocks if b.name == name), None) or block_of_module(self.flow, name)
        if found is None:
            known, there = [block.name for block in self.blocks], name in dict(self.model.named_modules())
            what = "is no unit that maps one tensor to one" if there else "does not exist"
            raise EditError(f"{self.source}: {name!r} {what}; no block has this name.{did_you_mean(name, known)}")
        return found

    @cached_property
    def _layer_index(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def _aliases(self) -> dict[str, str]:
        """Other names of shared modules -> the name that their layer goes by."""
        modules = dict(self.model.named_modules(remove_duplicate=False))
        used = {id(module): name for name, module in modules.items() if name in self._layer_index}
        return {name: used[id(module)] for name, module in modules.items() if id(module) in used}

    def group(self, name: str) -> ChannelGroup:
        """Return the channel group that a layer's output belongs to.

        Args:
            name: a layer (``"layer1.0.conv1"``) or a group by its own name (``"conv[0:32]"``).

        Raises:
            EditError: if there is no such layer, or its output is made of several groups.
        """
        if name in self.channels.index:
            return self.channels.group(name)
        found = self.layer(name).groups
        if len(found) != 1:
            said = f"consists of the groups {', '.join(found)}" if found else "has no channels"
            raise EditError(f"the output of {name} {said}; name one group.")
        return self.channels.group(found[0])

    def profile(self) -> Profile:
        """Count MACs, parameters and memory, per layer and whole."""
        return self._profile

    @cached_property
    def _profile(self) -> Profile:
        from convwright.cost.counts import profile

        return profile(self)

    @cached_property
    def held(self) -> tuple[TensorStorage, ...]:
        """The storages of an eager forward pass, and how long each is held; found by executing the network's code."""
        from convwright.cost.memory import eager_storages

        return eager_storages(self.model, self.inputs, self.capture)

    def cost_model(self) -> CostModel:
        """Return the costs as functions of the group widths, for arrays of candidates."""
        return self._cost_model

    @cached_property
    def _cost_model(self) -> CostModel:
        from convwright.cost.cost_model import CostModel

        return CostModel.of(self)

    @property
    def plan(self) -> Plan:
        """The edits that led from the network as it was read to this one."""
        from convwright.edits.plan import Plan

        return self.applied if self.applied is not None else Plan.empty(self)

    def apply(
        self,
        *edits: Edit,
        divisor: int = 1,
        importance: Importance | Mapping[str, Sequence[float]] | str = "l2",
        verify: bool = True,
        optimizer: Any = None,
    ) -> Architecture:
        """Apply edits to a copy of the model; this architecture stays as it is.

        Args:
            *edits: what to change, e.g. ``Width("layer1.0.conv1", 48)``.
            divisor: round new widths to multiples of this.
            importance: which channels stay when a group shrinks: ``"l2"`` (default), a function
                ``(group, architecture) -> scores``, or scores by group name.
            verify: run the changed network beside the original and measure the difference.
            optimizer: an optimizer over this model's parameters; the copy's parameters, and its
                state, cut or repeated the same way, take their place in it.

        Returns:
            The new architecture, with one record per edit in ``changes``.

        Raises:
            EditError: if an edit is refused; nothing was changed.
        """
        from convwright.edits.plan import apply_edits

        return apply_edits(self, edits, divisor=divisor, importance=importance, verify=verify, optimizer=optimizer)


__all__ = ["Architecture", "Block", "ChannelGroup", "Layer", "Source", "Stage"]
