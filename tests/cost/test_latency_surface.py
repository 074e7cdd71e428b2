"""Surfaces: what made-up kernels take is found again, for any widths, and what is drawn fits the real network."""

import numpy as np
import pytest
import torch
from torch import nn

from convwright.architecture import read
from convwright.cost import LatencyModel
from convwright.cost.latency import Latency
from convwright.cost.latency_designs import LayerWidths, drawn, new_shapes, surface_for, surface_of
from convwright.cost.latency_surface import LatencySurface, Profiled, fit
from convwright.cost.runtimes import RunnableProgram, Target
from convwright.cost.runtimes.onnx_files import exported_onnx, resized
from convwright.edits import RemoveBlock, Width

WHOLE = Latency(1e-3, 1e-3, 1e-3, 6, 1, "cpu", "float32", "onnxruntime")


@pytest.fixture(scope="module")
def arch():
    return read("zoo:resnet20", "1x3x13x13", depths=(1, 1, 1))


def built(arch, widths):
    return arch.apply(*(Width(n, s) for n, s in widths.items() if arch.channels.group(n).size != s), verify=False)


def kernels(lengths, step, block):
    """What made-up kernels take: blocks that are padded, a slow path for widths that are no multiples of a step."""
    out, into = -(-lengths // block) * block if block > 1 else lengths, lengths
    slow = (lengths % step > 0).any(axis=1)
    padded = 1e-9 * out[:, 0] * out[:, 1]
    return np.where(slow, 5e-9 * into[:, 0] * into[:, 1], padded) + 1e-7


def profiled(layers, widths, step, block, base):
    lengths = layers.lengths(widths)
    seconds = np.append(kernels(lengths, step, block), 1e-6)
    return Profiled(lengths, seconds, seconds.sum() / base)


@pytest.mark.parametrize(("step", "block"), [(4, 16), (1, 8), (8, 1)])
def test_the_step_and_the_times_of_made_up_kernels_are_found(arch, step, block):
    layers = LayerWidths.of(arch)
    varies = layers.varies
    base = np.append(kernels(layers.present * 1, step, block), 1e-6).sum()
    found = [profiled(layers, widths, step, block, base) for widths in ({}, *drawn(arch, 48))]
    surface = fit(layers.weights, varies, found)
    fresh = [profiled(layers, widths, step, block, base) for widths in drawn(arch, 20, seed=7)]
    errors = surface.ratio(np.stack([each.lengths for each in fresh])) / [each.ratio for each in fresh] - 1
    assert np.median(np.abs(errors)) < 0.03
    assert surface.error < 0.05
    assert step == 1 or surface.step > 1


@pytest.mark.parametrize("name", ["zoo:resnet20", "torchvision:mobilenet_v3_small", "torchvision:shufflenet_v2_x0_5"])
def test_lengths_are_those_of_the_network_with_other_widths(name):
    arch = read(name, "1x3x32x32")
    layers = LayerWidths.of(arch)
    table = [{}, *drawn(arch, 5)]
    for widths in table:
        state = built(arch, widths).model.state_dict()
        assert layers.lengths(widths).tolist() == [list(state[weight].shape[:2]) for weight in layers.weights]
    sizes = np.array([[each.get(g.name, g.size) for g in arch.free_groups] for each in table])
    assert (layers.lengths_of(sizes) == np.stack([layers.lengths(each) for each in table])).all()


@pytest.mark.parametrize("name", ["zoo:resnet20", pytest.param("torchvision:mobilenet_v2", marks=pytest.mark.breadth)])
def test_a_resized_file_has_the_shapes_of_an_exported_one(name):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    arch = read(name, "1x3x32x32")
    content = exported_onnx(name, arch.model.eval(), arch.inputs)
    for widths in drawn(arch, 2):
        shapes = new_shapes(arch, widths)
        graphs = (resized(content, shapes), exported_onnx(name, built(arch, widths).model.eval(), arch.inputs))
        one, two = (
            {
                each.name: tuple(each.dims)
                for each in onnx.load_from_string(graph).graph.initializer
                if len(each.dims) > 1
            }
            for graph in graphs
        )
        assert one == two


class Scripted(RunnableProgram):
    """A program whose layers take what made-up kernels do."""

    def __init__(self, model):
        self.state = {name: tensor for name, tensor in model.state_dict().items() if tensor.ndim > 1}

    def run(self):
        return None

    def outputs(self, *tensors):
        raise NotImplementedError

    def profile(self, runs=15):
        lengths = np.array([tuple(each.shape[:2]) for each in self.state.values()])
        return dict(zip(self.state, kernels(lengths, 4, 8), strict=True)) | {"": 1e-6}

    def time(self, calls, timer):
        return sum(self.profile().values())


@pytest.fixture
def scripted(monkeypatch):
    made = []

    def program(name, model, inputs, target):
        made.append(name)
        return Scripted(model)

    monkeypatch.setattr("convwright.cost.latency_designs.program", program)
    return made


def test_a_surface_is_measured_once_and_kept(arch, scripted, tmp_path):
    target = Target.of("eager")
    first = surface_of(arch, target, lambda widths: built(arch, widths), tmp_path)
    assert len(scripted) > 30
    assert first.error < 0.05
    scripted.clear()
    again = surface_of(arch, target, lambda widths: built(arch, widths), tmp_path)
    assert scripted == []
    lengths = np.stack([LayerWidths.of(arch).lengths(widths) for widths in drawn(arch, 9)])
    assert again.ratio(lengths) == pytest.approx(first.ratio(lengths))
    assert surface_of(arch, Target.of("eager,threads=7"), lambda widths: built(arch, widths), tmp_path) is not None
    assert scripted  # another target


def test_a_damaged_cache_is_measured_again(arch, scripted, tmp_path):
    surface_of(arch, Target.of("eager"), lambda widths: built(arch, widths), tmp_path)
    (file,) = tmp_path.glob("surface-*.json")
    file.write_text("{")
    scripted.clear()
    assert surface_of(arch, Target.of("eager"), lambda widths: built(arch, widths), tmp_path) is not None
    assert scripted


def test_a_network_without_weights_or_profile_has_no_surface(arch, monkeypatch, tmp_path):
    monkeypatch.setattr(Scripted, "profile", lambda self, runs=15: {})
    monkeypatch.setattr("convwright.cost.latency_designs.program", lambda name, model, *_: Scripted(model))
    assert surface_of(arch, Target.of("eager"), lambda widths: built(arch, widths), tmp_path) is None
    plain = read(nn.Sequential(nn.ReLU(), nn.AvgPool2d(2)), torch.zeros(1, 3, 8, 8))
    assert surface_of(plain, Target.of("eager"), lambda widths: plain, tmp_path) is None


def test_a_model_asks_the_surface_for_one_or_many_widths(arch, scripted, tmp_path):
    surface = surface_of(arch, Target.of("eager"), lambda widths: built(arch, widths), tmp_path)
    model = LatencyModel.of(arch, whole=WHOLE, surface=surface).calibrated(0.9, 1e-5)
    table = drawn(arch, 7)
    sizes = np.array([[each.get(g.name, g.size) for g in arch.free_groups] for each in table])
    assert model.many(sizes) == pytest.approx([model.nanoseconds(each) for each in table], abs=1)
    assert [model(each) for each in table] == [model.nanoseconds(each) for each in table]
    assert LatencySurface.from_dict(surface.as_dict()).as_dict() == surface.as_dict()


def test_fewer_blocks_or_smaller_images_take_less(arch, scripted, tmp_path):
    deep = read("zoo:resnet20", "1x3x16x16")
    surface = surface_of(deep, Target.of("eager"), lambda widths: built(deep, widths), tmp_path)
    model = LatencyModel.of(deep, whole=WHOLE, surface=surface)
    fewer, smaller = deep.apply(RemoveBlock("layer1.1"), verify=False), read(deep.model, torch.zeros(1, 3, 8, 8))
    assert model.nanoseconds_of(fewer) < model.nanoseconds_of(deep) == 1_000_000
    own = surface_for(surface, deep, smaller)
    assert 0.2 < own.ratio(own.present[None])[0] / surface.ratio(surface.present[None])[0] < 0.5
    assert model.of_network(fewer).nanoseconds({}) == pytest.approx(model.nanoseconds_of(fewer), rel=0.01)
