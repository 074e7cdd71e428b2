"""Train a network by a recipe: device-agnostic by Lightning Fabric, resumable bit for bit."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convwright.errors import RecipeError
from convwright.training.checkpoint import (
    FILE,
    load_model_state,
    model_state,
    random_state,
    read_checkpoint,
    set_random_state,
    write_checkpoint,
)
from convwright.training.data import ImageData, load_data
from convwright.training.evaluate import (
    Metrics,
    count_right,
    evaluate_batches,
    kept_modes,
)
from convwright.training.images import Images
from convwright.training.loader import Loader
from convwright.training.optimizers import (
    OptimizerState,
    build_optimizer,
    load_state_by_name,
    state_by_name,
)
from convwright.training.preflight import make_fabric, settle
from convwright.training.progress import ProgressLine
from convwright.training.recipe import Recipe, as_recipe
from convwright.training.schedules import SCHEDULES
from convwright.training.settings import (
    Settings,
    single_tensor,
    to_layout,
    untouched_random,
)

_CHECK_EVERY = 50  # steps between two looks at the losses: each look waits for the device
_EVAL_BATCH = 500


@dataclass(frozen=True)
class EpochRecord:
    """One epoch.

    Attributes:
        epoch: Counted from 1.
        train_loss: Mean over the epoch's images, while the weights move, label smoothing included.
        train_acc: Accuracy on the augmented training images, likewise.
        val_loss: Mean cross-entropy on the validation part after the epoch; None without one.
        val_acc: Accuracy there.
        lr: Learning rate of the last step.
        seconds: Wall time of training and validation.
    """

    epoch: int
    train_loss: float
    train_acc: float
    val_loss: float | None
    val_acc: float | None
    lr: float
    seconds: float


@dataclass(frozen=True, eq=False)
class TrainResult:
    """What `train` returns.

    Attributes:
        model: The network that was given, trained in place, with the weights of the last epoch.
        history: One record per epoch.
        val: Validation metrics after the last epoch; None without a validation part.
        test: Test metrics, read once at the end; None if not asked for or not there.
        seconds: Wall time of all epochs, over all resumed runs.
        settings: Precision, layout and the measurement that chose them.
        optimizer_state: The optimizer's state by parameter name, for `train(optimizer_state=...)`.
    """

    model: nn.Module
    history: tuple[EpochRecord, ...]
    val: Metrics | None
    test: Metrics | None
    seconds: float
    settings: Settings
    optimizer_state: OptimizerState

    @property
    def last(self) -> EpochRecord:
        """The last epoch."""
        return self.history[-1]

    @property
    def best(self) -> EpochRecord:
        """The epoch with the best validation accuracy (training accuracy without validation)."""
        return max(self.history, key=lambda r: r.train_acc if r.val_acc is None else r.val_acc)


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
) -> TrainResult:
    """Train `model` in place.

    The same seed, settings and threads give the same weights on the CPU, bit for bit, whether or
    not the training was interrupted. The process's random generators are left as they were.
    Precision and layout left at `auto` depend on a measurement: fix them in the recipe to repeat a
    training exactly.

    Args:
        model: Maps (batch, c, h, w) to (batch, classes), alone or in a dict or tuple of one tensor.
        data: What `load_data` returned, or anything that it takes.
        recipe: A recipe, a preset's name or a .yaml file; None: the default.
        out: Folder of the checkpoint, written after each epoch; None: no checkpoint.
        resume: Continue from the checkpoint in `out`, if there is one.
        on_epoch: Called with each record after its checkpoint; returning True ends the training.
        accelerator: As in Lightning Fabric: auto, cpu, cuda, mps.
        optimizer_state: State by parameter name, as in `TrainResult.optimizer_state`.
        progress: A bar on a terminal, a line per epoch elsewhere.
        test: Whether to judge the result on the test part, once, at the end.
        workers: Processes that read a streamed data set.

    Raises:
        RecipeError: Bad recipe, a loss that is not finite (the last good checkpoint stays), or a
            checkpoint of another network, recipe or data.
        DataError: The data do not fit the network.
        RunError: The checkpoint is damaged or cannot be written.
    """
    recipe = as_recipe(recipe)
    if not isinstance(data, ImageData):
        data = load_data(data, val_fraction=recipe.val_fraction)
    if resume and out is None:
        raise RecipeError("resume needs the folder of the checkpoint; give out=")
    fabric = make_fabric(accelerator, "32-true")
    folder = Path(out) if out is not None else None
    with kept_modes(model), untouched_random(fabric.device), _contiguous_after(model):
        model.to(fabric.device)
        found = read_checkpoint(folder) if folder is not None and resume else None
        settings = settle(model, data, recipe, fabric.device, found)
        run = _Run(model, data, recipe, settings, accelerator, folder, workers)
        if found is not None:
            run.restore(found)
        else:
            run.begin(optimizer_state)
        with ProgressLine(run.total, run.step, progress) as line:
            run.epochs(line, on_epoch)
        return run.result(test)


class _Run:
    """The moving parts of one training."""

    def __init__(
        self,
        model: nn.Module,
        data: ImageData,
        recipe: Recipe,
        settings: Settings,
        accelerator: str,
        folder: Path | None,
        workers: int | None,
    ) -> None:
        self.model, self.data, self.recipe, self.settings = model, data, recipe, settings
        self.folder = folder
        self.workers = workers
        to_layout(model, settings.layout)
        self.fabric = make_fabric(accelerator, "bf16-mixed" if settings.precision == "bf16" else "32-true")
        self.loader = _train_loader(data, recipe, settings, workers)
        self.val_loader = self._judge(data.val) if data.val is not None else None
        self.optimizer = build_optimizer(model, recipe)
        self.base_lr = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
        whole = recipe.epochs * len(self.loader)
        self.total = min(whole, recipe.max_steps or whole)
        self.step = 0
        self.history: list[EpochRecord] = []
        self.val: Metrics | None = None
        self.stopped = False

    def _judge(self, images: Images) -> Loader:
        return Loader(
            images,
            _EVAL_BATCH,
            shuffle=False,
            device=self.fabric.device,
            channels_last=self.settings.channels_last,
            workers=self.workers,
        )

    # ------------------------------------------------------------------------------------- training

    def begin(self, optimizer_state: OptimizerState | None) -> None:
        """Start anew: a checkpoint of an earlier training must not be resumed by mistake."""
        torch.manual_seed(self.recipe.seed)
        if optimizer_state is not None:
            load_state_by_name(self.model, self.optimizer, optimizer_state)
        if self.folder is not None:
            (self.folder / FILE).unlink(missing_ok=True)

    def epochs(self, line: ProgressLine, on_epoch: Callable[[EpochRecord], object] | None) -> None:
        """Train until the steps are used up, or `on_epoch` asks to stop."""
        # Fabric wraps its own copies of the references; model and optimizer stay the user's.
        module, optimizer = self.fabric.setup(self.model, self.optimizer)
        optimizer.zero_grad()
        while self.step < self.total and not self.stopped:
            record = self._epoch(module, optimizer, line)
            self.history.append(record)
            if self.folder is not None:
                write_checkpoint(self.folder, self.checkpoint())
            line.line(_describe(record, self.recipe.epochs))
            _log.debug("%s", record)
            self.stopped = on_epoch is not None and on_epoch(record) is True
        optimizer.zero_grad()

    def _epoch(self, module: nn.Module, optimizer: Any, line: ProgressLine) -> EpochRecord:
        start = time.perf_counter()
        loss, accuracy = self._train_epoch(module, optimizer, line)
        self._check_weights()
        if self.val_loader is not None:
            self.val = evaluate_batches(self.model, self.val_loader, self.settings.precision)
        return EpochRecord(
            epoch=len(self.history) + 1,
            train_loss=loss,
            train_acc=accuracy,
            val_loss=self.val.loss if self.val is not None else None,
            val_acc=self.val.accuracy if self.val is not None else None,
            lr=float(self.optimizer.param_groups[0]["lr"]),
            seconds=time.perf_counter() - start,
        )

    def _train_epoch(self, module: nn.Module, optimizer: Any, line: ProgressLine) -> tuple[float, float]:
        """Run the steps of one epoch; return mean loss and accuracy over its images."""
        steps = min(len(self.loader), self.total - self.step)
        losses = torch.zeros(steps, device=self.fabric.device)
        right = torch.zeros((), dtype=torch.int64, device=self.fabric.device)
        module.train()
        first = self.step
        for index, (images, labels) in zip(range(steps), self.loader, strict=False):
            self._set_rates()
            scores = single_tensor(module(images))
            loss = self.criterion(scores, labels)
            self.fabric.backward(loss)
            if self.recipe.grad_clip is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.grad_clip)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():  # sums stay on the device: no wait per step
                losses[index] = loss
                right += count_right(scores, labels)
            self.step += 1
            line.step(self.step)
            if (index + 1) % _CHECK_EVERY == 0:
                self._check_losses(losses[: index + 1], first)
        self._check_losses(losses, first)
        sizes = torch.tensor(self.loader.sizes[:steps], device=losses.device, dtype=losses.dtype)
        return float((losses * sizes).sum() / sizes.sum()), float(right / sizes.sum())

    def _set_rates(self) -> None:
        recipe = self.recipe
        factor = SCHEDULES[recipe.schedule](self.step, self.total, recipe.warmup)
        for group, base in zip(self.optimizer.param_groups, self.base_lr, strict=True):
            group["lr"] = base * factor

    # ------------------------------------------------------------------------------------- failures

    def _check_losses(self, losses: Tensor, first: int) -> None:
        """Stop at the first loss that is not finite."""
        if bool(torch.isfinite(losses).all()):
            return
        index = int((~torch.isfinite(losses)).nonzero()[0])
        self._broken(f"the loss became {float(losses[index])} at step {first + index + 1}")

    def _check_weights(self) -> None:
        """Stop before a checkpoint if the epoch's last step spoiled the weights."""
        state = model_state(self.model)
        for name, tensor in state.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                self._broken(f"{name} is no longer finite after step {self.step}")

    def _broken(self, what: str) -> None:
        kept = ""
        if self.folder is not None and (self.folder / FILE).is_file():
            kept = f"; the last good checkpoint is {self.folder / FILE}"
        lower = f"lower lr (now {self.recipe.lr:g})"
        remedy = f"{lower} or set grad_clip" if self.recipe.grad_clip is None else lower
        epoch = len(self.history) + 1
        raise RecipeError(f"training broke down in epoch {epoch}: {what}; {remedy}{kept}")

    # ----------------------------------------------------------------------------------- checkpoint

    def checkpoint(self) -> dict[str, Any]:
        """Return everything that the rest of the training depends on."""
        return {
            "recipe": self.recipe.model_dump_json(),
            "data": _data_text(self.data),
            "settings": json.dumps(asdict(self.settings)),
            "step": self.step,
            "history": [list(astuple(record)) for record in self.history],
            "val": list(astuple(self.val)) if self.val is not None else [],
            "model": model_state(self.model),
            "optimizer": self.optimizer.state_dict(),
            "loader": self.loader.state_dict(),
            "random": random_state(self.fabric.device),
        }

    def restore(self, found: dict[str, Any]) -> None:
        """Continue from a checkpoint.

        Raises:
            RecipeError: It belongs to another recipe, data set or network.
        """
        assert self.folder is not None
        path = self.folder / FILE
        _check_recipe(self.recipe, json.loads(found["recipe"]), path)
        if found["data"] != _data_text(self.data):
            raise RecipeError(
                f"{path}: trained on {found['data']}, not on {_data_text(self.data)}; "
                "give the same data, or train without resume"
            )
        load_model_state(self.model, found["model"], path)
        self.optimizer.load_state_dict(found["optimizer"])
        self.loader.load_state_dict(found["loader"])
        self.step = int(found["step"])
        self.history = [EpochRecord(*values) for values in found["history"]]
        self.val = Metrics(*found["val"]) if found["val"] else None
        set_random_state(found["random"], self.fabric.device)

    def result(self, test: bool) -> TrainResult:
        """Judge the test part if asked, and wrap up."""
        judged = None
        if test and self.data.has_test:
            loader = self._judge(self.data.test)
            judged = evaluate_batches(self.model, loader, self.settings.precision)
        return TrainResult(
            model=self.model,
            history=tuple(self.history),
            val=self.val,
            test=judged,
            seconds=sum(record.seconds for record in self.history),
            settings=self.settings,
            optimizer_state=state_by_name(self.model, self.optimizer),
        )


