"""The laws of channel groups on random networks."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from .laws import check_bookkeeping, check_independence, check_removal, hidden_input, read_random

PRIMES = [3, 5, 7, 11, 13]


class Step(nn.Module):
    """One step from ``width`` channels; ``out`` says how many come out."""

    def __init__(self, width, draw):
        super().__init__()
        self.out = width


class ConvStep(Step):
    def __init__(self, width, draw):
        super().__init__(width, draw)
        self.out = draw(PRIMES)
        self.conv = nn.Conv2d(width, self.out, draw([1, 3]), padding="same", bias=draw([True, False]))
        self.norm = nn.BatchNorm2d(self.out) if draw([True, False]) else nn.Identity()
        self.act = draw([nn.ReLU, nn.Hardswish, nn.Identity])()

    def forward(self, x):
        return self.act(self.norm(self.conv(x)))


class ResidualStep(Step):
    def __init__(self, width, draw):
        super().__init__(width, draw)
        self.inside = ConvStep(width, draw)
        self.back = nn.Conv2d(self.inside.out, width, 1)

    def forward(self, x):
        return x + self.back(self.inside(x))


class ProjectedStep(Step):
    """A residual block with a convolution on its shortcut."""

    def __init__(self, width, draw):
        super().__init__(width, draw)
        self.branch = ConvStep(width, draw)
        self.out = self.branch.out
        self.short = nn.Conv2d(width, self.out, 1)

    def forward(self, x):
        return F.relu(self.branch(x) + self.short(x))


class ConcatStep(Step):
    def __init__(self, width, draw):
        super().__init__(width, draw)
        self.branch = ConvStep(width, draw)
        self.out = width + self.branch.out
        self.norm = nn.BatchNorm2d(self.out)

    def forward(self, x):
        return self.norm(torch.cat([x, self.branch(x)], 1))


class ChunkStep(Step):
    """A convolution whose halves gate each other, or go apart and come back."""

    def __init__(self, width, draw):
        super().__init__(width, draw)
        self.out = draw(PRIMES)
        self.conv = nn.Conv2d(width, 2 * self.out, 1)
        self.gate = draw([True, False])
        self.left = nn.Identity() if self.gate else nn.Conv2d(self.out, self.out, 1)

    def forward(self, x):
        a, b = self.conv(x).chunk(2, 1)
        return self.left(a) * torch.sigmoid(b)


class ExciteStep(Step):
    def __init__(self, width, draw):
        super().__init__(width, draw)
        hidden = draw(PRIMES)
        self.down, self.up = nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class GroupedStep(Step):
    def __init__(self, width, draw):
        super().__init__(width, draw)
        groups = draw([2, 3])
        self.out = groups * draw(PRIMES)
        self.widen = nn.Conv2d(width, groups * draw(PRIMES), 1)
        self.conv = nn.Conv2d(self.widen.out_channels, self.out, 3, padding=1, groups=groups)

    def forward(self, x):
        return self.conv(F.relu(self.widen(x)))


class DepthwiseStep(Step):
    def __init__(self, width, draw):
        super().__init__(width, draw)
        self.out = width * draw([1, 2])
        self.conv = nn.Conv2d(width, self.out, 3, padding=1, groups=width)
        self.act = nn.PReLU(self.out)

    def forward(self, x):
        return self.act(self.conv(x))


class SharedStep(Step):
    def __init__(self, width, draw):
        super().__init__(width, draw)
        self.conv, self.scale = nn.Conv2d(width, width, 1), nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x):
        return self.conv(F.relu(self.conv(x))) * self.scale


STEPS = [
    ConvStep, ResidualStep, ProjectedStep, ConcatStep, ChunkStep, ExciteStep, GroupedStep, DepthwiseStep, SharedStep,
]  # fmt: skip


class RandomNet(nn.Module):
    """A stem, some steps, a pooled or flattened classifier."""

    def __init__(self, draw, length):
        super().__init__()
        width = draw(PRIMES)
        steps = [nn.Conv2d(2, width, 3, padding=1)]
        for _ in range(length):
            steps.append(draw(STEPS)(width, draw))
            width = steps[-1].out
            if width > 60:
                steps.append(nn.Conv2d(width, 5, 1))
                width = 5
        self.steps = nn.Sequential(*steps)
        self.flatten = draw([True, False])
        self.fc = nn.Linear(width * (4 if self.flatten else 1), 3)

    def forward(self, x):
        x = F.adaptive_avg_pool2d(self.steps(x), 2 if self.flatten else 1)
        return self.fc(torch.flatten(x, 1))


@st.composite
def random_networks(draw):
    """Draw a network and the seed of its weights."""
    seed = draw(st.integers(0, 2**31 - 1))
    length = draw(st.integers(1, 4))
    return RandomNet(lambda options: draw(st.sampled_from(options)), length), seed


def check(network, seed):
    arch = read_random(network, (2, 2, 5, 5), seed)
    check_bookkeeping(arch)
    assert arch.channels.follower.unknown == []
    frozen = [g.name for g in arch.groups if g.frozen]
    assert frozen == ["input", "fc"]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(arch.free_groups), generator=generator).tolist()
    for i in order[:3]:
        group = arch.free_groups[i]
        channel = int(torch.randint(group.units, (1,), generator=generator))
        assert not hidden_input(group)
        check_independence(arch, group.name, channel, seed)
        if not group.tied and group.units > 1:
            check_removal(arch, group.name, channel)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_networks())
def test_laws_hold_on_random_networks(drawn):
    check(*drawn)


@pytest.mark.slow
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_networks())
def test_laws_hold_on_many_random_networks(drawn):
    check(*drawn)
