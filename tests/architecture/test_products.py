"""Products of two activations: which channels are one, what stays equal, and what copies are divided by."""

import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import convwright as cw
from convwright.architecture import read
from convwright.edits import scale_widths

from .laws import assert_close, output, read_random

HEADS, WIDE, DEEP = 3, 5, 7  # values and queries of each head


class Attention(nn.Module):
    """Queries, keys and values, each from a layer of its own, then as many ways to multiply them as code has."""

    def __init__(self, way):
        super().__init__()
        self.way, self.heads = way, HEADS
        self.stem = nn.Conv2d(3, 11, 2, 2)
        self.q, self.k, self.v = (nn.Conv2d(11, HEADS * size, 1) for size in (DEEP, DEEP, WIDE))
        self.norm = nn.BatchNorm2d(HEADS * DEEP)
        self.out, self.fc = nn.Conv2d(HEADS * WIDE, 11, 1), nn.Linear(11, 3)

    def forward(self, x):
        x = self.stem(x)
        q, k, v = (y.unflatten(1, (self.heads, -1)).flatten(3) for y in (self.norm(self.q(x)), self.k(x), self.v(x)))
        y = self.way(q, k, v).flatten(1, 2).unflatten(2, x.shape[2:])
        return self.fc((x + self.out(y)).mean((2, 3)))


def by_matmul(q, k, v):
    return v @ ((q * 0.3).transpose(-2, -1) @ k).softmax(-1).transpose(-2, -1)


def by_bmm(q, k, v):
    q, k, v = (each.flatten(0, 1) for each in (q, k, v))
    added = torch.baddbmm(q.new_zeros(1), q.mT, k, alpha=0.2)
    return torch.bmm(v, added.softmax(-1).mT).unflatten(0, (-1, HEADS))


def by_einsum(q, k, v):
    scores = torch.einsum("bhci,bhcj->bhij", q, k) / 3
    return torch.einsum("bhij,bhcj->bhci", scores.softmax(-1), v)


def by_sdpa(q, k, v):
    return F.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT


def by_scaled_sdpa(q, k, v):
    return F.scaled_dot_product_attention(q.mT, k.mT, v.mT, scale=0.3).mT


WAYS = [by_matmul, by_bmm, by_einsum, by_sdpa, by_scaled_sdpa]


def reading(way):
    return read_random(Attention(way), (1 if way is by_bmm else 2, 3, 8, 8))


@pytest.mark.parametrize("way", WAYS)
def test_queries_and_keys_are_one_group_and_heads_stay_equal(way):
    arch = reading(way)
    assert {g.name: (g.size, g.step) for g in arch.free_groups} == {
        "stem": (11, 1), "q": (HEADS * DEEP, HEADS), "v": (HEADS * WIDE, HEADS)
    }  # fmt: skip
    layers = {member.tensor for member in arch.group("q").members}
    assert {"q.weight", "k.weight", "k.bias", "norm.running_var"} <= layers
    assert not arch.group("q").across


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ratio", [1.5, 2])
def test_copies_count_once(way, ratio):
    arch = reading(way)
    new = arch.apply(*scale_widths(arch, ratio))
    assert all(change.exact for change in new.changes)
    assert_close(output(new.model.eval(), arch.example_input), output(arch.model, arch.example_input))


@pytest.mark.parametrize("way", WAYS)
def test_channels_that_go_leave_the_others_as_they_were(way):
    arch = reading(way)
    new = arch.apply(cw.Width("q", HEADS * 4, {"q": [0, 2, 3, 6]}), cw.Width("v", HEADS * 2, {"v": [1, 4]}))
    assert all(change.exact for change in new.changes)
    model = arch.model
    model.norm.register_forward_hook(lambda *call: call[-1] * alive([0, 2, 3, 6], DEEP))
    model.v.register_forward_hook(lambda *call: call[-1] * alive([1, 4], WIDE))
    assert_close(output(new.model.eval(), arch.example_input), output(model, arch.example_input))


def alive(kept, size):
    mask = torch.zeros(HEADS, size, dtype=torch.float64)
    mask[:, kept] = 1
    return mask.reshape(1, -1, 1, 1)


def test_a_scale_that_the_operator_takes_from_the_size_is_made_up_for():
    arch = reading(by_sdpa)
    new = arch.apply(cw.Width("q", HEADS * 14))
    expected = arch.model.norm.weight.detach().repeat_interleave(2) / 2 * math.sqrt(2)
    assert torch.allclose(new.model.norm.weight, expected)
    assert torch.equal(new.model.k.weight, arch.model.k.weight.repeat_interleave(2, 0))


