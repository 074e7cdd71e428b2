"""Cycles of the learning rate: up once and down once, or straight up and down several times."""

from __future__ import annotations

from convwright.training.techniques.technique import Card, field_technique

field_technique(
    "one_cycle",
    Card(
        does="The learning rate rises along a cosine from a 25th of `lr` to `lr` for the share `warmup` of all steps, "
        "then falls almost to zero. schedule_options: {cycle_momentum: true} moves the momentum the other way.",
        cost="None.",
        helps="Trainings of few epochs: a high rate is survived, and the end is calm.",
        hurts="`lr` is the peak and has to be higher than a constant rate. Stepped per epoch instead of per batch, as "
        "in the paper's code, it does almost nothing. Excludes other schedules.",
        source="Smith and Topin 2018; equals torch.optim.lr_scheduler.OneCycleLR.",
    ),
    {"schedule": "onecycle", "schedule_options": {}, "warmup": 0.3},
    {"schedule": "cosine", "schedule_options": {}, "warmup": 0.0},
)

field_technique(
    "cyclical",
    Card(
        does="The learning rate goes straight up from the share `low` of `lr` to `lr` and down again, `cycles` times.",
        cost="None.",
        helps="Where the best rate is not known: every cycle passes it twice.",
        hurts="The rate ends at `low`, not near zero, so the end is less calm than that of one cycle or a cosine. The "
        "paper's abstract names it, its code runs one cycle. Excludes other schedules.",
        source="Smith 2017; equals torch.optim.lr_scheduler.CyclicLR, mode triangular.",
    ),
    {"schedule": "triangular", "schedule_options": {"cycles": 4, "low": 0.1}},
    {"schedule": "cosine", "schedule_options": {}, "warmup": 0.0},
)
