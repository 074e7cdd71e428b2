"""What a network is made of and costs, as plain values."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from convwright.cost import count_by_torch, feasible_range, profile

if TYPE_CHECKING:
    from convwright.architecture import Architecture
    from convwright.cost import LayerLatencies


def as_dict(arch: Architecture, latencies: LayerLatencies | None = None) -> dict[str, Any]:
    """Return the whole analysis as JSON values.

    Args:
        arch: The network; its costs are per sample.
        latencies: What was measured of it, if anything; in seconds.
    """
    seconds = {} if latencies is None else {"latency": latencies.as_dict()}
    costs = profile(arch)
    layers = {layer.name: layer for layer in arch.layers}
    return {
        "model": arch.source,
        "input_shape": list(arch.example_input.shape[1:]),
        "macs": costs.macs,
        "macs_by_torch": count_by_torch(arch.model, arch.example_input),
        "params": costs.params,
        "activation_bytes": costs.activation_bytes,
        "weight_bytes": costs.weight_bytes,
        "complete": costs.complete,
        "uncounted": list(costs.uncounted),
        **seconds,
        "feasible": {metric: list(ends) for metric, ends in feasible_range(arch).items()},
        "by_kind": {kind: asdict(cost) for kind, cost in costs.by_kind.items()},
        "layers": [
            {**asdict(cost), "shape": list(layers[cost.name].output_shape), "groups": list(layers[cost.name].groups)}
            for cost in costs.layers
        ],
        "groups": [
            {
                "name": group.name,
                "size": group.size,
                "step": group.step,
                "frozen": group.frozen,
                "reason": group.reason,
                "tied": list(group.tied),
                "layers": list(group.layers),
            }
            for group in arch.groups
        ],
        "stages": [asdict(stage) for stage in arch.stages],
    }
