"""Open a network and its data together, so that they fit each other."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convwright import zoo
from convwright.architecture import Architecture, create, parse_inputs, parse_shape, read
from convwright.architecture.capture.graph import first_line
from convwright.architecture.pretrained import build_options, check_pretrained, said_of_loaded
from convwright.architecture.weights import TakenWeights, read_checkpoint, take
from convwright.errors import DataError, ReadError
from convwright.runs.weights_note import AsTrained, remark
from convwright.training import ImageData, Recipe, check_fits, load_data
from convwright.training.data.folders import Resize, UnlikeImagesError
from convwright.training.evaluate import eval_mode
from convwright.training.preflight import check_forward, check_values, read_with
from convwright.training.settings import single_tensor
from convwright.training.tasks import BaseTask, Task, task_of

Shape = tuple[int, int, int]
_CHANNEL_OPTIONS = ("in_channels", "in_chans")


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network and data that fit.

    Attributes:
        arch: The network, read at the data's shape.
        data: The data, in the shape that the network takes.
        options: What a named network was created with, e.g. ``num_classes=10``.
        recipe: The recipe, with the normalisation and resizing that the weights were trained with.
        taken: What it has of the weights that were given; None: none were given.
        remarks: Lines for a person: what was taken, and how images are fed.
    """

    arch: Architecture
    data: BaseTask
    options: dict[str, int]
    recipe: Recipe
    taken: TakenWeights | None = None
    remarks: tuple[str, ...] = ()
    given: bool = False  # a network that a caller says is trained

    @property
    def trained(self) -> bool:
        """Whether it comes trained for these data: with weights, none of which had to be drawn anew."""
        return self.given if self.taken is None else not self.taken.fresh


def load_model_and_data(
    model: nn.Module | str,
    data: Any,
    *,
    input_shape: str | Shape | None = None,
    data_dir: str | Path | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    needs_val: bool = True,
    weights: str | Path | None = None,
    pretrained: bool = False,
    trained: bool = False,
    settled: bool = False,
) -> LoadedModel:
    """Read a network and load data so that they fit.

    A named network gets as many outputs as there are classes and as many input channels as the images
    have, where it has options for that; else grey images are repeated to the channels of its first
    convolution. It is read at `input_shape`, or at the images' own shape.

    Args:
        model: As for `read`. Weights of a named network are drawn from `seed`.
        data: As for `load_data`, with the name of another task before it (``segmentation:folder:PATH``), or an
            `ImageData` or `Task`, which is taken as it is.
        input_shape: ``"3x224x224"`` or (3, 224, 224): images are resized to it.
        data_dir: As for `load_data`.
        recipe: Says how many images are held out, and how images are fed; None: the default.
        seed: Of the initial weights, also of a new head.
        needs_val: Whether there must be validation images.
        weights: A file of trained weights.
        pretrained: Whether it gets the weights that come with networks of torchvision and timm.
        trained: Whether a network that is given as a module has trained weights.
        settled: Whether images are fed as the recipe says whatever the weights were trained with: a run goes on.

    Raises:
        ReadError: The network cannot be made or captured, or has no pretrained weights.
        DataError: The data cannot be read, have no validation part, or do not fit.
        RunError: The weights cannot be read or do not fit.
    """
    check_pretrained(model, pretrained, weights)
    shape, held_out = parse_input(input_shape), (recipe or Recipe()).val_fraction
    data = task_of(data, size=shape and shape[1:], val_fraction=held_out)
    if isinstance(data, Task):
        own = recipe or Recipe(), seed, needs_val, weights, pretrained, trained, settled
        return _with_task(model, data, *own)
    recipe, checkpoint = recipe or Recipe(), read_checkpoint(weights) if weights is not None else None
    found = None if settled else AsTrained.of(model, weights, pretrained)
    wanted = shape
    known = options_of(model)
    how = data_dir, recipe.val_fraction, found.resizing(recipe) if found else recipe.resize
    try:
        loaded = _loaded(data, wanted, *how)
    except UnlikeImagesError as error:
        usual = create(model)[1]  # the size that the network was made for
        if usual is None:
            raise
        given = "x".join(map(str, (error.channels, *usual[1:])))
        raise DataError(f"{error.what}; give one size for all, the network's usual one is --input {given}") from error
    options: dict[str, Any] = _options(known, loaded.shape[0], loaded.num_classes)
    built, source, options = _built(model, options, pretrained, seed)
    takes = _input_channels(built)
    if wanted is None and loaded.shape[0] == 1 and takes not in (None, 1):  # grey images for a colour network
        loaded = _loaded(data, (takes or 1, *loaded.shape[1:]), *how)
    check_values(built)
    arch = _read(built, source, options, loaded, wanted)
    if arch.example_input.dtype is not torch.float32:
        check_forward(arch.model, loaded)  # may do all the same, or says that the type is the reason
    check_fits(loaded, tuple(arch.example_input.shape), outputs := _outputs(arch))
    if needs_val and loaded.val is None:
        raise DataError(f"{loaded.name}: no validation images; set val_fraction in the recipe above 0")
    taken = said_of_loaded(built, source, outputs) if pretrained else None
    taken = take(built, checkpoint, outputs) if checkpoint is not None else taken
    if taken is not None:
        _draw_head(built, taken.fresh, seed)
    if found:
        recipe = recipe.updated(normalisation=found.normalising(recipe, loaded.shape[0]), resize=loaded.resize)
    remarks: tuple[str, ...] = (str(taken), remark(found, recipe, loaded, weights)) if taken is not None else ()
    if taken is None and trained:
        remarks = (remark(None, recipe, loaded, arch.source),)
    return LoadedModel(arch, loaded, options, recipe, taken, () if settled else remarks, trained)


