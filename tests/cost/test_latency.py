"""Latency: statistics, tables of operators, models by width. Nothing here asserts how long something takes."""

import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import convwright as cw
from convwright.architecture import read
from convwright.cost import (
    Latency,
    LatencyModel,
    LatencyTable,
    Spread,
    compare_latency,
    layer_latencies,
    measure_latency,
)
from convwright.cost.latency import calls_per_sample, enough, spread, wall_timer
from convwright.cost.latency_operators import TensorSpec, call_of, is_free, time_calls, working
from convwright.cost.latency_table import cache_folder, fingerprint
from convwright.edits import scale_widths, solve
from convwright.errors import BudgetError, ConvwrightError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CONVWRIGHT_CACHE", str(tmp_path / "cache"))


def work(call):
    """A made-up time: one nanosecond per element that an operator reads or writes."""
    elements = call.outputs + sum(spec.storage_size() for spec in call.tensors)
    return Spread(elements * 1e-9, elements * 0.9e-9, elements * 1.1e-9, 7)


def each(measure):
    """Measure operators one by one; what fails gives its reason."""

    def measured(calls):
        found = {}
        for call in calls:
            try:
                found[call.key] = measure(call)
            except RuntimeError as error:
                found[call.key] = str(error)
        return found

    return measured


class Counting:
    """Measures by `work`, and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, calls):
        self.asked += [call.key for call in calls]
        return each(work)(calls)


def fixed(median=0.002):
    return Latency(median, median, median, 6, 1, "cpu", "float32")


# ------------------------------------------------------------------ statistics

samples = st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=60)


@given(samples, st.randoms(use_true_random=False))
def test_a_spread_is_ordered_and_ignores_the_order_of_samples(values, shuffler):
    found = spread(values)
    assert min(values) <= found.lower <= found.median <= found.upper <= max(values)
    assert found.repeats == len(values)
    mixed = list(values)
    shuffler.shuffle(mixed)
    assert spread(mixed) == found


@given(samples, st.integers(-20, 20))
def test_a_spread_scales_with_its_samples(values, power):
    one, two = spread(values), spread([v * 2.0**power for v in values])
    assert (two.median, two.lower, two.upper) == tuple(x * 2.0**power for x in (one.median, one.lower, one.upper))


@pytest.mark.parametrize(
    ("count", "first"), [(1, 0), (5, 0), (6, 0), (8, 0), (9, 1), (10, 1), (12, 2), (20, 5), (25, 7), (100, 39)]
)
def test_intervals_are_those_of_the_tables_of_the_sign_test(count, first):
    found = spread([float(i) for i in range(count)])
    assert (found.lower, found.upper) == (first, count - 1 - first)


@pytest.mark.parametrize("count", [6, 9, 20, 51])
def test_the_interval_covers_the_median_as_often_as_it_says(count):
    rng = np.random.default_rng(count)
    found = [spread(row) for row in rng.exponential(size=(2000, count)).tolist()]
    covered = np.mean([s.lower <= np.log(2) <= s.upper for s in found])
    assert covered >= 0.94  # 95% or more, less two standard errors of this estimate


@pytest.mark.parametrize("values", [[], [float("nan")], [1.0, float("inf")]])
def test_no_median_of_nothing(values):
    with pytest.raises(ConvwrightError, match="a median needs"):
        spread(values)


def test_sampling_ends_by_time_or_number_and_not_before_an_interval_exists():
    assert not enough([1.0] * 5, spent=99, seconds=1, most=100)
    assert enough([1.0] * 6, spent=99, seconds=1, most=100)
    assert not enough([1.0] * 50, spent=0.5, seconds=1, most=100)
    assert enough([1.0] * 100, spent=0.5, seconds=1, most=100)
    assert enough([1.0] * 2, spent=0, seconds=1, most=2)


@given(st.floats(0, 10))
def test_short_calls_are_repeated_within_a_sample(once):
    assert 1 <= calls_per_sample(once) <= 100
    assert calls_per_sample(1e-3) == 1


def test_the_wall_timer_calls_as_often_as_it_is_told():
    calls = []
    assert wall_timer(CPU)(lambda: calls.append(1), 5) >= 0
    assert len(calls) == 5


# ------------------------------------------------------------------ whole networks


class Net(nn.Module):
    def __init__(self, name="", log=None):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.drop = nn.Dropout()
        # A method: what forward stores in a module's own lists is undone after a measurement.
        self.name, self.log = name, None if log is None else log.append

    def forward(self, x):
        if self.log is not None:
            self.log((self.name, self.training, torch.is_inference_mode_enabled()))
        return self.drop(self.conv(x))


IMAGE = torch.zeros(1, 3, 8, 8)


def scripted(times):
    """A timer that runs nothing less than told, and gives made-up times."""
    left = iter(times)

    def timer(function, calls):
        for _ in range(calls):
            function()
        return next(left)

    return timer


def test_each_turn_has_its_own_order_and_pairs_are_compared():
    log = []
    models = {name: (Net(name, log), IMAGE) for name in "AB"}
    slower = [1.0, 10.0, 100.0]  # the machine slows down tenfold, and both feel it

    def timer(function, calls):
        function()
        return {"A": 1.0, "B": 2.0}[log[-1][0]] * slower[(len(log) - 1) // 2 % 3]

    found = compare_latency(models, repeats=3, warmup=0, timer=timer)
    assert sorted(name for name, *_ in log[:2]) == sorted(name for name, *_ in log[2:4]) == ["A", "B"]
    assert found.latencies["A"].median == 10.0
    assert found.latencies["B"].median == 20.0
    assert found.ratios["A"] == Spread(1.0, 1.0, 1.0, 3)
    assert found.ratios["B"] == Spread(2.0, 2.0, 2.0, 3)
    log.clear()
    compare_latency(models, repeats=40, warmup=0, timer=timer, seconds=100)
    assert {"AB", "BA"} == {"".join(name for name, *_ in log[n : n + 2]) for n in range(0, 80, 2)}


def test_networks_run_in_eval_mode_without_gradients_and_get_their_modes_back():
    log = []
    model = Net("A", log)
    model.drop.eval()
    before = [module.training for module in model.modules()]
    measure_latency(model, IMAGE, repeats=2, warmup=1, timer=scripted([1.0, 2.0]))
    assert log == [("A", False, True)] * 3
    assert [module.training for module in model.modules()] == before
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_the_record_says_how_it_was_measured():
    found = measure_latency(Net(), IMAGE, repeats=1, timer=scripted([0.0015]))
    assert found == Latency(0.0015, 0.0015, 0.0015, 1, torch.get_num_threads(), "cpu", "float32", "eager")
    assert found.nanoseconds == 1_500_000
    assert json.loads(json.dumps(found.as_dict())) == found.as_dict()


def test_a_real_measurement_is_positive_and_has_an_interval():
    found = measure_latency(Net(), IMAGE, repeats=6, seconds=0)
    assert found.repeats == 6
    assert 0 < found.lower <= found.median <= found.upper


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"backend": "onnx"}, "Did you mean onnxruntime"),
        ({"repeats": 0}, "repeats=0"),
        ({"warmup": -1}, "warmup=-1"),
        ({"example_input": torch.zeros(1, 5, 8, 8)}, "network does not run on its input"),
        ({"example_input": torch.zeros(1, 3, 8, 8, device="meta")}, "lies on cpu and its input on meta"),
    ],
)
def test_bad_input_is_named(arguments, said):
    model = Net().train()
    with pytest.raises(ConvwrightError, match=said):
        measure_latency(**{"model": model, "example_input": IMAGE, "repeats": 2, **arguments})
    assert model.training


def test_nothing_to_compare():
    with pytest.raises(ConvwrightError, match="at least one"):
        compare_latency({})


# ------------------------------------------------------------------ ONNX Runtime


def test_without_onnxruntime_the_message_says_what_to_install(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConvwrightError, match=r"not installed: pip install 'convwright\[onnx\]'"):
        measure_latency(Net(), IMAGE, backend="onnxruntime")


def test_onnxruntime_is_a_backend():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    found = measure_latency(Net(), IMAGE, backend="onnxruntime", repeats=2, timer=scripted([1.0, 3.0]))
    assert (found.backend, found.median) == ("onnxruntime", 2.0)


def test_onnxruntime_refuses_what_it_does_not_know(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(ConvwrightError, match=r"network takes torch\.bfloat16"):
        measure_latency(Net().bfloat16(), IMAGE.bfloat16(), backend="onnxruntime")
    with pytest.raises(ConvwrightError, match="network lies on meta"):
        measure_latency(Net().to("meta"), IMAGE.to("meta"), backend="onnxruntime")


def test_what_cannot_be_exported_is_said():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")

    class Branching(Net):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else super().forward(-x)

    with pytest.raises(ConvwrightError, match="network cannot be exported to ONNX: "):
        measure_latency(Branching(), IMAGE, backend="onnxruntime")


# ------------------------------------------------------------------ operators


@pytest.fixture(scope="module")
def arch():
    return read("zoo:resnet20", "1x16x16", in_channels=1, depths=(1, 1, 1))


class Mixed(nn.Module):
    """Views, copies, several results, operators in place, groups, norms with a shape."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.norm = nn.LayerNorm(16)
        self.join = nn.Conv2d(16, 16, 1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.relu_(self.stem(x))
        x = self.norm(self.depthwise(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        left, right = x.chunk(2, 1)
        x = torch.cat([right, left * 2], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        x = self.join(x)
        return self.fc(x.mean((2, 3)).flatten(1))


@pytest.fixture(scope="module")
def mixed():
    return read(Mixed(), (3, 8, 8))


def test_each_operator_is_measured_once_and_remembered(arch, tmp_path):
    first = Counting()
    layer_latencies(arch, LatencyTable(folder=tmp_path, measure=first), fixed())
    assert first.asked
    assert len(first.asked) == len(set(first.asked)) < len(arch.layers)
    second = Counting()
    layer_latencies(arch, LatencyTable(folder=tmp_path, measure=second), fixed())
    assert second.asked == []


def test_the_sum_is_that_of_the_layers_and_the_ratio_is_reported(mixed, tmp_path):
    found = layer_latencies(mixed, LatencyTable(folder=tmp_path, measure=each(work)), fixed(0.5))
    assert [layer.name for layer in found.layers] == [layer.name for layer in mixed.layers]
    assert found.other > 0  # the join and the copy are no layers
    assert found.sum == pytest.approx(sum(layer.median for layer in found.layers) + found.other)
    assert found.ratio == found.sum / 0.5
    assert found.unmeasured == ()
    assert json.loads(json.dumps(found.as_dict()))["whole"]["median"] == 0.5


def test_views_are_free_and_copies_are_not(mixed):
    nodes = {str(n.target).split(".")[1] if "." in str(n.target) else n.op: n for n in mixed.capture.graph.nodes}
    free = {name for name, node in nodes.items() if is_free(node)}
    assert {"permute", "chunk", "view", "transpose", "flatten", "placeholder"} <= free
    assert not {"conv2d", "relu_", "cat", "layer_norm", "reshape", "mul", "mean", "linear"} & free


@pytest.mark.parametrize("network", ["arch", "mixed"])
def test_every_operator_runs_by_itself(network, request, tmp_path):
    made = request.getfixturevalue(network)  # draws its weights where no other test has asked for it
    state = torch.random.get_rng_state()
    table = LatencyTable(folder=tmp_path, measure=lambda calls: time_calls(calls, CPU, seconds=0))
    found = layer_latencies(made, table, fixed())
    assert found.sum > 0
    assert all(s.repeats == 6 and s.median > 0 for s in table.used.values())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_numbers_do_not_run_away_in_place(mixed):
    """Each sample of an operator in place begins with the same numbers."""
    node = next(n for n in mixed.capture.graph.nodes if str(n.target) == "aten.relu_.default")
    call = call_of(node)
    doubling = type(call)(torch.ops.aten.mul_.Scalar, (call.tensors[0], 1e30), {}, call.outputs)
    seen = []

    def timer(function, calls):
        seen.append(float(function().max()))
        return 1.0

    time_calls([doubling], CPU, seconds=0, timer=timer)
    assert len(set(seen[2:])) == 1
    assert seen[-1] < 1e31


def test_operators_are_sampled_in_sweeps(arch, monkeypatch):
    """One sample of each and then again, so that a busy moment is shared; large ones in several lots."""
    calls = [call_of(node) for node in working(arch)][:4]
    order = []

    def timer(function, times):
        order.append(function.__self__)
        function()
        return 1e-3

    found = time_calls(calls, CPU, seconds=0, timer=timer)
    assert list(found.values()) == [Spread(1e-3, 1e-3, 1e-3, 6)] * 4
    sweeps = [order[n : n + 4] for n in range(8, len(order), 4)]
    assert len(sweeps) == 6
    assert all(set(sweep) == set(order) for sweep in sweeps)
    monkeypatch.setattr("convwright.cost.latency_operators._MEMORY", 1)
    order.clear()
    assert time_calls(calls, CPU, seconds=0, timer=timer) == found
    assert order == [made for made in dict.fromkeys(order) for _ in range(8)]


def test_an_operator_that_fails_gives_its_reason(arch):
    call = call_of(next(n for n in working(arch) if "conv2d" in str(n.target)))
    wrong = type(call)(call.target, (call.args[0], *call.args[1:2], *call.args[1:2]), {}, 1)
    found = time_calls([wrong, call], CPU, seconds=0)
    assert "bias" in found[wrong.key]
    assert found[call.key].repeats == 6


def test_what_distinguishes_operators(arch):
    calls = [call_of(node) for node in working(arch)]
    convolution = next(c for c in calls if "conv2d" in c.key)
    assert "aten.conv2d.default(f32[1,1,16,16]/256,256,16,1, f32[16,1,3,3]/9,9,3,1" in convolution.key
    other = arch.model.to(memory_format=torch.channels_last)
    changed = {call_of(n).key for n in working(read(other, arch.example_input))}
    arch.model.to(memory_format=torch.contiguous_format)
    assert changed != {c.key for c in calls}
    double = read(nn.Conv2d(1, 4, 3).double(), torch.zeros(1, 1, 5, 5, dtype=torch.float64))
    assert "f64" in call_of(working(double)[0]).key


@given(st.permutations(range(4)), st.lists(st.integers(1, 6), min_size=4, max_size=4), st.data())
def test_a_resized_tensor_keeps_its_layout(order, shape, data):
    other = data.draw(st.lists(st.integers(1, 6), min_size=4, max_size=4))
    inverse = [order.index(i) for i in range(4)]

    def laid_out(sizes):
        return TensorSpec.of(torch.empty([sizes[i] for i in order]).permute(inverse))

    if 1 not in shape:  # an axis of one has no place in the order
        assert laid_out(shape).resized(tuple(other)).storage_size() == int(np.prod(other))
        assert 1 in other or laid_out(shape).resized(tuple(other)) == laid_out(other)
    assert laid_out(shape).resized(tuple(shape)) == laid_out(shape)


def test_an_expanded_tensor_stays_expanded():
    spec = TensorSpec.of(torch.zeros(2, 3, 1, 1).expand(2, 3, 4, 4))
    assert spec.resized((2, 6, 4, 4)).stride == (6, 1, 0, 0)
    assert spec.storage_size() == 6


# ------------------------------------------------------------------ the file


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"format": "other"}',
        b"\x80\x81",
        b'{"operators": {"x": [1]}}',
        "not a number",
        "negative",
        "cut",
    ],
)
def test_a_damaged_file_is_ignored_and_rebuilt(arch, tmp_path, damage):
    table = LatencyTable(folder=tmp_path, measure=each(work))
    layer_latencies(arch, table, fixed())
    whole = table.path.read_bytes()
    if isinstance(damage, bytes):
        table.path.write_bytes(damage)
    elif damage == "cut":
        table.path.write_bytes(whole[: len(whole) // 2])
    else:
        content = json.loads(whole)
        key = next(iter(content["operators"]))
        content["operators"][key][0] = "x" if damage == "not a number" else -1.0
        table.path.write_text(json.dumps(content))
    again = Counting()
    layer_latencies(arch, LatencyTable(folder=tmp_path, measure=again), fixed())
    assert set(again.asked) == set(table.used)
    assert table.path.read_bytes() == whole


def test_files_of_different_machines_are_apart(monkeypatch, tmp_path):
    here = LatencyTable(folder=tmp_path, measure=each(work)).path
    assert here.name.startswith("latency-")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 7)
        threads = LatencyTable(folder=tmp_path, measure=each(work)).path
    with monkeypatch.context() as patch:
        patch.setattr("convwright.cost.latency_table.processor", lambda: "another processor")
        processor = LatencyTable(folder=tmp_path, measure=each(work)).path
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "0.0")
        version = LatencyTable(folder=tmp_path, measure=each(work)).path
    assert len({here, threads, processor, version}) == 4
    assert {"device", "torch", "threads"} <= set(fingerprint(CPU))


def test_a_file_copied_from_another_machine_says_nothing(arch, monkeypatch, tmp_path):
    table = LatencyTable(folder=tmp_path, measure=each(work))
    layer_latencies(arch, table, fixed())
    content = json.loads(table.path.read_text())
    content["machine"]["torch"] = "0.0"
    table.path.write_text(json.dumps(content))
    assert LatencyTable(folder=tmp_path, measure=each(work)).times == {}


def test_two_processes_add_to_one_file(arch, mixed, tmp_path):
    one, two = (LatencyTable(folder=tmp_path, measure=each(work)) for _ in range(2))
    layer_latencies(arch, one, fixed())
    layer_latencies(mixed, two, fixed())
    assert set(LatencyTable(folder=tmp_path).times) == set(one.used) | set(two.used)
    assert [p.name for p in tmp_path.iterdir()] == [one.path.name]


def test_where_nothing_can_be_written_nothing_breaks(arch, tmp_path):
    (tmp_path / "file").touch()
    found = layer_latencies(arch, LatencyTable(folder=tmp_path / "file", measure=each(work)), fixed())
    assert found.sum > 0


def test_where_the_file_lies(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("CONVWRIGHT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "convwright"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "convwright"


def test_known_times_precede_those_of_the_file(arch, tmp_path):
    table = LatencyTable(folder=tmp_path, measure=each(work))
    layer_latencies(arch, table, fixed())
    told = {key: Spread(1.0, 1.0, 1.0, 6) for key in table.used}
    found = layer_latencies(arch, LatencyTable(folder=tmp_path, measure=work, known=told), fixed())
    assert found.sum == sum(1.0 for _ in working(arch))


# ------------------------------------------------------------------ as a function of the widths


def widths_of(arch, edits):
    units = solve(arch, edits).units
    return {g.name: int(u) * g.step for g, u in zip(arch.groups, units, strict=True) if not g.frozen}


def model_of(arch, folder, measure=None, whole=None):
    return LatencyModel.of(arch, LatencyTable(folder=folder, measure=measure or each(work)), whole or fixed())


def test_at_present_widths_the_estimate_is_the_measured_whole(arch, tmp_path):
    model = model_of(arch, tmp_path, whole=fixed(0.0123))
    present = {g.name: g.size for g in arch.free_groups}
    total = layer_latencies(arch, model.table, fixed()).sum
    assert model.sum({}) == model.sum(present) == pytest.approx(total)
    assert model.calibration == pytest.approx(0.0123 / total)
    assert model.seconds(present) == model.calibration * model.sum(present)
    assert model.nanoseconds({}) == 12_300_000
    assert model.calibrated(3.0).seconds({}) == 3.0 * model.sum({})


@pytest.mark.parametrize("network", ["arch", "mixed"])
@pytest.mark.parametrize("ratio", [0.5, 0.25, 1.5, 2])
def test_operators_under_new_widths_are_those_of_the_rebuilt_network(network, ratio, request, tmp_path):
    before = request.getfixturevalue(network)
    edits = scale_widths(before, ratio)
    model = model_of(before, tmp_path)
    predicted = model.calls(widths_of(before, edits))
    built = before.apply(*edits, verify=False)
    assert {n: c.key for n, c in predicted.items()} == {n.name: call_of(n).key for n in working(built)}
    rebuilt = layer_latencies(built, model.table, fixed()).sum
    assert model.sum(widths_of(before, edits)) == pytest.approx(rebuilt)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_any_widths_have_the_shapes_of_the_rebuilt_network(arch, tmp_path_factory, seed):
    from convwright.edits import Width

    rng = random.Random(seed)
    sizes = {g.name: rng.randint(1, 2 * g.units) * g.step for g in arch.free_groups}
    predicted = model_of(arch, tmp_path_factory.getbasetemp() / "any").calls(sizes)
    built = arch.apply(*(Width(name, size) for name, size in sizes.items()), verify=False)
    assert {n: c.key for n, c in predicted.items()} == {n.name: call_of(n).key for n in working(built)}


def test_another_network_is_estimated_by_the_share_of_its_operators_whatever_the_calibration(tmp_path):
    arch = cw.read("zoo:resnet20", (1, 3, 16, 16))
    smaller = arch.apply(cw.edits.RemoveBlock("layer1.1"), cw.edits.RemoveBlock("layer2.2"))
    model = model_of(arch, tmp_path)
    assert model.nanoseconds_of(arch) == model.whole.nanoseconds
    left = layer_latencies(smaller, model.table, model.whole).sum / model.sum({})
    assert 0.5 < left < 0.9
    expected = round(left * 1e9 * model.whole.median)
    assert model.nanoseconds_of(smaller) == model.calibrated(7.0).nanoseconds_of(smaller) == expected


def test_estimates_are_remembered_and_build_no_networks(arch, tmp_path, monkeypatch):
    counting = Counting()
    model = model_of(arch, tmp_path, counting)
    halved = widths_of(arch, scale_widths(arch, 0.5))  # this rehearses the edits, where no earlier test did: it runs
    monkeypatch.setattr(nn.Module, "__call__", None)
    asked = len(counting.asked)
    assert model.seconds(halved) < model.seconds({})
    assert len(counting.asked) > asked
    asked = len(counting.asked)
    model.seconds(halved)
    model.calibrated(9.0).seconds(halved)
    assert len(counting.asked) == asked


@pytest.mark.parametrize(
    ("widths", "said"),
    [
        ({"layer1.0.conv": 8}, "Did you mean"),
        ({"layer1.0.conv1": 0}, "no width"),
        ({"layer1.0.conv1": 2.5}, "whole numbers"),
        ({"fc": 3}, "cannot change"),
    ],
)
def test_wrong_widths_are_named(arch, tmp_path, widths, said):
    with pytest.raises(BudgetError, match=said):
        model_of(arch, tmp_path).seconds(widths)


def test_widths_that_do_not_fit_together(tmp_path):
    class Shuffled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(10, 5, 1)

        def forward(self, x):
            x = torch.cat([self.a(x), self.b(x)], 1)
            n, c, h, w = x.shape
            return self.c(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))

    shuffled = read(Shuffled(), (3, 4, 4))
    with pytest.raises(BudgetError, match="do not fit together: 9 does not divide as 10 did"):
        model_of(shuffled, tmp_path).seconds({shuffled.free_groups[0].name: 5})


def test_an_operator_that_cannot_be_run_is_estimated_in_proportion(arch, tmp_path):
    present = {call_of(node).key for node in working(arch)}

    def refusing(call):
        if call.key not in present:
            raise RuntimeError("a size is written down")
        return Spread(call.outputs * 1e-9, 0.0, 1.0, 6)

    halved = widths_of(arch, scale_widths(arch, 0.5))
    model, honest = model_of(arch, tmp_path, each(refusing)), arch.apply(*scale_widths(arch, 0.5), verify=False)
    assert model.sum(halved) == pytest.approx(sum(call_of(n).outputs * 1e-9 for n in working(honest)))


def test_a_network_without_operators(tmp_path):
    idle = read(nn.Identity(), (3, 4, 4))
    with pytest.raises(ConvwrightError, match="no operator"):
        model_of(idle, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "torchvision:resnet18",
        "torchvision:mobilenet_v3_small",
        "torchvision:efficientnet_b0",
        "torchvision:shufflenet_v2_x1_0",
        "torchvision:densenet121",
        "torchvision:googlenet",
        "torchvision:regnet_y_400mf",
        "torchvision:convnext_tiny",
        "torchvision:vgg11",
        "timm:ghostnet_100",
        "timm:resnest14d",
    ],
)
@pytest.mark.parametrize("ratio", [0.5, 1.5])
def test_operators_under_new_widths_in_known_networks(name, ratio, tmp_path):
    before = read(name)
    edits = scale_widths(before, ratio, 8)
    predicted = model_of(before, tmp_path).calls(widths_of(before, edits))
    built = before.apply(*edits, verify=False)
    assert {n: c.key for n, c in predicted.items()} == {n.name: call_of(n).key for n in working(built)}
