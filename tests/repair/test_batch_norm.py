"""Re-estimated statistics against what is computed by hand, and everything that must stay."""

import copy

import pytest
import torch
from torch import nn

from convwright.repair import kept_statistics, reestimate_batch_norm, stale


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.drop = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Dropout(0.5)
        self.fc, self.last, self.out = nn.Linear(5, 4), nn.BatchNorm1d(4, momentum=0.01), nn.Linear(4, 2)
        self.aux = nn.BatchNorm1d(7)  # in training only, as GoogLeNet's heads

    def forward(self, x):
        x = self.drop(torch.relu(self.bn(self.conv(x)))).mean((2, 3))
        return self.out(self.last(self.fc(x)))


@pytest.fixture
def model():
    net = Net()
    with torch.no_grad():
        for buffer in net.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(1, 2)
    return net


def batches(*sizes):
    return [torch.randn(n, 3, 6, 6) * (k + 1) + k for k, n in enumerate(sizes)]


def test_statistics_are_means_over_the_batches_with_everything_else_in_eval_mode(model):
    images = batches(8, 8, 4)
    assert reestimate_batch_norm(model.train(), iter(images)) == 20
    seen = {"bn": [], "last": []}
    with torch.no_grad():
        for x in images:
            x = model.conv(x)
            seen["bn"].append((x.mean((0, 2, 3)), x.var((0, 2, 3))))
            mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
            x = (x - mean) / (var + 1e-5).sqrt() * model.bn.weight.view(1, -1, 1, 1) + model.bn.bias.view(1, -1, 1, 1)
            x = model.fc(torch.relu(x).mean((2, 3)))  # nothing is dropped
            seen["last"].append((x.mean(0), x.var(0)))
    for name, found in seen.items():
        norm = model.get_submodule(name)
        for now, values in zip((norm.running_mean, norm.running_var), zip(*found, strict=True), strict=True):
            torch.testing.assert_close(now, torch.stack(values).mean(0), rtol=1e-4, atol=1e-5)


def test_only_statistics_of_norms_that_ran_change(model):
    model.drop.eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    images, random = batches(8, 8), torch.get_rng_state()
    reestimate_batch_norm(model, images, forward=lambda x: (torch.rand(1), model(x)))
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in model.modules()] == modes
    assert [model.bn.momentum, model.last.momentum] == [0.1, 0.01]
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    kinds = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"{name}.{kind}" for name in ("bn", "last") for kind in kinds}


def test_a_failure_puts_everything_back_but_the_statistics(model):
    def fails(x):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        reestimate_batch_norm(model.train(), batches(8), forward=fails)
    assert model.bn.momentum == 0.1
    assert model.conv.training


def test_single_images_are_joined(model):
    images = batches(1, 1, 2, 1)
    joined = copy.deepcopy(model)
    assert reestimate_batch_norm(joined, [torch.cat(images[:2]), images[2]]) == 4
    assert reestimate_batch_norm(model, images) == 4
    torch.testing.assert_close(model.state_dict(), joined.state_dict())
    before = copy.deepcopy(model.state_dict())
    assert reestimate_batch_norm(model, batches(1)) == 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_norms_without_statistics_or_with_held_ones_are_left_alone():
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3, momentum=0.0))
    assert reestimate_batch_norm(model, batches(4)) == 0
    assert torch.equal(model[1].running_mean, torch.zeros(3))
    assert not stale(model, 0)


def test_statistics_are_put_back(model):
    before = copy.deepcopy(model.state_dict())
    with kept_statistics(model):
        reestimate_batch_norm(model, batches(8))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("momentum", "steps"), [(0.1, 44), (0.01, 459), (0.5, 7)])
def test_what_a_training_is_too_short_for(momentum, steps):
    model = nn.BatchNorm2d(3, momentum=momentum)
    assert stale(model, steps - 1)
    assert not stale(model, steps)
    model.momentum = None  # the cumulative average forgets by itself
    assert not stale(model, 1)
