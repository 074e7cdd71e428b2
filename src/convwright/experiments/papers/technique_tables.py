"""``mnist-techniques`` and ``cifar10-techniques``: every technique beside the control row that the paper lacks.

All rows of a table have the same network, optimizer, schedule, epochs and seeds; only the technique differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from convwright.experiments.papers.cifar_small import cifar_recipe
from convwright.experiments.row import Row, Size, experiment, seeds_of
from convwright.training import Recipe
from convwright.training.techniques import technique_named

_Options = Mapping[str, Mapping[str, Any]]
_CONTROL = "control"
_LEAST_FOR_SWA = 4  # epochs, of which three quarters leave one to average

# The paper's options, as far as the authors' logs tell them, and its last-epoch accuracy; then what we add.
_MNIST: tuple[tuple[str, _Options, float | None], ...] = (
    ("blurpool", {"blurpool": {}}, 0.9921),
    (
        "blurpool-swa-se",
        {"blurpool": {}, "swa": {}, "squeeze_excite": {"latent_channels": 2, "min_channels": 5, "bias": False}},
        0.9912,
    ),
    ("squeeze-excite", {"squeeze_excite": {"latent_channels": 2, "min_channels": 5, "bias": False}}, 0.9916),
    ("swa", {"swa": {}}, 0.9902),
    ("one-cycle", {"one_cycle": {}}, 0.9869),
    ("label-smoothing", {"label_smoothing": {"label_smoothing": 0.1}}, 0.9872),
    ("sam", {"sam": {"rho": 0.05}}, 0.9870),
    ("cutout", {"cutout": {"cutout": 10}}, 0.9830),
    ("mixup", {"mixup": {"alpha": 0.5}}, 0.9759),
    ("cutmix", {"cutmix": {}}, None),
    ("cyclical", {"cyclical": {}}, None),
    ("ema", {"ema": {"decay": 0.998}}, None),
    ("lookahead", {"lookahead": {}}, None),
    ("progressive-resizing", {"progressive_resizing": {}}, None),
)
_CIFAR: tuple[tuple[str, _Options, float | None], ...] = (
    ("mixup", {"mixup": {"alpha": 0.2}}, 0.8352),
    ("blurpool", {"blurpool": {}}, None),
    ("cutout", {"cutout": {"cutout": 8}}, None),
    ("label-smoothing", {"label_smoothing": {"label_smoothing": 0.1}}, None),
    ("swa", {"swa": {}}, None),
    ("sam", {"sam": {}}, None),
    (
        "all",
        {
            "blurpool": {},
            "cutout": {"cutout": 8},
            "mixup": {"alpha": 0.2},
            "label_smoothing": {"label_smoothing": 0.1},
            "swa": {},
            "sam": {},
        },
        0.8601,
    ),
)


def with_techniques(recipe: Recipe, techniques: _Options) -> Recipe:
    """Return a recipe with these techniques on, with their options; in very short trainings, averages begin earlier."""
    for name, options in techniques.items():
        if name == "swa" and recipe.epochs < _LEAST_FOR_SWA:
            options = {**options, "start": 0.5}
        recipe = technique_named(name).switched(recipe, **options)
    return recipe


def _table(
    model: str,
    data: str,
    recipe: Recipe,
    seeds: tuple[int, ...],
    rows: Sequence[tuple[str, _Options, float | None]],
    control: float,
) -> Iterator[Row]:
    plain = Row("", model, data, recipe, seeds)
    words = "no technique (the paper: another loop)"
    yield replace(plain, name=_CONTROL, paper={"accuracy": control}, note=words)
    for name, techniques, accuracy in rows:
        paper = {} if accuracy is None else {"accuracy": accuracy}
        yield replace(plain, name=name, recipe=with_techniques(recipe, techniques), paper=paper, control=_CONTROL)


@experiment(
    "mnist-techniques",
    title="MNIST: each technique on the 1,560-parameter network",
    source="Ethiraj and Bolla 2022, options and last-epoch accuracies confirmed from the authors' logs (70 epochs); "
    "rows without a paper's number are ours",
)
def mnist_techniques(size: Size) -> tuple[Row, ...]:
    """Return the control and one row per technique, in the paper's second loop (preset paper-mnist)."""
    epochs = {"quick": 2, "standard": 20, "full": 70}[size]
    recipe = Recipe.preset("paper-mnist").updated(epochs=epochs, memory_format="channels_last")
    return tuple(_table("zoo:mnist-m3", "mnist", recipe, seeds_of(size), _MNIST, 0.9829))


@experiment(
    "cifar10-techniques",
    title="CIFAR-10: the main techniques on the 143,396-parameter network, alone and together",
    source="Ethiraj and Bolla 2022: 79.90 % without, 83.52 % with mixup, 86.01 % with all; the authors' options and "
    "recipe for CIFAR-10 are unknown, these are reconstructed",
)
def cifar10_techniques(size: Size) -> tuple[Row, ...]:
    """Return the control, one row per technique, and all together."""
    epochs = {"quick": 2, "standard": 20, "full": 100}[size]
    recipe = cifar_recipe(epochs, label_smoothing=0.0)
    seeds = seeds_of(size, 3 if size == "full" else 2)
    return tuple(_table("zoo:cifar-dw", "cifar10", recipe, seeds, _CIFAR, 0.7990))
