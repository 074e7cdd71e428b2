"""ONNX and ``torch.export`` files, each loaded again and compared with the network."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convwright.architecture.capture.capture import EXPORT, capture
from convwright.architecture.capture.graph import describe, first_line, operator_name, quiet_torch
from convwright.cost.deployed import deployed, said
from convwright.cost.runtimes import Target
from convwright.cost.runtimes.onnxruntime import OnnxRuntime, onnx_session
from convwright.errors import ConvwrightError
from convwright.export.card import card
from convwright.export.opened import Exportable
from convwright.export.registry import BATCHES, Exported, ExportError, difference, differs, scale, target
from convwright.runs.directory.files import write, write_text
from convwright.training.evaluate import eval_mode

ONNX_LIMIT = 1e-3  # of the largest output: another library adds in another order
PT2_LIMIT = 1e-6
FOLDED_LIMIT = 1e-5  # where batch norms are in the weights: exact in double precision, rounded in the file


def onnx_program(
    model: nn.Module, example_input: Tensor, dynamic: bool = True, metadata: Mapping[str, str] | None = None
) -> tuple[bytes, bool]:
    """Return a network as an ONNX file, and whether it takes any batch size: where it cannot, it takes the example's.

    Args:
        model: on the CPU; exported in eval mode.
        example_input: shape (n, c, h, w).
        dynamic: whether to try any batch size first.
        metadata: texts to write into the file, by their keys.

    Raises:
        ExportError: the extra ``onnx`` is not installed, or the exporter refuses the network.
    """
    if missing := OnnxRuntime().missing(Target("onnxruntime")):
        raise ExportError(f"--to onnx needs {', '.join(missing)}, not installed: pip install 'convwright[onnx]'")
    try:
        if dynamic:
            with suppress(Exception):  # a branch or a constant depends on the batch size: the second try says the rest
                return _onnx(model, torch.cat([example_input[:1]] * 2), ({0: torch.export.Dim("n")},), metadata), True
        return _onnx(model, example_input, None, metadata), False
    except Exception as error:  # whatever the exporter, the network or a limit of the format raises
        raise ExportError(
            f"{type(model).__name__} cannot be exported to ONNX{_refused(model, example_input, error)}; "
            "export with --to pt2 or python"
        ) from error


def _onnx(model: nn.Module, example: Tensor, shapes: Any, metadata: Mapping[str, str] | None) -> bytes:
    with _quietly(model):
        program = torch.onnx.export(model, (example,), dynamo=True, verbose=False, dynamic_shapes=shapes)
        assert program is not None
        proto = program.model_proto
        for key, value in (metadata or {}).items():
            entry = proto.metadata_props.add()
            entry.key, entry.value = key, value
        return bytes(proto.SerializeToString())


def _refused(model: nn.Module, example: Tensor, error: BaseException) -> str:
    """Say which operator an exporter failed at, and why: its own error only tells how to file a bug, in colours."""
    told = [error]
    while (cause := told[-1].__cause__) is not None:
        told.append(cause)
    reason = re.sub(r"\x1b\[[0-9;]*m", "", first_line(told[-1])).rstrip(".")
    operators = set(re.findall(r"torch\.ops\.\w+\.(\w+)", " ".join(map(str, told))))
    with suppress(ConvwrightError):
        nodes = capture(model, example, EXPORT).graph.nodes
        found = next((n for n in nodes if n.op == "call_function" and operator_name(n) in operators), None)
        return f": its exporter does not know {describe(found)} in this form ({reason})" if found else f": {reason}"
    return f": {reason}"


def onnx_runner(content: bytes | str) -> Callable[[Tensor], list[Tensor]]:
    """Return what runs an ONNX file, given as bytes or by its path, in ONNX Runtime on the CPU."""
    session = onnx_session(content)
    name = session.get_inputs()[0].name
    return lambda batch: [torch.from_numpy(found) for found in session.run(None, {name: batch.numpy()})]


@target("onnx")
def export_onnx(run: Exportable, folder: Path) -> Exported:
    """Write ``model.onnx``, and compare it with the network in ONNX Runtime.

    Raises:
        ExportError: as for `onnx_program`; or the outputs differ by more than a thousandth of the largest one.
    """
    done = deployed(run.arch)

    def made(dynamic: bool) -> tuple[bytes, bool, float]:
        content, free = onnx_program(done.model, run.arch.example_input, dynamic, _metadata(run))
        return content, free, _gap(run, onnx_runner(content), free)

    content, dynamic, gap = made(True)
    if dynamic and not _fits(run, gap, ONNX_LIMIT):
        content, dynamic, gap = made(False)
    _check(run, "the ONNX file", gap, ONNX_LIMIT)
    write(folder / "model.onnx", lambda to: to.write_bytes(content))
    write_text(folder / "README.md", card(run, "onnx"))
    notes = (*_batch_note(run, dynamic), *said(done))
    return Exported("onnx", (folder / "model.onnx", folder / "README.md"), gap, notes)


@target("pt2")
def export_pt2(run: Exportable, folder: Path) -> Exported:
    """Write ``model.pt2`` for ``torch.export.load``, load it again, and compare it with the network.

    Raises:
        ExportError: it cannot be exported, or computes something else.
    """
    done, example = deployed(run.arch), run.arch.example_input
    model, limit = done.model, PT2_LIMIT if done.model is run.arch.model else FOLDED_LIMIT
    try:
        program, dynamic = pt2_program(model, example)
        if dynamic and not _fits(run, _gap(run, program.module(), dynamic), limit):
            program, dynamic = pt2_program(model, example, dynamic=False)
    except Exception as error:  # whatever torch.export raises
        raise ExportError(f"{run.folder}: torch.export refuses the network: {first_line(error)}") from error
    path = folder / "model.pt2"
    gaps: list[float] = []

    def save_and_check(to: Path) -> None:
        with to.open("wb") as file:
            torch.export.save(program, file, extra_files=_metadata(run))
        with to.open("rb") as file:
            loaded = torch.export.load(file).module()
        gaps.append(_gap(run, loaded, dynamic))
        _check(run, "the reloaded program", gaps[-1], limit)

    write(path, save_and_check)
    write_text(folder / "README.md", card(run, "pt2"))
    return Exported("pt2", (path, folder / "README.md"), gaps[-1], (*_batch_note(run, dynamic), *said(done)))


def _metadata(run: Exportable) -> dict[str, str]:
    """Return what goes into a file with the network, as JSON texts: input_shape, mean, std and class_names."""
    numbers, names = run.usage
    found = {"mean": numbers.mean, "std": numbers.std, "class_names": names} if numbers is not None else {}
    return {key: json.dumps(value) for key, value in {**found, "input_shape": run.input_shape}.items()}


def pt2_program(
    model: nn.Module, example_input: Tensor, dynamic: bool = True
) -> tuple[torch.export.ExportedProgram, bool]:
    """Export a network in eval mode, and say whether it takes any batch size."""
    with _quietly(model):
        if dynamic:
            with suppress(Exception):  # a branch or a constant depends on the batch size
                free = ({0: torch.export.Dim("n")},)
                pair = torch.cat([example_input[:1]] * 2)  # of one image, its size would be taken for a constant
                return torch.export.export(model, (pair,), dynamic_shapes=free, strict=False), True
        return torch.export.export(model, (example_input,), strict=False), False


def _gap(run: Exportable, runner: Callable[[Tensor], Any], dynamic: bool) -> float:
    example = run.arch.example_input
    return difference(run.arch.model, runner, example, BATCHES if dynamic else (len(example),))


def _batch_note(run: Exportable, dynamic: bool) -> tuple[str, ...]:
    only = f"it takes batches of {len(run.arch.example_input)} only"
    return () if dynamic else (f"{only}: the network takes other steps for other batch sizes",)


def _fits(run: Exportable, gap: float, limit: float) -> bool:
    return gap <= limit * scale(run.arch.model, run.arch.example_input)


def _check(run: Exportable, what: str, gap: float, limit: float) -> None:
    if not _fits(run, gap, limit):
        raise ExportError(f"{run.folder}: {what} {differs(gap)}; nothing was written")


@contextmanager
def _quietly(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, and none of the exporters' notes: errors say what matters."""
    with eval_mode(model), torch.no_grad(), quiet_torch(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
