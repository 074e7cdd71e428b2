"""What two networks are made of, as plain numbers, so that they can be drawn later without their code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convwright.architecture import Architecture, Layer
from convwright.cost import layer_latencies, profile
from convwright.metrics.receptive_field.analysis import receptive_field
from convwright.runs.latency import RunLatency

FILE = "networks.json"
FORMAT = "convwright networks"
_SHOWN = ("conv", "linear", "matmul", "attention")


def networks(before: Architecture, after: Architecture | None, latency: RunLatency | None = None) -> dict[str, Any]:
    """Return the content of ``networks.json``.

    Args:
        before: The untouched network.
        after: The result; None: there is none yet.
        latency: What a run measured of its operators; the layers then have times, too.

    Returns:
        Plain JSON values: ``before`` and ``after``, each as of `network_facts`.
    """
    sides = {"before": before, "after": after}
    facts = {name: None if arch is None else network_facts(arch, latency) for name, arch in sides.items()}
    return {"format": FORMAT, "version": 1, **facts}


def network_facts(arch: Architecture, latency: RunLatency | None = None) -> dict[str, Any]:
    """Return what a network is made of, as plain JSON values.

    Args:
        arch: The network.
        latency: Times of operators; those that are missing are measured.

    Returns:
        ``input`` (channels, rows, columns), ``stages`` (name and size), ``groups`` (name, size, whether frozen) and
        ``layers``, the operators with weights or MACs in execution order: output shape, kernel, stage, block, MACs and
        parameters per sample, channel groups, receptive field in pixels of the image, whether it sees nothing new, and
        seconds where they were measured.
    """
    timed = () if latency is None else layer_latencies(arch, latency.model.table, latency.model.whole).layers
    times = {layer.name: layer.median for layer in timed}
    fields = {layer.name: layer for layer in receptive_field(arch).layers}
    costs = {cost.name: cost for cost in profile(arch).layers}
    stages = {name: stage.name for stage in arch.stages for name in stage.layers}
    # The smallest block around each layer that is in one.
    around = sorted(arch.blocks, key=lambda block: -len(block.layers))
    blocks = {name: block.name for block in around for name in block.layers}
    shapes = {name: tuple(p.shape) for name, p in arch.model.named_parameters(remove_duplicate=False)}
    layers = []
    for layer in arch.layers:
        cost = costs[layer.name]
        if layer.kind not in _SHOWN and not cost.macs:
            continue
        field = fields.get(layer.name)
        layers.append(
            {
                "name": layer.name,
                "kind": layer.kind,
                "operator": layer.operator,
                "output": list(layer.output_shape[1:]),
                "kernel": _kernel(layer, shapes),
                "stage": stages.get(layer.name, ""),
                "block": blocks.get(layer.name, ""),
                "macs": cost.macs,
                "params": cost.params,
                "groups": list(layer.groups),
                "field": list(field.size) if field is not None and not field.overall else [],
                "nothing_new": field is not None and field.wasted,
                **({"seconds": times[layer.name]} if layer.name in times else {}),
            }
        )
    return {
        "source": arch.source,
        "input": list(arch.example_input.shape[1:]),
        "stages": [{"name": stage.name, "size": list(stage.size)} for stage in arch.stages],
        "groups": [{"name": g.name, "size": g.size, "frozen": g.frozen} for g in arch.groups],
        "layers": layers,
    }


def _kernel(layer: Layer, shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
    weights = [shapes[name] for name in layer.parameters if len(shapes.get(name, ())) > 2]
    return list(weights[0][2:]) if layer.kind == "conv" and weights else []
