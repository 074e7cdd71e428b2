"""Plain Python source: ``model.py`` and ``weights.pt``, which need torch and nothing else."""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from convwright.errors import first_line
from convwright.export.card import card
from convwright.export.opened import Exportable
from convwright.export.registry import Exported, ExportError, difference, differs, scale, target
from convwright.export.source import Source, source_of
from convwright.export.source.text import literal
from convwright.runs.directory.files import write, write_text

LIMIT = 1e-6  # of the difference to the network, in float32
_DROPS = ("DropPath", "StochasticDepth", "DropBlock2d", "DropBlock2D")


@dataclass(frozen=True, eq=False)
class Program:
    """A network as a program, tried out.

    Attributes:
        source: the program.
        state: the weights that it loads.
        model: the network that it makes, with its weights, in eval mode.
        difference: largest absolute difference of an output to the original's.
    """

    source: Source
    state: dict[str, Tensor]
    model: nn.Module
    difference: float


def python_source(model: nn.Module, example_input: Tensor, title: str = "", notes: Sequence[str] = ()) -> Program:
    """Write a network as Python that needs torch alone, run it, and compare.

    Args:
        model: any network that `convwright.read` reads; on the CPU.
        example_input: shape (n, c, h, w). The program takes any batch size.
        title: first line of the program's docstring.
        notes: further lines of it.

    Raises:
        ConvwrightError: it cannot be captured, or depends on the batch size in a way that cannot be written.
        ExportError: the program does not run, or its outputs differ by more than 1e-6 times the largest output.
    """
    name = title or f"{type(model).__name__}, as plain PyTorch."
    source = source_of(model, example_input, name, notes)
    original = {**model.state_dict(), **source.constants}
    try:
        made = _run(source)().to(source.dtype)
        state = {key: original[key].detach().clone() for key in made.state_dict()}
        made.load_state_dict(state)
    except Exception as error:  # whatever the written program raises
        reason = first_line(error, "")
        raise ExportError(
            f"{name}: the written source does not run ({type(error).__name__}: {reason}); export with --to pt2 or onnx"
        ) from error
    made.eval()
    gap = difference(model, made, example_input)
    if not gap <= LIMIT * scale(model, example_input):
        why = f"the written source {differs(gap)}"
        if difference(model, model, example_input) > 0:
            why = "the network itself returns something else each time that it is given the same images"
        raise ExportError(f"{name}: {why}; export with --to pt2 or onnx")
    return Program(source, state, made, gap)


def _run(source: Source) -> type[nn.Module]:
    module = types.ModuleType("convwright_exported")
    sys.modules[module.__name__] = module
    try:
        exec(compile(source.text, "model.py", "exec"), module.__dict__)
    finally:
        del sys.modules[module.__name__]
    made: type[nn.Module] = module.__dict__[source.name]
    return made


def training_only(model: nn.Module) -> tuple[str, ...]:
    """Return the classes of layers that act in training only and are no layers of torch: the program lacks them."""
    found = {
        type(module).__name__
        for module in model.modules()
        if type(module).__name__ in _DROPS and (getattr(module, "drop_prob", None) or getattr(module, "p", None))
    }
    return tuple(sorted(found))


@target("python")
def export_python(run: Exportable, folder: Path) -> Exported:
    """Write ``model.py`` and ``weights.pt``; the program's outputs equal the network's.

    Raises:
        ExportError: they differ by more than 1e-6 times the largest output; nothing is written.
    """
    notes = _notes(run)
    program = python_source(run.arch.model, run.arch.example_input, f"{run.title}, as plain PyTorch.", _docstring(run))
    if program.source.operators:
        notes.append(f"called by their full names: {', '.join(program.source.operators)}")
    write(folder / "weights.pt", lambda to: torch.save(program.state, to))
    before, main, after = program.source.text.partition('\n\nif __name__ == "__main__":')
    write_text(folder / "model.py", "".join([before, *_preprocessing(run), main, after]))
    write_text(folder / "README.md", card(run, "python"))
    files = tuple(folder / name for name in ("model.py", "weights.pt", "README.md"))
    return Exported("python", files, program.difference, tuple(notes))


def _preprocessing(run: Exportable) -> list[str]:
    numbers, names = run.usage
    if numbers is None:
        return [f"\n\nINPUT_SHAPE = {run.input_shape}\n"]
    head = f"\n\nINPUT_SHAPE = {run.input_shape}\nMEAN = {numbers.mean}\nSTD = {numbers.std}\nCLASS_NAMES = (\n"
    return [head, *(f"    {literal(name)},\n" for name in names), ")\n\n\n", _PREPROCESS]


_PREPROCESS = '''def preprocess(images: Tensor) -> Tensor:
    """Return images (n, c, h, w), bytes or floats from 0 to 1, as the network takes them."""
    pixels = images / 255 if images.dtype == torch.uint8 else images
    mean = torch.tensor(MEAN, device=images.device).view(1, -1, 1, 1)
    std = torch.tensor(STD, device=images.device).view(1, -1, 1, 1)
    return (pixels - mean) / std
'''


def _docstring(run: Exportable) -> list[str]:
    shape = ", ".join(["n", *map(str, run.arch.example_input.shape[1:])])
    lines = [f"Input: images of shape ({shape}), of any number n.", "Written by convwright; it needs torch only:", ""]
    if run.usage[0] is None:
        lines += ["    from model import load", "", "    model = load()"]
    else:
        lines += ["    from model import CLASS_NAMES, load, preprocess", "", "    model = load()"]
        lines += ["    scores = model(preprocess(images))  # bytes, or floats from 0 to 1"]
    missing = training_only(run.arch.model)
    if missing:
        lines += ["", f"Left out, since it acts in training only: {', '.join(missing)}."]
    if run.kind == "unfinished":
        lines += ["", f"From an unfinished run: trial {run.trial}."]
    return lines


def _notes(run: Exportable) -> list[str]:
    notes = []
    missing = training_only(run.arch.model)
    if missing:
        notes.append(f"{', '.join(missing)} acts in training only and is not in the source")
    if run.kind == "unfinished":
        notes.append(f"the run is unfinished; trial {run.trial} is exported")
    return notes
