"""The laws of channel groups on random networks."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from random_networks import BASIC, networks

from .laws import check_bookkeeping, check_independence, check_removal, hidden_input, read_random

DRAWN = networks(BASIC, output="tensor")


def check(net):
    seed = net.seed
    arch = read_random(net.build(), (2, *net.shape), seed)
    check_bookkeeping(arch)
    assert arch.channels.follower.unknown == []
    assert [g.name for g in arch.groups if g.frozen] == ["input", "fc"]
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
@given(DRAWN)
def test_laws_hold_on_random_networks(net):
    check(net)


@pytest.mark.slow
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(DRAWN)
def test_laws_hold_on_many_random_networks(net):
    check(net)