def _built(
    model: nn.Module | str, options: dict[str, Any], pretrained: bool, seed: int
) -> tuple[nn.Module, str, dict[str, Any]]:
    """Make a network; its weights depend on the seed and on nothing else."""
    options |= {"pretrained": True} if pretrained else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built, _, source = create(model, **options)
    return built, source, build_options(source, options)


def _with_task(
    model: nn.Module | str,
    task: Task,
    recipe: Recipe,
    seed: int,
    needs_val: bool,
    weights: str | Path | None,
    pretrained: bool,
    trained: bool,
    settled: bool,
) -> LoadedModel:
    if needs_val and task.val is None:
        raise DataError(f"{task.name}: there is no part val; a search judges networks on it")
    options = model_options(model, task.shape[0], task.num_classes or None)
    built, source, options = _built(model, options, pretrained, seed)
    check_values(built)
    arch = read(built, read_with(task, built)).evolved(source=source, options=options)
    check_forward(built, task)
    outputs = task.num_classes or None
    taken = said_of_loaded(built, source, outputs) if pretrained and outputs else None
    taken = take(built, read_checkpoint(weights), outputs) if weights is not None else taken
    if taken is not None:
        _draw_head(built, taken.fresh, seed)
    remarks = (str(taken),) if taken is not None and not settled else ()
    return LoadedModel(arch, task, options, recipe, taken, remarks, trained)


def parse_input(text: str | tuple[int, ...] | None) -> Shape | None:
    """Return (c, h, w) from text or numbers.

    Raises:
        ReadError: It is not three numbers.
    """
    if text is None:
        return None
    shape = parse_shape(text) if isinstance(text, str) else tuple(text)
    if len(shape) != 3:
        raise ReadError(f"{text!r} is not the shape of an image; give channels, height and width, like 3x224x224")
    return shape[0], shape[1], shape[2]


def _loaded(
    data: Any, shape: Shape | None, data_dir: str | Path | None, val_fraction: float, resize: Resize
) -> ImageData:
    if isinstance(data, ImageData):
        return data
    return load_data(data, data_dir, input_shape=shape, val_fraction=val_fraction, resize=resize)


