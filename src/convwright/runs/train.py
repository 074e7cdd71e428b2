"""``convwright train``: one training, without a search."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from convwright.architecture import Architecture, read
from convwright.edits import Plan
from convwright.errors import RunError
from convwright.runs.directory.files import LOCK, owned, refuse_file, save_weights, write_json, write_text
from convwright.runs.directory.provenance import machine, versions
from convwright.runs.directory.study import WEIGHTS
from convwright.runs.load import LoadedModel, Shape, load_model_and_data
from convwright.runs.verdict import training_warnings
from convwright.runs.weights_note import usage
from convwright.training import Metrics, Recipe, TrainResult, train
from convwright.training.data.normalisation import normalised
from convwright.training.progress import still, tell
from convwright.training.recipe.recipe import as_recipe

FORMAT = "convwright training"


def train_named(
    model: str,
    data: str,
    recipe: str | Path | None,
    changes: dict[str, int],
    *,
    out: Path | None = None,
    resume: bool = False,
    input_shape: str | Shape | None = None,
    data_dir: Path | None = None,
    weights: Path | None = None,
    pretrained: bool = False,
    devices: int = 1,
    reestimate: bool = True,
) -> dict[str, Any]:
    """Train a network and judge it on the test part.

    Args:
        model: As for `read`.
        data: As for `load_data`.
        recipe: A preset's name or a .yaml file.
        changes: Fields of the recipe that were given on the command line.
        out: Folder of checkpoint, ``model.safetensors`` and ``training.json``.
        resume: Continue from the checkpoint in it.
        input_shape: Images are resized to it.
        data_dir: Where named data sets lie.
        weights: What to start from.
        pretrained: Whether to start from the weights that come with a network of torchvision or timm.
        devices: As for `train`.
        reestimate: As for `train`.

    Returns:
        The content of ``training.json``.

    Raises:
        ConvwrightError: Whatever is wrong with network, data, recipe or folder, or another process works in it.
    """
    chosen = as_recipe(recipe).updated(**changes)
    _check_out(out, resume)
    given: dict[str, Any] = {"input_shape": input_shape, "data_dir": data_dir, "weights": weights}
    given |= {"recipe": chosen, "seed": chosen.seed, "pretrained": pretrained}
    with still("reading the network and the data", tell):
        opened = load_model_and_data(model, data, needs_val=False, **given)
    for line in opened.remarks:
        tell(line)
    chosen = opened.recipe
    opened = replace(opened, data=normalised(opened.data, chosen.normalisation, opened.arch.model))
    with nullcontext() if out is None else owned(out):
        how: dict[str, Any] = {"out": out, "resume": resume, "devices": devices, "reestimate": reestimate}
        teacher = opened.arch.model if weights is not None else None
        trained = train(opened.arch.model, opened.data, chosen, **how, teacher=teacher)
        network = opened.arch
        if trained.plan is not None:  # techniques edited a module without its name; with it the plan replays
            plan = Plan.empty(network).with_edits(*trained.plan.edits)
            changed = read(trained.model, network.inputs)
            network = changed.evolved(source=network.source, applied=plan, options=network.options)
        content = _content(opened, chosen, trained, network)
        if out is not None:
            save_weights(network.model, out / WEIGHTS, usage(opened.data))
            if network.plan.edits:
                write_text(out / "plan.json", network.plan.to_json())
            write_json(out / "training.json", content)
    return content


def _content(opened: LoadedModel, recipe: Recipe, trained: TrainResult, network: Architecture) -> dict[str, Any]:
    costs = network.profile()
    shown = trained.last.train_acc if trained.history else None
    last = {"accuracy": shown, "samples": len(opened.data.train)} if shown is not None else None
    content = {
        "format": FORMAT,
        "version": 1,
        "model": opened.arch.source,
        "options": opened.options,
        "data": opened.data.name,
        **opened.data.metric.settings(),
        "input_shape": list(network.example_input.shape),
        **usage(opened.data),
        **({"weights_taken": str(opened.taken)} if opened.taken is not None else {}),
        "recipe": recipe.model_dump(mode="json"),
        "macs": costs.macs,
        "params": costs.params,
        "train": last,
        "validation": judged(trained.val),
        "test": judged(trained.test),
        "test_flip": judged(trained.test_flip),
        "warnings": list(trained.warnings),
        "reestimated": trained.reestimated,
        "history": [asdict(record) for record in trained.history],
        "settings": {"precision": trained.settings.precision, "memory_format": trained.settings.memory_format}
        | ({} if trained.settings.lr is None else {"lr": trained.settings.lr}),
        "seconds": trained.seconds,
        "versions": versions(),
        "machine": machine(),
    }
    return content | {"result_warnings": [asdict(each) for each in training_warnings(content)]}


def judged(metrics: Metrics | None) -> dict[str, Any] | None:
    """Return accuracy, its standard error, and the number of images; None for None."""
    if metrics is None:
        return None
    values = {"values": dict(metrics.values)} if metrics.values else {}
    return {"accuracy": metrics.accuracy, "stderr": metrics.stderr, "samples": metrics.samples, **values}


def _check_out(out: Path | None, resume: bool) -> None:
    if out is None:
        if resume:
            raise RunError("--resume needs the folder of the checkpoint; give --out")
        return
    refuse_file(out)
    if not resume and out.is_dir() and any(path.name != LOCK for path in out.iterdir()):
        raise RunError(f"{out}: already exists and is not empty; continue it with --resume, or choose another --out")
