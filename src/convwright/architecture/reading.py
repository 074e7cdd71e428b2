"""``read``: from a model, a name or a file to an ``Architecture``."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from convwright.architecture.architecture import Architecture
from convwright.architecture.capture.capture import CAPTURES, RECORDED
from convwright.architecture.capture.graph import first_line
from convwright.architecture.capture.pytrees import Inputs
from convwright.architecture.pretrained import build_options, check_pretrained, create_by_timm, take_of_torchvision
from convwright.errors import ConvwrightError, ReadError, did_you_mean, is_there, whole_number

ModelSource = nn.Module | str
InputLike = Tensor | Sequence[Any] | Mapping[str, Any] | Inputs | str | None
_DEEPEST = 100  # modules within modules; exporting takes several calls of each level
MOST_INPUT = 10**9  # values in one example input
_WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "OptimizedModule")
_ADAPTERS = {"ultralytics": "convwright.adapters.ultralytics"}  # by the package of a network's class


def read(
    model: ModelSource,
    example_input: InputLike = None,
    *,
    capture: str = RECORDED,
    free_outputs: bool = False,
    **kwargs: Any,
) -> Architecture:
    """Read a network: its layers, channel groups, blocks, stages and costs.

    The network runs once in eval mode while every operator is recorded, so its code may do what Python can. Weights,
    buffers, training mode and random states are given back as they were.

    Args:
        model: a module, or ``"torchvision:NAME"``, ``"timm:NAME"``, ``"zoo:NAME"`` or
            ``"path/to/file.py:CallableOrClass"`` (called without positional arguments).
        example_input: a batch of shape (n, c, h, w), a shape such as ``(3, 224, 224)`` or ``"3x224x224"``. Of a network
            with several inputs a tuple of these in their order, a dictionary by name, or any nest that it takes.
            Named models know their own, and so does a file that has a function ``example_inputs``; for a module it is
            required.
        capture: ``"recorded"``, or ``"export"`` for ``torch.export`` on fake tensors, which refuses branches on values.
        free_outputs: let channels that leave the network change, too: those of a backbone whose features another
            network takes.
        **kwargs: passed to the constructor of a named model, e.g. ``num_classes=10``; ``pretrained=True`` gives a
            network of torchvision or timm its pretrained weights, but for the head of another number of classes.

    Returns:
        The architecture.

    Raises:
        ReadError: if the name is unknown, the input does not fit, or the network cannot be captured.

    Examples:
        >>> import convwright as cw
        >>> arch = cw.read("zoo:resnet20")
        >>> arch.group("layer1.0.conv1").size
        16
    """
    if capture not in CAPTURES:
        raise ReadError(f"a network cannot be captured by {capture!r}: choose from {', '.join(CAPTURES)}.")
    built, default_shape, source = create(model, **kwargs)
    known = _example_inputs(model) if isinstance(model, str) else None
    example = _example(example_input, default_shape if known is None else known, built, source)
    options = build_options(model, kwargs) if isinstance(model, str) else {}
    first = next(iter(example.tensors), None)
    if first is None:
        raise ReadError(f"{source}: there is no tensor in the example input.")
    given = None if example.one else example
    architecture = Architecture(
        built, first, source, options=options, captured=capture, given=given, free_outputs=free_outputs
    )
    _ = architecture.channels  # a network that cannot be read is refused here, not at the first question
    return architecture


def create(model: ModelSource, **kwargs: Any) -> tuple[nn.Module, tuple[int, ...] | None, str]:
    """Create a model from its name.

    Returns:
        The model, its usual input shape (c, h, w) if known, and its name.

    Raises:
        ReadError: if the name is unknown, the constructor fails, or pretrained weights are not to be had.
    """
    check_pretrained(model, bool(kwargs.get("pretrained")))
    if isinstance(model, nn.Module):
        _refuse_deep(model, type(model).__name__)
        model, shape = _opened(model)
        _refuse_wrapper(model)
        return model, shape, type(model).__name__
    where, _, name = model.partition(":")
    makers = {"torchvision": _torchvision, "timm": _timm, "zoo": _zoo}
    if where in makers and name:
        built, shape = makers[where](name, kwargs)
    elif ".py:" in model:
        built, shape = _from_file(model, kwargs), None
    elif model.endswith(".py") and Path(model).is_file():
        raise ReadError(f"{model} needs the class or function in it that is the network: {_classes_in(Path(model))}.")
    else:
        raise ReadError(
            f"{model!r} is not a model: give torchvision:NAME, timm:NAME, zoo:NAME or "
            f"FILE.py:CLASS.{_nearest_anywhere(model)}"
        )
    _refuse_deep(built, model)
    return built, shape, model


def _opened(model: nn.Module) -> tuple[nn.Module, tuple[int, ...] | None]:
    """Return the network that an object of another framework holds, and its usual input shape."""
    homes = {kind.__module__.partition(".")[0] for kind in type(model).__mro__}
    adapter = next((_ADAPTERS[home] for home in homes if home in _ADAPTERS), None)
    found: tuple[nn.Module, tuple[int, ...] | None] = (model, None)
    return found if adapter is None else importlib.import_module(adapter).opened(model)


def _refuse_wrapper(model: nn.Module) -> None:
    """Wrappers hold references to the very parameters that edits replace."""
    inner = "_orig_mod" if type(model).__name__ == "OptimizedModule" else "module"
    if type(model).__name__ in _WRAPPERS and hasattr(model, inner):
        raise ReadError(
            f"{type(model).__name__} is a wrapper: give the network inside it (model.{inner}), and wrap the result."
        )
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            where = f"{name} in {type(model).__name__}" if name else type(model).__name__
            raise ReadError(f"{where} is compiled by TorchScript: give the plain Python module that it was made from.")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise ReadError(
                f"{type(model).__name__}: {name} has no shape yet, since its layer is lazy: run the network once on an "
                "image, then read it."
            )


def _refuse_deep(model: nn.Module, source: str) -> None:
    """Python itself follows modules within modules only so far; one that holds itself has no end."""
    level, depth = [model], 0
    while level := list({id(child): child for module in level for child in module.children()}.values()):
        depth += 1
        if depth > _DEEPEST:
            raise ReadError(f"{source} nests modules more than {_DEEPEST} deep, or one holds itself: make it flatter.")


def _nearest_anywhere(name: str) -> str:
    from torchvision.models import list_models

    from convwright import zoo

    known = [f"torchvision:{n}" for n in list_models()] + [f"zoo:{n}" for n in zoo.names()]
    bare = {k.partition(":")[2]: k for k in known}
    return f" Did you mean {bare[name]}?" if name in bare else did_you_mean(name, known)


def _construct(source: str, make: Callable[..., Any], kwargs: dict[str, Any]) -> nn.Module:
    try:
        built = make(**kwargs)
    except ConvwrightError:
        raise
    except Exception as error:
        raise ReadError(f"{source} could not be created: {first_line(error)}") from error
    if not isinstance(built, nn.Module):
        raise ReadError(f"{source} gave a {type(built).__name__}, not an nn.Module.")
    return built


def _torchvision(name: str, kwargs: dict[str, Any]) -> tuple[nn.Module, tuple[int, ...]]:
    from torchvision.models import get_model, get_model_builder, list_models

    if name not in list_models():
        raise ReadError(f"torchvision has no model {name!r}.{did_you_mean(name, list_models())}")
    if name == "googlenet" or name == "inception_v3":
        kwargs = {"init_weights": True, **kwargs}  # silences a notice about changing defaults
    options = build_options(f"torchvision:{name}", kwargs)
    # Left to itself, torchvision downloads the backbone of a detector or segmentation network.
    backbone = dict.fromkeys({"weights_backbone"} & signature(get_model_builder(name)).parameters.keys())
    built = _construct(f"torchvision:{name}", lambda **k: get_model(name, weights=None, **{**backbone, **k}), options)
    if kwargs.get("pretrained"):
        take_of_torchvision(built, name, kwargs.get("num_classes"))
    side = 299 if name == "inception_v3" else 224
    return built, (3, side, side)


def _timm(name: str, kwargs: dict[str, Any]) -> tuple[nn.Module, tuple[int, ...] | None]:
    import timm

    if not timm.is_model(name.split(".")[0]):
        raise ReadError(f"timm has no model {name!r}.{did_you_mean(name, timm.list_models())}")
    make = create_by_timm if kwargs.get("pretrained") else timm.create_model
    built = _construct(f"timm:{name}", lambda **k: make(name, **k), kwargs)
    size = (getattr(built, "pretrained_cfg", None) or {}).get("input_size")
    return built, tuple(size) if size else None


def _zoo(name: str, kwargs: dict[str, Any]) -> tuple[nn.Module, tuple[int, ...]]:
    from convwright import zoo

    built = _construct(f"zoo:{name}", lambda **k: zoo.create(name, **k), kwargs)
    return built, zoo.entry(name).input_shape


def _example_inputs(source: str) -> Any:
    """Return what the function ``example_inputs`` of a user's file gives; None where there is none."""
    make = getattr(sys.modules.get(_module_name(source)), "example_inputs", None) if ".py:" in source else None
    try:
        return None if make is None else make()
    except Exception as error:
        raise ReadError(f"example_inputs of {source.rpartition(':')[0]} fails: {first_line(error)}") from error


