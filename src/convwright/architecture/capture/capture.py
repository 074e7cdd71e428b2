"""Capture a network: record what one run of it executes, or export it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from convwright.architecture.capture.exported import export
from convwright.architecture.capture.graph import Capture, first_line, in_mode, unused_parameters, user_frame
from convwright.architecture.capture.recorded import record
from convwright.errors import ReadError

RECORDED, EXPORT = "recorded", "export"
CAPTURES: Mapping[str, Callable[[nn.Module, Tensor], Capture]] = {RECORDED: record, EXPORT: export}


def capture(model: nn.Module, example_input: Tensor, how: str = RECORDED) -> Capture:
    """Capture a model in eval mode; in training mode, too, where that uses parameters that eval mode does not.

    Args:
        model: any network with one tensor input; it is left exactly as it was.
        example_input: a batch such as shape (1, 3, 224, 224).
        how: a name in `CAPTURES`.

    Raises:
        ReadError: the forward pass fails, or cannot be captured this way.
    """
    _check_one_input(model)
    try:
        with in_mode(model, training=False):
            captured = CAPTURES[how](model, example_input)
    except Exception as error:  # the user's own code may raise anything
        raise ReadError(_explain(model, example_input, error, how)) from error
    unused = unused_parameters(model, [captured])
    if not unused:
        return captured
    training = _in_training(model, example_input, how)
    found = [captured] if training is None else [captured, training]
    return replace(captured, training=training, unused=unused_parameters(model, found))


def _in_training(model: nn.Module, example_input: Tensor, how: str) -> Capture | None:
    """Capture in training mode (two images, for batch norm); ``None`` where that does not work."""
    pair = torch.cat([example_input[:1]] * 2)
    with in_mode(model, training=True):
        try:
            return CAPTURES[how](model, pair)
        except Exception:  # the eval capture stands on its own; unused parameters are reported
            return None


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


def _explain(model: nn.Module, example_input: Tensor, error: Exception, how: str) -> str:
    """Say in one line why a capture failed: the forward pass itself, or its capture."""
    shape = "x".join(map(str, example_input.shape))
    name = type(model).__name__
    try:
        with in_mode(model, training=False), torch.no_grad():
            model(example_input)
    except Exception as forward_error:  # the user's own code may raise anything
        line = user_frame(forward_error)
        said = f"{name} does not run on an input of shape {shape}{f' at {line}' if line else ''}: "
        if line is not None and re.search(r"""\w\[["']""", line.code):
            return f"{said}it takes a dictionary. Wrap it in a module that takes one image and makes the dictionary."
        return f"{said}{first_line(forward_error)} Give the input shape that the network expects (--input CxHxW)."
    where = next((f" at {s}" for s in [user_frame(error)] if s is not None), "")
    if how == RECORDED:
        return f"{name} runs, but not while its operators are recorded{where}: {first_line(error)}"
    return (
        f"{name} runs, but torch.export cannot capture it{where}: {first_line(error)} "
        "Usually a branch or a loop depends on tensor values: read it by recording, which takes any Python."
    )
