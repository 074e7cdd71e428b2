"""The oracle on cases computed by hand, and the formula beside it on whole networks."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from random_networks import BASIC, networks
from torch import nn

import convwright as cw

from .dependence import Lambda, compare
from .oracle import Oracle, Unit

# ------------------------------------------------------------------ by hand


def chain(*layers, shape=(2, 9, 11)):
    return cw.read(nn.Sequential(*layers), (1, *shape))


def box(shape, channels, rows, columns):
    expected = torch.zeros(shape, dtype=torch.bool)
    expected[channels, rows, columns] = True
    return expected


def test_a_grouped_convolution_reads_its_group():
    arch = chain(nn.Conv2d(4, 2, 3, padding=1, groups=2), shape=(4, 9, 11))
    found = Oracle(arch).dependence("0", Unit(1, (4, 6)))
    assert torch.equal(found, box((4, 9, 11), slice(2, 4), slice(3, 6), slice(5, 8)))


def test_a_unit_at_the_border_sees_less():
    oracle = Oracle(chain(*(nn.Conv2d(2, 2, 3, padding=1) for _ in range(3)), shape=(2, 8, 8)))
    rows = [oracle.value("2", Unit(0, (row, 4))) // (2 * 7) for row in range(8)]
    assert rows == [4, 5, 6, 7, 7, 6, 5, 4]  # at most 7, on average 5.5


def test_holes():
    oracle = Oracle(chain(nn.Conv2d(2, 3, 3, padding=2, dilation=2)))
    assert oracle.value("0", Unit(0, (4, 5))) == 18


@pytest.mark.parametrize("act", [nn.ReLU, nn.Sigmoid, nn.GELU, nn.Hardswish, nn.Tanh, nn.Softsign, nn.LogSigmoid])
@pytest.mark.parametrize("pool", [nn.MaxPool2d(3, 1, 1), nn.MaxPool2d(3, 1, 1, dilation=2), nn.AvgPool2d(3, 1, 1)])
def test_nonlinearities_hide_nothing(act, pool):
    """A ReLU of a negative number or the losers of a maximum have no gradient; they count all the same."""
    oracle = Oracle(chain(nn.Conv2d(2, 3, 1), act(), pool, nn.Conv2d(3, 3, 1)))
    assert oracle.value("3", Unit(0, (4, 5))) == 18


def test_differences_do_not_cancel():
    oracle = Oracle(chain(nn.Conv2d(2, 2, 1), Lambda(lambda x: x - x.mean(1, keepdim=True)), nn.Conv2d(2, 2, 1)))
    assert oracle.value("2", Unit(0, (4, 5))) == 2


def where(x):
    return torch.where(x > 0, x, x.flip(1))


def largest(x):
    return torch.maximum(x, x.max(1, keepdim=True).values)


def softmax(x):
    return x.softmax(1)


@pytest.mark.parametrize("function", [where, largest, softmax], ids=lambda f: f.__name__)
def test_operators_that_choose_count_all_choices(function):
    arch = chain(Lambda(function), nn.Conv2d(2, 2, 1, groups=2))
    assert Oracle(arch).value("1", Unit(0, (4, 5))) == 2
    assert cw.receptive_field(arch).layer("1").value == 2


def test_a_scope_inside_the_network():
    arch = chain(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 5, 5, padding=2))
    oracle = Oracle(arch, scope=arch.layer("1").node)
    assert oracle.value("2", Unit(0, (4, 5))) == 75
    with pytest.raises(cw.EditError, match="0 does not depend on"):
        oracle.value("0", Unit(0, (4, 5)))


def test_nothing_runs_after_the_last_layer_asked_for():
    arch = chain(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 5, 3))
    with pytest.raises(cw.EditError, match="2 does not depend on"):
        Oracle(arch, until="0").value("2", Unit(0, (2, 2)))


# ------------------------------------------------------------------ the formula beside the oracle


def check(name, side, count):
    arch = cw.read(name, (1, 3, side, side))
    found = compare(arch, count)
    assert found
    wrong = [(one.layer, one.formula, one.oracle) for one in found if not one.holds]
    assert not wrong
    return found


CHEAP = ["zoo:cifar-dw", "zoo:ghostnet", "zoo:mobilenet-v1", "zoo:resnet20", "torchvision:mnasnet0_5",
         "torchvision:mobilenet_v3_small", "torchvision:shufflenet_v2_x0_5", "torchvision:squeezenet1_1",
         "torchvision:regnet_x_400mf", pytest.param("torchvision:densenet121", marks=pytest.mark.breadth)]  # fmt: skip


@pytest.mark.few(4)
@pytest.mark.parametrize("name", CHEAP)
def test_the_formula_is_the_oracle(name):
    if name.startswith("torchvision"):
        pytest.importorskip("torchvision")
    assert any(one.field.exact for one in check(name, 64, 4))


DRAWN = networks(BASIC, output="tensor")


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(DRAWN)
def test_the_formula_is_the_oracle_on_random_networks(net):
    net = replace(net, size=(31, 37), head="pool")
    arch = cw.read(net.build().eval(), (1, *net.shape))
    assert all(one.holds for one in compare(arch, 4, net.seed, interior=False))


LONG_TORCHVISION = [
    "alexnet", "convnext_tiny", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3", "mobilenet_v2",
    "regnet_y_400mf", "resnet50", "resnext50_32x4d", "vgg11_bn", "wide_resnet50_2",
]  # fmt: skip
LONG_TIMM = [
    "convmixer_768_32", "convnextv2_atto", "cs3darknet_s", "cspresnet50", "darknet53", "dla34", "dpn48b",
    "edgenext_xx_small", "efficientvit_b0", "ese_vovnet19b_dw", "fastvit_t8", "fbnetc_100", "gernet_s", "ghostnet_100",
    "hardcorenas_a", "hgnet_tiny", "hrnet_w18_small", "inception_next_atto", "inception_resnet_v2", "lcnet_050",
    "mixnet_s", "mobilenetv4_conv_small", "mobileone_s0", "nasnetalarge", "nfnet_f0", "poolformer_s12",
    "repghostnet_050", "repvgg_a0", "res2net50_14w_8s", "resnest14d", "resnet26t", "resnetblur50", "resnetrs50",
    "rexnet_100", "selecsls42", "semnasnet_050", "seresnet18", "skresnet18", "spnasnet_100", "starnet_s1",
    "tf_mixnet_s", "tinynet_e", "tresnet_m", "xception41",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"torchvision:{n}" for n in LONG_TORCHVISION] + [f"timm:{n}" for n in LONG_TIMM])
def test_the_formula_is_the_oracle_on_many_networks(name):
    """Where branches join to no box, or maps are resampled, the formula says so and is an upper bound."""
    family, _, model = name.partition(":")
    package = pytest.importorskip(family)
    if model not in (package.list_models() if family == "timm" else package.models.list_models()):
        pytest.skip(f"this version of {family} has no {model}")
    check(name, 96, 6)
