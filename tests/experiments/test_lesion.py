"""Leaving blocks out: what is left out is what the plan removes, and the network stays whole."""

import pytest
import torch
from torch import nn

import convwright as cw
from convwright.errors import ConvwrightError
from convwright.experiments.studies.lesion import Lesions
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


def test_accuracy_and_loss_without_blocks(arch):
    """Dead branches are shortcuts already: without them, nothing changes (their shifts are zero)."""
    with Lesions(arch).measuring(pictures(23)) as measure:
        whole = measure(frozenset())
        assert measure(frozenset({"layer2.1", "layer3.2"})) == whole
        assert measure(frozenset({"layer1.0"})).loss != whole.loss


def test_what_cannot_be_left_out_is_said(arch):
    with pytest.raises(ConvwrightError, match=r"'layer9' cannot be left out"), Lesions(arch).without({"layer9"}):
        pass
