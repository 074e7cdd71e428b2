"""Advice on kernels that see nothing new: every edit is valid, saves what was said, and leaves nothing behind."""

import json

import pytest
import torch
from torch import nn

import convwright as cw
from convwright.diagnose.advice import Advice, advise, edits_of
from convwright.edits.edit import edit_from_dict

NETWORKS = ("zoo:mobilenet-v1", "zoo:vgg16-bn", "zoo:resnet20", "torchvision:resnet18", "torchvision:mobilenet_v2")
_READ = {}


def advised(name):
    """Return a network at 3x32x32, its fields and the advice, read once for all tests."""
    if name not in _READ:
        arch = cw.read(name, (3, 32, 32))
        field = cw.receptive_field(arch)
        _READ[name] = arch, field, advise(arch, field)
    return _READ[name]


def conv(inputs, outputs, kernel=3, **options):
    return nn.Conv2d(inputs, outputs, kernel, padding=options.pop("padding", kernel // 2), **options)


class Twice(nn.Module):
    """One convolution is called twice: with something new to see, and without."""

    def __init__(self):
        super().__init__()
        self.stem, self.same = conv(3, 5, 5), conv(5, 5)

    def forward(self, x):
        return self.same(torch.relu(self.same(torch.relu(self.stem(x))))).mean((2, 3))


class Silent(nn.Module):
    """Two residual branches in one module; the code adds more than the branches."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 5, 11)
        self.first, self.second = conv(5, 5), conv(5, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.first(x)
        x = x + self.second(x) * 0.5 + 1.0
        return x.mean((2, 3))


def test_the_specified_layers_of_mobilenet_are_advised_on():
    """The input of the depthwise convolutions 8 to 13 covers 32x32 already."""
    _, field, advice = advised("zoo:mobilenet-v1")
    marked = [each.name for each in field.layers if each.kernel][1:][7:]
    assert [each.name for each in field.wasted] == marked
    assert [each.python for each in advice] == [
        *(f'cw.RemoveBlock("stage{block}")' for block in ("4.2", "4.3", "4.4", "4.5", "5.1")),
        'cw.Kernel("stage5.0.depthwise.conv", 1)',
    ]
    assert advice[0].macs == 4 * 4 * (9 * 512 + 512 * 512)
    assert advice[-1].macs == 2 * 2 * 8 * 512
    assert advice[-1].params == 8 * 512
    assert "depthwise" in advice[-1].notes[-1]


@pytest.mark.parametrize("name", NETWORKS)
def test_each_marked_layer_has_one_advice(name):
    _, field, advice = advised(name)
    assert sorted(layer for each in advice for layer in each.layers) == sorted(each.name for each in field.wasted)
    assert all(bool(each.reason) == (each.edit is None) for each in advice)
    assert all(field.layer(layer).kind == "pool" for each in advice if each.edit is None for layer in each.layers)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", NETWORKS)
def test_all_edits_together_save_what_was_said(name):
    """And, each edit still in place, nothing that has an edit is left: what they read covers the image as before."""
    arch, _, advice = advised(name)
    new = arch.apply(*edits_of(advice))
    named = [each for each in advice if each.edit is not None]
    saved = [(c.macs[0] - c.macs[1], c.params[0] - c.params[1]) for c in new.changes]
    assert saved == [(each.macs, each.params) for each in named]
    assert all(change.exact for change in new.changes)
    assert arch.profile().macs - new.profile().macs == sum(each.macs for each in advice)
    assert arch.profile().params - new.profile().params == sum(each.params for each in advice)
    nothing = {layer for each in advice if each.edit is None for layer in each.layers}
    assert {each.name for each in cw.receptive_field(new).wasted} <= nothing


def test_what_is_written_is_the_edit():
    for each in advised("zoo:resnet20")[2]:
        assert eval(each.python, {"cw": cw}) == each.edit == edit_from_dict(json.loads(each.plan))
        assert json.loads(json.dumps(each.as_dict()))["edit"] == json.loads(each.plan)


def test_nothing_is_advised_where_all_layers_see_something_new():
    arch = cw.read(nn.Sequential(conv(3, 5), conv(5, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (3, 17, 19))
    assert advise(arch, cw.receptive_field(arch)) == ()


def test_even_kernels_say_why_nothing_is_named():
    net = nn.Sequential(conv(3, 5, 13), nn.ReLU(), conv(5, 7, 4, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    arch = cw.read(net, (3, 11, 13))
    (only,) = advise(arch, cw.receptive_field(arch))
    assert only == Advice(("2",), None, reason=only.reason)
    assert "its centre would move" in only.reason


def test_a_pool_has_no_edit():
    net = nn.Sequential(conv(3, 5, 13), nn.MaxPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    arch = cw.read(net, (3, 11, 13))
    (only,) = advise(arch, cw.receptive_field(arch))
    assert (only.layers, only.edit, only.python, only.plan) == (("1",), None, "", "")
    assert "a pool" in only.reason
    assert "needs its size" in only.reason


def test_a_kernel_that_is_used_twice_goes_only_if_both_calls_see_nothing_new():
    small, large = cw.read(Twice(), (3, 5, 5)), cw.read(Twice(), (3, 7, 7))
    both = advise(small, cw.receptive_field(small))
    assert [(each.layers, each.python) for each in both] == [(("same", "same#2"), 'cw.Kernel("same", 1)')]
    assert small.apply(*edits_of(both)).profile().macs == small.profile().macs - both[0].macs
    (one,) = advise(large, cw.receptive_field(large))
    assert one.layers == ("same#2",)
    assert "used by same, too" in one.reason


def test_a_branch_in_code_that_does_more_is_never_half_removed():
    arch = cw.read(Silent(), (3, 11, 11))
    field = cw.receptive_field(arch)
    advice = advise(arch, field)
    assert {layer for each in advice for layer in each.layers} == {"first", "second"}
    new = arch.apply(*edits_of(advice))
    assert arch.profile().macs - new.profile().macs == sum(each.macs for each in advice) > 0


def test_advice_changes_nothing():
    arch, _, _ = advised("zoo:resnet20")
    before = {name: tensor.clone() for name, tensor in arch.model.state_dict().items()}
    advise(arch, cw.receptive_field(arch))
    assert all(torch.equal(tensor, before[name]) for name, tensor in arch.model.state_dict().items())
    assert arch.changes == ()
