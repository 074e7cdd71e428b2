"""The graph of operators that a network executes, whoever captured it, and questions about its nodes."""

from __future__ import annotations

import io
import linecache
import logging
import os
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

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
        graph: ATen operators before decomposition; ``meta["val"]`` of a node has shape and type of its value.
        stored: qualified name -> the parameter, buffer or constant.
        tensors: graph input name -> qualified name of the parameter, buffer or constant behind it.
        parameters: qualified names of the trainable parameters among ``tensors``.
        inputs: names of the graph inputs that the caller supplies.
        outputs: names of the graph nodes whose values the network returns, each with its place in the nest that comes
            out ("" for one tensor alone).
        training: the same network captured in training mode, where that uses parameters that eval mode
            does not (auxiliary classifiers); their channels are coupled there.
        unused: parameters that no capture uses; they keep their sizes.
        free_outputs: whether channels that leave the network may change, as those of a backbone.
    """

    graph: fx.Graph = field(repr=False)
    stored: Mapping[str, Tensor] = field(repr=False)
    tensors: dict[str, str]
    parameters: frozenset[str]
    inputs: tuple[str, ...]
    outputs: Mapping[str, str]
    training: Capture | None = field(default=None, repr=False)
    unused: tuple[str, ...] = ()
    free_outputs: bool = False

    def tensor(self, name: str) -> Tensor:
        """Return the parameter, buffer or constant called ``name``."""
        return self.stored[name]


def unused_parameters(model: nn.Module, captures: Sequence[Capture]) -> tuple[str, ...]:
    """Return the parameters that no captured graph reads."""
    used = {
        capture.tensors[node.name]
        for capture in captures
        for node in capture.graph.nodes
        if node.op == "placeholder" and node.name in capture.tensors and node.users
    }
    identities = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if name in used}
    return tuple(name for name, p in model.named_parameters() if id(p) not in identities)


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
def kept_modes(*models: nn.Module) -> Iterator[None]:
    """Put every module back into the mode (train or eval) that it had."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:  # of compiled ones it is no attribute
            module.training = mode


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put the model into a mode; afterwards each module has its own again, and what forward stored is undone."""
    with kept_modes(model), attributes_kept(model):
        model.train(training)
        yield


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


@lru_cache(maxsize=4096)
def from_torch(file: str) -> bool:
    """Whether a source file is torch's own."""
    return file.startswith(_OPERATORS)


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
    stack = node.meta.get("nn_module_stack")
    return str(next(reversed(stack.values()))[0]).partition("@")[0] if stack else ""


def module_paths(node: fx.Node) -> list[str]:
    """Return the qualified names of the modules that were running when the operator was called, outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return [str(entry[0]).partition("@")[0] for entry in stack.values()]


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
    if (place := node.meta.get("source")) is not None:
        return Source(place[0], place[1], linecache.getline(*place).strip())
    trace = node.meta.get("stack_trace")
    if not trace:
        return None
    frames = [
        Source(m["file"], int(m["line"]), m["code"].strip())
        for m in _FRAME.finditer(trace)
        if not from_torch(m["file"])
    ]
    return frames[-1] if frames else None


def depends_on_values(node: fx.Node) -> bool:
    """Whether what an operator gives, or how much, depends on the values of the data: ``nonzero``, ``.item()``, nms."""
    if node.op != "call_function" or not hasattr(node.target, "tags"):
        return False
    name = operator_name(node)
    if name == "where":  # of a condition alone: the places where it holds
        return not isinstance(node.meta.get("val"), Tensor)
    if name == "index":  # by truth values, not by numbers
        places = (n.meta.get("val") for n in node.all_input_nodes[1:])
        return any(isinstance(place, Tensor) and place.dtype in (torch.bool, torch.uint8) for place in places)
    return name in _BY_VALUES or bool(_BY_TAG & set(node.target.tags))


_BY_VALUES = frozenset({"nms", "item", "_local_scalar_dense"})
_BY_TAG = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


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
