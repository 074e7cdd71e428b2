"""Networks that a latency surface is fitted to: drawn widths, run on the runtime without a new export for each."""

from __future__ import annotations

import hashlib
import importlib
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from convwright.architecture import Architecture
from convwright.architecture.labels import ResizeError
from convwright.cost.cost_model import CostModel
from convwright.cost.forms import Basis, Form, FormMaker
from convwright.cost.latency import in_turns, spread, wall_timer
from convwright.cost.latency_surface import Profiled, Surface, fit
from convwright.cost.latency_table import cache_folder, fingerprint, keep_text
from convwright.cost.runtimes import Program, Target, runtime_named
from convwright.cost.runtimes.onnx_files import OnnxFileRuntime, exported_onnx, resized
from convwright.errors import BudgetError, ConvwrightError

Ints = npt.NDArray[np.int64]

DESIGNS = 32
_SECONDS = 0.4  # of profiling, and of measuring in turns, per network
_FORMAT, _VERSION = "convwright latency surface", 1


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
        units = (table // self._costs.steps)[None]
        found: Ints = (self._basis.variables(units) @ self._rows).reshape(-1, 2)
        return found


def surface_of(arch: Architecture, target: Target, folder: Path | None = None) -> Surface | None:
    """Return the surface of a network on a target, measured once per machine.

    Args:
        arch: the network, on the CPU.
        target: a runtime that runs ONNX files.
        folder: of the cache; `cache_folder` when not given.

    Returns:
        None: the runtime does not tell the times of layers, or no layer has a weight of its own.

    Raises:
        ConvwrightError: the network cannot be exported, or does not run.
    """
    runtime = runtime_named(target.runtime)
    layers = LayerWidths.of(arch)
    if not isinstance(runtime, OnnxFileRuntime) or not layers.weights or not arch.free_groups:
        return None
    content = exported_onnx(arch.source, arch.model.eval(), target.inputs(arch.inputs))
    machine = {**fingerprint(arch.example_input.device), "runtime": runtime.version, "target": str(target)}
    path = (folder or cache_folder()) / f"surface-{_digest(content, machine)}.json"
    if (known := _kept(path, machine)) is not None:
        return known
    found = _Measuring(arch, target, runtime, layers, content).run()
    if found is not None:
        _keep(path, machine, found)
    return found


@dataclass(frozen=True, eq=False)
class _Measuring:
    arch: Architecture
    target: Target
    runtime: OnnxFileRuntime
    layers: LayerWidths
    content: bytes

    def run(self) -> Surface | None:
        inputs = self.target.inputs(self.arch.inputs)
        base = self.runtime.opened(self.arch.source, self.content, inputs, self.target)
        found = []
        for widths in ({}, *drawn(self.arch, DESIGNS)):
            made = base if not widths else self._made(widths, inputs)
            profile = made.profile(self._runs(base)) if made is not None else {}
            if made is None or not any(profile.get(name) for name in self.layers.weights):
                continue
            seconds = np.array([*(profile.get(name, 0.0) for name in self.layers.weights), 0.0])
            seconds[-1] = sum(profile.values()) - seconds.sum()
            found.append(Profiled(self.layers.lengths(widths), np.maximum(seconds, 1e-9), self._ratio(base, made)))
        enough = len(found) > DESIGNS // 2
        return fit(self.layers.weights, self.layers.varies, found) if enough else None

    def _made(self, widths: Mapping[str, int], inputs: Any) -> Program | None:
        shapes = new_shapes(self.arch, widths)
        content = None if shapes is None else resized(self.content, shapes)
        try:
            return None if content is None else self.runtime.opened(self.arch.source, content, inputs, self.target)
        except ConvwrightError:  # what was resized does not fit together: left out
            return None

    def _ratio(self, base: Program, made: Program) -> float:
        timer = wall_timer(self.arch.example_input.device)
        takes = {"base": partial(base.time, 1, timer), "made": partial(made.time, 1, timer)}
        for take in takes.values():
            take()
        times = in_turns(takes, _SECONDS, 30)
        return spread([b / a for a, b in zip(times["base"], times["made"], strict=True)]).median

    def _runs(self, base: Program) -> int:
        start = time.perf_counter()
        base.run()
        return int(min(15, max(3, _SECONDS / max(time.perf_counter() - start, 1e-6))))


def drawn(arch: Architecture, count: int) -> list[dict[str, int]]:
    """Draw widths, from a fifth of the present ones on: multiples of 16, 8 or 1, all of one kind or mixed."""
    draw, found = random.Random(0), []
    model = CostModel.of(arch)
    for number in range(count):
        multiple, least = (16, 8, 1, 0)[number % 4], draw.choice((0.2, 0.4, 0.6))
        widths = {}
        for group in arch.free_groups:
            own = multiple or draw.choice((16, 8, 1))
            own = own if own % group.step == 0 else group.step
            wanted = round(group.size * draw.uniform(least, 1) / own) * own
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


def _digest(content: bytes, machine: Mapping[str, Any]) -> str:
    """Return a name for the structure of an ONNX file on a machine; weights do not matter."""
    graph = importlib.import_module("onnx").load_from_string(content).graph
    nodes = [(n.op_type, *n.input, *n.output, *(a.SerializeToString() for a in n.attribute)) for n in graph.node]
    sizes = [(each.name, *each.dims) for each in graph.initializer]
    said = repr((nodes, sizes, [i.SerializeToString() for i in graph.input], sorted(machine.items())))
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _kept(path: Path, machine: Mapping[str, Any]) -> Surface | None:
    """Read a surface; a file that is missing, damaged or of another machine holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        fits = (content["format"], content["version"], content["machine"]) == (_FORMAT, _VERSION, dict(machine))
        return Surface.from_dict(content["surface"]) if fits else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(path: Path, machine: Mapping[str, Any], surface: Surface) -> None:
    content = {"format": _FORMAT, "version": _VERSION, "machine": dict(machine), "surface": surface.as_dict()}
    keep_text(path, json.dumps(content) + "\n")
