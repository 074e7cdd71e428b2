"""Capture a network as an operator graph with ``torch.export``.

The capture runs on fake tensors: no arithmetic is done, no weight or buffer changes, and every module gets
back the mode (training or eval) that it had.
"""

from __future__ import annotations

import inspect
import io
import linecache
import logging
import os
import re
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, OutputKind, OutputSpec

from convwright.errors import ReadError

_TORCH_ROOT = str(Path(torch.__file__).parent) + os.sep
_OWN_PACKAGES = tuple(str(Path(__file__).parents[2] / name) + os.sep for name in ("architecture", "edits"))
_OPERATORS = (_TORCH_ROOT, str(Path(torch.__file__).parents[1] / "torchvision" / "ops") + os.sep)


@dataclass(frozen=True)
class Source:
    """Where in the user's code an operator was called."""

    file: str
    line: int
    code: str

    def __str__(self) -> str:
        shown = f" `{self.code}`" if self.code else ""
        return f"{Path(self.file).name}:{self.line}{shown}"


@dataclass(frozen=True, eq=False)
class Capture:
    """The operator graph of a network in eval mode, with the meaning of its inputs and outputs.

    Attributes:
        program: what ``torch.export`` returned; its graph holds ATen operators before decomposition.
        tensors: graph input name -> qualified name of the parameter, buffer or constant behind it.
        parameters: qualified names of the trainable parameters among ``tensors``.
        inputs: names of the graph inputs that the caller supplies.
        outputs: names of the graph nodes whose values the network returns.
        training: the same network captured in training mode, where that uses parameters that eval mode
            does not (auxiliary classifiers); their channels are coupled there.
        unused: parameters that no capture uses; they keep their sizes.
    """

    program: ExportedProgram = field(repr=False)
    tensors: dict[str, str]
    parameters: frozenset[str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    training: Capture | None = field(default=None, repr=False)
    unused: tuple[str, ...] = ()

    @property
    def graph(self) -> fx.Graph:
        """The graph of ATen operators."""
        graph: fx.Graph = self.program.graph
        return graph

    def tensor(self, name: str) -> Tensor:
        """Return the parameter, buffer or constant called ``name``."""
        state = self.program.state_dict
        found = state[name] if name in state else self.program.constants[name]
        assert isinstance(found, Tensor)
        return found


def capture(model: nn.Module, example_input: Tensor) -> Capture:
    """Export ``model`` in eval mode.

    Args:
        model: any network with one tensor input; it is left exactly as it was.
        example_input: a batch such as shape (1, 3, 224, 224).

    Returns:
        The capture.

    Raises:
        ReadError: if the forward pass fails or cannot be exported.
    """
    _check_one_input(model)
    with in_mode(model, training=False):
        try:
            captured = _interpret(_export(model, example_input))
        except Exception as error:
            raise ReadError(_explain(model, example_input, error)) from error
    unused = _unused(model, [captured])
    if not unused:
        return captured
    training = _capture_training(model, example_input)
    found = [captured] if training is None else [captured, training]
    return replace(captured, training=training, unused=_unused(model, found))


def _export(model: nn.Module, example_input: Tensor) -> ExportedProgram:
    with warnings.catch_warnings(), torch.no_grad(), quiet_torch():
        warnings.simplefilter("ignore")
        return torch.export.export(model, (example_input,), strict=False)


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Give modules back the attributes that a forward pass overwrites, such as what it computes once and stores."""
    before = [(vars(module), dict(vars(module))) for module in model.modules()]
    held = [value for _, attributes in before for value in attributes.values() if isinstance(value, dict)]
    before += [(value, dict(value)) for value in held]  # such as a cache
    lists = [(v, list(v)) for _, attributes in before for v in attributes.values() if isinstance(v, list)]
    try:
        yield
    finally:
        for attributes, kept in before:
            attributes.clear()
            attributes.update(kept)
        for entries, kept_entries in lists:
            entries[:] = kept_entries


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Keep torch from printing whole graphs when an export fails: the error says it in one line."""
    sink = io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(sink), redirect_stderr(sink):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _capture_training(model: nn.Module, example_input: Tensor) -> Capture | None:
    """Capture in training mode (two images, for batch norm); ``None`` where that does not work."""
    pair = torch.cat([example_input[:1]] * 2)
    with in_mode(model, training=True):
        try:
            return _interpret(_export(model, pair))
        except Exception:  # the eval capture stands on its own; unused parameters are reported
            return None


def _unused(model: nn.Module, captures: Sequence[Capture]) -> tuple[str, ...]:
    """Return the parameters that no captured graph reads."""
    used = {
        capture.tensors[node.name]
        for capture in captures
        for node in capture.graph.nodes
        if node.op == "placeholder" and node.name in capture.tensors and node.users
    }
    identities = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if name in used}
    return tuple(name for name, p in model.named_parameters() if id(p) not in identities)


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
    tensors = {_name(spec): spec.target for spec in inputs if spec.kind in stored and spec.target is not None}
    return Capture(
        program,
        tensors,
        parameters=frozenset(spec.target for spec in inputs if spec.kind is InputKind.PARAMETER and spec.target),
        inputs=tuple(_name(spec) for spec in inputs if spec.kind is InputKind.USER_INPUT),
        outputs=tuple(_name(spec) for spec in outputs if spec.kind is OutputKind.USER_OUTPUT),
    )


