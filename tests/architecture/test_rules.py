"""Operators that move, pick or mix values: channels stay free where labels can follow, and say why where not."""

import re

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import convwright as cw
from convwright.architecture import read
from convwright.architecture.rules import RULES
from convwright.edits import scale_widths

from .laws import assert_close, output, read_random

BOXES = [torch.tensor([[0.0, 0.0, 4.0, 4.0], [2.0, 1.0, 7.0, 6.0]], dtype=torch.float64)]


class Net(nn.Module):
    """Something between a stem of 7 channels and a reader."""

    def __init__(self, way, into=7, stem=7, **modules):
        super().__init__()
        self.way, self.stem = way, nn.Conv2d(3, stem, 3, padding=1)
        self.back, self.fc = nn.Conv2d(into, 5, 1), nn.Linear(5, 3)
        for name, module in modules.items():
            self.add_module(name, module)
        self.register_buffer("places", torch.tensor([0, 2, 4, 1]))

    def forward(self, x):
        return self.fc(self.back(self.way(self, self.stem(x).relu())).mean((2, 3)))


def unpooled(net, x):
    values, places = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(net.mid(values), places, 2)


def folded(net, x):
    return F.fold(net.mid(F.unfold(x, 2, stride=2)), (8, 8), 2, stride=2)


def unfolded(net, x):
    return F.unfold(x, 3, padding=1).unflatten(2, x.shape[2:])


def filled(net, x):
    added = torch.randn_like(x) * 0 + torch.zeros_like(x) + torch.randint_like(x, 2) * 0 + x.new_tensor([1.0])
    return torch.cat([x + added, x.new_ones(x.shape) * x, x.new_full((1, x.shape[1], 1, 1), 2.0) * x], 1)


def filtered(net, x):
    """A filter that is global, by its spectrum."""
    spectrum = torch.fft.rfft2(x, norm="ortho") * torch.view_as_complex(torch.ones(8, 5, 2).to(x.dtype))
    return torch.fft.irfft2(spectrum, s=x.shape[-2:], norm="ortho")


def convolved_spectrum(net, x):
    """Fast Fourier convolution: real and imaginary parts are channels side by side, for a while."""
    spectrum = torch.fft.rfftn(x, dim=(-2, -1), norm="ortho")
    parts = torch.stack((spectrum.real, spectrum.imag), -1).permute(0, 1, 4, 2, 3)
    parts = net.mid(parts.reshape(x.shape[0], -1, *parts.shape[3:])).relu()
    parts = parts.reshape(x.shape[0], -1, 2, *parts.shape[2:]).permute(0, 1, 3, 4, 2)
    return torch.fft.irfftn(torch.complex(parts[..., 0], parts[..., 1]), s=x.shape[-2:], dim=(-2, -1), norm="ortho")


def looked_up(net, x):
    return net.table(torch.arange(8).repeat(len(x), 8, 1)).permute(0, 3, 1, 2) + x


EXACT = {
    "glu": Net(lambda net, x: F.glu(net.mid(x), 1), mid=nn.Conv2d(7, 14, 1)),
    "max_unpool2d": Net(unpooled, mid=nn.Conv2d(7, 7, 1)),
    "im2col": Net(unfolded, 63),
    "col2im": Net(folded, mid=nn.Conv1d(28, 28, 1)),
    "roi_align": Net(lambda net, x: torchvision.ops.roi_align(x, BOXES * len(x), (4, 4))),
    "embedding": Net(looked_up, table=nn.Embedding(11, 7)),
    "new_ones": Net(filled, 21),
    "rfft2": Net(filtered),
    "complex": Net(convolved_spectrum, mid=nn.Conv2d(14, 14, 1)),
    "index of rows": Net(lambda net, x: x[:, :, net.places][..., [1, 3]]),
    "index_select of rows": Net(lambda net, x: x.index_select(2, net.places)),
    "every second": Net(lambda net, x: torch.cat([x[:, ::2], x[:, 1::2].sigmoid()], 1), 14, 14),
    "every third": Net(lambda net, x: x[:, 2::3] * x[:, ::3] + x[:, 1::3], 5, 15),
    "deform_conv2d": Net(
        lambda net, x: net.mid(x, net.moves(x)),
        11,
        moves=nn.Conv2d(7, 18, 3, padding=1),
        mid=torchvision.ops.DeformConv2d(7, 11, 3, padding=1),
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_channels_follow_and_edits_are_exact(name):
    arch = read_random(EXACT[name], (2, 3, 8, 8))
    free = {group.name.partition("[")[0] for group in arch.free_groups}
    assert {"stem", "back"} <= free
    for ratio in (0.5, 1.5, 2):
        new = arch.apply(*scale_widths(arch, ratio))
        assert all(change.exact for change in new.changes)
        if ratio > 1:
            assert_close(output(new.model.eval(), arch.example_input), output(arch.model, arch.example_input))


FIXED = {
    "of 7 channels, one in 2 is taken from number 0 on": Net(lambda net, x: x[:, ::2], 4),
    "of 14 channels, one in 2 is taken from number 3 on": Net(lambda net, x: x[:, 3::2], 6, 14),
    "channels are taken by their numbers at index in": Net(lambda net, x: x[:, net.places], 4),
    "channels are taken by their numbers at index_select in": Net(lambda net, x: x.index_select(1, net.places), 4),
    "they are mixed by fft_fft in": Net(lambda net, x: torch.fft.fft(x, dim=1).abs()),
}


@pytest.mark.parametrize("reason", FIXED)
def test_what_numbers_in_the_code_fix_is_frozen_with_the_reason(reason):
    arch = read_random(FIXED[reason], (2, 3, 8, 8))
    groups = [group for group in arch.groups if group.name.startswith("stem")]
    assert all(group.frozen for group in groups)
    assert reason in groups[0].reason
    assert arch.apply(*scale_widths(arch, 2)).changes[0].exact  # what lies around can change


@pytest.mark.parametrize("size", [3, 4])
def test_a_local_response_norm_is_a_statistic_over_neighbours(size):
    arch = read_random(Net(lambda net, x: F.local_response_norm(x, size, alpha=1.0)), (2, 3, 8, 8))
    (group,) = [each for each in arch.free_groups if each.name == "stem"]
    assert group.across[0].startswith("avg_pool3d")
    with pytest.warns(cw.InexactEditWarning, match="a statistic runs across"):
        new = arch.apply(cw.Width("stem", 5))
    assert output(new.model.eval(), arch.example_input).shape == (2, 3)


@pytest.mark.parametrize(("name", "module"), [("sigmoid", nn.Sigmoid()), ("matmul", None), ("conv2d", None)])
def test_a_rule_that_raises_freezes_with_the_operators_name(name, module, monkeypatch):
    def broken(follower, node):
        raise IndexError("nothing there")

    def multiplied(net, x):
        return (module(x) if module else x) @ x.mT if name == "matmul" else (module or nn.Identity())(x)

    monkeypatch.setitem(RULES, name, broken)
    arch = read(Net(multiplied), (3, 8, 8))
    group = arch.group("stem") if name != "conv2d" else arch.groups[0]
    reasons = [each.reason for each in arch.groups]
    assert group.frozen
    assert any(re.match(rf"its rule does not fit {name} in .*: IndexError: nothing there", each) for each in reasons)
    assert all(change.exact for change in arch.apply(*scale_widths(arch, 0.5)).changes)
