"""Capture a network with ``torch.export``: on fake tensors, so no arithmetic is done."""

from __future__ import annotations

import warnings

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, OutputKind, OutputSpec

from convwright.architecture.capture.graph import Capture, quiet_torch
from convwright.architecture.capture.pytrees import Inputs


def export(model: nn.Module, inputs: Inputs) -> Capture:
    """Export a model in the mode that it is in."""
    with warnings.catch_warnings(), torch.no_grad(), quiet_torch():
        warnings.simplefilter("ignore")
        return _interpret(torch.export.export(model, inputs.args, dict(inputs.kwargs), strict=False))


def _inline_regions(graph: fx.Graph) -> None:
    """Put the operators of ``with torch.autocast(...)`` and the like in place of the call that wraps them."""
    owner = graph.owning_module
    for node in list(graph.nodes):
        if node.op != "call_function" or not str(getattr(node.target, "__name__", "")).startswith("wrap_with_"):
            continue
        place = next(i for i, a in enumerate(node.args) if isinstance(a, fx.Node) and a.op == "get_attr")
        inner = getattr(owner, str(node.args[place].target)).graph
        entries = [n for n in inner.nodes if n.op == "placeholder"]
        values = dict(zip(entries, node.args[place + 1 :], strict=True))
        with graph.inserting_before(node):
            result = graph.graph_copy(inner, values)
        for user in list(node.users):
            if getattr(user.target, "__name__", "") == "getitem":
                user.replace_all_uses_with(result[user.args[1]])  # type: ignore[index]
                graph.erase_node(user)
        if node.users:
            node.replace_all_uses_with(result)
        region = node.args[place]
        graph.erase_node(node)
        if not region.users:
            graph.erase_node(region)


def _interpret(program: ExportedProgram) -> Capture:
    _inline_regions(program.graph)
    inputs, outputs = program.graph_signature.input_specs, program.graph_signature.output_specs
    stored = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    return Capture(
        program.graph,
        {**program.constants, **program.state_dict},
        tensors={_name(spec): spec.target for spec in inputs if spec.kind in stored and spec.target is not None},
        parameters=frozenset(spec.target for spec in inputs if spec.kind is InputKind.PARAMETER and spec.target),
        inputs=tuple(_name(spec) for spec in inputs if spec.kind is InputKind.USER_INPUT),
        outputs={_name(spec): "" for spec in outputs if spec.kind is OutputKind.USER_OUTPUT},
    )


def _name(spec: InputSpec | OutputSpec) -> str:
    return str(getattr(spec.arg, "name", ""))
