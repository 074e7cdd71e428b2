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
from convwright.architecture.capture.pytrees import Inputs
from convwright.architecture.capture.recorded import record
from convwright.errors import ReadError

RECORDED, EXPORT = "recorded", "export"
CAPTURES: Mapping[str, Callable[[nn.Module, Inputs], Capture]] = {RECORDED: record, EXPORT: export}


def capture(model: nn.Module, example_input: Tensor | Inputs, how: str = RECORDED) -> Capture:
    """Capture a model in eval mode; in training mode, too, where that uses parameters that eval mode does not.

    Args:
        model: any network; it is left exactly as it was.
        example_input: a batch such as shape (1, 3, 224, 224), or all that the network is called with.
        how: a name in `CAPTURES`.

    Raises:
        ReadError: the forward pass fails, or cannot be captured this way.
    """
    inputs = Inputs.of(example_input)
    _check_inputs(model, inputs)
    try:
        with in_mode(model, training=False):
            captured = CAPTURES[how](model, inputs)
    except Exception as error:  # the user's own code may raise anything
        raise ReadError(_explain(model, inputs, error, how)) from error
    if not captured.outputs:
        raise ReadError(f"{type(model).__name__} returns no tensor, so nothing of it can be read.")
    unused = unused_parameters(model, [captured])
    if not unused:
        return captured
    training = _in_training(model, inputs, how)
    found = [captured] if training is None else [captured, training]
    return replace(captured, training=training, unused=unused_parameters(model, found))


def _in_training(model: nn.Module, inputs: Inputs, how: str) -> Capture | None:
    """Capture in training mode (two images, for batch norm); ``None`` where that does not work."""
    pair = inputs.map(lambda tensor: torch.cat([tensor[:1]] * 2) if tensor.ndim else tensor)
    with in_mode(model, training=True):
        try:
            return CAPTURES[how](model, pair)
        except Exception:  # the eval capture stands on its own; unused parameters are reported
            return None


def _check_inputs(model: nn.Module, inputs: Inputs) -> None:
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return
    try:
        inputs.call(signature.bind)
    except TypeError as error:
        needed = [p.name for p in signature.parameters.values() if p.default is p.empty]
        raise ReadError(
            f"{type(model).__name__}.forward takes {', '.join(needed)}: {error}. Give each by its name, such as "
            f"--input {needed[0] if needed else 'x'}=3x224x224 on the command line or a dictionary in Python."
        ) from None


def _explain(model: nn.Module, inputs: Inputs, error: Exception, how: str) -> str:
    """Say in one line why a capture failed: the forward pass itself, or its capture."""
    name = type(model).__name__
    forward_error = error if how == RECORDED else _forward_error(model, inputs)
    if forward_error is not None:
        line = user_frame(forward_error)
        said = f"{name} does not run on an input of shape {inputs}{f' at {line}' if line else ''}: "
        if line is not None and re.search(r"""\w\[["']""", line.code):
            return f'{said}it takes a dictionary. Give one in Python, such as {{"image": (3, 224, 224)}}.'
        if how == RECORDED and any(words in str(error) for words in ("require grad", "Inference tensor")):
            return f"{said}{first_line(error)} It computes gradients in forward, and is recorded without: read a part."
        return f"{said}{first_line(forward_error)} Give the input shape that the network expects (--input CxHxW)."
    where = next((f" at {s}" for s in [user_frame(error)] if s is not None), "")
    return (
        f"{name} runs, but torch.export cannot capture it{where}: {first_line(error)} "
        "Usually a branch or a loop depends on tensor values: read it by recording, which takes any Python."
    )


def _forward_error(model: nn.Module, inputs: Inputs) -> Exception | None:
    try:
        with in_mode(model, training=False), torch.no_grad():
            inputs.call(model)
    except Exception as error:  # the user's own code may raise anything
        return error
    return None
