"""``convwright export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convwright.cli import options
from convwright.cli.paths import refuse_missing
from convwright.cli.printing import print_json


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Run directory of `optimize` or `train`.")],
    to: Annotated[str, typer.Option(help="python, onnx, pt2 or safetensors.", metavar="TARGET")],
    out: Annotated[Path | None, typer.Option(help="Folder to write to; default: export/TARGET in DIR.")] = None,
    model: Annotated[
        str | None, typer.Option(help="The original network, where the run was made with one that has no name.")
    ] = None,
    storage: options.Storage = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of lines.")] = False,
) -> None:
    """Write a run's network as plain Python, ONNX, pt2 or safetensors, and check that it computes the same."""
    refuse_missing(model, folder=folder)
    from convwright.export import export_run

    done = export_run(folder, to, out, model=model, storage=storage)
    if as_json:
        return print_json(done.as_dict())
    lines = [*done.files, f"largest difference to the network: {done.difference:.1e}"]
    return print(*lines, *(f"note: {note}" for note in done.notes), sep="\n")
