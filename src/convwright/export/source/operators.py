"""Operators, written as the calls of torch that a person would write."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor, fx
from torch.nn import functional
from torch.utils._pytree import tree_map_only

from convwright.architecture.capture.graph import argument, operator_name
from convwright.architecture.rules.registry import filing
from convwright.export.source.regions import Network, constant, mutates
from convwright.export.source.text import (
    Arg,
    Attr,
    Call,
    Expr,
    Hole,
    Joined,
    Many,
    Text,
    flat,
    literal,
    positional,
    words,
)

_ELSEWHERE = frozenset({"layout", "pin_memory", "cudnn_enabled", "cudnn_enable"})  # no part of what is computed
_END = 2**63 - 1  # of a slice without an end
_SIZES = frozenset({"size", "shape", "self", "sizes", ""})


class Scope(Protocol):
    """What an operator's arguments are called where it is written."""

    net: Network
    names: dict[fx.Node, str]  # of the values that have one here

    def value(self, node: fx.Node) -> Expr:
        """Return the name of a value."""

    def batch(self, node: fx.Node) -> Expr:
        """Return the batch size, as an expression for an argument of `node`."""


Writer = Callable[["Writing"], Expr | None]
_WRITERS: dict[str, Writer] = {}
writes = filing(_WRITERS)  # operators of these names


class Writing:
    """One operator while it is written."""

    def __init__(self, node: fx.Node, scope: Scope) -> None:
        self.node, self.scope, self.twin = node, scope, scope.net.twins[node]
        self.name = operator_name(node)
        self.schema = getattr(node.target, "_schema", None)

    def given(self, name: str, default: Any = None) -> Any:
        """Return an argument as it stands in the graph."""
        return argument(self.node, name, default)

    def arg(self, name: str, kind: str = "") -> Expr:
        """Return an argument as an expression."""
        return self.expr(self.given(name), argument(self.twin, name), kind or name)

    def expr(self, one: Any, two: Any, kind: str) -> Expr:
        """Return an argument as an expression, from its values with both batch sizes."""
        if isinstance(one, fx.Node):
            return self.scope.value(one)
        depends = constant(one, two)
        if depends is not None:
            return self.by_batch(*depends)
        if isinstance(one, (list, tuple)):
            return self.listed(one, two, kind)
        return _plain(one, kind, self.name)

    def by_batch(self, slope: int, intercept: int) -> Expr:
        """Return ``slope * batch + intercept``."""
        batch = self.scope.batch(self.node)
        if isinstance(batch, Joined) and batch.parts[2:] and flat(batch.parts[2]) == f" // {slope}":
            batch, slope = Joined(batch.parts[:2]), 1
        scaled = batch if slope == 1 else Joined((Text(f"{slope} * "), batch))
        return scaled if intercept == 0 else Joined((scaled, Text(f" + {intercept}")))

    def listed(self, one: Sequence[Any], two: Sequence[Any], kind: str) -> Expr:
        """Return a list of arguments."""
        if any(isinstance(v, fx.Node) or v is None for v in one) or list(one) != list(two):
            return Many(tuple(self.expr(a, b, kind) for a, b in zip(one, two, strict=True)))
        if one and all(v == one[0] for v in one) and kind in _SAME_ON_ALL_AXES and type(one[0]) is int:
            return Hole(one[0], kind, kind, self.name)
        return Hole(tuple(one), kind, kind, self.name)

    @property
    def first(self) -> Expr:
        """The first argument."""
        return self.expr(self.node.args[0], self.twin.args[0], "size")

    @property
    def source(self) -> Any:
        """The value of the first argument, without its data."""
        found = self.node.args[0]
        assert isinstance(found, fx.Node)
        return found.meta.get("val")

    def row(self, at: int) -> Sequence[Any]:
        """Return an argument that is a list."""
        found = self.node.args[at]
        assert isinstance(found, (list, tuple))
        return found


_SAME_ON_ALL_AXES = frozenset({"stride", "padding", "dilation", "kernel_size"})


