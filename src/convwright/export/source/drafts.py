"""From the modules of a network to drafts of classes: what each one is built of and what its methods do."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, fx, nn

from convwright.architecture.capture.graph import LEAVES, operator_name
from convwright.export.source.bodies import Body, CallFlow, CallWriter, Line, is_chain
from convwright.export.source.regions import Network, Region
from convwright.export.source.text import (
    MISSING,
    Arg,
    Attr,
    Call,
    Expr,
    Hole,
    Joined,
    Many,
    Repeat,
    Text,
    flat,
    holes,
    is_index,
    is_name,
    literal,
    positional,
    template,
)

_CHANNELS = frozenset(
    {"in_channels", "out_channels", "num_features", "in_features", "out_features", "num_channels",
     "normalized_shape", "num_parameters"}
)  # fmt: skip
_ELSEWHERE = frozenset({"device", "dtype", "_weight", "_freeze", "init"})  # the weights say it, or the caller
_POSITIONAL = 3  # of a constructor: channels in, channels out, kernel size


def constructor(module: nn.Module, owner: str) -> Call | None:
    """Return the call that constructs a layer of torch like `module`; None if there is no such call.

    Args:
        module: any module.
        owner: the name that it has in the module that holds it.
    """
    kind = type(module)
    changed = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or "forward" in vars(module)
    plain = kind.__name__ in LEAVES and getattr(nn, kind.__name__, None) is kind and not changed
    return base_constructor(module, kind, owner) if plain else None


def base_constructor(module: nn.Module, kind: type[nn.Module], owner: str) -> Call | None:
    """Return the call that constructs a layer of class `kind` for a module whose class is derived from it."""
    values: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if name in ("self", *_ELSEWHERE) or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        value = _value(module, name)
        if value is MISSING:
            if parameter.default is MISSING:
                return None
            continue
        values[name], defaults[name] = value, parameter.default
    short = {  # (3, 3) as 3
        name: v[0] if isinstance(v, tuple) and v and isinstance(v[0], int) and all(x == v[0] for x in v) else v
        for name, v in values.items()
    }
    given = next((given for given in (short, values) if _same(module, kind, given)), None)
    return None if given is None else _call(kind, given, defaults, owner)


def _value(module: nn.Module, name: str) -> Any:
    if name == "bias":
        return getattr(module, "bias", None) is not None
    value = getattr(module, name, MISSING)
    if isinstance(value, (torch.Tensor, nn.Module)):
        return MISSING
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _same(module: nn.Module, kind: type[nn.Module], values: dict[str, Any]) -> bool:
    """Whether the constructor, called so, makes a layer that looks and weighs the same."""
    try:
        with torch.device("meta"):
            built = kind(**values)
    except (TypeError, ValueError, RuntimeError, AssertionError):
        return False
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    made = [*built.named_parameters(recurse=False), *built.named_buffers(recurse=False)]
    shapes = [{name: tensor.shape for name, tensor in tensors} for tensors in (own, made)]
    return shapes[0] == shapes[1] and (type(module) is not kind or repr(built) == repr(module))


def _call(kind: type[nn.Module], values: dict[str, Any], defaults: dict[str, Any], owner: str) -> Call:
    args = []
    for place, (name, value) in enumerate(values.items()):
        default = defaults[name]
        if value is None:
            if default is not None and default is not MISSING:
                args.append(Arg(name, Text("None")))
            continue
        hole = Hole(value, "channels" if name in _CHANNELS else name, name, owner)
        by_place = default is MISSING and place < _POSITIONAL
        args.append(Arg("" if by_place else name, hole, MISSING if by_place else _default(default, hole.value)))
    return Call(Text(f"nn.{kind.__name__}"), tuple(args))


def _default(default: Any, value: Any) -> Any:
    """Return a default in the type of the value: 0 and 0.0, 1 and (1, 1) are the same to torch."""
    same_number = isinstance(default, (int, float)) and isinstance(value, (int, float)) and default == value
    return value if same_number and isinstance(default, bool) == isinstance(value, bool) else default


_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(eq=False)
class ModulePart:
    """A module that is written: a layer of torch, a list, a chain, or a class of its own.

    Attributes:
        path: its qualified name.
        kind: ``"layer"``, ``"list"``, ``"chain"``, ``"dict"`` or ``"class"``.
        expr: what constructs it; of a class, once the classes are decided.
        calls: its calls.
        children: names of the modules directly below that are written, as they are registered.
        tensors: names of the tensors that it holds itself.
    """

    path: str
    kind: str = "class"
    expr: Expr | None = None
    calls: list[Region] = field(default_factory=list)
    children: list[str] = field(default_factory=list)
    tensors: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class ClassDraft:
    """One module's class before it is known which modules share it.

    Attributes:
        path: the module's qualified name.
        hint: the name of its class in the original.
        base: the class that it is derived from.
        base_args: arguments of ``super().__init__``.
        attributes: (name, expression): modules, parameters and buffers.
        methods: its methods; the first is ``forward``.
        children: names of its modules.
    """

    path: str
    hint: str
    base: str
    base_args: tuple[Arg, ...]
    attributes: tuple[tuple[str, Expr], ...]
    methods: tuple[Body, ...]
    children: tuple[str, ...]

    @property
    def key(self) -> tuple[object, ...]:
        """What modules that may share a class have in common."""
        built = tuple((name, template(expr)) for name, expr in self.attributes)
        super_call = template(Call(Text(self.base), self.base_args))
        return self.hint, super_call, built, tuple(method.key for method in self.methods)

    def holes(self) -> list[Hole]:
        """Return all constants, in reading order: those in ``__init__`` first."""
        return [*self.built_with(), *(h for method in self.methods for line in method.lines for h in holes(line.expr))]

    def built_with(self) -> list[Hole]:
        """Return the constants in ``__init__``."""
        exprs = [*(arg.value for arg in self.base_args), *(expr for _, expr in self.attributes)]
        return [hole for expr in exprs for hole in holes(expr)]


class ModuleParts:
    """All modules of a network that are written."""

    def __init__(self, net: Network) -> None:
        self.net, self.flow = net, CallFlow(net)
        self.known: dict[str, ModulePart] = {"": ModulePart("")}
        self.methods: dict[Region, str] = {}
        self._collect(net.root)
        for name in net.tensors:
            holder, _, own = name.rpartition(".")
            if (part := self._part(holder)).kind != "layer" and own not in part.tensors:
                part.tensors.append(own)
        for part in self.known.values():
            prefix = f"{part.path}." if part.path else ""
            below = {path.removeprefix(prefix).partition(".")[0] for path in self.known if path.startswith(prefix)}
            order = [name for name, _ in net.model.get_submodule(part.path).named_children()]
            part.children = sorted(below - {""}, key=order.index)
            part.kind = self._kind(part)
        self.module_of = {path: net.model.get_submodule(path) for path in self.known}

    def _collect(self, region: Region) -> None:
        part = self._part(region.path)
        part.calls.append(region)
        one_way = len(self.flow.inputs(region, region.path)) == 1 and len(self.flow.outputs(region)) <= 1
        if region.path and one_way:  # called like a layer of torch
            module = self.net.model.get_submodule(region.path)
            if (layer := constructor(module, region.path.rpartition(".")[2])) is not None:
                part.kind, part.expr = "layer", layer
                return
        for item in region.items:
            if isinstance(item, Region):
                self._collect(item)

    def _part(self, path: str) -> ModulePart:
        if path not in self.known:
            self.known[path] = ModulePart(path)
            holder = path.rpartition(".")[0]
            self._part(holder)
            module = self.net.model.get_submodule(path)
            built = constructor(module, path.rpartition(".")[2])
            if built is not None and not any(region.path == path for region in _all(self.net.root)):
                self.known[path].kind, self.known[path].expr = "layer", built
        return self.known[path]

    def _kind(self, part: ModulePart) -> str:
        if part.kind == "layer":
            return "layer"
        module = self.net.model.get_submodule(part.path)
        if part.path and not part.tensors and not part.calls:
            named = bool(part.children) and not any(hasattr(nn.ModuleDict, name) for name in part.children)
            return "list" if self._numbered(part) else "dict" if named else "class"
        one_way = part.path and type(module) is nn.Sequential and not part.tensors
        if one_way and all(is_chain(self.flow, call) for call in part.calls):
            return "chain"
        return "class"

    def _numbered(self, part: ModulePart) -> bool:
        """Whether a module's children are those of a list, some of which may be left out."""
        count = len(self.net.model.get_submodule(part.path)._modules)
        return bool(part.children) and all(is_index(name) and int(name) < count for name in part.children)

    def access(self, origin: str, name: str) -> Expr:
        """Return the expression by which the module `origin` reaches what has a qualified name below it."""
        relative = name.removeprefix(f"{origin}.") if origin else name
        found: Expr = Text("self")
        at = origin
        for piece in relative.split("."):
            found = self._step(found, at, piece)
            at = f"{at}.{piece}" if at else piece
        return found

    def _step(self, base: Expr, holder: str, name: str) -> Expr:
        part = self.known.get(holder)
        if part is not None and name in part.children and self._numbered(part):
            return Joined((base, Text(f"[{name}]")))
        if part is not None and part.kind == "dict":
            return Joined((base, Text(f"[{literal(name)}]")))
        if is_name(name):
            return Attr(base, name)
        return Call(Text("getattr"), positional(base, Text(literal(name))))

    def build(self, path: str) -> Expr:
        """Return what constructs a module; those of a list that are equal are written as one."""
        part = self.known[path]
        if part.expr is not None:
            return part.expr
        items = {name: self.build(f"{path}.{name}" if path else name) for name in part.children}
        if part.kind == "dict":
            return Call(Text("nn.ModuleDict"), positional(Many(tuple(items.values()), "{}", tuple(items))))
        if not self._numbered(part):
            listed = Many(tuple(items.values()), "{}", tuple(items))
            return Call(Text("nn.Sequential"), positional(Call(Text("OrderedDict"), positional(listed))))
        sequence = self.sequence(items)
        if part.kind == "chain" or isinstance(self.module_of[path], nn.Sequential):
            return Call(Text("nn.Sequential"), positional(*sequence))
        return Call(Text("nn.ModuleList"), positional(Many(tuple(sequence))))

    @staticmethod
    def sequence(items: dict[str, Expr]) -> list[Expr]:
        """Return the modules of a list in order, with ``nn.Identity()`` where the original has what does nothing."""
        numbered = {int(name): expr for name, expr in items.items()}
        full = [numbered.get(i, Text("nn.Identity()")) for i in range(max(numbered) + 1)]
        runs = [list(run) for _, run in groupby(full, key=flat)]
        return [r[0] if len(r) == 1 else Repeat(r[0], Hole(len(r), "depth", "depth", "blocks")) for r in runs]

    def height(self, path: str) -> int:
        """Return how many levels of classes a module is above torch's layers."""
        part = self.known[path]
        below = [self.height(f"{path}.{name}" if path else name) for name in part.children]
        return (0 if part.kind == "layer" else max(below, default=0)) + (part.kind == "class")

    def draft(self, path: str) -> ClassDraft:
        """Write the class of a module; the modules below must have their expressions."""
        part = self.known[path]
        module = self.module_of[path]
        base, base_args, special = self._base(part, module)
        chained = base == "nn.Sequential" and all(is_chain(self.flow, call) for call in part.calls)
        methods = [] if chained or not part.calls else self._methods(part, special)
        attributes, hint = self._attributes(part, module, base), type(module).__name__
        return ClassDraft(path, hint, base, base_args, attributes, tuple(methods), tuple(part.children))

    def _base(self, part: ModulePart, module: nn.Module) -> tuple[str, tuple[Arg, ...], fx.Node | None]:
        if self._numbered(part):
            items = {name: self.build(f"{part.path}.{name}" if part.path else name) for name in part.children}
            return "nn.Sequential", positional(*self.sequence(items)), None
        special = self._normalisation(part, module)
        if special is not None:
            kind = next(k for k in _NORMS if isinstance(module, k))
            built = base_constructor(module, kind, part.path.rpartition(".")[2])
            if built is not None:
                return f"nn.{kind.__name__}", built.args, special
        return "nn.Module", (), None

    def _normalisation(self, part: ModulePart, module: nn.Module) -> fx.Node | None:
        """Return the one batch norm in a module derived from torch's, which its base class carries out."""
        if not isinstance(module, _NORMS) or len(part.calls) != 1:
            return None
        found = [n for n in part.calls[0].items if isinstance(n, fx.Node) and operator_name(n) == "batch_norm"]
        names = [f"{part.path}.{t}" for t in ("weight", "bias", "running_mean", "running_var")]
        if len(found) != 1 or module._forward_hooks or module._forward_pre_hooks:
            return None
        read = [self.net.places.get(n) for n in found[0].args[1:5] if isinstance(n, fx.Node)]
        return found[0] if all(name in names for name in read) and len(read) in (2, 4) else None

    def _methods(self, part: ModulePart, special: fx.Node | None) -> list[Body]:
        """Write a method for each call; calls that do the same share one."""
        found: dict[str, Body] = {}
        texts: dict[str, str] = {}
        for call in part.calls:
            access = partial(self.access, part.path)
            written = CallWriter(self.flow, call, access, lambda r: self.methods.get(r, "forward"), special).body()
            written = replace(written, lines=tuple(map(self._loop, written.lines)))
            text = "\n".join([str(written.key), *(flat(line.expr) for line in written.lines)])
            name = texts.setdefault(text, "forward" if not texts else f"forward_{len(texts) + 1}")
            self.methods[call] = name
            found.setdefault(name, written)
        return list(found.values())

    def _loop(self, line: Line) -> Line:
        """Leave the range out of a loop over a whole list."""
        if line.loop is None:
            return line
        listed = self.known[line.child.rpartition(".")[0]].children
        assert isinstance(line.loop, Joined)
        whole = Text(f"[0:{len(listed)}]") == line.loop.parts[-1] and listed == [str(i) for i in range(len(listed))]
        return replace(line, loop=Joined(line.loop.parts[:-1])) if whole else line

    def _attributes(self, part: ModulePart, module: nn.Module, base: str) -> tuple[tuple[str, Expr], ...]:
        own: list[tuple[str, Expr]] = []
        inherited = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        for name in part.tensors:
            if "BatchNorm" not in base or name not in inherited:
                full = f"{part.path}.{name}" if part.path else name
                own.append((name, self._tensor(self.net.tensors[full], getattr(module, name, None), name)))
        if base != "nn.Sequential":
            own += [(name, self.build(f"{part.path}.{name}" if part.path else name)) for name in part.children]
        return tuple(own)

    def _tensor(self, tensor: Tensor, original: object, name: str) -> Expr:
        sizes: list[Expr] = [Hole(int(s), "channels", name, name) for s in tensor.shape]
        args = [*positional(*(sizes or [Text("()")]))]
        if tensor.dtype is not torch.float32:
            args.append(Arg("dtype", Text(str(tensor.dtype))))
        zeros = Call(Text("torch.zeros"), tuple(args))
        if isinstance(original, nn.Parameter):
            frozen = () if original.requires_grad else (Arg("requires_grad", Text("False")),)
            return Call(Text("nn.Parameter"), (*positional(zeros), *frozen))
        return zeros


def _all(region: Region) -> list[Region]:
    inner = [item for item in region.items if isinstance(item, Region)]
    return [region, *(deeper for item in inner for deeper in _all(item))]