def _module_name(source: str) -> str:
    return f"_convwright_user_{Path(source.rpartition(':')[0]).stem}"


def _classes_in(path: Path) -> str:
    """Return ``mynet.py:Net`` for each class that a file defines, else for each function, without importing it."""
    try:
        body = ast.parse(path.read_bytes()).body
        names = [node.name for node in body if isinstance(node, ast.ClassDef)]
        names = names or [node.name for node in body if isinstance(node, ast.FunctionDef)]
    except (OSError, SyntaxError, ValueError) as error:
        return f"{path}:CLASS (it could not be looked up: {first_line(error).rstrip('.')})"
    return ", ".join(f"{path}:{name}" for name in names) or f"{path}:CLASS, but it defines no class and no function"


def _from_file(source: str, kwargs: dict[str, Any]) -> nn.Module:
    path_text, _, attribute = source.rpartition(":")
    path = Path(path_text)
    if not is_there(path):
        raise ReadError(f"there is no file {path} (asked for by {source!r}).")
    name = _module_name(source)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ReadError(f"{path} could not be imported: {first_line(error)}") from error
    make = getattr(module, attribute, None)
    if make is None:
        raise ReadError(f"{path} has no {attribute!r}.{did_you_mean(attribute, vars(module))}")
    return make if isinstance(make, nn.Module) else _construct(source, make, kwargs)


