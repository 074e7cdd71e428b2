"""The file: imports, classes, and the function that loads the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import torch
from torch import Tensor, nn

from convwright.export.source.bodies import Body, Line
from convwright.export.source.classes import Class, classes
from convwright.export.source.drafts import ModuleParts
from convwright.export.source.regions import network
from convwright.export.source.text import (
    MISSING,
    WIDTH,
    Arg,
    Call,
    Expr,
    Text,
    flat,
    is_name,
    laid_out,
    literal,
    positional,
    said,
    template,
)

_TEMPLATE = Path(__file__).with_name("program.py.j2").read_text(encoding="utf-8")
_PROGRAM = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True).from_string(_TEMPLATE)
_INDENT = 4
_PLACES = 2  # of modules, named in a class's docstring


@dataclass(frozen=True, eq=False)
class Source:
    """A network as a program.

    Attributes:
        text: the program.
        name: the class of the network in it.
        constants: tensors of the graph that are not in the original's state dict, by their new names.
        classes: names of all classes.
        operators: operators that are called by their full name, since torch has no function for them.
        dtype: of the weights.
    """

    text: str
    name: str
    constants: dict[str, Tensor]
    classes: tuple[str, ...]
    operators: tuple[str, ...]
    dtype: torch.dtype


def source_of(model: nn.Module, example_input: Tensor, title: str, notes: Sequence[str] = ()) -> Source:
    """Write a network as a program that needs torch alone.

    Args:
        model: any network that `convwright.read` reads.
        example_input: shape (n, c, h, w); the program takes any n.
        title: first line of its docstring.
        notes: further lines of it.

    Raises:
        ConvwrightError: it cannot be captured, or does something else for other batch sizes.
    """
    net = network(model, example_input)
    parts = ModuleParts(net)
    found = classes(parts)
    root = found[-1]
    known = set(model.state_dict())
    constants = {name: tensor for name, tensor in net.tensors.items() if name not in known}
    body = [
        line for made in found for line in ["", "", *_class(made, made is root, _ties(parts) if made is root else [])]
    ]
    dtype = next((t.dtype for t in model.parameters() if t.is_floating_point()), torch.float32)
    text = _PROGRAM.render(
        title=said(title),
        notes=[said(note) for note in notes],
        body="\n".join(body),
        name=root.name,
        cast="" if dtype is torch.float32 else f".to({dtype})",
        shape=(1, *example_input.shape[1:]),
    )
    full = tuple(sorted({w.partition("(")[0] for line in body for w in line.split() if "torch.ops." in w}))
    return Source(text, root.name, constants, tuple(made.name for made in found), full, dtype)


def _ties(parts: ModuleParts) -> list[str]:
    first: dict[int, str] = {}
    lines = []
    for name, parameter in parts.net.model.named_parameters(remove_duplicate=False):
        holder = name.rpartition(".")[0]
        if holder not in parts.known or (name not in parts.net.tensors and parts.known[holder].kind != "layer"):
            continue
        if id(parameter) in first:
            own = name.rpartition(".")[2]
            one, other = (flat(parts.access("", n)) for n in (name, first[id(parameter)]))
            base = flat(parts.access("", holder)) if holder else "self"
            lines.append(f"{one} = {other}" if is_name(own) else f"setattr({base}, {literal(own)}, {other})")
        first.setdefault(id(parameter), name)
    return lines


def _class(made: Class, is_root: bool, ties: Sequence[str]) -> list[str]:
    draft = made.drafts[0]
    lines = [f"class {made.name}({draft.base}):", f'    """{_where(made, is_root)}"""', "", *_constructor(made, ties)]
    for at, method in enumerate(draft.methods):
        lines += ["", *_method(made, method, at)]
    return lines


def _where(made: Class, is_root: bool) -> str:
    if is_root:
        return "The network."
    paths = [said(draft.path) for draft in made.drafts]
    rest = len(paths) - _PLACES
    text = ", ".join(f"`{path}`" for path in paths[:_PLACES]) + (f" and {rest} more." if rest > 0 else ".")
    return text if len(text) <= WIDTH - 10 else f"`{paths[0]}`" + (f" and {len(paths) - 1} more." if paths[1:] else ".")


def _constructor(made: Class, ties: Sequence[str]) -> list[str]:
    draft = made.drafts[0]
    params = [_parameter(a.name, a.values, a.default) for a in made.arguments]
    lines = _definition("__init__", params, "None")
    lines += laid_out("", Call(Text("super().__init__"), draft.base_args), 8, made.names)
    lines += [" " * 8 + f"self.{name} = {name}" for name in made.kept]
    for name, expr in draft.attributes:
        lines += _attribute(name, expr, made.names)
    return [*lines, *(" " * 8 + tie for tie in ties)]


def _attribute(name: str, expr: Expr, names: dict[int, str]) -> list[str]:
    is_buffer = isinstance(expr, Call) and flat(expr.function) == "torch.zeros"
    if is_buffer:
        return laid_out("", Call(Text("self.register_buffer"), positional(Text(literal(name)), expr)), 8, names)
    if is_name(name):
        return laid_out(f"self.{name} = ", expr, 8, names)
    method = "self.register_parameter" if "Parameter" in template(expr)[:14] else "self.add_module"
    return laid_out("", Call(Text(method), positional(Text(literal(name)), expr)), 8, names)


def _parameter(name: str, values: Sequence[object], default: object) -> str:
    kinds = {type(value).__name__ for value in values}
    mixed = {("tuple",): "tuple[int, ...]", ("int", "tuple"): "int | tuple[int, ...]", ("float", "int"): "float"}
    kind = mixed.get(tuple(sorted(kinds)), kinds.pop() if len(kinds) == 1 else "object")
    return f"{name}: {kind}" + ("" if default is MISSING else f" = {literal(default)}")


def _definition(name: str, params: Sequence[str], returns: str) -> list[str]:
    call = Call(Text(f"def {name}"), tuple(Arg("", Text(p)) for p in ("self", *params)))
    return laid_out("", call, _INDENT, {}, f" -> {returns}:")


def _method(made: Class, method: Body, at: int) -> list[str]:
    name = "forward" if at == 0 else f"forward_{at + 1}"
    returns = "Tensor" if len(method.returns) == 1 else f"tuple[{', '.join(['Tensor'] * len(method.returns))}]"
    lines = _definition(name, [f"{p}: Tensor" for p in method.params], returns if method.returns else "None")
    body = list(method.lines)
    last = body[-1] if body and body[-1].targets == method.returns and body[-1].loop is None else None
    last = None if last is not None and len(last.targets) != 1 else last
    for place, line in enumerate(body if last is None else body[:-1]):
        lines += _line(made, line, made.comment(line, place, at))
    if last is not None:
        return lines + _commented(laid_out("return ", last.expr, 8, made.names), made.comment(last, len(body) - 1, at))
    if method.returns:
        lines.append(" " * 8 + f"return {', '.join(method.returns)}")
    return lines if body or method.returns else [*lines, " " * 8 + "pass"]


def _line(made: Class, line: Line, comment: str) -> list[str]:
    unpacked = ", ".join(line.targets) + ("," if line.unpacks and len(line.targets) == 1 else "")
    prefix = f"{unpacked} = " if line.targets else ""
    if line.loop is None:
        return _commented(laid_out(prefix, line.expr, 8, made.names), comment)
    head = " " * 8 + f"for layer in {flat(line.loop, made.names)}:"
    return [head, *_commented(laid_out(prefix, line.expr, 12, made.names), comment)]


def _commented(lines: list[str], comment: str) -> list[str]:
    if comment and len(lines) == 1 and len(lines[0]) + len(comment) + 4 <= WIDTH:
        return [f"{lines[0]}  # {comment}"]
    return lines
