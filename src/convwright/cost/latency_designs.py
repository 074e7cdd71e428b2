"""Networks that a latency surface is fitted to: drawn widths, run on the runtime without a new export for each."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from convwright.architecture import Architecture
from convwright.architecture.labels import ResizeError
from convwright.cost.cost_model import CostModel
from convwright.cost.deployed import reparametrised
from convwright.cost.forms import Basis, Form, FormMaker
from convwright.cost.latency import in_turns, wall_timer
from convwright.cost.latency_operators import operator_calls
from convwright.cost.latency_surface import LatencySurface, Profiled, fit
from convwright.cost.latency_table import cache_folder, fingerprint, keep_text
from convwright.cost.runtimes import RunnableProgram, Target, program, runtime_named
from convwright.cost.runtimes.onnx_files import OnnxFileRuntime, exported_onnx, resized
from convwright.errors import BudgetError, ConvwrightError

Ints = npt.NDArray[np.int64]

DESIGNS = 32
_SECONDS = 0.4  # of profiling, and of measuring in turns, per network
_KINDS = (16, 8, 4, 1, 0)  # what drawn widths are multiples of; 0: each of another number
_FAST, _SLOW = 0.005, 0.05  # seconds of one run: below more networks are measured, above fewer
_FORMAT, _VERSION = "convwright latency surface", 3


@dataclass(frozen=True, eq=False)
class LayerWidths:
    """The first two axes of the weights of convolutions and linear layers, as functions of the widths.

    Attributes:
        weights: names, in execution order.
        present: their lengths now, shape (layers, 2).
        varies: which change with the widths, shape (layers, 2).
    """

    weights: tuple[str, ...]
    present: Ints
    varies: npt.NDArray[np.bool_]
    _basis: Basis
    _rows: Ints
    _costs: CostModel

    @classmethod
    def of(cls, arch: Architecture) -> LayerWidths:
        """Read them off a network."""
        state, sizes = arch.model.state_dict(keep_vars=True), FormMaker(arch.channels)
        named = [name for layer in arch.layers if layer.kind in ("conv", "linear") for name in layer.parameters[:1]]
        weights = tuple(name for name in dict.fromkeys(named) if name in state and state[name].ndim > 1)
        forms = [[sizes.parameter_axis(name, axis, state[name].shape[axis]) for axis in (0, 1)] for name in weights]
        flat: list[Form] = [form for pair in forms for form in pair]
        basis = Basis(sizes.units, [(form,) for form in flat if form.shares])
        rows = np.stack([basis.row(form) for form in flat], axis=1) if flat else np.zeros((basis.size, 0), np.int64)
        present = np.array([tuple(state[name].shape[:2]) for name in weights], dtype=np.int64).reshape(-1, 2)
        varies = np.array([bool(form.shares) for form in flat]).reshape(-1, 2)
        return cls(weights, present, varies, basis, rows, CostModel.of(arch))

    def lengths(self, widths: Mapping[str, int]) -> Ints:
        """Return them for widths, shape (layers, 2)."""
        table = np.array([widths.get(n, s) for n, s in zip(self._costs.groups, self._costs.sizes, strict=True)])
        found: Ints = self.lengths_of(table[None])[0]
        return found

    def lengths_of(self, table: Ints) -> Ints:
        """Return them for many widths, in the cost model's order: shape (n, groups) -> (n, layers, 2)."""
        found: Ints = (self._basis.variables(table // self._costs.steps) @ self._rows).reshape(len(table), -1, 2)
        return found


Build = Callable[[Mapping[str, int]], Architecture]  # widths of free groups -> the network with these


def surface_of(arch: Architecture, target: Target, build: Build, folder: Path | None = None) -> LatencySurface | None:
    """Return the surface of a network on a target, measured once per machine.

    Args:
        arch: the network.
        target: what runs it.
        build: makes a network of other widths, where its ONNX file cannot simply get other weights.
        folder: of the cache; `cache_folder` when not given.

    Returns:
        None: the runtime does not tell the times of layers, or no layer has a weight of its own.

    Raises:
        ConvwrightError: the network cannot be exported, or does not run.
    """
    runtime, layers = runtime_named(target.runtime), LayerWidths.of(arch)
    if not layers.weights or not arch.free_groups:
        return None
    machine = {**fingerprint(arch.example_input.device), "runtime": runtime.version, "target": str(target)}
    said = repr((layers.weights, [call.key for call in operator_calls(arch)], sorted(machine.items())))
    path = (folder or cache_folder()) / f"surface-{hashlib.sha256(said.encode()).hexdigest()[:16]}.json"
    if (known := _kept(path, machine)) is not None:
        return known
    inputs, content = target.inputs(arch.inputs), b""
    if isinstance(runtime, OnnxFileRuntime):
        content = exported_onnx(
            arch.source, reparametrised(copy.deepcopy(arch.model).eval(), arch.inputs).model, inputs
        )
        base = runtime.opened(arch.source, content, inputs, target)
    else:
        base = program(arch.source, arch.model, arch.inputs, target)
    found = _Measuring(arch, target, layers, build, base, content).run()
    if found is not None:
        _keep(path, machine, found)
    return found


def surface_for(surface: LatencySurface, arch: Architecture, network: Architecture) -> LatencySurface:
    """Return the surface of another network that has some of the layers, perhaps for images of another size.

    A layer's time goes with its MACs for each pair of channels. What has no MACs goes with the network's positions.

    Args:
        surface: of `arch`.
        arch: the network that was measured.
        network: with fewer blocks, other kernels or other images.
    """
    before, after = LayerWidths.of(arch), LayerWidths.of(network)
    work = [_work(each, layers) for each, layers in ((arch, before), (network, after))]
    scale = np.array([work[1][name] / work[0].get(name, work[1][name]) for name in after.weights])
    return surface.for_weights(after.weights, after.present, scale)


def _work(arch: Architecture, layers: LayerWidths) -> dict[str, float]:
    """Return the MACs of each weight for each pair of its channels."""
    macs = {cost.name: cost.macs for cost in arch.profile().layers}
    owners = {layer.parameters[0]: layer.name for layer in arch.layers if layer.parameters}
    pairs = dict(zip(layers.weights, layers.present.prod(axis=1), strict=True))
    return {name: max(1.0, macs.get(owners[name], 0) / max(1, size)) for name, size in pairs.items()}


@dataclass(frozen=True, eq=False)
class _Measuring:
    arch: Architecture
    target: Target
    layers: LayerWidths
    build: Build
    base: RunnableProgram
    content: bytes  # of its ONNX file; empty: the runtime runs none

    def run(self) -> LatencySurface | None:
        owned = self._owned(self.base.profile(1))
        if not any(owned[name] for name in self.layers.weights):
            return None
        once = self._once()
        count = 2 * DESIGNS if once < _FAST else DESIGNS if once < _SLOW else DESIGNS // 2
        if self.content and not self._resizes:
            count = DESIGNS // 2
        found = [self._profiled({}, self.base, self._runs(once))]
        for widths in drawn(self.arch, count):
            with suppress(ConvwrightError):  # these widths do not fit together: left out
                found.append(self._profiled(widths, self._made(widths), self._runs(once)))
        return fit(self.layers.weights, self.layers.varies, found) if len(found) > count // 2 else None

    @cached_property
    def _resizes(self) -> bool:
        """Whether the ONNX file can get other weights: tried on widths that are drawn."""
        shapes = [new_shapes(self.arch, widths) for widths in drawn(self.arch, 1)]
        return all(each is not None and resized(self.content, each) is not None for each in shapes)

    def _made(self, widths: Mapping[str, int]) -> RunnableProgram:
        runtime = runtime_named(self.target.runtime)
        if self.content and self._resizes and isinstance(runtime, OnnxFileRuntime):
            shapes = new_shapes(self.arch, widths)
            content = None if shapes is None else resized(self.content, shapes)
            if content is None:
                raise ConvwrightError("its ONNX file does not follow these widths")
            return runtime.opened(self.arch.source, content, self.target.inputs(self.arch.inputs), self.target)
        made = self.build(widths)
        return program(self.arch.source, made.model, made.inputs, self.target)

    def _profiled(self, widths: Mapping[str, int], made: RunnableProgram, runs: int) -> Profiled:
        profile = self._owned(made.profile(runs))
        seconds = np.array([profile[name] for name in (*self.layers.weights, "")])
        ratio = self._ratio(made) if widths else 1.0
        return Profiled(self.layers.lengths(widths), np.maximum(seconds, 1e-9), ratio)

    def _owned(self, profile: Mapping[str, float]) -> dict[str, float]:
        """Return the seconds by weight; of a merged block they go to one of the weights that it was made of."""
        found = dict.fromkeys([*self.layers.weights, ""], 0.0)
        for name, seconds in profile.items():
            block = name.rpartition(".")[0].rpartition(".")[0]
            parts = [weight for weight in self.layers.weights if block and weight.startswith(f"{block}.")]
            found[name if name in found else parts[-1] if parts else ""] += seconds
        return found

    def _ratio(self, made: RunnableProgram) -> float:
        timer = wall_timer(self.arch.example_input.device)
        takes = {"base": partial(self.base.time, 1, timer), "made": partial(made.time, 1, timer)}
        for take in takes.values():
            take()
        times = in_turns(takes, _SECONDS, 30)
        # Not the median of pairs: other work on the machine only adds time, for longer than these turns last.
        base, own = (float(np.quantile(times[name], 0.2)) for name in ("base", "made"))
        return own / base

    def _once(self) -> float:
        timer = wall_timer(self.arch.example_input.device)
        return min(self.base.time(1, timer) for _ in range(3))

    def _runs(self, once: float) -> int:
        return int(min(15, max(3, _SECONDS / max(once, 1e-6))))


def drawn(arch: Architecture, count: int, seed: int = 0) -> list[dict[str, int]]:
    """Draw widths, from a tenth of the present ones on: multiples of 16, 8, 4 or 1, all of one kind or mixed."""
    draw, found = random.Random(seed), []
    model = CostModel.of(arch)
    for number in range(count):
        multiple, least, most = (
            _KINDS[number % len(_KINDS)],
            draw.choice((0.2, 0.4, 0.6)),
            draw.choice((1, 1, 0.7, 0.45)),
        )
        widths = {}
        for group in arch.free_groups:
            own = multiple or draw.choice(_KINDS[:-1])
            own = own if own % group.step == 0 else group.step
            wanted = round(group.size * draw.uniform(least, 1) * most / own) * own
            widths[group.name] = min(group.size, max(min(own, group.size), wanted)) // group.step * group.step
        for group in arch.free_groups:  # tied groups keep their proportions
            for other in group.tied:
                if other in widths and group.name < other:
                    widths[group.name], widths[other] = group.size, arch.channels.group(other).size
        try:
            model.macs(widths)
        except BudgetError:
            continue
        found.append(widths)
    return found


def new_shapes(arch: Architecture, widths: Mapping[str, int]) -> dict[str, tuple[int, ...]] | None:
    """Return the shapes of all parameters and buffers under widths; None: they do not fit together."""
    sizes = FormMaker(arch.channels)
    state = arch.model.state_dict(keep_vars=True)
    forms = {name: sizes.parameter(name, tensor.shape) for name, tensor in state.items()}
    basis = Basis(sizes.units, [tuple(each for each in axes if each.shares) for axes in forms.values()])
    groups = arch.free_groups
    units = np.array([[widths.get(group.name, group.size) // group.step for group in groups]], dtype=np.int64)
    variables = basis.variables(units)
    try:
        return {name: tuple(int((variables @ basis.row(f))[0]) for f in axes) for name, axes in forms.items()}
    except ResizeError:
        return None


# ------------------------------------------------------------------ kept on disk


def _kept(path: Path, machine: Mapping[str, Any]) -> LatencySurface | None:
    """Read a surface; a file that is missing, damaged or of another machine holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        fits = (content["format"], content["version"], content["machine"]) == (_FORMAT, _VERSION, dict(machine))
        return LatencySurface.from_dict(content["surface"]) if fits else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(path: Path, machine: Mapping[str, Any], surface: LatencySurface) -> None:
    content = {"format": _FORMAT, "version": _VERSION, "machine": dict(machine), "surface": surface.as_dict()}
    keep_text(path, json.dumps(content) + "\n")
