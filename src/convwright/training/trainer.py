"""Train a network by a recipe: device-agnostic by Lightning Fabric, resumable bit for bit."""

from __future__ import annotations

import copy
import logging
import multiprocessing
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from convwright.architecture.capture.graph import kept_modes
from convwright.errors import RecipeError, RecipeWarning
from convwright.training.data.data import ImageData, load_data
from convwright.training.data.normalisation import normalised
from convwright.training.outcome import EpochRecord, TrainResult
from convwright.training.preflight import check_values, make_fabric, prepare, resolve
from convwright.training.probes.base import StopRule, check_observed
from convwright.training.progress import still, tell
from convwright.training.recipe.optimizers import OptimizerState
from convwright.training.recipe.recipe import Recipe, as_recipe
from convwright.training.run import Order, Run, train_prepared
from convwright.training.settings import Settings, to_layout, untouched_random
from convwright.training.tasks import BaseTask, task_of
from convwright.training.tasks.loader import loader_of
from convwright.training.techniques import Teacher


def train(
    model: nn.Module,
    data: Any,
    recipe: Recipe | str | Path | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    on_epoch: Callable[[EpochRecord], object] | None = None,
    accelerator: str = "auto",
    optimizer_state: OptimizerState | None = None,
    progress: bool = True,
    test: bool = True,
    workers: int | None = None,
    devices: int = 1,
    probes: Sequence[str] = (),
    stop: StopRule | None = None,
    reestimate: bool = True,
    teacher: nn.Module | Teacher | None = None,
    calibration: int = 512,
) -> TrainResult:
    """Train `model` in place.

    The same seed, settings and threads give the same weights on the CPU, bit for bit, whether or not the training was
    interrupted. The process's random generators are left as they were. Precision and layout left at `auto` depend on a
    measurement: fix them in the recipe to repeat a training exactly.

    Args:
        model: Maps (batch, c, h, w) to (batch, classes), alone or in a dict or tuple of one tensor; of another task,
            whatever its loss takes.
        data: What `load_data` returned, or anything that it takes; or a `Task`, or the name of one before its data:
            ``segmentation:folder:PATH``.
        recipe: A recipe, a preset's name or a .yaml file; None: the default. With techniques that edit the
            network (`blurpool`, ...) an edited copy is trained: take it from the result.
        out: Folder of the checkpoint, written after each epoch; None: no checkpoint.
        resume: Continue from the checkpoint in `out`, if there is one.
        on_epoch: Called with each record after its checkpoint; returning True ends the training.
        accelerator: As in Lightning Fabric: auto, cpu, cuda, mps.
        optimizer_state: State by parameter name, as in `TrainResult.optimizer_state`.
        progress: A bar on a terminal, a line per epoch elsewhere.
        test: Whether to judge the result on the test part, once, at the end.
        workers: Processes that read a streamed data set.
        devices: Processes that train together, one per device; on the CPU they share the threads. Each computes its
            part of every batch, and batch norm normalises by the whole, so that the losses are those of a single
            process up to rounding; what draws random numbers inside the network (dropout) draws others. They are
            started anew: a script must guard its own start by ``if __name__ == "__main__":``.
        probes: What to observe, by name: ``channel-quality``, ...; found in `TrainResult.probes`.
        stop: When to end the training early, such as a `convwright.methods.Stop`.
        reestimate: Whether batch norm is re-estimated on training images before each judgement as long as more than
            1 % of its running statistics are from before the training: 44 steps at a momentum of 0.1.
        teacher: The trained network that technique `distill` learns from, if its `teacher` is ``original``: a module,
            or a `Teacher` that says how its channels correspond. It stays as it is.
        calibration: Training images for probes that look at some, such as ``saliency``.

    Raises:
        RecipeError: Bad recipe, a loss that is not finite (the last good checkpoint stays), or a
            checkpoint of another network, recipe or data.
        DataError: The data do not fit the network.
        RunError: The checkpoint is damaged or cannot be written.
    """
    recipe = as_recipe(recipe)
    data = task_of(data, val_fraction=recipe.val_fraction)
    if not isinstance(data, BaseTask):
        data = load_data(data, val_fraction=recipe.val_fraction)
    if resume and out is None:
        raise RecipeError("resume needs the folder of the checkpoint; give out=")
    data = normalised(data, recipe.normalisation, model)
    check_observed(probes, stop)
    if devices > 1 and (on_epoch is not None or probes or stop is not None):
        raise RecipeError(f"on_epoch, probes and stop cannot be called from {devices} processes; use devices=1")
    folder = Path(out) if out is not None else None
    teacher = Teacher(teacher) if isinstance(teacher, nn.Module) else teacher
    how = accelerator, progress, test, workers, tuple(probes), stop, reestimate, teacher, calibration
    order = Order(data, recipe, folder, resume, *how)
    device = make_fabric(accelerator, "32-true").device
    check_values(model)
    with ExitStack() as stack:
        stack.enter_context(kept_modes(model))
        stack.enter_context(untouched_random(device))
        prepared = prepare(model.to(device), data, recipe, teacher)
        stack.enter_context(kept_modes(prepared.model))
        # The weights are handed back in the default layout, which safetensors and views expect.
        stack.callback(to_layout, prepared.model, torch.contiguous_format)
        part = "testing learning rates" if recipe.lr == "auto" else "choosing precision and layout"
        with still(part, tell) if progress else nullcontext():
            settings = resolve(prepared.model, data, recipe, device, order.checkpoint())
        for text in prepared.warnings:
            warnings.warn(text, RecipeWarning, stacklevel=2)
        if devices > 1:
            state = train_over(devices, prepared.model, order, settings, optimizer_state)
            run = Run(prepared.model, prepared.setting, order, settings)
            run.restore(state, Path("the state of the first process"))
            run.close()
        else:
            run = train_prepared(
                prepared.model, order, settings, None, optimizer_state, on_epoch=on_epoch, setting=prepared.setting
            )
        return run.result(test, prepared)


