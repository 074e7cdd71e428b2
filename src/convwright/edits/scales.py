"""Parameters that scale a weight which is computed from them: the gains of normalised and standardised weights."""

from __future__ import annotations

from torch import fx

from convwright.architecture.capture.exported import Capture, argument, operator_name

# Operators that hand on a scale: zero stays zero, twice stays twice.
LINEAR = frozenset({
    "mul", "div", "view", "reshape", "reshape_as", "view_as", "expand", "expand_as", "permute", "transpose", "flatten",
    "unflatten", "squeeze", "unsqueeze", "clone", "contiguous", "alias", "detach", "to", "_to_copy", "_unsafe_view",
    "neg", "getitem", "slice", "narrow", "select", "movedim",
})  # fmt: skip


def sources_of(capture: Capture, weight: fx.Node) -> tuple[str, ...]:
    """Return the parameters that a weight is, or is computed from."""
    found: dict[str, None] = {}
    waiting = [weight]
    while waiting:
        node = waiting.pop()
        name = capture.tensors.get(node.name)
        if name is None:
            waiting.extend(node.all_input_nodes)
        elif name in capture.parameters:
            found[name] = None
    return tuple(found)


def scale_of(capture: Capture, node: fx.Node) -> set[str] | None:
    """Return parameters that a computed weight is proportional to; ``None`` if there are none.

    Args:
        capture: the network.
        node: the weight: a parameter itself, or what is computed from parameters.
    """
    name = capture.tensors.get(node.name)
    if name is not None:
        return {name} if name in capture.parameters else None
    if operator_name(node).startswith("_weight_norm"):
        return scale_of(capture, node.all_input_nodes[1])
    if operator_name(node) == "batch_norm":  # standardised: the scale of the norm is the gain
        gain = argument(node, "weight")
        return scale_of(capture, gain) if isinstance(gain, fx.Node) else None
    if operator_name(node) not in LINEAR:
        return None
    factors = reversed(node.all_input_nodes) if operator_name(node) == "mul" else node.all_input_nodes[:1]
    return next((found for n in factors if (found := scale_of(capture, n))), None)
