"""A rival of ``rivals``: torch-pruning, iteratively to the budget, with trainings between the steps."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from convwright.cost import count_by_torch
from convwright.edits import Edit, Width
from convwright.errors import RecipeError
from convwright.experiments.designs.design import SEARCH_FORMAT, DesignContext, NetworkSpec, limits_of, made, opened
from convwright.experiments.designs.search_design import FOUND, Question, Searched, edits_of_record, images_seen, record
from convwright.runs.directory.files import load_weights, read_json, save_weights
from convwright.runs.directory.study import WEIGHTS
from convwright.training import ImageData, Recipe, train

Importance = Literal["magnitude", "group-norm", "taylor"]
MOST = 0.95  # share of a layer's channels that may go, where nothing else is said
_FINE = 200  # steps of the pruner from nothing to almost everything: it stops at the first that meets the target


@dataclass(frozen=True)
class Pruned(Searched):
    """torch-pruning narrows the trained network in a few steps, with a training after each but the last.

    The row's training then goes on from the weights that are left. ``magnitude`` is the L1 norm of a channel's filter,
    ``group-norm`` the L2 norm of all that the channel touches; both over their mean in the layer, and ranked over all
    layers: one share for all would leave more of the budget unused, since all layers lose a channel at once. The
    sparsity penalty that torch-pruning offers for its own trainings is not used: all rows are trained by one recipe.
    The classifier is left alone.

    Attributes:
        first: A search whose first trial trains the untouched network.
        importance: What is ranked.
        steps: How many; MACs fall by the same factor in each.
        epochs: Of the training after a step.
        most: Share of a layer's channels that may go at most.
    """

    kind: ClassVar[str] = "pruned"

    method: str = "torch-pruning"
    first: Searched = field(default_factory=Searched)
    importance: Importance = "magnitude"
    steps: int = 3
    epochs: int = 1
    most: float = MOST

    def resolve(self, model: str, form: NetworkSpec, setting: DesignContext) -> NetworkSpec:
        """Return the form with the widths that are left, and the weights.

        Raises:
            RecipeError: torch-pruning is not installed, or does not reach the budget.
        """
        _library()  # before anything is trained
        trained = Question(self.first, model, form, setting).answered(self.first.method_for)
        question = Question(self, model, form, setting)
        folder = question.once(lambda folder: _carry_out(self, question, trained, folder))
        edits = edits_of_record(read_json(folder / "result.json", SEARCH_FORMAT)["edits"])
        return replace(form.joined(edits, trained, folder), weights=folder / FOUND)


def _library() -> Any:
    try:
        return importlib.import_module("torch_pruning")
    except ImportError:
        raise RecipeError("torch-pruning is not installed, and this row needs it: pip install torch-pruning") from None


def _carry_out(design: Pruned, question: Question, trained: Path, folder: Path) -> None:
    setting, (recipe, data) = question.setting, question.trained_on()
    recipe = recipe.updated(epochs=design.epochs)
    shape = setting.shape or data.shape
    model = made(question.model, question.form, shape, 0)
    load_weights(model, trained / "trials" / "0000" / WEIGHTS)
    limits = limits_of(design.budget, question.model, setting)
    if limits is None or set(limits.limits) != {"macs"}:
        raise RecipeError(f"torch-pruning is brought to a limit on MACs, not to {design.budget!r}")
    image = torch.zeros(1, *shape)
    limit, begun = limits.limits["macs"], count_by_torch(model, image)
    rows: list[dict[str, Any]] = []
    for step in range(1, design.steps + 1):
        narrowed(model, image, begun * (limit / begun) ** (step / design.steps), design.importance, design.most)
        if step < design.steps:
            rows.append(_tuned(model, data, recipe.updated(seed=design.seed + step), folder / str(step)))
    edits = widths_of(model, question)
    save_weights(model, folder / FOUND)
    record(folder, question, f"{design.method}, {design.importance}", edits, rows)


def narrowed(
    model: nn.Module,
    image: torch.Tensor,
    target: float,
    importance: Importance,
    most: float = MOST,
    *,
    ranked_over: Literal["network", "layer"] = "network",
    round_to: int | None = None,
) -> None:
    """Let torch-pruning narrow a network, in place, until it needs no more MACs than `target`.

    Args:
        model: The network.
        image: An example input, (1, c, h, w).
        target: MACs of one image.
        importance: See `Pruned`; ``taylor`` needs gradients in the weights.
        most: See `Pruned`.
        ranked_over: Whether channels are ranked over the network, or every layer loses the same share.
        round_to: Widths are multiples of it; None: any.

    Raises:
        RecipeError: There is no torch-pruning, or it gets no further.
    """
    library = _library()
    if count_by_torch(model, image) <= target:
        return
    ranked: Mapping[Importance, Callable[[], Any]] = {
        "magnitude": partial(library.importance.GroupMagnitudeImportance, p=1, group_reduction="first"),
        "group-norm": partial(library.importance.GroupMagnitudeImportance, p=2),
        "taylor": library.importance.GroupTaylorImportance,
    }
    outputs = _classifier(model, image)
    pruner = library.pruner.BasePruner(
        model.eval(),
        image,
        ranked[importance](),
        global_pruning=ranked_over == "network",
        pruning_ratio=most,
        max_pruning_ratio=most,
        iterative_steps=_FINE,
        ignored_layers=[outputs],
        round_to=round_to,
    )
    for _ in range(_FINE):
        pruner.step()
        if count_by_torch(model, image) <= target:
            model.zero_grad(set_to_none=True)
            return
    raise RecipeError(f"torch-pruning ends at {count_by_torch(model, image):,} MACs, above {target:,.0f}")


def _classifier(model: nn.Module, image: torch.Tensor) -> nn.Module:
    """Return the last layer with weights that is executed: its outputs are the classes."""
    seen: list[nn.Module] = []
    kinds = (nn.Linear, nn.Conv2d)
    hooks = [m.register_forward_hook(lambda m, a, b: seen.append(m)) for m in model.modules() if isinstance(m, kinds)]
    with torch.no_grad():
        model.eval()(image)
    for hook in hooks:
        hook.remove()
    return seen[-1]


def _tuned(model: nn.Module, data: ImageData, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Train on after a step; return what that cost, as a trial of a search."""
    start = time.perf_counter()
    result = train(model, data, recipe, out=folder, resume=True, progress=False, test=False)
    return {
        "macs": count_by_torch(model, torch.zeros(1, *data.shape)),
        "params": sum(p.numel() for p in model.parameters()),
        "epochs": recipe.epochs,
        "images": images_seen(recipe.epochs, len(data.train), recipe.max_steps, recipe),
        "score": result.val.accuracy if result.val is not None else None,
        "seconds": time.perf_counter() - start,
    }


def widths_of(model: nn.Module, question: Question) -> tuple[Edit, ...]:
    """Return the edits that give the untouched network a pruned one's widths."""
    arch = opened(question.model, question.form, question.setting.shape)
    edits: list[Edit] = []
    for group in arch.free_groups:
        layer: Any = model.get_submodule(group.name.partition("[")[0])
        width = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        if width != group.size:
            edits.append(Width(group.name, width))
    return tuple(edits)
