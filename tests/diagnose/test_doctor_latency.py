"""Why a network is not faster: what a scripted profile shows, and what runtimes tell of a small network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from convwright.architecture import Architecture, read
from convwright.cost import Spread
from convwright.cost.latency_surface import LatencySurface
from convwright.cost.runtimes import Target
from convwright.diagnose.latency import UNOWNED, Roof, WidthStep, explained, layer_times, roofline, told, why_not_faster
from convwright.errors import BudgetError, ConvwrightError
from convwright.plots import plotted

WEIGHTS = ("0.weight", "2.weight", "4.weight", "8.weight")
PROFILE = dict(zip((*WEIGHTS, ""), (2e-3, 5e-3, 1e-3, 1e-3, 1e-3), strict=True))


@pytest.fixture(scope="module")
def arch() -> Architecture:
    layers = nn.Conv2d(3, 58, 3, padding=1), nn.ReLU(), nn.Conv2d(58, 58, 3, padding=1, groups=58), nn.ReLU()
    head = nn.Conv2d(58, 32, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)
    return read(nn.Sequential(*layers, *head), "3x16x16")


@pytest.fixture
def surface() -> LatencySurface:
    """The first layer's time is fixed, the third one's goes with the product of its widths."""
    layers = np.zeros((4, 8))
    layers[0, 4] = layers[1, 6] = layers[2, 5] = layers[3, 1] = 1e-3
    present, varies = np.array([[58, 3], [58, 1], [32, 58], [4, 32]]), np.array([[1, 0], [1, 0], [1, 1], [0, 1]]) > 0
    return LatencySurface(WEIGHTS, present, varies, 4, 1, layers, np.zeros(3), np.ones(4))


def test_a_profile_divides_the_measured_time_and_is_sorted_by_it(arch: Architecture) -> None:
    layers = layer_times(arch, Target("eager"), PROFILE, 20e-3)
    assert [one.name for one in layers] == ["2", "0", "4", "8", UNOWNED]
    assert sum(one.seconds for one in layers) == pytest.approx(20e-3)
    first = layers[1]
    assert (first.kind, first.widths, first.macs) == ("conv", (3, 58), 27 * 58 * 256)
    assert first.bytes == 4 * (3 * 256 + 58 * 256 + 28 * 58)
    assert sum(one.macs for one in layers) == arch.profile().macs
    many = layer_times(arch, Target("eager", batch=4), PROFILE, 20e-3)
    assert many[1].macs == 4 * first.macs
    assert many[1].bytes < 4 * first.bytes  # the weights are moved once


def test_reasons_follow_from_the_roof_and_the_estimate(arch: Architecture, surface: LatencySurface) -> None:
    layers = layer_times(arch, Target("eager"), PROFILE, 10e-3)
    rates = {one.name: one.rate for one in layers}
    roof = Roof(1.5 * rates["0"], "", 1e12, "")
    why = {one.name: one.why for one in explained(layers, roof, surface)}
    assert why["0"] == {
        "arithmetic": "arithmetic",
        "fixed": "100% fixed",
        "no multiple": "58 channels: no multiple of 4",
    }
    assert why["2"] == {"depthwise": "depthwise", "no multiple": "58 channels: no multiple of 4"}
    assert why["8"] == {"below the roof": "below the roof"}
    assert UNOWNED in why[UNOWNED]
    linear = layers[3]
    slow = Roof(1e12, "", linear.bytes / linear.seconds, "")
    assert "memory bound" in next(one for one in explained(layers, slow, None) if one.name == "8").why


def test_half_the_widths_leave_what_the_estimate_says(arch: Architecture, surface: LatencySurface) -> None:
    layers = layer_times(arch, Target("eager"), PROFILE, 10e-3)
    found = {one.name: one for one in explained(layers, Roof(1e12, "", 1e12, ""), surface)}
    assert found["0"].fixed == 1
    assert (found["8"].fixed, found["8"].halved) == (0, 0.5)  # its outputs are the classes, which stay
    assert found[UNOWNED].halved is None


def test_an_edit_that_saves_no_more_than_noise_says_so() -> None:
    step = WidthStep("conv", 128, 112, 0.21e-3, 0.04, 0.009)
    assert str(step) == "conv: 128 -> 112 saves 210us (4.0%), takes 0.9% of the channels"
    measured = replace(step, measured=Spread(0.03, 0.02, 0.04, 9), noise=0.01)
    assert str(measured).endswith("measured 3.0% (2.0% to 4.0%)")
    assert "opened again (5.0%)" in str(replace(measured, noise=0.05))
    assert "adds 0.02% of" in str(replace(step, channels=-0.0002))


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime"])
def test_a_small_network_on_a_runtime(
    runtime: str, arch: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if runtime == "onnxruntime":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    monkeypatch.setenv("CONVWRIGHT_CACHE", str(tmp_path))
    monkeypatch.setattr("convwright.cost.latency_designs.DESIGNS", 4)
    monkeypatch.setattr("convwright.cost.latency_designs._SECONDS", 0.02)
    found = why_not_faster(arch, runtime, lambda text: None)
    assert {one.name for one in found.layers} == {"0", "2", "4", "8", UNOWNED}
    assert sum(one.seconds for one in found.layers) == pytest.approx(found.whole.median)
    assert [one.seconds for one in found.layers[:-1]] == sorted((o.seconds for o in found.layers[:-1]), reverse=True)
    assert found.halved is not None
    assert all(step.measured is not None for step in found.edits[:2])
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["whole"]["backend"] == runtime
    assert len(list(told(found))) >= 3
    assert len(plotted(roofline(found))["layers"]) == 4


def test_what_is_no_runtime_or_tells_no_times_is_refused(arch: Architecture) -> None:
    with pytest.raises(BudgetError, match="'openvinno' is no runtime"):
        why_not_faster(arch, "openvinno")
    with pytest.raises(ConvwrightError, match="command needs --device-command"):
        why_not_faster(arch, "command")
