"""``mnist-1500``: the paper's first headline, 99.2 % on MNIST with "1500 parameters" (1,560 in its code)."""

from __future__ import annotations

from convwright.runs.experiments.experiment import Row, Size, experiment
from convwright.training import Recipe

_EPOCHS = {"quick": 2, "standard": 40, "full": 70}


def small_recipe(size: Size) -> Recipe:
    """Return the recipe for networks of some 1,500 parameters: they underfit, so little is regularised."""
    return Recipe(
        epochs=_EPOCHS[size],
        batch_size=128,
        lr=0.3,
        warmup=0.2,
        weight_decay=1e-4,
        crop_padding=1,
        padding_mode="zero",
        hflip=False,
        label_smoothing=0.0,
        precision="fp32",
        memory_format="channels_last",
        val_fraction=0.0,
    )


@experiment(
    "mnist-1500",
    title="MNIST with at most 1,500 trainable parameters",
    source="Ethiraj and Bolla 2022; the networks for the hard limit are ours",
)
def mnist_1500(size: Size) -> tuple[Row, ...]:
    """Return the rows: ours for the limit, and the paper's own network."""
    seeds = (0,) if size == "quick" else (0, 1, 2, 3, 4)
    return (
        Row(
            "mnist-b",
            "zoo:mnist-b",
            "mnist",
            small_recipe(size),
            seeds,
            paper={"accuracy": 0.992, "params": 1560},
            target=0.992,
            limit=1500,
        ),
    )
