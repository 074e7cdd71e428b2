"""Liveness on graphs small enough to follow by hand. Sizes in elements, at 4 bytes each."""

import pytest
import torch
from torch import nn

import convwright as cw
from convwright.architecture import read
from convwright.cost import costs_of, parse_budget, profile
from convwright.cost.memory import EagerStorages, live_at_births, peak_bytes, storages


class Net(nn.Module):
    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.function(self, x)


def counted(model, images):
    """What a forward pass on real tensors holds at its peak."""
    observed = EagerStorages()
    with torch.no_grad(), observed:
        observed.hold(images)
        model(images)
    return peak_bytes(tuple(observed.found), frozenset(), 1)


def peak(function, shape=(1, 2, 4, 4), **layers):
    arch = read(Net(function, **layers), torch.rand(shape))
    found = profile(arch).activation_bytes
    assert arch.cost_model().activation_bytes({}) == found
    return found // 4


def conv(a, b, **options):
    return nn.Conv2d(a, b, 1, **options)


PIXELS = 16


def test_chain_holds_two_neighbours():
    def run(m, x):
        return m.c(m.b(m.a(x)))

    assert peak(run, a=conv(2, 3), b=conv(3, 5), c=conv(5, 1)) == PIXELS * (3 + 5)


def test_input_counts_until_its_last_use():
    def run(m, x):
        return m.b(m.a(x)) + m.c(x)

    # input 2, a 3, b 4: at b the input and a are live; at c the input, b and c; at the sum b, c, sum
    assert peak(run, a=conv(2, 3), b=conv(3, 4), c=conv(2, 4)) == PIXELS * 12


def test_residual_keeps_its_shortcut():
    def run(m, x):
        y = m.a(x)
        return y + m.c(m.b(y))

    # at c: y 3, b 7, c 3; at the sum: 3, 3, 3
    assert peak(run, a=conv(2, 3), b=conv(3, 7), c=conv(7, 3)) == PIXELS * 13


def test_in_place_results_are_free():
    def plain(m, x):
        return m.b(m.a(x).relu())

    def in_place(m, x):
        return m.b(m.a(x).relu_())

    assert peak(plain, a=conv(2, 5), b=conv(5, 1)) == PIXELS * 10
    assert peak(in_place, a=conv(2, 5), b=conv(5, 1)) == PIXELS * 7


def test_in_place_sum_keeps_only_one():
    def run(m, x):
        y = m.a(x)
        z = m.b(y)
        z += y
        return m.c(z)

    assert peak(run, a=conv(2, 5), b=conv(5, 5), c=conv(5, 1)) == PIXELS * 10


def test_concat_holds_parts_and_whole():
    def run(m, x):
        return torch.cat([m.a(x), m.b(x)], 1)

    # at the concat the input is no longer needed: 3 + 4 + 7
    assert peak(run, a=conv(2, 3), b=conv(2, 4)) == PIXELS * 14


def test_views_are_free_and_keep_their_base_alive():
    def run(m, x):
        y = m.a(x)
        left, right = y.view(1, 2, 3, 4, 4).flatten(1, 2).chunk(2, 1)
        z = m.b(left)
        return m.c(z).mean() + right[:, :1].mean()

    # at c: all of y (6) because of `right`, z (5), c (1)
    assert peak(run, a=conv(2, 6), b=conv(3, 5), c=conv(5, 1)) == PIXELS * 12


def test_a_reshape_that_must_copy_costs():
    def run(m, x):
        y = m.a(x)
        return y.view(1, 2, 3, 4, 4).transpose(1, 2).reshape(1, 6, 4, 4).mean()

    assert peak(run, a=conv(2, 6)) == PIXELS * 12


def test_dropout_and_identity_are_free_in_eval():
    def run(m, x):
        return m.b(m.d(m.a(x)))

    layers = {"a": conv(2, 3), "b": conv(3, 5), "d": nn.Sequential(nn.Dropout(), nn.Identity())}
    assert peak(run, **layers) == PIXELS * 8


def test_only_the_picked_result_stays():
    def run(m, x):
        values, _ = nn.functional.max_pool2d(m.a(x), 1, return_indices=True)
        return m.b(values)

    # at the pool: a 3, values 3, and 3 indices of 8 bytes
    assert peak(run, a=conv(2, 3), b=conv(3, 8)) == PIXELS * 12


def test_element_size_counts():
    model = nn.Sequential(conv(2, 3), conv(3, 5)).double()
    costs = profile(read(model, torch.rand(1, 2, 4, 4, dtype=torch.float64)))
    assert costs.activation_bytes == 8 * PIXELS * 8
    assert costs.weight_bytes == 8 * costs.params


