"""``mnist-phases``: the paper's networks phase by phase, from 25,144 parameters down to 1,560."""

from __future__ import annotations

from convwright.experiments.row import Row, Size, experiment, seeds_of, start
from convwright.training import Recipe

_EPOCHS = {"quick": 1, "standard": 15, "full": 50}

# Network, then the paper's best and last test accuracy and its epochs.
_PHASES: tuple[tuple[str, float, float, int], ...] = (
    ("base", 0.9935, 0.9932, 50),
    ("m1", 0.9934, 0.9931, 35),
    ("m1d", 0.9933, 0.9926, 50),
    ("m2", 0.9927, 0.9921, 35),
    ("m2d", 0.9930, 0.9927, 50),
    ("m3", 0.9835, 0.9829, 45),
)


def plain_recipe(epochs: int) -> Recipe:
    """Return the paper's plain loop: Adam at 0.01, times 0.1 after every 5 epochs (of 50), no augmentation.

    Shorter trainings keep the rates as long as they can: the paper's are spent after 20 epochs.
    """
    options = {"step_epochs": min(5, max(1, epochs // 3)), "gamma": 0.1}
    return start(epochs, optimizer="adam", lr=0.01, schedule="step", schedule_options=options)


@experiment(
    "mnist-phases",
    title="MNIST: the phases from 25,144 parameters down to 1,560",
    source="Ethiraj and Bolla 2022; networks, recipe and numbers confirmed from the authors' code and logs",
)
def mnist_phases(size: Size) -> tuple[Row, ...]:
    """Return one row per published network."""
    recipe = plain_recipe(_EPOCHS[size])
    return tuple(
        Row(
            name,
            f"zoo:mnist-{name}",
            "mnist",
            recipe,
            seeds_of(size, 3 if size == "full" else 1),
            paper={"accuracy": last, "best_epoch": best, "epochs": epochs},
            note=f"the paper's best test epoch: {best:.2%}",
        )
        for name, best, last, epochs in _PHASES
    )
