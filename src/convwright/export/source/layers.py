"""torch's own layers, written as the calls that construct them."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from convwright.architecture.capture.exported import LEAVES
from convwright.export.source.text import MISSING, Arg, Call, Hole, Text

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
    """Return the value of a constructor's argument as it stands on the module."""
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
