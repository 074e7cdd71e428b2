"""ONNX and ``torch.export`` files, each loaded again and compared with the network."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from convwright.architecture.capture.exported import first_line, quiet_torch
from convwright.cost.latency_onnx import missing_packages, onnx_session
from convwright.export.card import card
from convwright.export.opened import Exportable
from convwright.export.registry import BATCHES, Exported, ExportError, difference, scale, target
from convwright.runs.directory.files import write, write_text
from convwright.training.evaluate import eval_mode

ONNX_LIMIT = 1e-3  # of the largest output: another library adds in another order
PT2_LIMIT = 1e-6
PT2_USE = """```python
model = torch.export.load("model.pt2").module()
scores = model(batch)  # normalised as above; torch.export.load fills extra_files={"mean": "", "std": "", ...}
```"""
ONNX_USE = """```python
import json

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
told = session.get_modelmeta().custom_metadata_map
mean, std = (np.array(json.loads(told[key]), np.float32).reshape(1, -1, 1, 1) for key in ("mean", "std"))
(scores,) = session.run(None, {session.get_inputs()[0].name: (images - mean) / std})  # float32 images from 0 to 1
names = [json.loads(told["class_names"])[i] for i in scores.argmax(1)]
```"""


def onnx_bytes(model: nn.Module, example_input: Tensor, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a network as an ONNX file that takes any batch size.

    Args:
        model: on the CPU; exported in eval mode.
        example_input: shape (n, c, h, w).
        metadata: texts to write into the file, by their keys.

    Raises:
        ExportError: the extra ``onnx`` is not installed, or the exporter refuses the network.
    """
    if missing := missing_packages():
        raise ExportError(f"--to onnx needs {', '.join(missing)}, not installed: pip install 'convwright[onnx]'")
    try:
        with _quietly(model):
            program = torch.onnx.export(
                model, (_pair(example_input),), dynamo=True, verbose=False, dynamic_shapes=({0: torch.export.Dim("n")},)
            )
            assert program is not None
            proto = program.model_proto
            for key, value in (metadata or {}).items():
                entry = proto.metadata_props.add()
                entry.key, entry.value = key, value
            return bytes(proto.SerializeToString())
    except Exception as error:  # whatever the exporter, the network or a limit of the format raises
        raise ExportError(f"{type(model).__name__} cannot be exported to ONNX: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    """Return what an exporter failed at: its own error only tells how to file a bug, in colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    return re.sub(r"\x1b\[[0-9;]*m", "", first_line(error))


def onnx_runner(content: bytes | str) -> Callable[[Tensor], list[Tensor]]:
    """Return what runs an ONNX file, given as bytes or by its path, in ONNX Runtime on the CPU."""
    session = onnx_session(content)
    name = session.get_inputs()[0].name
    return lambda batch: [torch.from_numpy(found) for found in session.run(None, {name: batch.numpy()})]


@target("onnx")
def export_onnx(run: Exportable, folder: Path) -> Exported:
    """Write ``model.onnx``, and compare it with the network in ONNX Runtime.

    Raises:
        ExportError: as for `onnx_bytes`; or the outputs differ by more than a thousandth of the largest one.
    """
    content = onnx_bytes(run.arch.model, run.arch.example_input, _metadata(run))
    gap = difference(run.arch.model, onnx_runner(content), run.arch.example_input)
    _check(run, "the ONNX file", gap, ONNX_LIMIT)
    write(folder / "model.onnx", lambda to: to.write_bytes(content))
    write_text(folder / "README.md", card(run, ONNX_USE))
    return Exported("onnx", (folder / "model.onnx", folder / "README.md"), gap)


@target("pt2")
def export_pt2(run: Exportable, folder: Path) -> Exported:
    """Write ``model.pt2`` for ``torch.export.load``, load it again, and compare it with the network.

    Raises:
        ExportError: it cannot be exported, or computes something else.
    """
    model, example = run.arch.model, run.arch.example_input
    notes: tuple[str, ...] = ()
    try:
        program, dynamic = pt2_program(model, example)
    except Exception as error:  # whatever torch.export raises
        raise ExportError(f"{run.folder}: torch.export refuses the network: {first_line(error)}") from error
    if not dynamic:
        notes = (f"it takes batches of {example.shape[0]} only: the network's code depends on the batch size",)
    path = folder / "model.pt2"
    gaps: list[float] = []

    def save_and_check(to: Path) -> None:
        with to.open("wb") as file:
            torch.export.save(program, file, extra_files=_metadata(run))
        with to.open("rb") as file:
            loaded = torch.export.load(file).module()
        gaps.append(difference(model, loaded, example, BATCHES if dynamic else (len(example),)))
        _check(run, "the reloaded program", gaps[-1], PT2_LIMIT)

    write(path, save_and_check)
    write_text(folder / "README.md", card(run, PT2_USE))
    return Exported("pt2", (path, folder / "README.md"), gaps[-1], notes)


def _metadata(run: Exportable) -> dict[str, str]:
    """Return what goes into a file with the network, as JSON texts: mean, std and class_names."""
    numbers, names = run.usage
    found = {"mean": numbers.mean, "std": numbers.std, "class_names": names} if numbers is not None else {}
    return {key: json.dumps(value) for key, value in found.items()}


def pt2_program(model: nn.Module, example_input: Tensor) -> tuple[torch.export.ExportedProgram, bool]:
    """Export a network in eval mode, and say whether it takes any batch size."""
    with _quietly(model):
        try:
            free = ({0: torch.export.Dim("n")},)
            return torch.export.export(model, (_pair(example_input),), dynamic_shapes=free, strict=False), True
        except Exception:  # a branch or a constant depends on the batch size
            return torch.export.export(model, (example_input,), strict=False), False


def _pair(example: Tensor) -> Tensor:
    """Return two images: torch.export takes a size of one for a constant."""
    return torch.zeros((2, *example.shape[1:]), dtype=example.dtype, device=example.device)


def _check(run: Exportable, what: str, gap: float, limit: float) -> None:
    if not gap <= limit * scale(run.arch.model, run.arch.example_input):
        raise ExportError(f"{run.folder}: {what} differs from the network by {gap:.1e}; nothing was written")


@contextmanager
def _quietly(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, and none of the exporters' notes: errors say what matters."""
    with eval_mode(model), torch.no_grad(), quiet_torch(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
