"""Runtimes behind one interface: who takes how long, milliseconds that a command prints, what is not installed."""

import stat
import sys

import pytest
import torch
from torch import nn

from convwright.architecture.capture.pytrees import Inputs
from convwright.cost import compare_latency, measure_latency
from convwright.cost.latency import ready, wall_timer
from convwright.cost.runtimes import RUNTIMES, Target, installed, program, runtime_named
from convwright.errors import ConvwrightError

IMAGE = torch.randn(2, 3, 11, 11)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), nn.ReLU(), nn.Flatten(), nn.Linear(7 * 81, 5))


def test_every_runtime_can_be_named():
    for name in RUNTIMES:
        assert runtime_named(name).name == name
        assert str(Target.of(name)) == name


def test_a_batch_repeats_or_cuts_the_input():
    assert Target("eager", batch=5).inputs(IMAGE).tensors[0].shape == (5, 3, 11, 11)
    assert torch.equal(Target("eager", batch=1).inputs(IMAGE).tensors[0], IMAGE[:1])
    assert Target("eager").inputs(IMAGE).tensors[0] is IMAGE


def test_eager_divides_its_time_among_the_weights(network):
    made = program("net", network, IMAGE, Target("eager"))
    found = made.profile(5)
    assert set(found) == {"", "0.weight", "4.weight"}
    assert all(seconds > 0 for seconds in found.values())
    assert not network[0]._forward_pre_hooks
    assert network.training  # every module gets its mode back
    network.eval()
    assert torch.equal(made.outputs(IMAGE)[0], network(IMAGE))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "executorch"])
def test_files_compute_the_same_and_say_who_takes_how_long(network, name):
    target = Target(name, threads=1)
    if missing := runtime_named(name).missing(target):
        pytest.skip(f"{', '.join(missing)} not installed")
    made = ready("net", network, IMAGE, target)
    assert torch.allclose(made.outputs(IMAGE)[0], network.eval()(IMAGE), atol=1e-5)
    assert ready("net", network, IMAGE, target).time(2, wall_timer(IMAGE.device)) > 0
    if name != "executorch":
        assert {"0.weight", "4.weight"} <= set(made.profile(2)) <= {"0.weight", "4.weight", ""}


def test_the_default_is_one_of_those_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert installed(torch.device("cpu")) == (Target("eager"),)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert [each.runtime for each in installed(torch.device("cpu"))] == ["openvino", "onnxruntime", "eager"]
    assert [each.runtime for each in installed(torch.device("cuda"))] == ["eager"]


def test_programs_are_compared_as_they_are(network):
    target = Target("eager")
    made = ready("net", network, IMAGE, target)
    assert ready("again", made, IMAGE, target) is made
    found = compare_latency({"a": (made, IMAGE), "b": (network, IMAGE)}, backend=target, repeats=6, seconds=0.1)
    assert 0.2 < found.ratios["b"].median < 5


# ------------------------------------------------------------------ a command


def device(tmp_path, text):
    """A command that does what a text of Python says; {onnx} is its first argument."""
    script = tmp_path / "device.py"
    script.write_text(f"#!{sys.executable}\nimport os, sys\n{text}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return Target("command", command=f"{script} {{onnx}}")


def test_a_command_measures_the_file(network, tmp_path):
    pytest.importorskip("onnxscript")
    target = device(tmp_path, "print('loaded 3 ops'); print('median:', os.path.getsize(sys.argv[1]) / 1e6, 'ms')")
    found = measure_latency(network, IMAGE, backend=target, repeats=2)
    assert 1e-6 < found.median < 1e-3
    assert found.backend == "command"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("print('no number')", "ended with 0 and printed no milliseconds as its last number; it said: no number"),
        ("sys.exit('no device')", "ended with 1 and printed no milliseconds as its last number; it said: no device"),
        ("print(0)", "printed no milliseconds"),
    ],
)
def test_a_command_that_measures_nothing_is_refused(network, tmp_path, text, said):
    pytest.importorskip("onnxscript")
    with pytest.raises(ConvwrightError, match=said):
        measure_latency(network, IMAGE, backend=device(tmp_path, text))


def test_a_command_must_be_given(network):
    pytest.importorskip("onnxscript")
    with pytest.raises(ConvwrightError, match="needs --device-command with"):
        measure_latency(network, IMAGE, backend="command")
    with pytest.raises(ConvwrightError, match="does not run: "):
        measure_latency(network, IMAGE, backend=Target("command", command="/nowhere/bench {onnx}"))
    with pytest.raises(ConvwrightError, match="returns no outputs"):
        program("net", network.eval(), IMAGE, Target("command", command="true {onnx}")).outputs(IMAGE)
    assert Inputs.of(IMAGE).batch == 2