def _plain(value: Any, kind: str, owner: str) -> Expr:
    if value is None or isinstance(value, bool):
        return Text(repr(value))
    if isinstance(value, (int, float, str)):
        return Hole(value, kind, kind, owner)
    if isinstance(value, (torch.dtype, torch.memory_format, torch.layout)):
        return Text(str(value))
    return Text(f'torch.device("{value}")' if isinstance(value, torch.device) else literal(value))


def written(node: fx.Node, scope: Scope) -> Expr:
    """Return an operator as an expression.

    Args:
        node: the operator.
        scope: what its arguments are called.
    """
    name, plain = operator_name(node), Writing(node, scope)
    if mutates(node) and node not in scope.net.fresh:
        bare = str(plain.schema.name).rpartition("::")[2] if plain.schema is not None else name
        in_place = hasattr(Tensor, bare)
        args = _arguments(plain) or ()
        return Call(Attr(plain.first, bare), args[1:]) if in_place else _by_full_name(plain)
    usual = _of_tensor if name in _METHODS else _function
    for writer in (_WRITERS.get(name, _functional), _functional, usual, _function, _of_tensor):
        if _alike(node, writer, scope):
            found = writer(plain)
            assert found is not None
            return found
    return _by_full_name(plain)


class _Trial:
    """Names for the arguments of an operator that is written for a trial: tensors of modules have one, too."""

    def __init__(self, scope: Scope) -> None:
        self.net, self.scope, self.names = scope.net, scope, scope.names
        self.values: dict[str, Any] = {name: _on_meta(node.meta.get("val")) for node, name in scope.names.items()}

    def value(self, node: fx.Node) -> Expr:
        real = self.net.real(node)
        if real in self.scope.names:
            return Text(self.scope.names[real])
        name = f"own_{len(self.values)}"
        self.values[name] = _on_meta(node.meta.get("val"))
        return Text(name)

    def batch(self, node: fx.Node) -> Expr:
        return self.scope.batch(node)


def _alike(node: fx.Node, writer: Writer, scope: Scope) -> bool:
    """Whether what is written is Python that returns what the operator returns, as far as tensors without data tell."""
    trial = _Trial(scope)
    expr = writer(Writing(node, trial))
    if expr is None:
        return False
    own = SimpleNamespace(training=False, parameters=lambda: iter([torch.empty(0, device="meta")]))
    known = {"torch": torch, "F": functional, "self": own, **trial.values}
    try:
        with torch.no_grad():
            found = eval(compile(flat(expr), "operator", "eval"), known)
    except Exception:  # torch raises anything; then the operator is written in another way
        return False
    return bool(_forms(found) == _forms(node.meta.get("val")))


def _forms(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_forms(v) for v in value]
    return (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else None


def _on_meta(value: Any) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.detach().to("meta"), value)


_FUNCTIONAL = words(
    "adaptive_avg_pool1d adaptive_avg_pool2d avg_pool1d avg_pool2d avg_pool3d "
    "celu conv1d conv2d conv3d conv_transpose1d conv_transpose2d elu embedding fold gelu glu "
    "hardsigmoid hardswish hardtanh instance_norm leaky_relu linear local_response_norm log_softmax "
    "logsigmoid max_pool1d max_pool2d max_pool3d mish one_hot pixel_shuffle pixel_unshuffle prelu "
    "relu relu6 rms_norm rrelu scaled_dot_product_attention selu silu softplus softsign threshold"
)
_METHODS = words(
    "chunk clone contiguous cumsum detach expand expand_as flatten flip masked_fill mean movedim "
    "narrow numel permute repeat repeat_interleave roll select softmax sort split sum argmax squeeze "
    "t tile topk transpose type_as unbind unflatten unsqueeze std var amax amin clamp clamp_min "
    "clamp_max norm"
)


def _functional(w: Writing) -> Expr | None:
    known = getattr(functional, w.name, None) if w.name in _FUNCTIONAL else None
    return _call_of(w, f"F.{w.name}", known)


def _function(w: Writing) -> Expr | None:
    return _call_of(w, f"torch.{w.name}", None if w.name.startswith("_") else getattr(torch, w.name, None))


