"""Growth that statistics across channels would notice: drawn networks against their own outputs."""

import copy

import hypothesis.strategies as st
import pytest
import torch
from edit_checks import apply_quietly, distance
from hypothesis import example, given, settings
from timm.layers import EcaModule, ScaledStdConv2d
from torch import nn
from torch.nn import functional as F

import convwright as cw

PRIMES = st.sampled_from([5, 7, 11, 13])


class Standardised(nn.Module):
    """Consumers that standardise their weights, one of them in groups of one channel."""

    def __init__(self, width):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3)
        self.second, self.third = ScaledStdConv2d(width, 7, 3), ScaledStdConv2d(7, 5, 1)

    def forward(self, x):
        return self.third(F.silu(self.second(F.relu(self.first(x))))).mean((2, 3))


class Attention(nn.Module):
    """A convolution along the channels, in front of consumers of one kind or the other."""

    def __init__(self, width, consumer):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)
        self.attention, self.last = EcaModule(kernel_size=3), consumer(width, 5, 1)

    def forward(self, x):
        return self.last(self.attention(F.relu(self.norm(self.first(x))))).mean((2, 3))


class Normalised(nn.Module):
    """A vector norm over the channels."""

    def __init__(self, width):
        super().__init__()
        self.first, self.last = nn.Linear(3, width), nn.Linear(width, 5)

    def forward(self, x):
        return self.last(F.normalize(self.first(x.flatten(2).mT), dim=-1)).mean(1)


NETWORKS = {
    "standardised": Standardised,
    "attention": lambda width: Attention(width, nn.Conv2d),
    "both": lambda width: Attention(width, ScaledStdConv2d),
    "normalised": Normalised,
}


def drawn(name, width, seed):
    """A network with weights and statistics that hide nothing, in float64."""
    torch.manual_seed(seed)
    model = NETWORKS[name](width).double().eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.2)
    return cw.read(model, torch.rand(2, 3, 6, 6, dtype=torch.float64))


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=6)
@example(7, 4, 0)
@given(PRIMES, st.integers(1, 12), st.integers(0, 99))
def test_growth_by_any_number_of_channels_is_exact(name, width, more, seed):
    arch = drawn(name, width, seed)
    new = arch.apply(cw.Width("first", width + more))
    assert (new.changes[0].exact, new.changes[0].keeps_function) == (True, True)
    assert distance(new.model, arch.model, torch.randn_like(arch.example_input)) < 1e-10
    (step,) = cw.edits.preview(arch, [cw.Width("first", width + more)])
    assert not step.approximate


@pytest.mark.parametrize("name", NETWORKS)
def test_new_channels_learn(name):
    model = drawn(name, 7, 0).apply(cw.Width("first", 10)).model.train()
    outputs = model(torch.randn(2, 3, 6, 6, dtype=torch.float64))
    outputs.square().sum().backward()
    assert (model.first.weight.grad.flatten(1).abs().amax(1) > 0).all()


def test_a_standardised_filter_that_loses_channels_says_why():
    change = apply_quietly(drawn("standardised", 7, 0), cw.Width("first", 4)).changes[0]
    assert not change.exact
    assert change.notes[0].startswith("a filter standardised over these channels has mean zero, its kept part has not")


def test_the_exact_sizes_that_notes_name_are_exact():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 7, 3), nn.GroupNorm(1, 7), nn.ReLU(), nn.Conv2d(7, 5, 3)).double()
    arch = cw.read(model, torch.rand(2, 3, 6, 6, dtype=torch.float64))
    change = apply_quietly(arch, cw.Width("0", 9)).changes[0]
    assert change.notes[-1] == "whole multiples are exact: 0 to 2 x 7 = 14"
    edits = cw.scale_widths(arch, 1.5, exact=True)
    assert edits == (cw.Width("0", 14),)
    new = arch.apply(*edits)
    assert new.changes[0].exact
    assert distance(new.model.eval(), copy.deepcopy(arch.model).eval(), torch.randn_like(arch.example_input)) < 1e-10
