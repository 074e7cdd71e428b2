"""Options that several sub-commands have, each with its help in one place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from convwright.arguments import OPTIMIZE
from convwright.errors import ConvwrightError, brief, whole_number

Model = Annotated[str, typer.Argument(help="torchvision:NAME, timm:NAME, zoo:NAME or FILE.py:CLASS.")]
Data = Annotated[
    str,
    typer.Option(
        help="fashion-mini, mnist, fashion-mnist, cifar10, npz:PATH, folder:PATH, or coco:PATH, voc:PATH for --task.",
        metavar="DATA",
    ),
]
_TASK = "What to train for on --data: segmentation, detection, multilabel, regression, keypoints, restoration or "
Task = Annotated[str | None, typer.Option(help=f"{_TASK}self-distillation; default: classification.", metavar="TASK")]
DataDir = Annotated[Path | None, typer.Option(help=OPTIMIZE["data_dir"])]
Input = Annotated[str | None, typer.Option("--input", help=OPTIMIZE["input_shape"])]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
RecipeName = Annotated[str | None, typer.Option(help=OPTIMIZE["recipe"])]
Seed = Annotated[int, typer.Option(help=OPTIMIZE["seed"])]
Weights = Annotated[Path | None, typer.Option(help=OPTIMIZE["weights"], readable=False)]
Pretrained = Annotated[bool, typer.Option("--pretrained", help=OPTIMIZE["pretrained"])]
Jobs = Annotated[int, typer.Option(help="Trainings side by side, each in a process of its own.")]
Threads = Annotated[int | None, typer.Option(help="Of each training; default: all cores, divided by --jobs.")]
Isolate = Annotated[
    bool, typer.Option("--isolate", help="Train in another process, so that no candidate can end the run.")
]
Ray = Annotated[
    str | None,
    typer.Option(help="Trials on Ray: alone, it is started here; else a cluster's address.", metavar="[ADDRESS]"),
]
Storage = Annotated[
    str | None, typer.Option(help="Database with the trials; default: as recorded, without a password.", metavar="URL")
]
CpusPerTrial = Annotated[float | None, typer.Option(help="With --ray; default: --threads.")]
GpusPerTrial = Annotated[float, typer.Option(help="With --ray.")]


class WithAddresses(TyperCommand):
    """A command in which `--ray` alone means ``--ray local``: typer knows no optional values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse with the value written out."""
        pairs = zip(args, [*args[1:], "--"], strict=True)
        written = [[word, "local"] if word == "--ray" and after[:1] == "-" else [word] for word, after in pairs]
        return super().parse_args(ctx, [word for words in written for word in words])


def parse_divisor(text: str) -> int | str:
    """Read a divisor: ``auto`` or a whole number.

    Raises:
        ConvwrightError: It is neither.
    """
    number = whole_number(text)
    if text != "auto" and not number:
        raise ConvwrightError(f"--divisor {brief(text)} is neither auto nor a whole number from 1 on, such as 8")
    return number or text


def parse_options(given: Sequence[str]) -> dict[str, Any]:
    """Read ``NAME=VALUE`` texts; a value that is JSON (a number, true, null) is that, any other is text.

    Raises:
        ConvwrightError: One has no name or no value, or comes twice.

    >>> parse_options(["trials=12", "mode=parity", "gamma=0.7"])
    {'trials': 12, 'mode': 'parity', 'gamma': 0.7}
    """
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not (name and equals and value):
            raise ConvwrightError(f"--option {text!r} is not NAME=VALUE, such as trials=12")
        if name in found:
            raise ConvwrightError(f"--option {name} is given twice; give it once")
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):  # no JSON, or none of a size that an option has
            found[name] = value
    return found
