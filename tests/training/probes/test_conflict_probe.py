"""The conflict probe: what it sees is what the network computes, counted exactly, and nothing is touched."""

import copy
import json
import math

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

import convwright as cw
from convwright.architecture import read
from convwright.errors import EditError, ReadError, RecipeError
from convwright.methods import Stop
from convwright.metrics import bundles, weight_amplitude
from convwright.training import train
from convwright.training.probes.base import PROBES, Moment, Watched
from convwright.training.probes.bundle_reading import _PART, find_points, read_bundles, variance
from convwright.training.probes.bundles import ConflictProbe, ConflictSettings, conflict_probe
from convwright.training.probes.taps import Tapped

QUIET = {"progress": False, "accelerator": "cpu"}
RATE, BATCH = 0.05, 7


class Functional(nn.Module):
    """A block whose addition, scale and activation are written in its forward."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.gamma = nn.Parameter(torch.full((width, 1, 1), 0.5))

    def forward(self, x):
        y = self.gamma * torch.relu(self.bn(self.conv(x)))
        y += x
        return F.relu(y)


class Modular(nn.Module):
    """A block of modules: one ReLU called twice, the addition in place."""

    def __init__(self, width):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x
        return self.relu(y)


def residual(kind=Modular, blocks=3, width=5, classes=3, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = [kind(width) for _ in range(blocks)]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]
        return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), *body, *head).eval()


def perceptron(width=4, depth=40, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(192 if n == 0 else width, width) for n in range(depth)]
        parts = [part for layer in layers for part in (layer, nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *parts, nn.Linear(width, 3)).eval()


def sample(count=23, seed=0, shape=(3, 8, 8)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=generator), torch.arange(count) % 3


def graph_values(arch, images):
    """Every value of the captured graph, computed by torch's own interpreter: the oracle."""
    arch = read(copy.deepcopy(arch.model), images)
    values = {}

    class Keep(fx.Interpreter):
        def run_node(self, node):
            result = super().run_node(node)
            values[node.name] = result.clone() if isinstance(result, torch.Tensor) else result
            return result

    capture = arch.capture
    given = [
        capture.tensor(capture.tensors[n.name]) if n.name in capture.tensors else images
        for n in capture.graph.nodes
        if n.op == "placeholder"
    ]
    with torch.no_grad():
        Keep(torch.nn.Module(), graph=capture.graph).run(*given)
    return arch, values


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# ------------------------------------------------------------------ the values


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", [Modular, Functional])
def test_taps_see_what_the_graph_computes_before_it_is_overwritten(kind):
    images, _ = sample(5)
    arch, values = graph_values(read(residual(kind), images[:1]), images)
    points = find_points(arch).points
    assert [(p.name, p.role) for p in points] == [(str(n), role) for n in (2, 3, 4) for role in ("branch", "output")]
    seen = {}
    with torch.no_grad(), Tapped(arch.model, [p.tap for p in points], lambda n, v: seen.update({n: v.clone()})) as run:
        run(images)
    for number, point in enumerate(points):
        assert torch.equal(seen[number], values[point.tap.node])
        assert point.role == "branch" or bool((seen[number] >= 0).all())  # after the activation
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in arch.model.modules())


@pytest.mark.parametrize(
    "name", ["zoo:resnet20", pytest.param("torchvision:resnet18", marks=pytest.mark.breadth), "timm:convnext_atto"]
)
def test_points_of_known_networks(name):
    shape = (3, 32, 32)
    torch.manual_seed(0)
    arch = read(name, shape)
    arch, values = graph_values(arch, torch.randn(2, *arch.example_input.shape[1:]))
    points = find_points(arch)
    assert set(points.own) == {block.name for block in arch.blocks}
    assert not points.skipped
    seen = {}
    taps = [p.tap for p in points.points]
    with torch.no_grad(), Tapped(arch.model.eval(), taps, lambda n, v: seen.update({n: v.clone()})) as run:
        run(arch.example_input)
    assert all(torch.equal(seen[n], values[tap.node]) for n, tap in enumerate(taps))


def test_a_value_can_be_replaced():
    model, (images, _) = residual(Functional), sample(5)
    points = find_points(read(model, images[:1])).points
    with torch.no_grad():
        taps = [p.tap for p in points if p.role == "branch"]
        with Tapped(model, taps, lambda _, value: torch.zeros_like(value)) as run:
            shown = run(images)
        assert torch.equal(shown, nn.Sequential(model[0], model[1], *model[5:])(images))


def test_a_network_that_runs_otherwise_than_it_was_read_is_named():
    model, (images, _) = residual(), sample(3)
    points = find_points(read(model, images[:1])).points
    model[3] = nn.Identity()
    model[3].bn2 = nn.BatchNorm2d(5)
    with (
        pytest.raises(ReadError, match=r"in 3\.bn2 appeared 0 times"),
        Tapped(model, [p.tap for p in points], lambda _, __: None) as run,
    ):
        run(images)


