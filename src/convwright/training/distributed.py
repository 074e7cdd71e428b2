"""One training over several processes of this machine: each computes its part of every batch."""

from __future__ import annotations

import copy
import logging
import multiprocessing
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric
from torch import nn

from convwright.errors import RecipeError
from convwright.training.data.data import ImageData
from convwright.training.recipe.optimizers import OptimizerState
from convwright.training.tasks.loader import loader_of

if TYPE_CHECKING:
    from convwright.training.run import Order
    from convwright.training.settings import Settings


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
