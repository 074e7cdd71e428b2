"""Options that several sub-commands have, each with its help in one place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from convwright.errors import ConvwrightError

Model = Annotated[str, typer.Argument(help="torchvision:NAME, timm:NAME, zoo:NAME or FILE.py:CLASS.")]
Data = Annotated[
    str,
    typer.Option(help="fashion-mini, mnist, fashion-mnist, cifar10, npz:PATH or folder:PATH.", metavar="DATA"),
]
DataDir = Annotated[Path | None, typer.Option(help="Folder with mnist.npz, cifar10.npz and the like.")]
Input = Annotated[str | None, typer.Option("--input", help="Shape of an image, such as 3x224x224.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
RecipeName = Annotated[str | None, typer.Option(help="A preset (default, fast-cpu, small-net) or a .yaml file.")]
Seed = Annotated[int, typer.Option(help="Of weights, choices and trainings.")]
Weights = Annotated[Path | None, typer.Option(help="A .safetensors file or a state dict saved by torch.")]
Jobs = Annotated[int, typer.Option(help="Trainings side by side, each in a process of its own.")]
Threads = Annotated[int | None, typer.Option(help="Of each training; default: all cores, divided by --jobs.")]
Isolate = Annotated[
    bool, typer.Option("--isolate", help="Train in another process, so that no candidate can end the run.")
]

Time = Annotated[str | None, typer.Option(help="Of all trials together, such as 30m or 1h30m.", metavar="LENGTH")]
Ray = Annotated[
    str | None,
    typer.Option(help="Trials on Ray: alone, it is started here; else a cluster's address.", metavar="[ADDRESS]"),
]
CpusPerTrial = Annotated[float | None, typer.Option(help="With --ray; default: --threads.")]
GpusPerTrial = Annotated[float, typer.Option(help="With --ray.")]
Storage = Annotated[
    str | None, typer.Option(help="Database of the trials, such as postgresql://user@host/runs.", metavar="URL")
]
ProxyClasses = Annotated[
    int | None, typer.Option(help="Rank candidates on so many classes; the result is trained on all.", metavar="N")
]
ProxySamples = Annotated[int | None, typer.Option(help="Rank candidates on so many training images.", metavar="N")]


class WithAddresses(TyperCommand):
    """A command in which `--ray` alone means ``--ray local``: typer knows no optional values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse with the value written out."""
        pairs = zip(args, [*args[1:], "--"], strict=True)
        written = [[word, "local"] if word == "--ray" and after[:1] == "-" else [word] for word, after in pairs]
        return super().parse_args(ctx, [word for words in written for word in words])


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
        except ValueError:
            found[name] = value
    return found
