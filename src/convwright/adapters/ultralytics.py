"""YOLO networks of Ultralytics: read, compressed by Ultralytics' own training, and given back to it.

Ultralytics builds a network from its yaml anew whenever it trains, which would undo every edit. Here the plan travels
in the network's yaml, and with it in every checkpoint that Ultralytics writes; `install` makes the trainers heed it.
A checkpoint that holds such a network imports this module when Ultralytics loads it, so that plain
``YOLO("half.pt").train()`` trains the edited network in any process.

Ultralytics is under the AGPL-3.0; nothing of it is copied here.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convwright.architecture import Architecture, read
from convwright.edits import Plan, apply
from convwright.errors import ConvwrightError, ReadError
from convwright.export import Exportable
from convwright.export import load as load_run
from convwright.runs.directory.files import read_json, there, write_json
from convwright.runs.directory.result import Result
from convwright.runs.own_loop import Search, Trial

KEY = "convwright"  # in the yaml of an edited network: how many classes the original had, and the plans
FORMAT = "convwright network of Ultralytics"
BUILT = "ultralytics.json"  # in a run directory: what Ultralytics builds the original from
BATCH = 16  # images that are scored and repaired on at once
_PER_OBJECT = ("cls", "bboxes", "keypoints")  # what a batch of Ultralytics has a row of per object
_JUDGED_WITH = ("data", "imgsz", "batch", "device", "half", "workers", "verbose", "plots", "project", "exist_ok")


class Heeded:
    """A mark on an edited network: whoever unpickles it has the trainers heed its plan."""

    def __init__(self) -> None:
        install()

    def __reduce__(self) -> tuple[Any, ...]:
        return Heeded, ()


# ------------------------------------------------------------------ reading


def opened(model: nn.Module) -> tuple[nn.Module, tuple[int, ...] | None]:
    """Return the network in a ``YOLO``, and its usual input shape (c, h, w); other modules as they are.

    Raises:
        ReadError: The ``YOLO`` holds an exported network, such as an ONNX file.
    """
    from ultralytics.engine.model import Model

    inner = model.model if isinstance(model, Model) else model
    if not isinstance(inner, nn.Module):
        raise ReadError(f"{inner} is an exported network; give the YOLO of its .pt or .yaml file")
    yaml = getattr(inner, "yaml", None)
    if not isinstance(yaml, dict):
        return inner, None
    given = model.overrides if isinstance(model, Model) else {}
    side = given.get("imgsz") or _arguments(inner).get("imgsz") or (224 if _task(inner) == "classify" else 640)
    height, width = (side, side) if isinstance(side, int) else side
    return inner, (int(yaml.get("channels", 3)), int(height), int(width))


def _arguments(network: nn.Module) -> dict[str, Any]:
    """Return the arguments that a network was last trained with; in a training it has them as a namespace."""
    given = getattr(network, "args", {})
    return given if isinstance(given, dict) else vars(given)


def _task(network: nn.Module) -> str:
    from ultralytics.nn.tasks import guess_model_task

    return str(getattr(network, "task", None) or guess_model_task(network))


# ------------------------------------------------------------------ given back


def to_yolo(edited: Architecture | Result | Exportable | Trial, file: str | Path | None = None) -> Any:
    """Give an edited network back to Ultralytics.

    Args:
        edited: What `convwright.apply` or ``arch.apply`` returned for a network of Ultralytics, the result of
            `compress`, or what `load` opened.
        file: Where Ultralytics saves it, such as ``half.pt``; any process loads it by ``YOLO("half.pt")``. Trainings
            on several GPUs need it.

    Returns:
        A ``YOLO``. Its ``train``, ``val``, ``predict``, ``export`` and ``save`` work on the edited network, and
        ``train`` fine-tunes it instead of building the original again.

    Raises:
        ConvwrightError: The network is none of Ultralytics.
    """
    arch = edited if isinstance(edited, Architecture) else edited.arch
    network: Any = _settle(copy.deepcopy(arch.model))
    if not isinstance(getattr(network, "yaml", None), dict):
        raise ConvwrightError(f"{arch.source} is no network of Ultralytics; give what was read from a YOLO")
    if edited.plan.edits:
        held = network.yaml.get(KEY) or {"nc": network.yaml.get("nc"), "plans": []}
        network.yaml = {**network.yaml, KEY: {**held, "plans": [*held["plans"], edited.plan.to_json()]}}
        network.heeded = Heeded()
    height, width = map(int, arch.example_input.shape[-2:])
    yolo = _wrapped(network, height if height == width else [height, width])
    if file is not None:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        yolo.save(file)
        yolo.overrides["model"] = network.pt_path = str(file)  # beside which exports go
    return yolo


def _settle(network: Any) -> Any:
    """Have modules that Ultralytics' exporter switches to another forward know the sizes that only this one reads."""
    for module in network.modules():
        if hasattr(module, "forward_split") and hasattr(module, "c"):
            module.c = module.cv1.conv.out_channels // 2
    return network


