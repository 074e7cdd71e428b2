"""ONNX files as the way into runtimes: exported, resized without a new export, and read for who owns which operator."""

from __future__ import annotations

import importlib
import re
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from convwright.architecture.capture.graph import quiet_torch
from convwright.architecture.capture.pytrees import Inputs
from convwright.cost.runtimes.registry import RunnableProgram, Runtime, Target
from convwright.devices import to_host
from convwright.errors import ConvwrightError, first_line

PACKAGES = ("onnx", "onnxscript")
_CONVOLUTIONS = ("Conv", "ConvTranspose")


def exported_onnx(name: str, model: nn.Module, example_input: torch.Tensor | Inputs) -> bytes:
    """Return a network as the bytes of an ONNX file.

    Args:
        name: of the network, for messages.
        model: in eval mode, on the CPU.
        example_input: shape (n, ...), on the CPU; the file takes this shape.

    Raises:
        ConvwrightError: the inputs lie elsewhere or are of a type that runtimes do not take, or the export fails.
    """
    inputs = Inputs.of(example_input)
    first = inputs.tensors[0]
    if first.device.type != "cpu":
        raise ConvwrightError(f"{name} lies on {first.device}; an ONNX file is made of a network on the CPU.")
    if first.is_floating_point() and first.dtype not in (torch.float32, torch.float64, torch.float16):
        raise ConvwrightError(f"ONNX runtimes take float32, float64 or float16; {name} takes {first.dtype}.")
    try:
        # The exporter's notes are left out: it prints and warns, and errors say what matters.
        with quiet_torch(), warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(model, inputs.args, kwargs=dict(inputs.kwargs), dynamo=True, verbose=False)
            assert program is not None
            return bytes(program.model_proto.SerializeToString())
    except Exception as error:  # whatever the exporter, the model or a limit of the format raises
        reason = first_line(error)
        raise ConvwrightError(f"{name} cannot be exported to ONNX: {reason}") from error


def array_of(tensor: torch.Tensor) -> Any:
    """Return a tensor as the numpy array that runtimes take."""
    return to_host(tensor).numpy()


class OnnxFileRuntime(Runtime):
    """A runtime that runs ONNX files, and tells the times of their operators."""

    extra: ClassVar[str] = "onnx"

    @abstractmethod
    def opened(
        self, name: str, content: bytes, inputs: Inputs, target: Target, calibration: Sequence[Inputs] = ()
    ) -> RunnableProgram:
        """Open an ONNX file; as `Runtime.convert`."""

    def convert(
        self, name: str, model: nn.Module, inputs: Inputs, target: Target, calibration: Sequence[Inputs] = ()
    ) -> RunnableProgram:
        """Export a network and open the file; as `Runtime.convert`."""
        return self.opened(name, exported_onnx(name, model, inputs), inputs, target, calibration)


# ------------------------------------------------------------------ the same network with other widths


def resized(content: bytes, shapes: Mapping[str, Sequence[int]]) -> bytes | None:
    """Return an ONNX file with weights of other shapes, filled with numbers: a latency does not depend on them.

    An export takes seconds, this takes milliseconds. Weights keep the names of the network's parameters in the file.

    Args:
        content: the file.
        shapes: new shape by the parameter's name; what is missing keeps its shape.

    Returns:
        The file, or None: something in it, such as the target of a reshape, does not follow the widths.
    """
    onnx = importlib.import_module("onnx")
    model = onnx.load_from_string(content)
    graph, before = model.graph, {each.name: tuple(each.dims) for each in model.graph.initializer}
    now = {name: tuple(shapes.get(name, dims)) for name, dims in before.items()}
    for node in graph.node:
        if node.op_type in (*_CONVOLUTIONS, "Gemm") and len(node.input) > 2 and node.input[2] in now:
            now[node.input[2]] = (_outputs(node, now),)  # a bias that the exporter made of a norm
        if node.op_type in _CONVOLUTIONS:
            _regroup(node, before, now)
        if node.op_type == "Reshape" and node.input[1] in before:
            _flexible(onnx, graph, node.input[1])
    for each in graph.initializer:
        if now[each.name] != before[each.name]:
            each.CopyFrom(onnx.numpy_helper.from_array(_numbers(now[each.name]), each.name))
    del graph.value_info[:]
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except Exception:  # onnx's own errors, of several kinds
        return None
    return bytes(model.SerializeToString())


def _outputs(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> int:
    weight = shapes[node.input[1]]
    if node.op_type == "Gemm":
        return weight[0] if any(each.name == "transB" and each.i for each in node.attribute) else weight[1]
    return weight[0] if node.op_type == "Conv" else weight[1] * _attribute(node, "group", 1)


def _attribute(node: Any, name: str, default: int) -> int:
    return next((int(each.i) for each in node.attribute if each.name == name), default)


def _regroup(node: Any, before: Mapping[str, tuple[int, ...]], now: Mapping[str, tuple[int, ...]]) -> None:
    """Give a convolution of one channel a group as many groups as it has channels now."""
    weight, groups = node.input[1], _attribute(node, "group", 1)
    if groups > 1 and weight in before and before[weight][1] == now[weight][1]:
        for each in node.attribute:
            if each.name == "group":
                each.i = groups * now[weight][0] // before[weight][0]


def _flexible(onnx: Any, graph: Any, name: str) -> None:
    """Let the second number of a reshape's target follow from the others: there lie the channels."""
    for each in graph.initializer:
        if each.name == name:
            target = onnx.numpy_helper.to_array(each).copy()
            if len(target) > 1 and -1 not in target:
                target[1] = -1
                each.CopyFrom(onnx.numpy_helper.from_array(target, name))


def _numbers(shape: tuple[int, ...]) -> Any:
    """Return small positive numbers: neither overflow nor denormal numbers slow a runtime down."""
    return np.full(shape, 1.0 / max(1, int(np.prod(shape[1:]))), dtype=np.float32)


# ------------------------------------------------------------------ who owns an operator


def owners(content: bytes) -> dict[str, str]:
    """Return, by the name of a node or of its output, the weight that it or the nearest node before it uses."""
    graph = importlib.import_module("onnx").load_from_string(content).graph
    weights = {_plain(each.name) for each in graph.initializer if len(each.dims) > 1}
    found: dict[str, str] = {}
    for node in graph.node:
        own = next((plain for plain in map(_plain, node.input) if plain in weights), None)
        before = next((found[name] for name in node.input if found.get(name)), "")
        for name in (node.name, *node.output):
            found[name] = own or before
    return found


def _plain(name: str) -> str:
    for ending in ("_DequantizeLinear_Output", "_quantized"):
        name = name.removesuffix(ending)
    return name


def owner_of(name: str, known: Mapping[str, str]) -> str:
    """Return the owner of an operator that a runtime named after a node or an output of the file, with an ending."""
    name = re.sub(r"_token_\d+$", "", name)  # of a quantized operator in ONNX Runtime
    for text in (name, name.removesuffix("_nchwc"), name.split("/")[0], name.rpartition("_")[0]):
        if text in known:
            return known[text]
    return ""