def test_weights_do_not_count():
    assert peak(lambda m, x: m.a(x), a=nn.Conv2d(2, 3, 3, padding=1)) == PIXELS * 5


@pytest.mark.parametrize("name", ["zoo:resnet20", "zoo:mobilenet_v1"])
def test_peak_is_the_largest_moment(name):
    """A slow, direct simulation: at each node, everything born and not yet dead."""
    arch = read(name)
    found = storages(arch.capture)
    ends = range(len(arch.capture.graph.nodes))
    sizes = [torch.Size(s.shape).numel() * s.itemsize for s in found]
    slow = max(sum(b for s, b in zip(found, sizes, strict=True) if s.born <= t <= s.dies) for t in ends)
    fast = max(sum(sizes[i] for i in live) for live in live_at_births(found))
    assert fast == slow == profile(arch).activation_bytes


# ------------------------------------------------------------------ what eager PyTorch holds


def eager(function, shape=(1, 2, 4, 4), **layers):
    images = torch.rand(shape)
    arch = read(Net(function, **layers), images)
    found = profile(arch).eager_activation_bytes
    assert arch.cost_model().eager_activation_bytes({}) == found == counted(arch.model.eval(), images)
    assert found >= profile(arch).activation_bytes
    return found // 4


def test_the_caller_holds_the_input():
    def run(m, x):
        return m.c(m.b(m.a(x)))

    assert eager(run, a=conv(2, 3), b=conv(3, 5), c=conv(5, 1)) == PIXELS * (2 + 3 + 5)


def test_a_variable_holds_its_value_until_it_is_assigned_anew():
    def named(m, x):
        y = m.a(x)
        z = m.b(y)
        return m.c(z)

    def anew(m, x):
        y = m.a(x)
        y = m.b(y)
        return m.c(y)

    layers = {"a": conv(2, 9), "b": conv(9, 5), "c": conv(5, 8)}
    assert eager(named, **layers) == PIXELS * (2 + 9 + 5 + 8)
    assert eager(anew, **layers) == PIXELS * (2 + 9 + 5)


def test_views_and_values_changed_in_place_hold_nothing_of_their_own():
    def run(m, x):
        return torch.relu_(m.a(x)).flatten(1)[:, 8:]

    assert eager(run, a=conv(2, 3)) == PIXELS * (2 + 3)


def test_what_a_module_keeps_is_held_by_a_copy_and_not_by_the_network():
    def run(m, x):
        m.kept = m.a(x)
        return m.b(m.c(m.kept))

    images = torch.rand(1, 2, 4, 4)
    model = Net(run, a=conv(2, 3), b=conv(3, 1), c=conv(3, 3))
    arch = read(model, images)
    arch.model.__dict__.pop("kept", None)
    assert arch.profile().eager_activation_bytes == 4 * PIXELS * (2 + 3 + 3 + 1)
    assert not hasattr(arch.model, "kept")


def test_what_is_held_is_found_without_a_trace_in_buffers_and_random_states():
    def run(m, x):
        m.a.running_mean.add_(1)
        return m.a(x) + torch.rand(1)

    arch = read(Net(run, a=torch.nn.BatchNorm2d(2)), torch.rand(1, 2, 4, 4))
    state = torch.get_rng_state()
    assert arch.profile().eager_activation_bytes > 0
    assert not arch.model.a.running_mean.any()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["zoo:resnet20", "torchvision:shufflenet_v2_x0_5", "timm:mobilevitv2_050"])
def test_eager_is_what_a_real_pass_holds_and_follows_the_widths(name):
    arch = cw.read(name)
    model = arch.cost_model()
    assert arch.profile().eager_activation_bytes == counted(arch.model.eval(), arch.example_input)
    widths = {g.name: g.step * max(g.units // 2, 1) for g in arch.free_groups if not g.tied}
    edited = arch.apply(*(cw.Width(group, width) for group, width in widths.items()), verify=False)
    assert (
        edited.profile().eager_activation_bytes
        == model.eager_activation_bytes(widths)
        == counted(edited.model.eval(), edited.example_input)
    )


def test_a_budget_is_judged_on_what_eager_pytorch_holds():
    arch = cw.read("zoo:resnet20")
    found = costs_of(arch.profile())["activations"]
    assert found == arch.profile().eager_activation_bytes > arch.profile().activation_bytes
    assert arch.cost_model().costs({})["activations"] == found
    assert arch.profile().as_dict()["eager_activation_bytes"] == found
    limits = parse_budget("activations<=50%").resolve(arch.profile())
    assert limits.costs(arch.cost_model(), {}) == {"activations": found}
