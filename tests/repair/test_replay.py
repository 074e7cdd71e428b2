"""Passes that go on where the last one ended: the calls they show are those of a whole pass, with less computed."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import convwright as cw
from convwright.edits.surgery import named_tensors
from convwright.repair import replay
from convwright.repair.consumers import consumers, watched
from convwright.repair.replay import Replay

SEVEN = 7  # images in batches of 3, 3 and 1


class Written(nn.Module):
    """Changes tensors in place, also through a view, ignores what such calls return, and reads an early tensor late."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3, bias=False), nn.Conv2d(5, 5, 3, padding=1)
        self.third, self.head = nn.Conv2d(5, 5, 1), nn.Linear(5, 2)

    def forward(self, x):
        early = self.first(x)
        y = early.clone()
        y.relu_()
        y[:, 0] = 0.5
        y = F.relu(self.second(y), inplace=True)
        one, two = torch.split(y, [2, 3], dim=1)
        y = torch.cat((two, one * float(one.amax() > 0)), 1)
        y += early[..., : y.shape[-1]]
        return self.head(self.third(y).flatten(2).mean(-1))


class Hidden(Written):
    """Has a call that torch does not show to a mode."""

    def forward(self, x):
        y = self.first(x)
        with torch._C.DisableTorchFunction():
            late = 2 * y
        return self.head((self.third(self.second(y)) + late).mean((2, 3)))


class Remembers(Written):
    """Computes something anew where images have another size or number than the last ones, as YOLO's anchors."""

    shape = None

    def forward(self, x):
        if self.shape != x.shape:
            self.shape, self.scale = x.shape, torch.linspace(1, 2, x.shape[-1], dtype=x.dtype).cumsum(0)
        return super().forward(x * self.scale)


class Count(TorchFunctionMode):
    """Counts convolutions."""

    seen = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen += func is F.conv2d
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def runs(model, weights, shape, sound=True):
    """Go through the layers, changing each one's weight after it was seen; return the convolutions that were run."""
    torch.manual_seed(5)
    model = model.eval().double()
    batches = torch.randn(SEVEN, *shape, dtype=torch.float64).split(3)
    calls = {name: len(found) for name, found in watched(model, weights, batches[0], None).items()}
    again, tensors = Replay(model, batches, None, calls), named_tensors(model)
    assert calls == weights
    with Count() as count:
        for name in calls:
            for number, batch in enumerate(batches):
                wanted = {name: calls[name]}
                found, before = again.watched(number, wanted)[name], count.seen
                whole = watched(model, wanted, batch, None)[name]
                count.seen = before
                assert len(found) == len(whole)
                for one, two in zip(found, whole, strict=True):
                    assert torch.equal(one.x, two.x)
                    assert torch.equal(one.output, two.output)
            tensors[name].mul_(1.5)
    assert (again.trace is not None) is sound
    return count.seen


@pytest.mark.parametrize("network", ["zoo:resnet20", "zoo:mobilenet-v2", "timm:test_vit", "timm:test_resnet"])
def test_each_layer_sees_what_it_sees_in_a_whole_pass(network):
    arch = cw.read(network, (3, 32, 32)) if network.startswith("zoo") else cw.read(network)
    sites = consumers(arch, arch)[::3]
    runs(arch.model, {site.weight: len(site.nodes) for site in sites}, arch.example_input.shape[1:])


WEIGHTS = dict.fromkeys(("first.weight", "second.weight", "third.weight", "head.weight"), 1)


def test_what_is_changed_in_place_comes_out_as_it_did():
    computed = runs(Written(), WEIGHTS, (3, 11, 11))
    passes, checked = (1, 2, 2, 1), (1, 2, 3, 3)  # convolutions per layer, of three batches and of the first one whole
    assert computed == 3 * sum(passes) + sum(checked)


def test_nothing_is_kept_where_there_is_no_room(monkeypatch):
    less = runs(Written(), WEIGHTS, (3, 11, 11))
    monkeypatch.setattr(replay, "HELD", 10)
    assert runs(Written(), WEIGHTS, (3, 11, 11)) > less


def test_a_network_whose_calls_are_hidden_is_run_whole_every_time():
    runs(Hidden(), WEIGHTS, (3, 11, 11), sound=False)


def test_a_network_that_remembers_what_it_made_is_run_whole_every_time():
    runs(Remembers(), WEIGHTS, (3, 11, 11), sound=False)
