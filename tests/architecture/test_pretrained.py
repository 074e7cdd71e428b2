"""Weights that come with networks of torchvision and timm, without any network connection."""

import urllib.request
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torchvision.models import get_model, get_model_weights

import convwright as cw
from convwright.architecture import create, pretrained
from convwright.architecture.pretrained import build_options, preprocessing, said_of_loaded
from convwright.architecture.weights import Checkpoint, take
from convwright.errors import ReadError

SMALL = "timm:test_resnet"  # timm's own network for tests


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    def refused(request, timeout):
        assert timeout <= 10
        raise URLError("no route to host")

    monkeypatch.setattr(pretrained, "urlopen", refused)
    monkeypatch.setattr(urllib.request, "urlopen", refused)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)


@pytest.fixture
def overlay(tmp_path):
    """A file of weights for the small network of timm, and the options that name it."""
    import timm

    model = timm.create_model(SMALL[5:])
    torch.save(model.state_dict(), tmp_path / "w.pth")
    return model, {"pretrained": True, "pretrained_cfg_overlay": {"file": str(tmp_path / "w.pth")}}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:resnet18", r"\(URLError: .*no route to host.*\); download https://download.pytorch.org/.*/resnet18-"
         r".*\.pth where there is a connection, and put it at .*resnet18-.*, or give it with --weights FILE$"),
        ("timm:resnet18", r"download https://huggingface.co/timm/resnet18.a1_in1k/.*, and give it with --weights FILE"),
        ("timm:botnet50ts_256", "has no pretrained weights; leave pretrained out"),
        ("zoo:resnet20", "come with networks of torchvision and timm only .*; give a file with --weights FILE"),
        ("net.py:Net", "come with networks of torchvision and timm only"),
        (nn.Conv2d(3, 3, 3), "^Conv2d: pretrained weights come with"),
    ],
)  # fmt: skip
def test_offline_is_one_line(name, message):
    with pytest.raises(ReadError, match=message) as error:
        cw.read(name, (3, 32, 32), pretrained=True)
    assert "\n" not in str(error.value)


def test_timm_gives_its_weights_and_a_new_head(overlay):
    model, options = overlay
    arch = cw.read(SMALL, (3, 64, 64), **options)
    assert "pretrained" not in arch.options  # who builds it again takes its weights from a file
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in arch.model.state_dict().items())
    assert said_of_loaded(arch.model, SMALL, 1000).fresh == ()
    other = create(SMALL, num_classes=7, in_chans=1, **options)[0]
    assert torch.equal(other.layer1[0].conv1.weight, model.layer1[0].conv1.weight)
    said = said_of_loaded(other, SMALL, 7)
    assert said.fresh == ("fc.weight", "fc.bias")
    assert str(said).endswith("drawn anew: fc.weight, fc.bias (1000 -> 7 classes)")


def test_layers_with_as_many_channels_as_there_are_classes_are_no_head():
    import timm

    said = said_of_loaded(timm.create_model(SMALL[5:], num_classes=32), SMALL, 32)
    assert said.fresh == ("fc.weight", "fc.bias")


def test_torchvision_gives_its_weights_and_a_new_head(monkeypatch):
    published = get_model("squeezenet1_1", weights=None)
    kind = type(get_model_weights("squeezenet1_1").DEFAULT)
    monkeypatch.setattr(kind, "get_state_dict", lambda self, **_: published.state_dict())
    monkeypatch.setattr(pretrained, "_kept", lambda url: pretrained.Path(__file__))
    for classes, new in ((1000, False), (6, True)):
        model = create("torchvision:squeezenet1_1", pretrained=True, num_classes=classes)[0]
        state = {name: t for name, t in model.state_dict().items() if not (new and name.startswith("classifier"))}
        assert all(torch.equal(t, published.state_dict()[name]) for name, t in state.items())
        assert bool(said_of_loaded(model, "torchvision:squeezenet1_1", classes).fresh) is new


def test_what_their_builders_change_for_pretrained_weights_is_kept():
    assert build_options("torchvision:googlenet", {"num_classes": 3, "pretrained": True}) == {
        "num_classes": 3,
        "transform_input": True,
    }
    assert build_options("torchvision:googlenet", {"num_classes": 3}) == {"num_classes": 3}


def test_auxiliary_heads_are_heads():
    model, other = (get_model("googlenet", weights=None, init_weights=False, num_classes=n) for n in (4, 9))
    found = take(model, Checkpoint("x", other.state_dict()), 4)
    assert {name.rpartition(".")[0] for name in found.fresh} == {"fc", "aux1.fc2", "aux2.fc2"}


def test_how_images_were_fed():
    lite = preprocessing("timm:tf_efficientnet_lite0")
    assert (lite.mean, lite.std, lite.crop_pct, lite.interpolation) == ((0.5,) * 3, (0.5,) * 3, 0.875, "bicubic")
    resnet = preprocessing("torchvision:resnet50")
    assert (resnet.mean[0], resnet.crop_pct, resnet.interpolation) == (0.485, 224 / 232, "bilinear")
    for name in ("zoo:resnet20", "timm:resnet18.nope", "timm:nope", "torchvision:nope", "torchvision:fcn_resnet50"):
        assert preprocessing(name) is None


def test_no_backbone_is_downloaded_unasked(offline):
    with torch.device("meta"):
        assert (
            create("torchvision:lraspp_mobilenet_v3_large", num_classes=2)[0].classifier.low_classifier.out_channels
            == 2
        )