def _wrapped(network: Any, side: int | list[int]) -> Any:
    """Return a ``YOLO`` that holds a network, as if it had been loaded from a checkpoint."""
    network.task = _task(network)
    yolo = _built(network.yaml, network.task)
    network.args = {**yolo.model.args, **_arguments(network), "imgsz": side}
    yolo.model, yolo.ckpt, yolo.cfg = network, {"model": network}, None
    yolo.overrides = {"task": network.task, "imgsz": side, "model": "edited.pt"}
    return yolo


def _plain(yaml: Mapping[str, Any]) -> dict[str, Any]:
    """Return the yaml that Ultralytics builds the original from."""
    return {key: value for key, value in yaml.items() if key != KEY}


def _built(yaml: Mapping[str, Any], task: str) -> Any:
    """Have Ultralytics build a network; its file's name says the scale."""
    try:
        from ultralytics import YOLO
        from ultralytics.utils import YAML
    except ImportError as error:
        raise ConvwrightError(f"Ultralytics is needed here: pip install 'convwright[ultralytics]' ({error})") from error

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / Path(str(yaml.get("yaml_file") or "network.yaml")).name
        YAML.save(file, _plain(yaml))
        return YOLO(file, task=task)


def load(folder: str | Path) -> Any:
    """Open what `compress` left in a directory: the original's yaml, the plan, and the weights; nothing is unpickled.

    Args:
        folder: The run directory.

    Returns:
        A ``YOLO``, as of `to_yolo`.

    Raises:
        RunError: There is no such run.
    """
    made = read_json(Path(folder) / BUILT, FORMAT)
    network = _built(made["yaml"], made["task"]).model
    network.names = dict(enumerate(made["names"]))
    return to_yolo(load_run(folder, network))


# ------------------------------------------------------------------ trainings


@cache
def install() -> None:
    """Have Ultralytics' trainers train networks with a plan as they are, instead of building the original anew."""
    from ultralytics.engine.trainer import BaseTrainer
    from ultralytics.models import yolo

    homes = [vars(home) for home in vars(yolo).values() if getattr(home, "__name__", "").startswith(yolo.__name__)]
    trainers: set[Any] = {each for home in homes for each in home.values() if isinstance(each, type)}
    for trainer in (each for each in trainers if issubclass(each, BaseTrainer) and "get_model" in vars(each)):
        trainer.get_model = _heeding(trainer.get_model)


