"""The layout of a network for which torch's fastest one is unsound."""

import copy

import pytest
import torch
from torch import nn

import convwright.training.settings as settings_module
from convwright.training import ArrayImages, ImageData, Recipe, train
from convwright.training.settings import choose_settings, narrow_strided

CPU = torch.device("cpu")
FAST = Recipe(precision="fp32", memory_format="channels_last")


def strided(channels, kernel=1, stride=2, groups=1):
    """A network whose second convolution has a stride."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, 11, kernel, stride=stride, groups=groups, bias=False),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(11, 3),
        )


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (strided(7), ("2",)),
        (strided(17), ()),
        (strided(7, kernel=3), ()),
        (strided(7, stride=1), ()),
        (strided(22, groups=11), ("2",)),
    ],
    ids=["narrow", "wide", "3x3", "no stride", "groups"],
)
def test_which_convolutions_are_meant(model, names):
    assert narrow_strided(model) == names


def cross_entropy(model, batch):
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])


def test_they_are_never_run_in_the_unsound_layout(monkeypatch):
    """oneDNN issue 6035: the process would be ended, hang, or learn from wrong gradients."""
    monkeypatch.setattr(settings_module, "_cache", {})
    images, labels = torch.randn(8, 3, 9, 9), torch.arange(8) % 3
    chosen = choose_settings(strided(7), (images, labels), cross_entropy, FAST, CPU)
    assert (chosen.memory_format, chosen.measured) == ("contiguous", ())
    assert choose_settings(strided(17), (images, labels), cross_entropy, FAST, CPU).memory_format == "channels_last"
    measured = choose_settings(strided(7), (images, labels), cross_entropy, Recipe(), CPU).measured
    tried = {(m.precision, m.memory_format) for m in measured}
    assert tried == {("fp32", "contiguous"), ("bf16", "channels_last")}


@pytest.mark.parametrize("channels", [2, 5, 7])
def test_asked_for_channels_last_they_learn_as_in_the_other_layout(channels, small_data, small_recipe):
    models = [strided(channels) for _ in range(2)]
    before = copy.deepcopy(models[0].state_dict())
    for model, layout in zip(models, ("channels_last", "contiguous"), strict=True):
        train(model, small_data, small_recipe.updated(memory_format=layout), progress=False, accelerator="cpu")
    one, two = (model.state_dict() for model in models)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["2.weight"], before["2.weight"])


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_batches_have_the_layout_of_the_settings(channels, layout, small_recipe):
    """The strides of grey images fit both layouts; the network runs in the one that they say."""
    seen = []

    class Watching(nn.Conv2d):
        def forward(self, x):
            found = super().forward(x)
            seen.append((self.training, found.is_contiguous(), found.is_contiguous(memory_format=torch.channels_last)))
            return found

    model = nn.Sequential(Watching(channels, 5, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))
    images = torch.randint(0, 255, (33, channels, 9, 9), dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    part = ArrayImages(images, torch.arange(33) % 3, (0.4,) * channels, (0.3,) * channels)
    data = ImageData("noise", part, part, ("a", "b", "c"))
    train(model, data, small_recipe.updated(epochs=1, memory_format=layout), progress=False, accelerator="cpu")
    in_training = {(plain, last) for training, plain, last in seen if training}
    assert in_training == {(layout == "contiguous", layout == "channels_last")}
