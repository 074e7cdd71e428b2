"""The cost model equals recounting a network that is really built with other widths, exactly."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convwright.architecture import read
from convwright.cost import CostModel, costs_of, count_by_torch, profile
from convwright.cost.forms import Basis, Form, Peak, Polynomial
from convwright.errors import BudgetError


class Plain(nn.Module):
    """Convolutions, pooling, flatten into a linear layer."""

    def __init__(self, a=7, b=11, c=13):
        super().__init__()
        self.a = nn.Conv2d(3, a, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(a)
        self.b = nn.Conv2d(a, b, 3, padding=1)
        self.c = nn.Linear(b * 9, c)
        self.head = nn.Linear(c, 10)

    def forward(self, x):
        x = F.relu(self.norm(self.a(x)), inplace=True)
        x = F.max_pool2d(F.relu(self.b(x)), 2)
        return self.head(F.relu(self.c(x.flatten(1))))


class Residual(nn.Module):
    """Two branches that share a width, one inner width each."""

    def __init__(self, a=7, b=11, c=5):
        super().__init__()
        self.a = nn.Conv2d(3, a, 3, padding=1)
        self.b = nn.Conv2d(a, b, 3, padding=1)
        self.b2 = nn.Conv2d(b, a, 3, padding=1)
        self.c = nn.Conv2d(a, c, 1)
        self.c2 = nn.Conv2d(c, a, 3, padding=1)
        self.twice = nn.Conv2d(a, a, 1)
        self.head = nn.Linear(a, 4)

    def forward(self, x):
        x = self.a(x)
        x = x + self.b2(self.b(x).relu())
        x = x + self.c2(self.c(x).relu_())
        return self.head(self.twice(self.twice(x)).mean((2, 3)))


class Depthwise(nn.Module):
    """Depthwise with and without a multiplier, squeeze and excite."""

    def __init__(self, a=7, b=11, c=3):
        super().__init__()
        self.a = nn.Conv2d(3, a, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(a, a, 3, padding=1, groups=a)
        self.wide = nn.Conv2d(a, 2 * a, 5, padding=2, groups=a, bias=False)
        self.b = nn.Conv2d(2 * a, b, 1)
        self.c = nn.Conv2d(b, c, 1)
        self.gate = nn.Conv2d(c, b, 1)
        self.head = nn.Linear(b, 4)

    def forward(self, x):
        x = self.b(self.wide(self.deep(self.a(x)).relu()).relu())
        gate = self.gate(F.relu(self.c(F.adaptive_avg_pool2d(x, 1)))).sigmoid()
        return self.head((x * gate).mean((2, 3)))


class Grouped(nn.Module):
    """Grouped convolution and group norm: widths are multiples of 4; a grouped transposed one of 2."""

    def __init__(self, a=4, b=7, c=5):
        super().__init__()
        self.a = nn.Conv2d(3, 4 * a, 3, padding=1)
        self.b = nn.Conv2d(4 * a, 4 * b, 3, padding=1, groups=4)
        self.norm = nn.GroupNorm(2, 4 * b)
        self.c = nn.ConvTranspose2d(4 * b, 2 * c, 3, stride=2, groups=2)
        self.head = nn.Linear(2 * c, 4)

    def forward(self, x):
        return self.head(self.c(self.norm(self.b(self.a(x).relu()))).relu().mean((2, 3)))


class Concat(nn.Module):
    """Concatenated parts, also with the input itself, then flattened."""

    def __init__(self, a=7, b=5, c=11):
        super().__init__()
        self.a = nn.Conv2d(3, a, 3, padding=1, stride=3)
        self.b = nn.Conv2d(3, b, 3, padding=1, stride=3)
        self.c = nn.Conv2d(a + b + 3, c, 1)
        self.head = nn.Linear((a + c) * 16, 4)

    def forward(self, x):
        a = self.a(x)
        c = self.c(torch.cat([a, self.b(x), F.interpolate(x, size=4)], 1))
        return self.head(torch.cat([a, c], 1).flatten(1))


class Standard(nn.Module):
    """Computed weights (products of two widths in memory), channels last, layer norm, 1-d convolution."""

    def __init__(self, a=7, b=11, c=13):
        super().__init__()
        self.a = nn.Conv2d(3, a, 3, padding=1)
        self.b = nn.Conv2d(a, b, 3, padding=1)
        self.norm = nn.LayerNorm(b)
        self.c = nn.Linear(b, c)
        self.back = nn.Linear(c, b)
        self.row = nn.Conv1d(b, 4, 3)

    def forward(self, x):
        x = self.a(x)
        weight = self.b.weight
        weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        x = F.conv2d(x, weight, self.b.bias, padding=1).permute(0, 2, 3, 1)
        x = x + self.back(F.gelu(self.c(self.norm(x))))
        return self.row(x.permute(0, 3, 1, 2).flatten(2)).mean(2)


NETWORKS = [Plain, Residual, Depthwise, Grouped, Concat, Standard]


def columns(network, arch):
    """Return the model's columns of the constructor's arguments a, b and c."""
    free = [g.name for g in arch.free_groups]
    return [free.index(arch.group(layer).name) for layer in ("a", "b", "c")]


def counted_after_building(network, values):
    arch = read(network(*values), (3, 12, 12))
    costs = profile(arch)
    assert costs.macs == count_by_torch(arch.model, arch.example_input)
    return costs_of(costs)


@pytest.mark.few(3)
@pytest.mark.parametrize("network", NETWORKS)
def test_equals_a_built_network(network):
    arch = read(network(), (3, 12, 12))
    model = CostModel.of(arch)
    assert model.costs({}) == costs_of(profile(arch))
    assert len(model.groups) == 3, "a test network has exactly the widths it was given"
    draws = np.random.default_rng(len(network.__name__)).integers(2, 24, size=(6, 3))
    widths = np.empty_like(draws)
    mine = columns(network, arch)
    widths[:, mine] = draws * (model.sizes[mine] // np.array(network.__init__.__defaults__))
    predicted = model.costs(widths)
    for row, values in enumerate(draws.tolist()):
        assert {m: int(c[row]) for m, c in predicted.items()} == counted_after_building(network, values)


def mobilenet(tenths):
    from torchvision.models import MobileNetV2

    return MobileNetV2(width_mult=tenths / 10, inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2], [6, 96, 2, 2]])


def resnext(width):
    from torchvision.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, [1, 1, 1, 1], groups=8, width_per_group=width)


def densenet(growth):
    from torchvision.models import DenseNet

    return DenseNet(growth, (2, 3), num_init_features=2 * growth, bn_size=2)


@pytest.mark.parametrize(("make", "present", "other"), [(mobilenet, 10, 6), (resnext, 4, 7), (densenet, 6, 10)])
def test_families_of_torchvision(make, present, other):
    """A published network predicts its narrower and wider relatives."""
    archs = [read(make(width), torch.zeros(1, 3, 32, 32)) for width in (present, other)]
    widths = np.array([group.size for group in archs[1].free_groups])
    assert archs[0].cost_model().costs(widths) == costs_of(profile(archs[1]))


class Halves(nn.Module):
    """Channel split and shuffle: two widths tied to each other."""

    def __init__(self, a=6, b=10):
        super().__init__()
        self.a = nn.Conv2d(3, 2 * a, 3, padding=1)
        self.b = nn.Conv2d(a, a, 3, padding=1)
        self.head = nn.Linear(2 * a, 4)

    def forward(self, x):
        left, right = self.a(x).chunk(2, 1)
        x = torch.stack([left, self.b(right)], 2).flatten(1, 2)
        return self.head(x.mean((2, 3)))


def test_size_ties_scaled_in_proportion():
    arch = read(Halves(), (3, 12, 12))
    model = arch.cost_model()
    for a in (3, 9, 13):
        widths = model.sizes // 6 * a
        assert model.costs(widths) == costs_of(profile(read(Halves(a), (3, 12, 12))))


# ------------------------------------------------------------------ how widths are given


@pytest.fixture(scope="module")
def model():
    return read(Plain(), (3, 12, 12)).cost_model()


def test_columns(model):
    assert model.groups == ("a", "b", "c")
    assert model.sizes.tolist() == [7, 11, 13]
    assert model.steps.tolist() == [1, 1, 1]


def test_ways_to_give_widths_agree(model):
    table = np.array([[7, 11, 13], [3, 11, 13], [5, 11, 13]])
    many = model.macs(table)
    assert many.dtype == np.int64
    assert many.shape == (3,)
    assert model.macs({"a": np.array([7, 3, 5])}).tolist() == many.tolist()
    assert model.macs({"a": [7, 3, 5], "b": 11}).tolist() == many.tolist()
    assert [model.macs(row) for row in table] == many.tolist()
    assert isinstance(model.macs({}), int)
    assert model.macs(table.astype(float)).tolist() == many.tolist()
    assert model.macs(table[:1]).shape == (1,)
    assert model.macs(table[:0]).shape == (0,)


def test_each_question_agrees_with_all_together(model):
    costs = model.costs({"b": 5})
    one_by_one = [f({"b": 5}) for f in (model.macs, model.params, model.eager_activation_bytes, model.weight_bytes)]
    assert list(costs.values()) == one_by_one
    assert list(costs) == ["macs", "params", "activations", "weights"]


def test_many_candidates_equal_one_by_one(model):
    widths = np.random.default_rng(0).integers(1, 50, size=(9001, 3))  # more than one chunk
    many = model.macs(widths)
    for row in (0, 4095, 4096, 9000):
        assert many[row] == model.macs(widths[row])


@pytest.mark.parametrize(
    ("widths", "said"),
    [
        ([7, 11], "expected"),
        (np.ones((2, 2, 3), int), "expected"),
        ([7, 11, 0], "the group c"),
        ([7, -1, 13], "the group b"),
        ([7.5, 11, 13], "whole numbers"),
        ([7, np.nan, 13], "whole numbers"),
        (["x", "y", "z"], "whole numbers"),
        ({"d": 3}, "'d'"),
        ({"head": 3}, "head cannot change: they are the network's output"),
        ({"a": [1, 2], "b": [1, 2, 3]}, "different lengths"),
    ],
)
def test_wrong_widths(model, widths, said):
    with pytest.raises(BudgetError, match=said):
        model.macs(widths)


def test_step_is_named():
    model = read(Grouped(), (3, 12, 12)).cost_model()
    with pytest.raises(BudgetError, match=r"18 is no width for the group a; it must be a positive multiple of 4"):
        model.macs({"a": 18})


# ------------------------------------------------------------------ exactness beyond floats


def test_numbers_beyond_floats_are_exact(model):
    sizes = np.array([10**7 + 19, 10**7 + 79, 10**5 + 3])
    a, b, c = (int(s) for s in sizes)
    expected = a * 36 * 27 + a * b * 9 * 36 + b * 9 * c + c * 10
    assert 2**53 < expected < 2**63
    assert model.macs(sizes) == expected


def test_numbers_beyond_64_bits_are_refused(model):
    with pytest.raises(BudgetError, match="64 bits"):
        model.macs([10**10, 10**10, 13])


def test_products_of_three_forms_and_rounded_lengths():
    half = Form(1, ((0, 3),))  # 3 of 6 channels, and one entry that is no channel
    whole, other = Form(0, ((0, 6),)), Form(2, ((1, 10),))
    cost = Polynomial()
    cost.add([whole, other, half], 5)
    cost.add([half], 7)
    cost.add([Form(4), Form(3)])
    basis = Basis([6, 5], cost.terms)
    assert list(basis.rounded) == [half]
    units = np.array([[6, 5], [3, 2], [4, 9]])
    result = Peak(basis, [cost])(units)
    lengths = [(u, 2 * v + 2, 1 + int(np.rint(u / 2))) for u, v in units.tolist()]
    assert result.tolist() == [5 * w * o * h + 7 * h + 12 for w, o, h in lengths]


def test_no_free_group():
    model = read(nn.Conv2d(3, 4, 1), (3, 4, 4)).cost_model()
    assert model.groups == ()
    assert model.macs({}) == 192
    assert model.costs([]) == model.costs({})