# ------------------------------------------------------------------ the bundles


def expected(arch, point, batches, values_of, scaled):
    """The bundles of whole rows, from the graph's own values."""
    rows, labels = [], []
    for (_, own), values in zip(batches, values_of, strict=True):
        nodes = {n.name: n for n in arch.capture.graph.nodes}
        value = values[point.tap.node].float()
        for name in point.norms if scaled else ():
            entered = nodes[arch.layer(name).node].args[0]
            value = value * float(1 / (values[entered.name].double().var(correction=0) + 1e-6).sqrt())
        rows.append(value)
        labels.append(own)
    amplitude = weight_amplitude(arch.model)
    return bundles(torch.cat(rows), torch.cat(labels), learning_rate=RATE, batch_size=BATCH, amplitude=amplitude)


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.breadth) for n in (1, 2))])
def test_bundles_are_those_of_whole_rows_in_any_case(seed):
    """Healthy layers, a dead branch, equal images within a batch and across batches, a NaN: parts decide nothing."""
    model, (images, labels) = residual(seed=seed), sample(21, seed)
    images[8], images[20] = images[1], images[15]  # across batches of 7, and within the last
    images[12, 0, 0, 0] = math.nan
    nn.init.zeros_(model[3].bn2.weight)
    arch = read(model, images[:1])
    points = find_points(arch)
    reading = read_bundles(model, points, images, labels, learning_rate=RATE, batch_size=BATCH)
    batches = list(zip(images.split(BATCH), labels.split(BATCH), strict=True))
    assert _PART < 5 * 8 * 8  # parts are used
    values_of = [graph_values(arch, part)[1] for part, _ in batches]
    for point, found in zip(points.points, reading.points, strict=True):
        whole = expected(arch, point, batches, values_of, scaled=False)
        if point.role == "output":  # a branch's scale may differ in its last bit
            assert (found.count, found.samples_in_conflict) == (whole.count, whole.samples_in_conflict), point
            assert found.diverged_samples == whole.diverged_samples == 1
    assert reading.inputs.samples_in_conflict == 4 - 2 * int(labels[8] == labels[1]) - 2 * int(labels[20] == labels[15])


def test_the_branch_is_scaled_by_the_spread_before_its_norms():
    model, (images, labels) = residual(), sample(14)
    arch = read(model, images[:1])
    points = find_points(arch)
    with torch.no_grad():  # branches so weak that the threshold cuts through them
        for n in (2, 3, 4):
            model[n].bn2.weight.mul_(0.004)
    batches = list(zip(images.split(BATCH), labels.split(BATCH), strict=True))
    values_of = [graph_values(arch, part)[1] for part, _ in batches]
    for scaled in (False, True):
        reading = read_bundles(model, points, images, labels, learning_rate=RATE, batch_size=BATCH, scaled=scaled)
        for point, found in zip(points.points, reading.points, strict=True):
            assert found.count == expected(arch, point, batches, values_of, scaled).count
    assert points.points[0].norms == ("2.bn1", "2.bn2")


@pytest.mark.parametrize(("mean", "spread"), [(0, 1), (3, 0.5), (1e4, 1e-2), (1e-3, 1e-6)])
def test_variance(mean, spread):
    values = torch.randn(7, 3, 5, 11, generator=torch.Generator().manual_seed(0)) * spread + mean
    assert variance(values) == pytest.approx(float(values.double().var(correction=0)), rel=2e-3)
    assert math.isnan(variance(torch.full((2, 3), math.nan)))


def test_a_narrow_deep_perceptron_conflicts_and_a_network_without_blocks_is_judged_by_its_layers():
    images, labels = sample(20)
    model = perceptron(depth=60)
    points = find_points(read(model, images[:1]))
    assert len(points.points) == 60
    assert {p.role for p in points.points} == {"layer"}
    reading = read_bundles(model, points, images, labels, learning_rate=1e-3, batch_size=64)
    assert [f.conflicting for f in reading.points][-1]
    assert not reading.points[0].conflicting
    wide = perceptron(width=64, depth=5)
    found = read_bundles(wide, find_points(read(wide, images[:1])), images, labels, learning_rate=1e-3, batch_size=64)
    assert not any(each.conflicting for each in found.points)


def test_named_layers_and_bad_names():
    arch = read(residual(), (3, 8, 8))
    assert [p.tap.module for p in find_points(arch, ["3.bn1", "0"]).points] == ["3.bn1", "0"]
    with pytest.raises(EditError, match="no layer"):
        find_points(arch, ["3.bn7"])


# ------------------------------------------------------------------ as a probe


