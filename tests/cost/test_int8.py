"""Int8 by the runtimes' own libraries: close to the network, really in bytes, and refused where it is not there."""

from __future__ import annotations

import importlib
from collections import Counter

import pytest
import torch

from convwright import zoo
from convwright.architecture.capture.pytrees import Inputs
from convwright.cost.runtimes import Target, program, runtime_named
from convwright.cost.runtimes.onnx_files import exported_onnx
from convwright.errors import BudgetError, ConvwrightError

IMAGES = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
INT8 = ("onnxruntime,int8,threads=1", "openvino,int8,threads=1")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    made = zoo.create("resnet20", num_classes=5)
    with torch.no_grad():
        for _ in range(20):
            made(torch.randn(16, 3, 16, 16))
    return made.eval()


@pytest.fixture(scope="module")
def content(network):
    pytest.importorskip("onnxscript")
    return exported_onnx("net", network, IMAGES)


def opened(text, content, inputs=IMAGES, calibration=()):
    target = ready(text)
    return runtime_named(target.runtime).opened("net", content, Inputs.of(inputs), target, calibration)


def ready(text):
    if missing := runtime_named(Target.of(text).runtime).missing(Target.of(text)):
        pytest.skip(f"{', '.join(missing)} not installed")
    return Target.of(text)


def decibels(wanted, found):
    return float(10 * torch.log10(wanted.square().sum() / (wanted - found).square().sum()))


@pytest.mark.parametrize("text", INT8)
def test_an_int8_program_computes_nearly_the_same_and_says_who_takes_how_long(network, text):
    made = program("net", network, IMAGES, ready(text), [Inputs.of(IMAGES)])
    with torch.no_grad():
        assert 20 < decibels(network(IMAGES), made.outputs(IMAGES)[0]) < 60
    known = {name for name, tensor in network.named_parameters() if tensor.ndim > 1}
    assert known <= set(made.profile(2)) <= known | {""}


@pytest.mark.parametrize("text", INT8)
def test_ranges_come_from_the_calibration_batches(network, content, text):
    alone, told = (opened(text, content, IMAGES / 10, given) for given in ((), [Inputs.of(IMAGES)]))
    with torch.no_grad():
        wanted = network(IMAGES)
    assert decibels(wanted, told.outputs(IMAGES)[0]) > decibels(wanted, alone.outputs(IMAGES)[0]) + 3
    with pytest.raises(ConvwrightError, match="does not run net"):
        opened(text, content, IMAGES, [Inputs.of(IMAGES[:, :2])])


def test_onnxruntime_gets_bytes(content):
    made = opened(INT8[0], content)
    graph = importlib.import_module("onnx").load_from_string(made.content).graph
    kinds = Counter(node.op_type for node in graph.node)
    assert kinds["QuantizeLinear"] >= 20
    assert kinds["DequantizeLinear"] >= 20
    assert not [each.name for each in graph.initializer if len(each.dims) == 4 and each.data_type != 3]  # INT8


def test_openvino_gets_bytes(content):
    made = opened(INT8[1], content)
    request = (
        importlib.import_module("convwright.cost.runtimes.openvino")
        .compiled(made.source, made.target, profiled=True)
        .create_infer_request()
    )
    request.infer(made.feed)
    run = [each for each in request.get_profiling_info() if each.node_type == "Convolution"]
    assert len(run) == 21
    assert all(each.exec_type.endswith("I8") for each in run)


def test_what_cannot_be_int8_says_so(monkeypatch, network):
    with pytest.raises(BudgetError, match="eager has no setting 'int8'"):
        Target.of("eager,int8")
    ready(INT8[0])
    with pytest.raises(ConvwrightError, match="made for the CPU; leave out cuda"):
        program("net", network, IMAGES, Target.of("onnxruntime,int8,cuda"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "nncf" else name)
    assert not runtime_named("openvino").missing(Target("openvino"))
    with pytest.raises(ConvwrightError, match=r"openvino,int8 needs nncf, not .*'convwright\[int8\]'"):
        program("net", network, IMAGES, Target("openvino", int8=True))