def parse_shape(text: str) -> tuple[int, ...]:
    """Parse ``"3x224x224"`` into (3, 224, 224).

    Raises:
        ReadError: if it is not numbers joined by ``x``.
    """
    sizes = [whole_number(part) for part in text.lower().replace(",", "x").split("x")]
    if not all(sizes):
        raise ReadError(f"{text!r} is not an input shape; write it like 3x224x224.")
    return checked_shape(size for size in sizes if size)


def checked_shape(sizes: Iterable[int]) -> tuple[int, ...]:
    """Return the shape of an example input.

    Raises:
        ReadError: if it holds more values than any machine takes as one input.
    """
    shape = tuple(sizes)
    if math.prod(shape) > MOST_INPUT:
        raise ReadError(f"the input {'x'.join(map(str, shape))} has more than {MOST_INPUT:,} values; make it smaller.")
    return shape


def parse_inputs(text: str) -> Any:
    """Parse ``"3x224x224"``, or ``"image=3x224x224,depth=1x224x224"`` into a dictionary of shapes by name.

    Raises:
        ReadError: if it is neither.
    """
    if "=" not in text:
        return parse_shape(text)
    pairs = [part.partition("=") for part in text.split(",")]
    return {name.strip(): parse_shape(shape) for name, _, shape in pairs}


def _example(given: InputLike, default: Any, model: nn.Module, source: str) -> Inputs:
    if isinstance(given, Inputs):
        return given
    asked = parse_inputs(given) if isinstance(given, str) else given if given is not None else default
    if asked is None:
        raise ReadError(f"{source} needs an example input: give its shape, e.g. 3x224x224.")
    anchor = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))

    def made(value: Any) -> Any:
        if isinstance(value, str):
            return made(parse_shape(value))
        if isinstance(value, torch.Tensor) and value.is_meta:  # a shape with its batch
            return anchor.new_zeros(value.shape)
        if isinstance(value, tuple | list) and value and all(isinstance(size, int) for size in value):
            shape = checked_shape(value)  # (c, h, w) or (c, l): a batch of one is meant
            return anchor.new_zeros((1, *shape) if len(shape) in (2, 3) else shape)
        if isinstance(value, Mapping):
            return {key: made(each) for key, each in value.items()}
        return type(value)(map(made, value)) if type(value) in (tuple, list) else value

    return Inputs.for_model(model, made(asked))