def test_probe_measures_at_the_start_and_after_epochs_and_touches_nothing(small_data, small_recipe):
    plain, watched = residual(), residual()
    train(plain, small_data, small_recipe, **QUIET)
    result = train(watched, small_data, small_recipe, probes=["bundles"], **QUIET)
    assert all(torch.equal(t, watched.state_dict()[n]) for n, t in plain.state_dict().items())
    found = result.probes["bundles"]
    assert [(t["event"], t["epoch"]) for t in found["times"]] == [("start", 0), *(("epoch", n) for n in (1, 2, 3))]
    assert found["samples"] == 61
    assert (found["learning_rate"], found["batch_size"]) == (0.05, 16)
    assert found["own"] == {"2": 0, "3": 2, "4": 4}
    for name in ("count", "conflicting", "in_conflict", "excess", "entropy", "ceiling", "diverged"):
        assert [len(row) for row in found[name]] == [6] * 4
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_reading_leaves_modes_weights_and_random_states():
    model, (images, labels) = residual(), sample()
    model.train()
    model[3].eval()
    modes, state, random = [m.training for m in model.modules()], state_of(model), torch.get_rng_state()
    points = find_points(read(copy.deepcopy(model), images[:1]))
    read_bundles(model, points, images, labels, learning_rate=RATE, batch_size=BATCH)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in state.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    "metric",
    [
        "bundles",
        "bundles.any",
        *(pytest.param(m, marks=pytest.mark.breadth) for m in ("bundles.last-1", "bundles.last-5")),
    ],
)
def test_training_stops_when_the_last_block_conflicts(small_data, small_recipe, metric):
    """A perceptron that makes all images one conflicts from the first epoch on."""
    stop = Stop(metric, 0.0)
    result = train(perceptron(3, 60), small_data, small_recipe, probes=["bundles"], stop=stop, **QUIET)
    assert result.stopped
    assert len(result.history) == 1
    late = Stop("bundles.last-1", 0.0, epoch=2)  # the window is over then
    result = train(perceptron(3, 60), small_data, small_recipe, probes=["bundles"], stop=late, **QUIET)
    assert not result.stopped


def test_a_diverged_network_counts_as_infinite(small_data, small_recipe):
    model = residual()
    with torch.no_grad():
        model[0].weight[0] = math.nan
    probe = ConflictProbe(Watched(model, small_data, small_recipe, torch.device("cpu")))
    assert math.isnan(probe.value("last"))  # nothing measured
    with torch.no_grad():
        probe.measure(Moment("epoch", 1, 5, 0.1))
    assert probe.value("last") == probe.value("any") == math.inf
    assert all(count == 61 for count in probe.found()["diverged"][0])
    state = json.loads(json.dumps(probe.state_dict()))
    again = ConflictProbe(Watched(model, small_data, small_recipe, torch.device("cpu")))
    again.load_state_dict(state)
    assert again.value("last") == math.inf
    assert math.isnan(again.value("last-0"))


def test_a_resumed_training_observes_the_same(small_data, small_recipe, tmp_path):
    class KilledError(Exception):
        pass

    def kill(record):
        if record.epoch == 2:
            raise KilledError

    whole = train(residual(), small_data, small_recipe, probes=["bundles"], **QUIET)
    with pytest.raises(KilledError):
        train(residual(), small_data, small_recipe, probes=["bundles"], out=tmp_path, on_epoch=kill, **QUIET)
    rest = train(residual(seed=9), small_data, small_recipe, probes=["bundles"], out=tmp_path, resume=True, **QUIET)
    assert rest.probes == whole.probes


def test_variants_and_bad_settings(monkeypatch, small_data, small_recipe):
    monkeypatch.setattr("convwright.training.probes.base.PROBES", PROBES.copy())
    conflict_probe("bundles-often", every=2, samples=9, layers=("0", "3.bn2"), start=False)
    result = train(residual(), small_data, small_recipe.updated(epochs=1), probes=["bundles-often"], **QUIET)
    found = result.probes["bundles"]
    assert [(t["event"], t["step"]) for t in found["times"]] == [("step", 2), ("step", 4), ("epoch", 4)]
    assert [p["block"] for p in found["points"]] == ["0", "3.bn2"]
    assert found["samples"] == 9
    for changes in ({"samples": 0}, {"every": -1}, {"samples": True}):
        with pytest.raises(RecipeError, match=next(iter(changes))):
            ConflictSettings(**changes)


def test_a_network_of_one_layer_has_nothing_to_measure(small_data, small_recipe):
    lone = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    with pytest.raises(ReadError, match="nothing that could conflict"):
        train(lone, small_data, small_recipe, probes=["bundles"], **QUIET)


@pytest.mark.breadth
def test_attention_blocks_are_measured():
    arch = cw.read("timm:vit_tiny_patch16_224", (3, 32, 32), img_size=32, depth=2)
    points = find_points(arch)
    assert len(points.own) == len(arch.blocks) > 0
    images, labels = sample(6, shape=(3, 32, 32))
    reading = read_bundles(arch.model, points, images, labels, learning_rate=RATE, batch_size=3)
    assert all(found.samples == 6 for found in reading.points)
