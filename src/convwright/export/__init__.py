"""Exports: a network as Python source, ONNX, a ``torch.export`` program, or weights with a model card."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from convwright.errors import look_up
from convwright.export import card, programs, python, quantize  # noqa: F401 - each registers its targets
from convwright.export.opened import Exportable, load, open_run
from convwright.export.python import Program, python_source
from convwright.export.registry import TARGETS, Exported, ExportError
from convwright.runs.directory.files import refuse_file, understood

__all__ = [
    "TARGETS", "ExportError", "Exportable", "Exported", "Program", "export_network", "export_run", "load", "open_run",
    "python_source",
]  # fmt: skip


def export_run(
    folder: str | Path,
    to: str,
    out: str | Path | None = None,
    *,
    model: nn.Module | str | None = None,
    storage: str | None = None,
    int8: bool = False,
    data: Any = None,
    data_dir: str | Path | None = None,
) -> Exported:
    """Export the network of a run, and check that what was written computes the same.

    Args:
        folder: Run directory of `optimize` or `train`. Of an unfinished search, the best trained trial is exported,
            and marked so.
        to: ``"python"``, ``"onnx"``, ``"pt2"`` or ``"safetensors"``.
        out: Where to write; None: ``export/TARGET`` in the run directory.
        model: The original network, where the run cannot name it.
        storage: URL of the database with the trials of an unfinished run; None: as the run recorded it, without a
            password.
        int8: With ``"onnx"``: write ``model.int8.onnx``, too, judged beside the network.
        data: What int8 is calibrated and judged on, as for `optimize`; None: the data that the run records.
        data_dir: As for `optimize`.

    Returns:
        The files, and the largest difference found.

    Raises:
        ExportError: The target is unknown or not installed, or the network cannot be exported to it.
        RunError: There is no run, or nothing trained in it.
    """
    look_up(to, TARGETS, "export target", ExportError)
    return export_network(open_run(Path(folder), model, storage), to, out, int8=int8, data=data, data_dir=data_dir)


def export_network(
    run: Exportable,
    to: str,
    out: str | Path | None = None,
    *,
    int8: bool = False,
    data: Any = None,
    data_dir: str | Path | None = None,
) -> Exported:
    """Export an opened network, as `export_run` does."""
    write = look_up(to, TARGETS, "export target", ExportError)
    if int8 and to != "onnx":
        raise ExportError(f"--int8 writes ONNX files, not {to}: give --to onnx")
    if int8:
        write = partial(quantize.export_int8, data=data, data_dir=data_dir)
    if run.arch.given is not None and to != "safetensors":
        several = f"{run.plan.model} takes several inputs, or a list"
        raise ExportError(f"{several}: --to {to} writes networks of one tensor; use safetensors")
    where = Path(out) if out is not None else run.folder / "export" / to
    refuse_file(where)
    with understood(run.folder):  # before anything is written
        card.card(run)
    done = write(run, where)
    if run.kind != "unfinished":
        return done
    note = f"the run is not finished: this is its trial {run.trial}, the most accurate so far, and no budget is proved"
    return replace(done, notes=(note, *done.notes))
