"""``convwright export`` and ``convwright report``; ``optimize`` writes the page of a report at its end, too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convwright.cli import leaving, options
from convwright.cli.paths import refuse_missing
from convwright.cli.printing import print_json
from convwright.errors import ConvwrightError


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Run directory of `optimize` or `train`.")],
    to: Annotated[str, typer.Option(help="python, onnx, pt2 or safetensors.", metavar="TARGET")],
    out: Annotated[Path | None, typer.Option(help="Folder to write to; default: export/TARGET in DIR.")] = None,
    model: Annotated[
        str | None, typer.Option(help="The original network, where the run was made with one that has no name.")
    ] = None,
    storage: options.Storage = None,
    int8: Annotated[bool, typer.Option("--int8", help="With --to onnx: also in 8 bits, judged beside it.")] = False,
    data: Annotated[
        str | None,
        typer.Option(help="What --int8 is calibrated and judged on; default: the run's own.", metavar="DATA"),
    ] = None,
    data_dir: options.DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of lines.")] = False,
) -> None:
    """Write a run's network as plain Python, ONNX, pt2 or safetensors, and check that it computes the same."""
    refuse_missing(model, folder=folder)
    from convwright.export import export_run

    done = export_run(folder, to, out, model=model, storage=storage, int8=int8, data=data, data_dir=data_dir)
    for each in done.int8.warnings if done.int8 is not None else ():
        leaving.say(f"convwright: warning: {each}")
    if as_json:
        return print_json(done.as_dict())
    lines = [*done.files, f"largest difference to the network: {done.difference:.1e}"]
    lines += [str(done.int8)] if done.int8 is not None else []
    return print(*lines, *(f"note: {note}" for note in done.notes), sep="\n")


if TYPE_CHECKING:
    from convwright.runs import Result


def report(
    folder: Annotated[Path, typer.Argument(help="A run directory; the run may be unfinished.", metavar="DIR")],
    out: Annotated[Path | None, typer.Option(help="Where to write the page; default: DIR/report.html.")] = None,
    model: Annotated[
        str | None, typer.Option(help="The untouched network, to draw that of an unfinished run; its code is run.")
    ] = None,
    storage: options.Storage = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print it as Markdown instead.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as one JSON document instead.")] = False,
) -> None:
    """Write the report of a run: one HTML file that needs no network."""
    if out is not None and (markdown or as_json):
        raise ConvwrightError("--out names the page; --markdown and --json print: send their output to a file")
    if markdown and as_json:
        raise ConvwrightError("--markdown and --json exclude each other; give one of them")
    refuse_missing(folder=folder)
    from convwright.report import report_of

    found = report_of(folder, model=model, storage=storage)
    if as_json:
        return print_json(found.as_dict())
    if markdown:
        return print(found.markdown(), end="")
    leaving.say(found.status)
    return print(found.save(out))


def write_report(result: Result) -> None:
    """Write the page of a finished run beside its result; a run is not lost because of it."""
    try:
        leaving.say(f"report: {result.report().save()}")
    except ConvwrightError as error:
        leaving.say(f"convwright: warning: the report was not written ({leaving.one_line(error)})")
