"""One training as it goes: steps, epochs, checkpoints, and what techniques do in between."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, astuple, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from convwright.architecture.capture.pytrees import run_model, tensors_of
from convwright.errors import RecipeError, RunError
from convwright.ranking import ACCURACY, Metric
from convwright.repair import kept_statistics, stale
from convwright.training.batches import Batch, Gradients, synchronised
from convwright.training.checkpoint import (
    FILE,
    check_alike,
    load_model_state,
    model_state,
    random_state,
    read_checkpoint,
    readable,
    set_random_state,
    write_checkpoint,
)
from convwright.training.data.data import ImageData
from convwright.training.data.images import Images
from convwright.training.data.loader import derived_seed
from convwright.training.evaluate import judged
from convwright.training.outcome import EpochRecord, TrainResult
from convwright.training.preflight import Prepared, make_fabric, setting_for
from convwright.training.probes.base import Moment, Probes, StopRule, Watched, reached
from convwright.training.progress import ProgressLine
from convwright.training.recipe.optimizers import (
    OptimizerState,
    build_optimizer,
    load_state_by_name,
    set_momentum,
    state_by_name,
)
from convwright.training.recipe.recipe import Recipe
from convwright.training.recipe.schedules import Position, Rates
from convwright.training.settings import Settings, autocast, to_layout, untouched_random
from convwright.training.statistics import IMAGES, reestimate
from convwright.training.tasks.base import BaseTask, Metrics, TaskPart
from convwright.training.tasks.loader import loader_of
from convwright.training.techniques import Effect, Teacher, TechniqueContext, Training
from convwright.training.techniques.flip_test import Flipped

_BEYOND = 2**33  # beside every epoch number: a stream of random numbers of its own
_CHECK_EVERY = 50  # steps between two looks at the losses: each look waits for the device
_EVAL_BATCH = 500


@dataclass(frozen=True, eq=False)
class Order:
    """What is to be trained on, and how; see `train`."""

    data: BaseTask
    recipe: Recipe
    folder: Path | None
    resume: bool
    accelerator: str
    progress: bool
    test: bool
    workers: int | None
    probes: tuple[str, ...] = ()
    stop: StopRule | None = None
    reestimate: bool = True
    teacher: Teacher | None = None
    calibration: int = 512

    def checkpoint(self) -> dict[str, Any] | None:
        """Return the checkpoint to continue from."""
        return read_checkpoint(self.folder) if self.folder is not None and self.resume else None


def train_prepared(
    model: nn.Module,
    order: Order,
    settings: Settings,
    fabric: Fabric | None,
    optimizer_state: OptimizerState | None,
    *,
    on_epoch: Callable[[EpochRecord], object] | None = None,
    setting: TechniqueContext | None = None,
) -> Run:
    """Train a network that needs no more edits, in this process; `fabric` is given where it is one of several."""
    run = Run(model, setting or setting_for(model, order.data, order.recipe, order.teacher), order, settings, fabric)
    found = order.checkpoint()
    try:
        if found is not None:
            run.restore(found, order.folder)
        else:
            run.begin(optimizer_state)
        with (
            run.probes,
            synchronised(model, run.fabric.world_size),
            ProgressLine(run.total, run.step, order.progress and run.fabric.is_global_zero) as line,
        ):
            run.epochs(line, on_epoch)
            run.finish()
    finally:
        run.close()
    return run


class Run:
    """The moving parts of one training."""

    def __init__(
        self,
        model: nn.Module,
        setting: TechniqueContext,
        order: Order,
        settings: Settings,
        fabric: Fabric | None = None,
    ) -> None:
        self.model, self.setting, self.order, self.settings = model, setting, order, settings
        self.data = order.data
        self.recipe = order.recipe if settings.lr is None else order.recipe.updated(lr=settings.lr)
        self.folder = order.folder
        to_layout(self.model, settings.layout)
        self.fabric = fabric or make_fabric(order.accelerator, settings.fabric_precision)
        self.rank = (self.fabric.global_rank, self.fabric.world_size)
        self.optimizer = build_optimizer(self.model, self.recipe)
        self.base_lr = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.loss = self.data.training_loss(self.recipe)
        self.total = setting.steps
        self.step = 0
        self.factor = 1.0  # share of the highest rate in the last step
        self.effects = self._effects()
        self.divides = any(type(effect).batch is not Effect.batch for effect in self.effects.values())
        device = self.fabric.device
        self._loader = partial(loader_of, device=device, channels_last=settings.channels_last, workers=order.workers)
        self.loader = self._training_loader()
        self.val_loader = self._judge(self.data.val) if self.data.val is not None else None
        self.history: list[EpochRecord] = []
        self.val: Metrics | None = None
        self.stopped = False
        how = device, settings.channels_last, order.workers, order.calibration
        watched = Watched(self.model, self.data, self.recipe, *how)
        self.probes = Probes(order.probes, watched)

    def _training_loader(self) -> Any:
        # What blends images needs the whole batch; else each process fetches its own part of it.
        shard = (0, 1) if self.divides else self.rank
        augment, seed = self.recipe.augment, self.recipe.seed
        return self._loader(self.data.train, self.recipe.batch_size, augment=augment, seed=seed, shard=shard)

    def _judge(self, images: Images | TaskPart) -> Any:
        return self._loader(images, _EVAL_BATCH, shuffle=False, shard=self.rank)

    def _judged(self, model: nn.Module, loader: Any) -> Metrics:
        if self.fabric.world_size == 1:
            return judged(model, loader, self.settings.precision)
        if isinstance(self.data, ImageData):
            return judged(model, loader, self.settings.precision, self._total)
        # What metrics of a whole part add up to is the task's affair: one process judges for all.
        first = self.fabric.is_global_zero
        found: Any = judged(model, loader, self.settings.precision) if first else None
        return self.fabric.broadcast(found)  # type: ignore[no-any-return]

    def _total(self, part: Tensor) -> Tensor:
        summed = self.fabric.all_reduce(part, reduce_op="sum")
        assert isinstance(summed, Tensor)
        return summed

    def _effects(self) -> dict[str, Effect]:
        calls = self._forward, lambda step: self._rates(step).factor, self._more_batches
        training = Training(self.model, self.optimizer, self.setting, self.fabric.device, *calls)
        made = {name: technique.effect(training) for name, technique in self.recipe.techniques.items()}
        return {name: effect for name, effect in made.items() if effect is not None}

    def _forward(self, inputs: Any, model: nn.Module | None = None) -> Any:
        with autocast(self.fabric.device, self.settings.precision):
            return run_model(model or self.model, inputs)

    def _rates(self, step: int) -> Rates:
        return self.recipe.rates(Position(step, self.total, self.setting.steps_per_epoch))

    def _more_batches(self) -> Iterator[Any]:
        """Yield the inputs of an epoch that no training reaches, in the order and augmentation of the seed."""
        loader = self._training_loader()
        loader.epoch = _BEYOND
        for index, (images, labels) in enumerate(loader):
            yield self._batch(images, labels, self.total + index).inputs

    def close(self) -> None:
        """Take off the network what techniques put on it."""
        for effect in reversed(self.effects.values()):
            effect.close()

    def begin(self, optimizer_state: OptimizerState | None) -> None:
        """Start anew: a checkpoint of an earlier training must not be resumed by mistake."""
        torch.manual_seed(self.recipe.seed)
        if optimizer_state is not None:
            load_state_by_name(self.model, self.optimizer, optimizer_state)
        if self.folder is not None and self.fabric.is_global_zero:
            (self.folder / FILE).unlink(missing_ok=True)

    def epochs(self, line: ProgressLine, on_epoch: Callable[[EpochRecord], object] | None) -> None:
        """Train until the steps are used up, or `on_epoch` asks to stop."""
        # Fabric wraps its own copies of the references; model and optimizer stay the user's.
        module, optimizer = self.fabric.setup(self.model, self.optimizer)
        changes = [effect.loss for effect in self.effects.values() if type(effect).loss is not Effect.loss]
        gradients = Gradients(self.fabric, module, self.data, self.loss, self.recipe.accumulate, changes)
        optimizer.zero_grad()
        if not self.step:
            self.probes.observe(Moment("start", 0, 0, 0.0))
        while self.step < self.total and not self.stopped:
            record = self._epoch(gradients, optimizer, line)
            self.history.append(record)
            self.probes.observe(Moment("epoch", record.epoch, self.step, record.lr))
            if self.folder is not None and self.fabric.is_global_zero:
                write_checkpoint(self.folder, self.checkpoint())
            line.line(_describe(record, self.recipe.epochs, self.data.metric))
            _log.debug("%s", record)
            asked = on_epoch is not None and on_epoch(record) is True
            self.stopped = asked or self._ends()
        optimizer.zero_grad()

    def _ends(self) -> bool:
        """Whether the rule to stop says so; of what a checkpoint holds, so that a resumed training agrees."""
        stop = self.order.stop
        return stop is not None and bool(self.history) and reached(stop, self.history[-1], self.probes)

    def _epoch(self, gradients: Gradients, optimizer: Any, line: ProgressLine) -> EpochRecord:
        start = time.perf_counter()
        loss, accuracy = self._train_epoch(gradients, optimizer, line)
        for name, tensor in model_state(self.model).items():  # before a checkpoint is written
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                self._broken(f"{name} is no longer finite after step {self.step}")
        if self.val_loader is not None:
            with kept_statistics(self.model) if self._stale else nullcontext():
                self._reestimate()
                self.val = self._judged(self.model, self.val_loader)
        return EpochRecord(
            epoch=len(self.history) + 1,
            train_loss=loss,
            train_acc=accuracy,
            val_loss=self.val.loss if self.val is not None else None,
            val_acc=self.val.accuracy if self.val is not None else None,
            lr=self._lr(),
            seconds=time.perf_counter() - start,
        )

    def _train_epoch(self, gradients: Gradients, optimizer: Any, line: ProgressLine) -> tuple[float, float | None]:
        """Run the steps of one epoch; return mean loss and accuracy over its images."""
        steps = min(len(self.loader), self.total - self.step)
        losses = torch.zeros(steps, device=self.fabric.device)
        right = torch.zeros((), dtype=torch.int64, device=self.fabric.device)
        gradients.module.train()
        first = self.step
        for index, (images, labels) in zip(range(steps), self.loader, strict=False):
            self._set_rates()
            batch = self._batch(images, labels, self.step)
            loss, hits = self._train_step(gradients, optimizer, batch)
            losses[index] = loss  # sums stay on the device: no wait per step
            right += hits
            self.step += 1
            self.probes.observe(Moment("step", len(self.history), self.step, self._lr()))
            line.step(self.step)
            if (index + 1) % _CHECK_EVERY == 0:
                self._check_losses(losses[: index + 1], first)
        self._check_losses(losses, first)
        if self.fabric.world_size > 1:
            losses, right = self._total(losses), self._total(right)
        sizes = torch.tensor(self.loader.sizes[:steps], device=losses.device, dtype=losses.dtype)
        shown = float(right / sizes.sum()) if isinstance(self.data, ImageData) else None
        return float((losses * sizes).sum() / sizes.sum()), shown

    def _train_step(self, gradients: Gradients, optimizer: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        result = gradients(batch)
        for effect in self.effects.values():
            effect.before_update(partial(gradients, batch), self.step)
        if self.recipe.grad_clip is not None:
            self.fabric.strategy.precision.unscale_gradients(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        for effect in self.effects.values():
            effect.after_step(self.step)
        return result

    def _batch(self, images: Any, labels: Any, step: int) -> Batch:
        """Return this process's part of a batch, changed by the techniques."""
        whole = self.loader.sizes[step % len(self.loader)]
        if not self.divides:
            return Batch(images, labels, labels, whole)
        changed, targets = self._changed(images, labels, step)
        rank, count = self.rank
        return Batch(changed, targets, labels, whole).taken(slice(rank, None, count))

    def _changed(self, images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Let the techniques change a batch; what they draw depends on seed and step only, in every process."""
        with untouched_random(self.fabric.device):
            torch.manual_seed(derived_seed(self.recipe.seed, _BEYOND, step))
            for effect in self.effects.values():
                images, targets = effect.batch(images, targets, step)
        return images, targets

    def _lr(self) -> float:
        return self.recipe.rate * self.factor

    def _set_rates(self) -> None:
        factor, momentum = self._rates(self.step)
        for effect in self.effects.values():
            factor = effect.rate(factor, self.step)
        self.factor = factor
        for group, base in zip(self.optimizer.param_groups, self.base_lr, strict=True):
            group["lr"] = base * factor
            if momentum is not None:
                set_momentum(group, momentum)

    def finish(self) -> None:
        """Let the techniques leave the weights to hand back, and judge them if they changed."""
        last = [effect for effect in self.effects.values() if effect.finishes]
        for effect in last:
            effect.finish()
        if not last:
            self._reestimate()  # as it was for the last judgement
        if last and self.val_loader is not None:
            self.val = self._judged(self.model, self.val_loader)

    @property
    def _stale(self) -> bool:
        """Whether too few steps were done for the running statistics to be those of the weights."""
        return self.order.reestimate and stale(self.model, self.step)

    def _reestimate(self) -> None:
        if self._stale:
            how: Any = {"precision": self.settings.precision, "channels_last": self.settings.channels_last}
            how |= {"workers": self.order.workers, "shard": self.rank}
            reestimate(self.model, self.data.train, **how, frozen=False)

    def _check_losses(self, losses: Tensor, first: int) -> None:
        """Stop at the first loss that is not finite."""
        if bool(torch.isfinite(losses).all()):
            return
        index = int((~torch.isfinite(losses)).nonzero()[0])
        self._broken(f"the loss became {float(losses[index])} at step {first + index + 1}{self._holding_nan(index)}")

    def _holding_nan(self, index: int) -> str:
        """Say that the batch of this place in the present epoch holds NaN; it is read again."""
        loader = self._training_loader()
        loader.epoch = len(self.history)
        batch = next(islice(loader, index, None), None)
        found = any(t.is_floating_point() and bool(t.isnan().any()) for _, t in tensors_of(batch))
        return f" ({self.data.name}: train: batch {index} holds NaN: correct the data)" if found else ""

    def _broken(self, what: str) -> None:
        file = self.folder and self.folder / FILE
        kept = f"; the last good checkpoint is {file}" if file and file.is_file() else ""
        remedy = f"lower lr (now {self.recipe.rate:g}){' or set grad_clip' * (self.recipe.grad_clip is None)}"
        raise RecipeError(f"training broke down in epoch {len(self.history) + 1}: {what}; {remedy}{kept}")

    def checkpoint(self) -> dict[str, Any]:
        """Return everything that the rest of the training depends on."""
        return {
            "recipe": self.order.recipe.model_dump_json(),
            "data": _data_text(self.data),
            "settings": json.dumps(asdict(self.settings)),
            "step": self.step,
            "history": [list(astuple(record)) for record in self.history],
            "val": list(astuple(self.val)[:3]) if self.val is not None else [],
            "metrics": [dict(self.val.values), self.val.error] if self.val is not None else [],
            "model": model_state(self.model),
            "optimizer": self.optimizer.state_dict(),
            "effects": {name: effect.state_dict() for name, effect in self.effects.items()},
            "loader": self.loader.state_dict(),
            "random": random_state(self.fabric.device),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "probes": self.probes.to_json(),
        }

    def restore(self, found: dict[str, Any], folder: Path | None) -> None:
        """Continue from a checkpoint; `folder` is named in errors.

        Raises:
            RecipeError: It belongs to another recipe, data set or network.
            RunError: It is damaged.
        """
        with readable((folder or Path()) / FILE):
            self._restore(found, (folder or Path()) / FILE)

    def _restore(self, found: dict[str, Any], path: Path) -> None:
        own = self.checkpoint()
        groups = {"param_groups": own["optimizer"]["param_groups"]}
        for name, value in (("loader", own["loader"]), ("random", own["random"]), ("optimizer", groups)):
            check_alike(found[name], value, path, name)
        numbers = [value for row in (*found["history"], found["val"]) for value in row]
        states = found["optimizer"]["state"].values()
        fine = all(v is None or (isinstance(v, int | float) and math.isfinite(v)) for v in numbers)
        if not fine or not all(isinstance(state, dict) for state in states):
            raise RunError(f"{path}: damaged (history or optimizer.state); remove it to train from the beginning")
        _check_recipe(self.order.recipe, json.loads(found["recipe"]), path)
        if found["data"] != _data_text(self.data):
            raise RecipeError(
                f"{path}: trained on {found['data']}, not on {_data_text(self.data)}; "
                "give the same data, or train without resume"
            )
        load_model_state(self.model, found["model"], path)
        self.optimizer.load_state_dict(found["optimizer"])
        for name, effect in self.effects.items():
            effect.load_state_dict(found["effects"][name])
        self.loader.load_state_dict(found["loader"])
        if found.get("scaler"):  # of fp16
            self.fabric.strategy.precision.load_state_dict(found["scaler"])
        self.step = int(found["step"])
        self.history = [EpochRecord(*values) for values in found["history"]]
        values, error = found.get("metrics") or ({}, None)
        self.val = replace(Metrics(*found["val"]), values=values, error=error) if found["val"] else None
        self.probes.restore(found.get("probes", "{}"), str(path))
        self.stopped = self._ends()
        set_random_state(found["random"], self.fabric.device)

    def result(self, test: bool, prepared: Prepared) -> TrainResult:
        """Judge the test part if asked, and wrap up."""
        tested = flipped = None
        if test and self.data.has_test:
            tested = self._judged(self.model, self._judge(self.data.test))
            if "test_flip" in self.recipe.techniques:
                flipped = self._judged(Flipped(self.model), self._judge(self.data.test))
        return TrainResult(
            model=self.model,
            history=tuple(self.history),
            val=self.val,
            test=tested,
            seconds=sum(record.seconds for record in self.history),
            settings=self.settings,
            optimizer_state=state_by_name(self.model, self.optimizer),
            test_flip=flipped,
            plan=prepared.plan,
            warnings=prepared.warnings,
            probes=self.probes.found(),
            stopped=self.step < self.total,
            reestimated=min(len(self.data.train), IMAGES) if self._stale else 0,
        )


_log = logging.getLogger(__name__)


def _describe(record: EpochRecord, epochs: int, metric: Metric) -> str:
    text = f"epoch {record.epoch}/{epochs}  loss {record.train_loss:.4f}"
    text += "" if record.train_acc is None else f"  acc {record.train_acc:.2%}"
    text += "" if record.val_loss is None else f"  val loss {record.val_loss:.4f}"
    name = "acc" if metric == ACCURACY else metric.name
    text += "" if record.val_acc is None else f"  val {name} {metric.shown(record.val_acc)}"
    return f"{text}  lr {record.lr:.2g}  {record.seconds:.1f} s"


def _data_text(data: BaseTask) -> str:
    size = "x".join(map(str, data.shape))
    kind = f"{data.num_classes} classes" if isinstance(data, ImageData) else f"{data.kind} by {data.metric.name}"
    return f"{data.name} ({len(data.train)} images {size}, {kind})"


def _check_recipe(recipe: Recipe, stored: dict[str, Any], path: Path) -> None:
    now, stored = recipe.model_dump(mode="json"), Recipe.completed(stored)
    name = next((name for name in {**now, **stored} if now.get(name) != stored.get(name)), None)
    if name is not None:
        raise RecipeError(
            f"{path}: the checkpoint was trained with {name}={stored.get(name)}, not "
            f"{now.get(name)}; give the same recipe, or train without resume"
        )
