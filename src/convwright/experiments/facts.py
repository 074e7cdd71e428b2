"""What is known of a network without training it: the numbers that could predict how well it will do."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from convwright.metrics.receptive_field.analysis import receptive_field
from convwright.metrics.receptive_field.size import Sight, StagePart

if TYPE_CHECKING:
    from convwright.architecture import Architecture

Facts = dict[str, float | int | None]


def facts(arch: Architecture) -> Facts:
    """Return the scores of a network, none of which looks at its weights.

    Args:
        arch: The network.

    Returns:
        ``q_sum`` and ``q_log``: the reconstructed score Q, the sum of its stages' shares and that of their logarithms
        (None where a stage sees nothing); ``q_positions``: their mean logarithm over positions; ``q_effective``: the
        sum, with fields counted by their effective width; ``depth``: the number of convolutions.
    """
    field = receptive_field(arch)
    stages = field.stages
    seeing = all(stage.share > 0 for stage in stages)
    judged = {stage.name for stage in stages}
    sight = Sight(effective=True)
    parts = [StagePart.of(arch, stage) for stage in arch.stages if stage.name in judged]
    return {
        "q_sum": field.score(),
        "q_log": field.score("log") if seeing else None,
        "q_positions": field.score("positions") if seeing else None,
        "q_effective": math.fsum(sight.share(part, part.walk()) for part in parts),
        "depth": sum(layer.kind == "conv" for layer in arch.layers),
    }