def _call_of(w: Writing, name: str, function: Any) -> Expr | None:
    args = _arguments(w, _accepted(function)) if callable(function) else None
    return None if args is None else Call(Text(name), args)


def _of_tensor(w: Writing) -> Expr | None:
    known = getattr(Tensor, w.name, None)
    if known is None or not w.node.args or not isinstance(w.node.args[0], fx.Node):
        return None
    args = _arguments(w, _accepted(known))
    return None if args is None else Call(Attr(w.first, w.name), args[1:])


def _by_full_name(w: Writing) -> Expr:
    return Call(Text(f"torch.ops.{w.node.target}"), _arguments(w) or ())


def _accepted(function: Any) -> list[str] | None:
    """Return the names of a function's arguments; None if it takes those of the operator's schema."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # built in
        return None
    return None if {"args", "kwargs"} & set(parameters) else list(parameters)


def _arguments(w: Writing, accepted: Sequence[str] | None = None) -> tuple[Arg, ...] | None:
    """Return the arguments that are not at their defaults: by place up to the first left out, then by name.

    None if the Python function that is called, whose arguments are `accepted`, has no such argument.
    """
    found: list[Arg] = []
    declared = w.schema.arguments if w.schema is not None else [None] * len(w.node.args)
    for at, parameter in enumerate(declared):
        name = parameter.name if parameter is not None else ""
        if at < len(w.node.args):
            one, two = w.node.args[at], w.twin.args[at]
        elif name in w.node.kwargs:
            one, two = w.node.kwargs[name], w.twin.kwargs[name]
        else:
            continue
        if (name in _ELSEWHERE and (accepted is None or name not in accepted)) or _at_default(parameter, one, two):
            continue
        by_place = at == len(found) and not (parameter is not None and parameter.kwarg_only)
        if at and accepted is not None:
            by_place = by_place and at < len(accepted) and accepted[at] == name
            if name not in accepted:
                return None
        by_place = by_place and not (found and found[-1].name)
        value = _device(w) if name == "device" else w.expr(one, two, "size" if name in _SIZES else name)
        found.append(Arg("" if by_place else name, value))
    return tuple(found)


def _at_default(parameter: Any, one: Any, two: Any) -> bool:
    if parameter is None or not parameter.has_default_value() or isinstance(one, fx.Node):
        return False
    default = parameter.default_value
    if not isinstance(default, (list, tuple)):
        return one is None if default is None else type(one) is type(default) and one == two == default
    if not isinstance(one, (list, tuple)) or len(one) != len(default):
        return bool(default) and all(type(one) is type(d) and one == two == d for d in default)
    return list(one) == list(two) == list(default)


def _device(w: Writing) -> Expr:
    """Return the device of a value or of the weights: new tensors lie where the images lie."""
    names = (name for node, name in w.scope.names.items() if isinstance(node.meta.get("val"), Tensor))
    return Attr(Text(next(names, "next(self.parameters())")), "device")


_SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "pow": "**", "matmul": "@", "eq": "==", "gt": ">", "lt": "<",
          "ge": ">=", "le": "<=", "ne": "!=", "__add__": "+", "__iadd__": "+", "true_divide": "/",
          "multiply": "*", "subtract": "-", "divide": "/", "rsub": "-"}  # fmt: skip


@writes(*_SIGNS)
def _sign(w: Writing) -> Expr | None:
    if w.node.kwargs or len(w.node.args) != 2:
        return None
    sign, (left, right) = _SIGNS[w.name], (1, 0) if w.name == "rsub" else (0, 1)
    return Joined((_operand(w, left), Text(sign if sign == "**" else f" {sign} "), _operand(w, right)))


def _operand(w: Writing, at: int) -> Expr:
    """Return an argument as it may stand beside a sign."""
    expr = w.expr(w.node.args[at], w.twin.args[at], "number")
    negative = isinstance(expr, Hole) and flat(expr).startswith("-")
    return Joined((Text("("), expr, Text(")"))) if isinstance(expr, Joined) or negative else expr


@writes("slice")
def _slice(w: Writing) -> Expr:
    start, stop, step = (w.given(n) for n in ("start", "end", "step"))
    first: Expr = Text("") if start in (None, 0) else w.expr(start, argument(w.twin, "start"), "size")
    last: Expr = Text("") if stop in (None, _END) else w.expr(stop, argument(w.twin, "end"), "size")
    steps: tuple[Expr, ...] = () if step in (None, 1) else (Text(":"), w.expr(step, step, "step"))
    return _at(w, int(w.given("dim", 0)), (first, Text(":"), last, *steps))


def _at(w: Writing, dim: int, parts: tuple[Expr, ...]) -> Expr:
    """Return ``x[:, parts]``, from the front or, for the last axes, from the back."""
    ndim = w.source.ndim
    dim %= ndim
    if dim >= ndim - 2 and ndim > 3:
        opening, closing = "[..., ", ", :" * (ndim - 1 - dim) + "]"
    else:
        opening, closing = "[" + ":, " * dim, "]"
    return Joined((w.first, Text(opening), *parts, Text(closing)))


@writes("index")
def _index(w: Writing) -> Expr:
    parts: list[Expr] = []
    for at, index in enumerate(w.row(1)):
        parts += [Text(", " if at else ""), w.scope.value(index) if isinstance(index, fx.Node) else Text(":")]
    return Joined((w.first, Text("["), *parts, Text("]")))


@writes("view", "reshape", "_unsafe_view", "expand", "repeat")
def _shaped(w: Writing) -> Expr | None:
    if w.node.kwargs or not isinstance(w.node.args[1], (list, tuple)):
        return None
    name = "reshape" if w.name == "_unsafe_view" else w.name
    return Call(Attr(w.first, name), _sizes(w, minus_one=name in ("view", "reshape")))


def _sizes(w: Writing, minus_one: bool) -> tuple[Arg, ...]:
    pairs = list(zip(w.row(1), w.twin.args[1], strict=True))  # type: ignore[arg-type]  # the same graph: a list, too
    inferred = minus_one and sum(constant(*pair) is not None for pair in pairs) == 1 and -1 not in w.row(1)
    sizes = (Text("-1") if a == -1 or (inferred and constant(a, b)) else w.expr(a, b, "size") for a, b in pairs)
    return positional(*sizes)


@writes(
    "flatten", "transpose", "unsqueeze", "squeeze", "chunk", "movedim", "mean", "sum", "softmax", "amax", "amin", "var"
)
def _dims(w: Writing) -> Expr:
    """Write an operator along axes: which ones is never an argument of a class."""
    args: list[Arg] = []
    parameters = [a.name for a in w.schema.arguments][1:] if w.schema is not None else []
    values = dict(zip(parameters, zip(w.node.args[1:], w.twin.args[1:], strict=True), strict=False))
    values.update({k: (v, w.twin.kwargs[k]) for k, v in w.node.kwargs.items()})
    defaults = {a.name: a.default_value for a in w.schema.arguments if a.has_default_value()} if w.schema else {}
    for name, (one, two) in values.items():
        if one is None or (name in defaults and defaults[name] == one):
            continue
        by_place = (name in parameters[:2] and name not in ("dim", "keepdim", "dtype")) or w.name == "unsqueeze"
        by_place = by_place and len(args) == parameters.index(name) and not any(arg.name for arg in args)
        args.append(Arg("" if by_place else str(name), _fixed(w, one, two, str(name))))
    return Call(Attr(w.first, w.name), tuple(args))


def _fixed(w: Writing, one: Any, two: Any, name: str) -> Expr:
    if isinstance(one, (list, tuple)) and list(one) == list(two):
        listed = ", ".join(map(str, one))
        return Text(listed if len(one) == 1 else f"({listed})")
    return Text(repr(one)) if type(one) in (int, bool) and one == two else w.expr(one, two, name)


@writes("split", "split_with_sizes")
def _split(w: Writing) -> Expr:
    sizes = w.expr(w.node.args[1], w.twin.args[1], "size")
    return Call(Attr(w.first, "split"), (*positional(sizes), *_along(w)))


@writes("cat", "concat", "concatenate", "stack")
def _cat(w: Writing) -> Expr:
    items = Many(tuple(w.scope.value(t) for t in w.row(0) if isinstance(t, fx.Node)))
    return Call(Text(f"torch.{'stack' if w.name == 'stack' else 'cat'}"), (*positional(items), *_along(w)))


def _along(w: Writing) -> tuple[Arg, ...]:
    dim = int(w.given("dim", 0))
    return (Arg("dim", Text(str(dim))),) if dim else ()


@writes("to", "_to_copy")
def _to(w: Writing) -> Expr:
    value = w.node.meta.get("val")
    if isinstance(value, Tensor) and value.dtype != w.source.dtype:
        return Call(Attr(w.first, "to"), positional(Text(str(value.dtype))))
    return Call(Attr(w.first, "clone"), ())


_WRITERS |= {
    "neg": lambda w: Joined((Text("-"), w.first)),
    "getitem": lambda w: Joined((w.first, Text(f"[{w.node.args[1]}]"))),
    "select": lambda w: _at(w, int(w.given("dim")), (w.arg("index", "size"),)),
    "permute": lambda w: Call(Attr(w.first, "permute"), positional(*(Text(str(d)) for d in w.row(1)))),
}


@writes("batch_norm")
def _batch_norm(w: Writing) -> Expr:
    tensors = [w.arg(name) for name in ("running_mean", "running_var", "weight", "bias")]
    running = w.given("running_mean") is not None and not w.given("training")
    args = positional(w.first, *tensors, Text("self.training" if running else "True"))
    return Call(Text("F.batch_norm"), (*args, Arg("momentum", w.arg("momentum")), Arg("eps", w.arg("eps"))))


@writes("layer_norm", "group_norm")
def _norm(w: Writing) -> Expr:
    what = "normalized_shape" if w.name == "layer_norm" else "num_groups"
    sizes = w.given(what)
    shape: Expr = w.arg(what)
    if isinstance(sizes, (list, tuple)):
        shape = Many(tuple(Hole(int(s), "channels", what, w.name) for s in sizes), "()")
    args = positional(w.first, shape, w.arg("weight"), w.arg("bias"))
    return Call(Text(f"F.{w.name}"), (*args, Arg("eps", w.arg("eps"))))


@writes("dropout", "feature_dropout", "alpha_dropout")
def _dropout(w: Writing) -> Expr:
    name = {"feature_dropout": "dropout2d"}.get(w.name, w.name)
    return Call(Text(f"F.{name}"), positional(w.first, w.arg("p"), Text("self.training")))


@writes("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def _with_indices(w: Writing) -> Expr:
    args = positional(w.first, w.arg("output_size", "size"))
    return Call(Text(f"F.{w.name}"), (*args, Arg("return_indices", Text("True"))))


@writes("pad", "constant_pad_nd")
def _pad(w: Writing) -> Expr:
    args = [*positional(w.first, w.arg("pad"))]
    mode, value = w.given("mode", "constant"), w.given("value")
    if mode != "constant":
        args.append(Arg("mode", Text(literal(mode))))
    if value not in (None, 0, 0.0):
        args.append(Arg("value", w.arg("value", "number")))
    return Call(Text("F.pad"), tuple(args))


@writes("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d")
def _upsample(w: Writing) -> Expr | None:
    mode = w.name.removeprefix("upsample_").removesuffix("2d")
    size, scales = w.given("output_size"), w.given("scale_factors")
    if (size is None) == (scales is None):
        return None
    args = [Arg("", w.first), Arg("size", w.arg("output_size", "size")) if size is not None else
            Arg("scale_factor", w.arg("scale_factors", "scale"))]  # fmt: skip
    args.append(Arg("mode", Text(f'"{mode}"')))
    if mode != "nearest":
        args.append(Arg("align_corners", w.arg("align_corners")))
    return Call(Text("F.interpolate"), tuple(args))
