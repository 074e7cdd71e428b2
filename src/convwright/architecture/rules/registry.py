"""The registry of rules, what they share, and the rule for operators that have none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, fx

from convwright.architecture.capture.graph import depends_on_values, describe
from convwright.architecture.labels import ResizeError, Value, Values, line_plane, with_sizes

if TYPE_CHECKING:
    from convwright.architecture.follow import Follower

_Function = TypeVar("_Function", bound=Callable[..., Any])


def filing(known: dict[str, _Function]) -> Callable[..., Callable[[_Function], _Function]]:
    """Return the decorator that files functions in a registry, each under all names that it is given."""

    def under(*names: str) -> Callable[[_Function], _Function]:
        def file(function: _Function) -> _Function:
            known.update(dict.fromkeys(names, function))
            return function

        return file

    return under


Rule = Callable[["Follower", fx.Node], Values]
RULES: dict[str, Rule] = {}
rule = filing(RULES)  # by the operators' bare names


def across(follower: Follower, x: Value, dims: Iterable[int], node: fx.Node) -> None:
    """Note that a statistic runs across labels, so copies or gaps change it."""
    for plane in x.planes:
        if along_dims := tuple(a for a in plane.axes if a in dims):
            follower.ledger.across.append((plane.labels, along_dims, describe(node)))


def per_group(node: fx.Node, channels: int, groups: int) -> int:
    """Return the channels of one group.

    Raises:
        ResizeError: if they do not divide.
    """
    if channels % groups:
        raise ResizeError(f"{channels} channels do not divide into {groups} groups at {describe(node)}")
    return channels // groups


def tie_rows(follower: Follower, labels: Tensor, rows: int, node: fx.Node) -> None:
    """Tie the same place in each of ``rows`` equal parts, so that the parts stay equal."""
    per_group(node, labels.numel(), rows)
    follower.ledger.tie_rows(labels.reshape(rows, -1))


def opaque(follower: Follower, node: fx.Node, reason: str = "") -> Values:
    """No rule: freeze what enters, and emit frozen labels so that what meets them is frozen too."""
    inputs = follower.tensor_inputs(node)
    labelled = [v for v in inputs if v.planes]
    outputs = node.meta.get("val")
    single = not isinstance(outputs, tuple | list)
    listed = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
    shapes = [o.shape if isinstance(o, Tensor) else () for o in listed]
    if not labelled:
        plain = [Value(tuple(s), weight=all(v.weight for v in inputs)) for s in shapes]
        return plain[0] if single else plain
    if not reason:
        what = describe(node)
        by_values = f"what {what} gives depends on the values of the data"
        reason = by_values if depends_on_values(node) else f"convwright has no rule for {what}"
    for value in labelled:
        follower.ledger.freeze_value(value, reason)
    follower.unknown.append(node)
    frozen = [_frozen_value(follower, tuple(s), reason) for s in shapes]
    return frozen[0] if single else frozen


def _frozen_value(follower: Follower, shape: tuple[int, ...], reason: str) -> Value:
    planes = []
    for axis, size in enumerate(shape):
        if size > 1 and axis > 0:
            labels = follower.ledger.fresh(size)
            follower.ledger.freeze(labels, reason)
            planes.append(line_plane(labels, axis, len(shape)))
    return Value(with_sizes(shape, planes), tuple(planes))