def _name(spec: InputSpec | OutputSpec) -> str:
    return str(getattr(spec.arg, "name", ""))


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put the model into a mode; afterwards each module has its own again, and what forward stored is undone."""
    modes = [(module, module.training) for module in model.modules()]
    with attributes_kept(model):
        model.train(training)
        try:
            yield
        finally:
            for module, mode in modes:  # of compiled ones it is no attribute
                module.training = mode


def _check_one_input(model: nn.Module) -> None:
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return
    required = [
        p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) > 1:
        raise ReadError(
            f"{type(model).__name__}.forward needs {len(required)} inputs ({', '.join(required)}); "
            "convwright reads networks with one image input. Wrap the model in a module that "
            "supplies the others."
        )


def _explain(model: nn.Module, example_input: Tensor, error: Exception) -> str:
    """Say in one line why the export failed: the forward pass itself, or its capture."""
    shape = "x".join(map(str, example_input.shape))
    name = type(model).__name__
    try:
        with torch.no_grad():
            model(example_input)
    except Exception as forward_error:  # the user's own code may raise anything
        line = user_frame(forward_error)
        said = f"{name} does not run on an input of shape {shape}{f' at {line}' if line else ''}: "
        if line is not None and re.search(r"""\w\[["']""", line.code):
            return f"{said}it takes a dictionary. Wrap it in a module that takes one image and makes the dictionary."
        return f"{said}{first_line(forward_error)} Give the input shape that the network expects (--input CxHxW)."
    where = next((f" at {s}" for s in [user_frame(error)] if s is not None), "")
    return (
        f"{name} runs, but torch.export cannot capture it{where}: {first_line(error)} "
        "Usually a branch or a loop depends on tensor values; make it depend on shapes or "
        "constants only, or read the part before it."
    )


def first_line(error: BaseException) -> str:
    """Return the first informative line of an error message, ending in a full stop."""
    for line in str(error).splitlines():
        text = line.strip()
        if text and not text.startswith(("File ", "Traceback", "from user code")):
            return f"{type(error).__name__}: {text[:300].rstrip('.')}."
    return f"{type(error).__name__}."


def user_frame(error: BaseException) -> Source | None:
    """Return the innermost line outside torch and convwright that an exception passed through."""
    found = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if not file.startswith((_TORCH_ROOT, *_OWN_PACKAGES)):
            found = Source(file, line, linecache.getline(file, line).strip())
    return found


# ------------------------------------------------------------------ questions about graph nodes

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]+\n?(?P<code>[^\n]*)')


def operator_name(node: fx.Node) -> str:
    """Return the bare operator name, e.g. ``conv2d`` for ``aten.conv2d.default`` (in-place or not)."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return str(getattr(node.target, "__name__", node.target))
    name = str(schema.name).split("::")[-1]
    return name[:-1] if name.endswith("_") and not name.startswith("_") else name


def module_path(node: fx.Node) -> str:
    """Return the qualified name of the innermost module that called the operator ('' is the root)."""
    paths = module_paths(node)
    return paths[-1] if paths else ""


def module_paths(node: fx.Node) -> list[str]:
    """Return the qualified names of the modules that were running when the operator was called, outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return [re.sub(r"@\d+$", "", str(entry[0])) for entry in stack.values()]


def module_class(node: fx.Node) -> str:
    """Return the class name of the innermost module that called the operator."""
    stack = node.meta.get("nn_module_stack") or {}
    entries = list(stack.values())
    if not entries:
        return ""
    kind = entries[-1][1]
    return kind.rsplit(".", 1)[-1] if isinstance(kind, str) else kind.__name__


# Class names of torch's own layers, which call one operator each.
LEAVES = frozenset(nn.modules.__all__) - {"Module", "Sequential", "ModuleList", "ModuleDict", "MultiheadAttention"}


def source_of(node: fx.Node) -> Source | None:
    """Return the innermost source line outside torch itself that led to the operator."""
    trace = node.meta.get("stack_trace")
    if not trace:
        return None
    frames = [
        Source(m["file"], int(m["line"]), m["code"].strip())
        for m in _FRAME.finditer(trace)
        if not m["file"].startswith(_OPERATORS)
    ]
    return frames[-1] if frames else None


def describe(node: fx.Node) -> str:
    """Name an operator for a person: operator, module, source line."""
    module = module_path(node) or "the network itself"
    source = source_of(node)
    return f"{operator_name(node)} in {module}" + (f" ({source})" if source else "")


def argument(node: fx.Node, name: str, default: Any = None) -> Any:
    """Return an operator's argument by its schema name, whether given by position or keyword."""
    if name in node.kwargs:
        return node.kwargs[name]
    schema = getattr(node.target, "_schema", None)
    for position, parameter in enumerate(schema.arguments if schema else ()):
        if parameter.name == name:
            if position < len(node.args):
                return node.args[position]
            return parameter.default_value if parameter.has_default_value() else default
    return default


def einsum_operands(node: fx.Node) -> list[tuple[fx.Node, str]]:
    """Return the operands of an einsum with the letters of their axes; empty if letters do not say it all."""
    terms, _, out = str(node.args[0]).replace(" ", "").partition("->")
    operands = node.args[1]
    if not out or "." in terms or any(len(set(term)) < len(term) for term in terms.split(",")):
        return []
    assert isinstance(operands, list | tuple)
    return list(zip(operands, terms.split(","), strict=True))


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of a node's tensor value; () for anything else."""
    return sizes_of(node.meta.get("val"))


def sizes_of(value: object) -> tuple[int, ...]:
    """Return the shape of a value as torch recorded it; () for anything but a tensor."""
    return tuple(int(s) for s in value.shape) if isinstance(value, Tensor) else ()


def as_dims(dims: Any, ndim: int) -> tuple[int, ...]:
    """Return dimension arguments as non-negative integers; ``None`` or empty means all."""
    if dims is None or (isinstance(dims, Sequence) and not dims):
        return tuple(range(ndim))
    listed = dims if isinstance(dims, Sequence) else (dims,)
    return tuple(int(d) % ndim if ndim else 0 for d in listed)