_log = logging.getLogger(__name__)


def _describe(record: EpochRecord, epochs: int) -> str:
    text = f"epoch {record.epoch}/{epochs}  loss {record.train_loss:.4f}  acc {record.train_acc:.2%}"
    if record.val_loss is not None and record.val_acc is not None:
        text += f"  val loss {record.val_loss:.4f}  val acc {record.val_acc:.2%}"
    return f"{text}  lr {record.lr:.2g}  {record.seconds:.1f} s"


def _data_text(data: ImageData) -> str:
    size = "x".join(map(str, data.shape))
    return f"{data.name} ({len(data.train)} images {size}, {data.num_classes} classes)"


def _check_recipe(recipe: Recipe, stored: dict[str, Any], path: Path) -> None:
    now = recipe.model_dump(mode="json")
    changed = [name for name in {**now, **stored} if now.get(name) != stored.get(name)]
    if changed:
        name = changed[0]
        raise RecipeError(
            f"{path}: the checkpoint was trained with {name}={stored.get(name)}, not "
            f"{now.get(name)}; give the same recipe, or train without resume"
        )


def _train_loader(data: ImageData, recipe: Recipe, settings: Settings, workers: int | None) -> Loader:
    return Loader(
        data.train,
        recipe.batch_size,
        augment=recipe.augment,
        seed=recipe.seed,
        device=settings.device,
        channels_last=settings.channels_last,
        workers=workers,
    )


@contextmanager
def _contiguous_after(model: nn.Module) -> Iterator[None]:
    """Hand the weights back in the default layout, which safetensors and views expect."""
    try:
        yield
    finally:
        to_layout(model, torch.contiguous_format)