def train_over(
    devices: int, model: nn.Module, order: Order, settings: Settings, optimizer_state: OptimizerState | None
) -> dict[str, Any]:
    """Train over `devices` processes, one per device (on the CPU: per share of the threads).

    Returns:
        What a checkpoint after the last step holds, with the weights that are handed back.

    Raises:
        RecipeError: The batch cannot be divided, or a process failed.
    """
    smallest = min(loader_of(order.data.train, order.recipe.batch_size, workers=0).sizes)
    if smallest < devices:
        raise RecipeError(
            f"recipe field batch_size={order.recipe.batch_size}: the epoch's last batch has {smallest} image(s), "
            f"fewer than the {devices} processes; choose another batch_size"
        )
    with tempfile.TemporaryDirectory() as folder:
        threads, file = max(1, torch.get_num_threads() // devices), Path(folder) / "state.pt"
        # Test images are judged by the caller: what reads them may not travel to another process.
        data = order.data
        sent = replace(order, data=replace(data, read_test=None) if isinstance(data, ImageData) else data, test=False)
        settings = replace(settings, threads=threads)
        # Bound, not given to `launch`: Fabric would take the data classes apart, and assign to their fields.
        part = partial(_train_part, model=model, order=sent, settings=settings, state=optimizer_state, file=file)
        precision: Any = settings.fabric_precision
        accelerator = torch.device(settings.device).type
        fabric = Fabric(accelerator=accelerator, devices=devices, strategy="ddp_spawn", precision=precision)
        fabric.launch(part)
        found: dict[str, Any] = torch.load(file, weights_only=True)
    return found


def _train_part(
    fabric: Fabric, model: nn.Module, order: Order, settings: Settings, state: OptimizerState | None, file: Path
) -> None:
    from convwright.training.run import train_prepared

    torch.set_num_threads(settings.threads)
    # What was sent lies in memory that all processes share: each needs weights of its own.
    model = copy.deepcopy(model).to(fabric.device)
    run = train_prepared(model, order, replace(settings, device=str(fabric.device)), fabric, state)
    if fabric.is_global_zero:
        torch.save(run.checkpoint(), file)
    fabric.barrier()
    if torch.distributed.is_initialized():
        # A process that ends with the group's threads still at work is aborted now and then.
        torch.distributed.destroy_process_group()


if multiprocessing.parent_process() is not None:  # in a process that is to train: before Fabric greets
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