class Matrix(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.way, self.stem, self.mid = way, nn.Conv2d(3, 7, 1), nn.Conv2d(7, 7, 1)
        self.back, self.fc = nn.Conv2d(7, 5, 1), nn.Linear(5, 3)

    def forward(self, x):
        x = self.stem(x)
        return self.fc(self.back(self.way(self, x)).mean((2, 3)))


def gram(net, x):
    """What enters is read twice: no layer can divide one side."""
    y = x.flatten(2)
    return (x.flatten(2).mT @ y).mean(1).unflatten(1, (1, *x.shape[2:])) * x


def channel_attention(net, x):
    """A matrix of channels by channels."""
    scores = (x.flatten(2) @ net.mid(x).flatten(2).mT).softmax(-1)
    return (scores @ x.flatten(2)).unflatten(2, x.shape[2:])


def separate_channel_attention(net, x):
    """The values have a layer of their own, which must not be divided: the shares of copies are smaller already."""
    scores = (x.flatten(2) @ x.flatten(2).mT).softmax(-1)
    return (scores @ net.mid(x).flatten(2)).unflatten(2, x.shape[2:])


def test_a_sum_of_squares_is_a_statistic_and_says_so():
    arch = read_random(Matrix(gram), (2, 3, 4, 4))
    assert [text.split(" ")[0] for text in arch.group("stem").across] == ["matmul"]
    with pytest.warns(cw.InexactEditWarning):
        (change,) = arch.apply(cw.Width("stem", 10)).changes
    assert not change.exact
    assert re.match("a statistic runs across these channels, .*: matmul", change.notes[0])


@pytest.mark.parametrize("way", [channel_attention, separate_channel_attention])
def test_a_matrix_of_channels_keeps_both_sides_in_step(way):
    arch = read_random(Matrix(way), (2, 3, 4, 4))
    assert {g.name: g.size for g in arch.free_groups} == {"stem": 7, "back": 5}
    assert ("mid.weight", 0) in {(m.tensor, m.axis) for m in arch.group("stem").members}
    assert arch.apply(cw.Width("stem", 14)).changes[0].exact  # a softmax of whole multiples keeps its shares


class Spatial(nn.Module):
    """A module that views by the shape of what enters it, as detectors do."""

    def __init__(self):
        super().__init__()
        self.heads, self.deep, self.wide = 2, 3, 7
        self.qkv, self.norm = nn.Conv2d(14, 26, 1, bias=False), nn.BatchNorm2d(26)
        self.position, self.out = nn.Conv2d(14, 14, 3, 1, 1, groups=14), nn.Conv2d(14, 14, 1)

    def forward(self, x):
        n, c, h, w = x.shape
        parts = self.norm(self.qkv(x)).view(n, self.heads, self.deep * 2 + self.wide, h * w)
        q, k, v = parts.split([self.deep, self.deep, self.wide], dim=2)
        scores = ((q * 0.5).transpose(-2, -1) @ k).softmax(dim=-1)
        y = (v @ scores.transpose(-2, -1)).view(n, c, h, w) + self.position(v.reshape(n, c, h, w))
        return self.out(y)


class Divided(nn.Module):
    """Half of the channels attend; one number says where to cut."""

    def __init__(self):
        super().__init__()
        self.c = 14
        self.stem, self.attention, self.last = nn.Conv2d(3, 28, 1), Spatial(), nn.Conv2d(28, 5, 1)
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        a, b = self.stem(x).split((self.c, self.c), dim=1)
        b = b + self.attention(b)
        return self.fc(self.last(torch.cat((a, b), 1)).mean((2, 3)))


def test_what_enters_a_module_and_what_it_views_by_that_change_in_step():
    arch = read_random(Divided(), (2, 3, 4, 4))
    assert set(arch.group("stem[14:28]").tied) == {"stem[0:14]", "attention.qkv[6:26]"}
    new = arch.apply(cw.Width("stem[14:28]", 10))
    assert new.changes[0].exact
    assert (new.model.c, new.model.attention.wide, new.model.attention.deep) == (10, 5, 3)
    assert arch.apply(cw.Width("attention.qkv[0:19]", 4)).model.attention.deep == 1
    for ratio in (0.4, 1.6, 2):
        changes = arch.apply(*scale_widths(arch, ratio)).changes
        assert all(change.exact for change in changes)


def test_heads_of_parameters_keep_their_number():
    class Biased(Attention):
        def __init__(self):
            super().__init__(self.biased)
            self.bias = nn.Parameter(torch.ones(HEADS, 1, 1))

        def biased(self, q, k, v):
            return v @ ((q.mT @ k) * self.bias).softmax(-1).mT

    arch = read_random(Biased(), (2, 3, 8, 8))
    assert arch.group("v").size == HEADS * WIDE
    assert not arch.group("v").frozen
    assert all(change.exact for change in arch.apply(*scale_widths(arch, 2)).changes)


def test_sides_that_code_shares_are_divided_on_the_other():
    """Queries are read by a second layer, too, so that the keys' rows take the division."""

    def shared(net, x):
        q, k = net.mid(x), net.key(x)
        scores = (q.flatten(2).mT @ k.flatten(2)).softmax(-1)
        return (x.flatten(2) @ scores).unflatten(2, x.shape[2:]) + net.again(q)

    net = Matrix(shared)
    net.key, net.again = nn.Conv2d(7, 7, 1), nn.Conv2d(7, 7, 1)
    arch = read(net, torch.zeros(2, 3, 4, 4))
    new = arch.apply(cw.Width("mid", 14))
    assert new.changes[0].exact
    assert torch.equal(new.model.mid.weight, net.mid.weight.repeat_interleave(2, 0))
    assert torch.equal(new.model.key.weight, net.key.weight.repeat_interleave(2, 0) / 2)


def test_a_scale_that_code_computes_from_the_size_is_the_reason():
    class Scaled(Attention):
        def __init__(self):
            super().__init__(lambda q, k, v: v @ ((q * q.shape[2] ** -0.5).mT @ k).softmax(-1).mT)

    arch = read_random(Scaled(), (2, 3, 8, 8))
    with pytest.warns(cw.InexactEditWarning, match="computes a scale from the number of channels: matmul"):
        (change,) = arch.apply(cw.Width("q", HEADS * 14)).changes
    assert not change.exact
    assert arch.apply(cw.Width("v", HEADS * 10)).changes[0].exact
