"""One cycle: the learning rate goes up once and down once."""

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
