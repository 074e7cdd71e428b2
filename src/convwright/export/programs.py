"""ONNX and ``torch.export`` files, each loaded again and compared with the network."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from convwright.architecture.capture.exported import first_line, quiet_torch
from convwright.cost.latency_onnx import missing_packages, onnx_session
from convwright.export.opened import Exportable
from convwright.export.registry import BATCHES, Exported, ExportError, difference, scale, target
from convwright.runs.directory.files import write
from convwright.training.evaluate import eval_mode

ONNX_LIMIT = 1e-3  # of the largest output: another library adds in another order
PT2_LIMIT = 1e-6


def onnx_bytes(model: nn.Module, example_input: Tensor) -> bytes:
    """Return a network as an ONNX file that takes any batch size.

    Args:
        model: on the CPU; exported in eval mode.
        example_input: shape (n, c, h, w).

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
            return bytes(program.model_proto.SerializeToString())
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
    content = onnx_bytes(run.arch.model, run.arch.example_input)
    gap = difference(run.arch.model, onnx_runner(content), run.arch.example_input)
    _check(run, "the ONNX file", gap, ONNX_LIMIT)
    write(folder / "model.onnx", lambda to: to.write_bytes(content))
    return Exported("onnx", (folder / "model.onnx",), gap)


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
            torch.export.save(program, file)
        with to.open("rb") as file:
            loaded = torch.export.load(file).module()
        gaps.append(difference(model, loaded, example, BATCHES if dynamic else (len(example),)))
        _check(run, "the reloaded program", gaps[-1], PT2_LIMIT)

    write(path, save_and_check)
    return Exported("pt2", (path,), gaps[-1], notes)


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