def options_of(model: nn.Module | str) -> frozenset[str]:
    """Return which of ``num_classes, in_channels, in_chans`` a named network takes."""
    if isinstance(model, nn.Module):
        return frozenset()
    where, _, name = model.partition(":")
    if where == "zoo" and name:
        return _known(inspect.signature(zoo.entry(name).build).parameters)
    if where in ("timm", "torchvision"):
        return _known(("num_classes", "in_chans") if where == "timm" else ("num_classes",))
    return _known(_arguments(*model.rsplit(":", 1))) if ".py:" in model else frozenset()


def model_options(model: nn.Module | str, channels: int, num_classes: int | None) -> dict[str, Any]:
    """Return the options that give a named network these inputs and outputs, as far as it has them."""
    values = _options(options_of(model), channels, num_classes)
    return {name: value for name, value in values.items() if value is not None}


def read_named(model: str, input_shape: str | None, num_classes: int | None) -> Architecture:
    """Read a named network as a command line names it; None: its own input and outputs.

    Raises:
        ReadError: The network cannot be made or captured.
    """
    shape = None if input_shape is None else parse_inputs(input_shape)
    channels = shape[0] if isinstance(shape, tuple) else 3
    return read(model, shape, **(model_options(model, channels, num_classes) if num_classes is not None else {}))


def _known(names: Any) -> frozenset[str]:
    return frozenset(names) & {"num_classes", *_CHANNEL_OPTIONS}


def _options(known: frozenset[str], channels: int, num_classes: int | None) -> dict[str, Any]:
    values = {"num_classes": num_classes, **dict.fromkeys(_CHANNEL_OPTIONS, channels)}
    return {name: value for name, value in values.items() if name in known}


def _arguments(file: str, attribute: str) -> list[str]:
    try:
        tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return []  # `read` reports it
    named = next((n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == attribute), None)
    inside = named.body if isinstance(named, ast.ClassDef) else [named]
    functions = (n for n in inside if isinstance(n, ast.FunctionDef) and n.name in ("__init__", attribute))
    function = next(functions, None)
    return [each.arg for each in (*function.args.args, *function.args.kwonlyargs)] if function is not None else []


def _draw_head(model: nn.Module, fresh: Sequence[str], seed: int) -> None:
    """Draw a new head as torch does, small: that of some networks of timm is so large that it drowns the features.

    EfficientNet-Lite0 on 1,000 photographs after 3 epochs: 65 % with a deviation of 0.18, 83 % with 0.01.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for owner in dict.fromkeys(name.rpartition(".")[0] for name in fresh):
            module = model.get_submodule(owner)
            if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
                module.reset_parameters()


def _input_channels(model: nn.Module) -> int | None:
    return next((m.in_channels for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)), None)


def _read(
    model: nn.Module, source: str, options: dict[str, int], data: ImageData, wanted: Shape | None
) -> Architecture:
    try:
        return read(model, (1, *data.shape)).evolved(source=source, options=options)
    except ReadError as error:
        size, takes = "x".join(map(str, data.shape)), _input_channels(model)
        if wanted is None and takes not in (None, data.shape[0]):
            raise DataError(
                f"{data.name}: images have {data.shape[0]} channels and the network's first convolution takes {takes}; "
                "only grey images can be turned into colour: change that layer, or make the images grey (of a folder "
                "with --input 1xHxW)"
            ) from error
        hint = "" if wanted else f" (read at the {size} of {data.name}; give a larger --input if it is too small)"
        raise ReadError(f"{error}{hint}") from error


def _outputs(arch: Architecture) -> int:
    """Return the number of outputs per image; refuse a network that does not return one row of scores per image."""
    try:
        found = scores(arch.model, arch.example_input)
    except Exception as error:  # the network's own code may raise anything
        raise ReadError(f"{arch.source} can be read and does not run: {first_line(error)}") from error
    if found.ndim != 2:
        raise ReadError(
            f"{arch.source} returns {tuple(found.shape)}; a classifier must return (batch, classes): wrap it"
        )
    return found.shape[1]


def scores(model: nn.Module, images: Tensor) -> Tensor:
    """Return what a network says of images, without any trace in it."""
    with eval_mode(model), torch.no_grad():
        return single_tensor(model(images))
