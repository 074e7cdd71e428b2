"""How long a row's network takes in the runtimes that networks are deployed with, beside the untouched one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from convwright.architecture import create
from convwright.cost import compare_latency
from convwright.cost.runtimes import Target, runtime_named

if TYPE_CHECKING:
    from torch import nn

    from convwright.training import ImageData, Recipe

RUNTIMES = {"ONNX Runtime": Target("onnxruntime", threads=1), "OpenVINO": Target("openvino", threads=1)}


@dataclass(frozen=True)
class RuntimeStudy:
    """The latency of a row's network in ONNX Runtime and OpenVINO, measured in turns with that of the untouched one.

    One image, one thread, float32; each network works on images of its own resolution.

    Attributes:
        model: The untouched network, as for `create`.
        options: Of its builder.
        shape: (c, h, w) of its images.
        seconds: How long is measured.
    """

    kind: ClassVar[str] = "runtimes"

    model: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    shape: tuple[int, int, int] = (3, 32, 32)
    seconds: float = 8.0

    def carry_out(self, model: nn.Module, data: ImageData, recipe: Recipe, found: Mapping[str, Any]) -> Any:
        """Return per runtime ``own`` and ``untouched`` in seconds and ``ratio``, each with its 95 % interval.

        Raises:
            ConvwrightError: A runtime is not installed.
        """
        for target in RUNTIMES.values():
            runtime_named(target.runtime).check(target)
        untouched, _, _ = create(self.model, **self.options)
        return beside(untouched, self.shape, copy.deepcopy(model), data.shape, self.seconds)


def beside(
    untouched: nn.Module,
    shape: tuple[int, ...],
    own: nn.Module,
    own_shape: tuple[int, ...],
    seconds: float,
    runtimes: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what `RuntimeStudy` returns, of two networks on the CPU."""
    chosen = runtimes or tuple(RUNTIMES)
    both = {
        name: (network.float().cpu(), torch.rand(1, *size))
        for name, network, size in (("untouched", untouched, shape), ("own", own, own_shape))
    }
    found = {}
    for name in chosen:
        turns = compare_latency(both, backend=RUNTIMES[name], repeats=1000, seconds=seconds / len(chosen))
        spreads = {**turns.latencies, "ratio": turns.ratios["own"]}
        found[name] = {
            key: {part: asdict(each)[part] for part in ("median", "lower", "upper", "repeats")}
            for key, each in spreads.items()
        }
    return found
