"""ONNX Runtime as a backend of latency measurements; needs the extra ``onnx``."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from convwright.architecture.capture.graph import quiet_torch
from convwright.architecture.capture.pytrees import Inputs
from convwright.devices import to_host
from convwright.errors import ConvwrightError, first_line

_NEEDED = ("onnx", "onnxscript", "onnxruntime")


def onnx_call(name: str, model: nn.Module, example_input: Tensor | Inputs) -> Callable[[], object]:
    """Export a network and return what runs it once in ONNX Runtime, with torch's number of threads.

    Args:
        name: of the network, for messages.
        model: in eval mode, on the CPU.
        example_input: shape (n, ...), on the CPU.

    Raises:
        ConvwrightError: if ONNX Runtime is not installed, the input lies elsewhere, or the export fails.
    """
    if missing := missing_packages():
        raise ConvwrightError(
            f"the backend onnxruntime needs {', '.join(missing)}, not installed: pip install 'convwright[onnx]'."
        )
    inputs = Inputs.of(example_input)
    first = inputs.tensors[0]
    if first.device.type != "cpu":
        raise ConvwrightError(f"onnxruntime is measured on the CPU; {name} lies on {first.device}.")
    if first.dtype not in (torch.float32, torch.float64, torch.float16):
        raise ConvwrightError(f"onnxruntime is measured on float32, float64 or float16, not on {first.dtype}.")
    session = onnx_session(exported_onnx(name, model, inputs))
    names = [entry.name for entry in session.get_inputs()]
    feed = {name: to_host(tensor).numpy() for name, tensor in zip(names, inputs.tensors, strict=True)}
    return lambda: session.run(None, feed)


def exported_onnx(name: str, model: nn.Module, example_input: Tensor | Inputs) -> bytes:
    """Return a network as the bytes of an ONNX file.

    Args:
        name: of the network, for messages.
        model: in eval mode, on the CPU.
        example_input: shape (n, ...), on the CPU; the file takes this shape.

    Raises:
        ConvwrightError: if the export fails.
    """
    try:
        # The exporter's notes are left out: it prints and warns, and errors say what matters.
        with quiet_torch(), warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
            warnings.simplefilter("ignore")
            inputs = Inputs.of(example_input)
            program = torch.onnx.export(model, inputs.args, kwargs=dict(inputs.kwargs), dynamo=True, verbose=False)
            assert program is not None
            return bytes(program.model_proto.SerializeToString())
    except Exception as error:  # whatever the exporter, the model or a limit of the format raises
        reason = first_line(error)
        raise ConvwrightError(f"{name} cannot be exported to ONNX: {reason}") from error


def missing_packages() -> list[str]:
    """Return what ONNX needs and is not installed."""
    return [package for package in _NEEDED if importlib.util.find_spec(package) is None]


def onnx_session(content: bytes | str) -> Any:
    """Return a session that runs an ONNX file, given as bytes or by its path, on the CPU with torch's threads."""
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