def _heeding(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a trainer's ``get_model`` that heeds plans."""

    @wraps(original)
    def get_model(self: Any, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        yaml = getattr(weights, "yaml", cfg)
        if not isinstance(yaml, dict) or KEY not in yaml:
            return original(self, cfg=cfg, weights=weights, verbose=verbose)
        fresh = original(self, cfg=_plain(yaml), verbose=False)
        made = copy.deepcopy(weights).float() if weights is not None else _planned(fresh, yaml)
        return _fitted(made.train().requires_grad_(), fresh)

    return get_model


def _planned(fresh: Any, yaml: Mapping[str, Any]) -> Any:
    """Build an edited network from its yaml, with new weights."""
    held = yaml[KEY]
    network = type(fresh)({**_plain(yaml), "nc": held["nc"]}, ch=fresh.yaml.get("channels", 3), verbose=False)
    for text in held["plans"]:
        network = apply(Plan.from_json(text), network, verify=False).model
    network.yaml, network.heeded = {**network.yaml, KEY: held}, Heeded()
    return _settle(network)


def _fitted(made: Any, fresh: Any) -> Any:
    """Give a network new outputs where the data of a training, which `fresh` was built for, have other classes.

    Raises:
        ConvwrightError: The data have other image channels or key points.
    """
    head, other = made.model[-1], fresh.model[-1]
    for what, has, wanted in (
        ("image channels", made.yaml.get("channels", 3), fresh.yaml.get("channels", 3)),
        ("key points", getattr(head, "kpt_shape", None), getattr(other, "kpt_shape", None)),
    ):
        if has != wanted:
            raise ConvwrightError(f"the network has {what} {has}, the data {wanted}: train the original on them first")
    if made.yaml["nc"] != fresh.yaml["nc"]:
        _take_outputs(head, other, made.yaml["nc"], fresh.yaml["nc"])
    made.yaml["nc"], made.names, made.criterion = fresh.yaml["nc"], getattr(fresh, "names", {}), None
    return made


def _take_outputs(head: Any, other: Any, before: int, after: int) -> None:
    """Replace the layers of a head that give the classes: those with a bias, of so many outputs in both heads."""
    for name, layer in [*other.named_modules()]:
        mine = head.get_submodule(name)
        if getattr(layer, "bias", None) is not None and (len(mine.weight), len(layer.weight)) == (before, after):
            linear = isinstance(layer, nn.Linear)
            last: Any = nn.Linear(mine.in_features, after) if linear else nn.Conv2d(mine.in_channels, after, 1)
            last.bias.data.copy_(layer.bias.data)  # which says how rare objects are
            head.set_submodule(name, last)
    for name in ("nc", "no"):
        if hasattr(other, name):
            setattr(head, name, getattr(other, name))


# ------------------------------------------------------------------ compressed


def compress(
    yolo: Any,
    budget: str | Sequence[str],
    data: str | Path,
    out: str | Path | None = None,
    *,
    method: str = "saliency",
    epochs: int = 50,
    distill: bool = False,
    images: int = 128,
    seed: int = 0,
    search: Mapping[str, Any] | None = None,
    **train: Any,
) -> Result:
    """Compress a trained YOLO: its channels are scored, cut and repaired on the data, and Ultralytics fine-tunes it.

    Started again with the same arguments, it goes on with the first trial that is not finished.

    Args:
        yolo: A trained ``YOLO``; it stays as it is.
        budget: As for `Search`, such as ``"macs<=50%"``; relative to the network at ``imgsz``.
        data: Data of Ultralytics, such as ``cells.yaml``.
        out: Run directory.
        method: As for `Search`.
        epochs: Of each fine-tuning.
        distill: Whether the original teaches the fine-tuned network, by Ultralytics' ``distill_model``; for detectors.
        images: Training images, without augmentation, that channels are scored and repaired on.
        seed: Of all choices and trainings.
        search: Further arguments of `Search`, such as ``{"options": {...}, "constraints": {...}, "baseline": True}``.
        **train: Further arguments of ``YOLO.train``, such as ``imgsz=320, batch=16, device=0``.

    Returns:
        The result: `to_yolo` gives it back to Ultralytics, and `load` opens its directory. Its metric is Ultralytics'
        ``fitness`` on the validation part.

    Raises:
        ConvwrightError: An argument is wrong, or the budget cannot be met.

    Examples:
        >>> from ultralytics import YOLO  # doctest: +SKIP
        >>> result = compress(YOLO("best.pt"), "macs<=50%", "cells.yaml", imgsz=320)  # doctest: +SKIP
        >>> to_yolo(result, "half.pt").predict("cell.jpg")  # doctest: +SKIP
    """
    network, shape = opened(yolo)
    if shape is None:
        raise ConvwrightError(f"{type(network).__name__} is no network of Ultralytics; give a YOLO")
    side = train.setdefault("imgsz", list(shape[1:]) if shape[1] != shape[2] else shape[1])
    arch = read(network, (shape[0], *((side, side) if isinstance(side, int) else side)))
    how = {"verbose": False, "plots": False, **train, "data": str(data), "seed": seed}
    own: dict[str, Any] = {"epochs": 0, "tune_epochs": epochs, "seed": seed, "baseline": False, **(search or {})}
    examples = Examples(to_yolo(arch), how, images)
    found = Search(arch, budget, method, out, batches=examples, loss=examples.loss, **own)
    _write_built(found.folder, arch.model)
    while trial := found.ask():
        found.tell(trial, *_trained(trial, how, found.folder / "teacher.pt" if distill else None, arch))
    return found.result()


def _write_built(folder: Path, network: Any) -> None:
    names = list(getattr(network, "names", {}).values())
    if not there(folder / BUILT):
        write_json(folder / BUILT, {"format": FORMAT, "yaml": network.yaml, "task": _task(network), "names": names})


def _trained(trial: Trial, how: Mapping[str, Any], teacher: Path | None, original: Architecture) -> tuple[float, Any]:
    """Have Ultralytics train a trial, and return its fitness with its network; one without epochs is only judged."""
    yolo = to_yolo(trial, trial.folder / "start.pt" if trial.epochs else None)
    arguments = {**how, "imgsz": yolo.overrides["imgsz"], "project": str(trial.folder), "exist_ok": True}
    if trial.epochs:
        if teacher is not None:
            if not there(teacher):
                to_yolo(original, teacher)
            arguments["distill_model"] = str(teacher)
        yolo.train(**arguments, epochs=trial.epochs, name="train")
    trained = copy.deepcopy(yolo.model)  # judging fuses the one that the YOLO holds
    used = {key: arguments[key] for key in _JUDGED_WITH if key in arguments}
    return float(yolo.val(**used, name="val").fitness), trained


class Examples:
    """Training images without augmentation, in the same order at each pass, as calibration batches.

    Args:
        yolo: The untouched ``YOLO``.
        how: Arguments of its training.
        images: How many, at most.
    """

    def __init__(self, yolo: Any, how: Mapping[str, Any], images: int) -> None:
        self.images = images
        with tempfile.TemporaryDirectory() as folder:  # trainers make theirs at once
            trainer = yolo._smart_load("trainer")(
                overrides={**yolo.overrides, **how, "project": folder, "batch": BATCH}
            )
            trainer.model = yolo.model.train()
            trainer.set_model_attributes()
            self.loader = trainer.get_dataloader(trainer.data["train"], BATCH, rank=-1, mode="val")
        trainer.model.args = trainer.args
        self.trainer, self.criterion = trainer, trainer.model.init_criterion()

    def __iter__(self) -> Iterator[tuple[Tensor, list[dict[str, Tensor]]]]:
        left = self.images
        for batch in self.loader:
            if left <= 0:
                return
            found = {k: v for k, v in self.trainer.preprocess_batch(batch).items() if isinstance(v, Tensor)}
            inputs = found.pop("img")[:left]
            yield inputs, [_of_image(found, row) for row in range(len(inputs))]
            left -= len(inputs)

    def loss(self, outputs: Any, targets: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Return Ultralytics' loss per image of outputs, in training or evaluation mode."""
        batch = {name: torch.cat([each[name] for each in targets]) for name in targets[0]}
        if "bboxes" in batch:
            rows = torch.tensor([len(each["bboxes"]) for each in targets], device=batch["bboxes"].device)
            batch["batch_idx"] = torch.arange(len(targets), device=rows.device).repeat_interleave(rows).float()
        total: Tensor = self.criterion(outputs, batch)[0].sum()
        return total / len(targets)


def _of_image(batch: Mapping[str, Tensor], row: int) -> dict[str, Tensor]:
    """Return the targets of one image; a batch has the objects of all in one tensor, with their image's number."""
    if "batch_idx" not in batch:
        return {name: value[row : row + 1] for name, value in batch.items()}
    mine = batch["batch_idx"] == row
    return {
        name: value[mine] if name in _PER_OBJECT else value[row : row + 1]
        for name, value in batch.items()
        if name != "batch_idx"
    }
