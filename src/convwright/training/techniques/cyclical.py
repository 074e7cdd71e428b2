"""Cyclical learning rate: straight up and down, several times."""

from __future__ import annotations

from convwright.training.techniques.technique import Card, field_technique

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
