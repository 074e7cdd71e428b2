"""The lesion study: what is left out is what the plan removes, draws are seeded, and the network stays whole."""

import json
import math
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from torch import nn

import convwright as cw
from convwright.errors import ConvwrightError
from convwright.experiments.studies.lesion import ORDERS, Lesions, lesion_study
from convwright.training import ArrayImages


@pytest.fixture(scope="module")
def arch():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        arch = cw.read("zoo:resnet20", (3, 16, 16), num_classes=3)
        for module in arch.model.modules():  # statistics that are not those of a fresh network
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
                module.weight.data.uniform_(0.5, 1.5)
        nn.init.zeros_(arch.model.layer2[1].bn2.weight)  # a branch that gives one number for all: it conflicts
        nn.init.zeros_(arch.model.layer3[2].bn2.weight)
    return arch


def pictures(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    return ArrayImages(images, torch.arange(count) % 3, (0.5,) * 3, (0.3,) * 3)


def sample(count=16, seed=0):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)), torch.arange(count) % 3


SETTINGS = {"learning_rate": 0.1, "batch_size": 8}


@pytest.mark.parametrize("removed", [("layer1.1",), ("layer2.2", "layer1.0", "layer3.1")])
def test_leaving_out_equals_the_plan(arch, removed):
    images, _ = sample(5)
    new = arch.apply(*(cw.RemoveBlock(name) for name in removed), verify=False)
    arch.model.eval()
    with torch.no_grad(), Lesions(arch).without(removed) as run:
        shown = run(images)
        assert torch.equal(shown, new.model.eval()(images))
    saved = sum(Lesions(arch).macs[name] for name in removed)
    assert arch.profile().macs - new.profile().macs >= saved > 0


def test_a_block_with_a_projection_keeps_its_projection(arch):
    """A plan cannot remove it; here, as published, the shortcut goes on."""
    images, block = sample(5)[0], "layer2.0"
    assert block in Lesions(arch).taps
    model = arch.model.eval()
    with torch.no_grad():
        kept = model.layer2[0].bn2.weight.clone(), model.layer2[0].bn2.bias.clone()
        with Lesions(arch).without({block}) as run:
            shown = run(images)
        model.layer2[0].bn2.weight.zero_()
        model.layer2[0].bn2.bias.zero_()
        assert torch.allclose(shown, model(images), atol=1e-6)
        model.layer2[0].bn2.weight.copy_(kept[0])
        model.layer2[0].bn2.bias.copy_(kept[1])


def test_the_network_is_whole_again_even_after_an_error(arch):
    images, _ = sample(3)
    model = arch.model.eval()
    before = model(images)
    with pytest.raises(RuntimeError), Lesions(arch).without({"layer1.0"}) as run:
        run(torch.zeros(1, 7, 16, 16))
    assert torch.equal(model(images), before)
    assert not any("forward" in vars(m) or m._forward_hooks for m in model.modules())


def test_study(arch):
    study = lesion_study(arch, pictures(23), sample(), **SETTINGS, repeats=3, counts=(1, 2, 8, 9))
    again = lesion_study(arch, pictures(23), sample(), **SETTINGS, repeats=3, counts=(1, 2, 8, 9))
    assert study == again
    conflicting = {f.name for f in study.blocks if f.conflict > 0}
    assert conflicting == {"layer2.1", "layer3.2"}
    assert [f.name for f in study.blocks] == [b.name for b in arch.blocks]
    assert set(study.curves) == set(ORDERS)
    assert [p.removed for p in study.curves["conflict"]] == [1, 2, 8, 9]
    assert [p.removed for p in study.curves["among conflicting"]] == [1, 2]
    # Dead branches are shortcuts already: without them, nothing changes (their shifts are zero).
    assert study.curves["conflict"][1].mean == study.accuracy
    assert study.removable("conflict", 0.0) >= 2
    best = max(f.accuracy for f in study.blocks)
    assert study.curves["loss"][0].mean == best
    assert study.curves["random"][3].draws == 1  # all nine: one set
    ends = {study.curves[order][-1].mean for order in ("conflict", "loss", "random")}
    assert len(ends) == 1
    assert study.curves["random"][0].deviation >= 0
    assert json.loads(json.dumps(study.as_dict(), allow_nan=False))["samples"] == 23
    assert ElementTree.fromstring(study.picture()).tag.endswith("svg")


def test_draws_depend_on_the_seed_and_not_on_other_orders(arch):
    one = lesion_study(arch, pictures(11), sample(8), **SETTINGS, repeats=2, counts=(4,), orders=("random",))
    other = lesion_study(arch, pictures(11), sample(8), **SETTINGS, repeats=2, counts=(4,), orders=("loss", "random"))
    assert one.curves["random"] == other.curves["random"]
    macs = {
        lesion_study(arch, pictures(5), sample(8), **SETTINGS, repeats=2, counts=(4,), orders=("random",), seed=seed)
        .curves["random"][0]
        .macs
        for seed in range(4)
    }
    assert len(macs) > 1


def test_bad_input(arch):
    with pytest.raises(ConvwrightError, match="order 'size' is unknown"):
        lesion_study(arch, pictures(3), sample(4), **SETTINGS, orders=("size",))
    with pytest.raises(ConvwrightError, match="repeats=0"):
        lesion_study(arch, pictures(3), sample(4), **SETTINGS, repeats=0)
    with pytest.raises(ConvwrightError, match=r"'layer9' cannot be left out"), Lesions(arch).without({"layer9"}):
        pass
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(ConvwrightError, match="no residual blocks"):
        lesion_study(cw.read(plain, (3, 16, 16)), pictures(3), sample(4), **SETTINGS)


def test_a_diverged_branch_counts_as_conflicting(arch):
    broken = cw.read("zoo:resnet20", (3, 16, 16), num_classes=3)
    nn.init.constant_(broken.model.layer3[2].bn2.weight, math.nan)
    study = lesion_study(broken, pictures(4), sample(4), **SETTINGS, counts=(1,), orders=("conflict",))
    assert study.blocks[-1].conflict == 1.0
    assert study.as_dict()["blocks"][-1]["entropy"] is None
