"""The papers' tables as data: what to train, and what the paper reports."""

from convwright.experiments.papers import (
    cifar_small,
    conetv2,
    conetv2_rank,
    conetv2_transfer,
    conflicts_boundary,
    conflicts_good,
    conflicts_lesion,
    conflicts_tune,
    field_rank,
    greedy,
    greedy_rank,
    mnist_phases,
    mnist_small,
    receptive_field,
    technique_tables,
)
from convwright.experiments.papers.baselines import rows as rivals
from convwright.experiments.papers.compress import rows as compress
from convwright.experiments.row import (
    EXPERIMENTS,
    SIZES,
    Conclusion,
    Experiment,
    Row,
    Size,
    experiment_named,
)

__all__ = [
    "EXPERIMENTS",
    "SIZES",
    "Conclusion",
    "Experiment",
    "Row",
    "Size",
    "cifar_small",
    "compress",
    "conetv2",
    "conetv2_rank",
    "conetv2_transfer",
    "conflicts_boundary",
    "conflicts_good",
    "conflicts_lesion",
    "conflicts_tune",
    "experiment_named",
    "field_rank",
    "greedy",
    "greedy_rank",
    "mnist_phases",
    "mnist_small",
    "receptive_field",
    "rivals",
    "technique_tables",
]
