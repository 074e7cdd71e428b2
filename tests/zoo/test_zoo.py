"""The zoo's networks against the published counts, and the registry."""

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from convwright import zoo
from convwright.edits.reinitialize import draw_anew
from convwright.errors import ReadError
from convwright.zoo import registry
from convwright.zoo.ghostnet import GhostModule

ALL = zoo.names()


def build(name, **kwargs):
    """Build without memory or initialisation: counting needs shapes only."""
    with torch.device("meta"):
        return zoo.create(name, **kwargs).eval()


def count_params(model):
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model, shape):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, *shape, device="meta"))
    return counter.get_total_flops() // 2


# --- parameters -----------------------------------------------------------------------------------

PARAMS = [
    # Ethiraj and Bolla: the counts their code prints, and the two networks under 1,500.
    ("mnist-base", {}, 25_144),
    ("mnist-m1", {}, 7_767),
    ("mnist-m1d", {}, 7_611),
    ("mnist-m1d", {"third": 14}, 7_847),
    ("mnist-m2", {}, 5_712),
    ("mnist-m2d", {}, 5_616),
    ("mnist-deep", {}, 2_117),
    ("mnist-m3", {}, 1_560),
    ("mnist-m3", {"head_bias": True}, 1_570),
    ("mnist-a", {}, 1_488),
    ("mnist-a", {"head_bias": True}, 1_498),
    ("mnist-b", {}, 1_460),
    ("cifar-3x3", {}, 143_208),
    ("cifar-dw", {}, 143_396),
    ("cifar-a", {}, 143_396),
    ("cifar-b", {}, 139_042),
    ("cifar-c", {}, 140_586),
    ("mnist-b", {"widths": (6, 10, 12)}, 972),
    ("mnist-b", {"times": 2, "padding": 1}, 1_492),
    ("mnist-b", {"times": 2, "padding": 1, "widths": (6, 10, 12)}, 996),
    ("cifar-b", {"squeeze": 8}, 146_093),
    ("cifar-b", {"widths": (32, 64, 128), "depths": (2, 2, 3)}, 147_658),
    # He et al. print 0.27M, 0.46M, 0.85M with padded shortcuts; two projections add 2,752.
    ("resnet20", {}, 269_722 + 2_752),
    ("resnet32", {}, 464_154 + 2_752),
    ("resnet56", {}, 853_018 + 2_752),
    # CONetV2's 34-layer network with 100 classes, at its own widths and at uniform ones.
    ("resnet34_cifar", {"num_classes": 100}, 21_328_292),
    ("resnet34_cifar", {"num_classes": 100, "widths": (16,) * 4}, 77_780),
    ("resnet34_cifar", {"num_classes": 100, "widths": (32,) * 4}, 304_452),
    ("resnet34_cifar", {"num_classes": 100, "widths": (64,) * 4}, 1_204_772),
    ("resnet34_cifar", {"num_classes": 100, "widths": (128,) * 4}, 4_793_316),
    ("resnet34_cifar", {"num_classes": 100, "widths": (256,) * 4}, 19_122_020),
    # The 3D receptive field work: before and after moving layers between stages.
    ("resnet18_cifar", {}, 11_173_962),
    ("resnet18_cifar", {"depths": (1, 4, 2, 1)}, 6_970_186),
    ("resnet34_cifar", {}, 21_282_122),
    ("resnet34_cifar", {"depths": (7, 4, 3, 2)}, 13_315_402),
    ("resnet50_cifar", {}, 23_520_842),
    ("resnet50_cifar", {"depths": (1, 8, 4, 3)}, 22_265_930),
    ("mobilenet-v1", {}, 3_217_226),
    ("mobilenet-v1", {"depths": (1, 2, 5, 3, 2)}, 2_617_418),
    ("mobilenet-v2", {}, 2_236_682),  # as torchvision counts its own
    ("vgg16-bn", {}, 14_728_266),
    ("vgg16-bn", {"depths": (1, 5, 4, 2, 1)}, 8_642_826),
    # GhostNet and the generator of the enlarging work.
    ("ghostnet", {}, 5_182_508),
    ("ghostnet-large", {}, 4_691_824),
]


@pytest.mark.parametrize(("name", "options", "expected"), PARAMS)
def test_parameters_are_exact(name, options, expected):
    assert count_params(build(name, **options)) == expected


# Published or computed counts known only to the printed digits: (value, digits after the point) in
# M.
ROUNDED_PARAMS = [
    ("ghostnet", {"width": 0.5}, 2.587, 3),
    ("ghostnet", {"width": 1.3}, 7.359, 3),
    ("s-ghostnet-b1", {}, 11.94, 2),
    ("s-ghostnet-b4", {}, 31.99, 2),
    (
        "ghostnet-large",
        {"depths": (2, 2, 5, 10, 2, 10), "widths": (24, 32, 64, 112, 160, 280)},
        15.38,
        2,
    ),
    (
        "ghostnet-large",
        {"depths": (2, 4, 5, 12, 6, 14), "widths": (36, 68, 108, 164, 216, 336)},
        31.35,
        2,
    ),
]


@pytest.mark.parametrize(("name", "options", "expected", "digits"), ROUNDED_PARAMS)
def test_parameters_to_the_printed_digits(name, options, expected, digits):
    assert round(count_params(build(name, **options)) / 1e6, digits) == expected


# --- multiply-accumulates -------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "expected"), [("ghostnet", 141_150_512), ("ghostnet-large", 141_184_432)])
def test_macs_are_exact(name, expected):
    assert count_macs(build(name), zoo.entry(name).input_shape) == expected


# (network, options, image side, M MACs, digits after the point). The MNIST and CIFAR figures do not
# count blur filters, so those networks are built with plain pools.
MACS = [
    ("mnist-m3", {}, 28, 0.254, 3),
    ("mnist-a", {"blur": False}, 28, 0.253, 3),
    ("mnist-b", {"blur": False}, 28, 0.218, 3),
    ("cifar-3x3", {}, 32, 10.99, 2),
    ("cifar-dw", {}, 32, 9.22, 2),
    ("cifar-b", {"blur": False}, 32, 25.1, 1),
    ("resnet34_cifar", {"num_classes": 100}, 32, 1159.45, 2),
    ("resnet34_cifar", {"num_classes": 100, "widths": (16,) * 4}, 32, 21.395, 3),
    ("resnet34_cifar", {"num_classes": 100, "widths": (32,) * 4}, 32, 84.69, 2),
    ("resnet34_cifar", {"num_classes": 100, "widths": (64,) * 4}, 32, 336.99, 2),
    ("resnet34_cifar", {"num_classes": 100, "widths": (128,) * 4}, 32, 1344.4, 1),
    ("resnet34_cifar", {"num_classes": 100, "widths": (256,) * 4}, 32, 5370.6, 1),
    ("resnet34_cifar", {}, 32, 1159.4, 1),
    ("resnet34_cifar", {"depths": (7, 4, 3, 2)}, 32, 1159.4, 1),
    ("resnet18_cifar", {}, 32, 555.4, 1),
    ("resnet18_cifar", {"depths": (1, 4, 2, 1)}, 32, 555.4, 1),
    ("resnet50_cifar", {}, 32, 1297.8, 1),
    ("resnet50_cifar", {"depths": (1, 8, 4, 3)}, 32, 1297.8, 1),
    ("mobilenet-v1", {}, 32, 46.35, 2),
    ("mobilenet-v1", {"depths": (1, 2, 5, 3, 2)}, 32, 46.58, 2),
    ("vgg16-bn", {}, 32, 313.2, 1),
    ("vgg16-bn", {"depths": (1, 5, 4, 2, 1)}, 32, 369.8, 1),
    ("ghostnet", {"width": 0.5}, 224, 42.3, 1),
    ("ghostnet", {"width": 1.3}, 224, 227.0, 1),
    ("s-ghostnet-b1", {}, 240, 582.8, 1),
    ("s-ghostnet-b4", {}, 384, 4499, 0),
    ("s-ghostnet-b4", {}, 380, 4480, -1),
    ("s-ghostnet-b4", {}, 368, 4250, -1),
]


@pytest.mark.few(6)
@pytest.mark.parametrize(("name", "options", "side", "expected", "digits"), MACS)
def test_macs_to_the_printed_digits(name, options, side, expected, digits):
    channels = zoo.entry(name).input_shape[0]
    macs = count_macs(build(name, **options), (channels, side, side))
    assert round(macs / 1e6, digits) == expected


@pytest.mark.parametrize(
    ("depths", "widths", "side", "expected", "digits"),
    [
        pytest.param((2, 2, 5, 10, 2, 10), (24, 32, 64, 112, 160, 280), 248, 663.2, 1, marks=pytest.mark.breadth),
        pytest.param((2, 2, 5, 10, 2, 10), (24, 32, 64, 112, 160, 280), 240, 631.9, 1, marks=pytest.mark.slow),
        pytest.param((2, 2, 5, 10, 2, 10), (24, 32, 64, 112, 160, 280), 224, 518.0, 1, marks=pytest.mark.slow),
        pytest.param((2, 4, 5, 12, 6, 14), (36, 68, 108, 164, 216, 336), 384, 4275, 0, marks=pytest.mark.slow),
        ((1, 2, 2, 4, 2, 5), (36, 52, 88, 172, 240, 344), 224, 596.92, 2),
        ((1, 2, 2, 4, 2, 5), (96, 144, 244, 484, 680, 968), 224, 4403.5, 1),
        pytest.param((5, 10, 10, 20, 10, 25), (16, 24, 40, 80, 112, 160), 224, 587.78, 2, marks=pytest.mark.slow),
        ((1, 2, 2, 4, 2, 5), (16, 24, 40, 80, 112, 160), 456, 600.41, 2),
        pytest.param((1, 2, 2, 4, 2, 5), (16, 24, 40, 80, 112, 160), 1256, 4403.6, 1, marks=pytest.mark.breadth),
        ((2, 3, 3, 6, 3, 8), (20, 28, 48, 100, 140, 196), 304, 565.2, 1),
        pytest.param((3, 6, 6, 11, 6, 14), (28, 40, 68, 136, 188, 272), 480, 4368, 0, marks=pytest.mark.slow),
        pytest.param((1, 2, 2, 5, 2, 6), (28, 44, 76, 148, 208, 296), 244, 608.2, 1, marks=pytest.mark.slow),
        pytest.param((1, 3, 3, 6, 3, 7), (68, 100, 164, 332, 464, 660), 268, 4403.9, 1, marks=pytest.mark.slow),
    ],
)
def test_scaled_ghostnets(depths, widths, side, expected, digits):
    model = build("ghostnet-large", depths=depths, widths=widths)
    assert round(count_macs(model, (3, side, side)) / 1e6, digits) == expected


# One step of +20 % from the base, spent in one place: (stage, depth, M MACs, width, M MACs).
ONE_STEP = [
    (1, 7, 171.3, 28, 168.8),
    (2, 6, 168.3, 44, 168.3),
    (3, 9, 171.5, 80, 170.2),
    (4, 12, 168.3, 128, 168.4),
    (5, 4, 172.2, 160, 169.9),
    (6, 9, 173.0, 208, 169.4),
]


@pytest.mark.few(2)
@pytest.mark.parametrize(("stage", "depth", "deep", "width", "wide"), ONE_STEP)
def test_one_enlarging_step(stage, depth, deep, width, wide):
    depths, widths = [1, 2, 2, 4, 2, 5], [16, 24, 40, 80, 112, 160]
    depths[stage - 1] = depth
    widths[stage - 1] = width
    deeper = count_macs(build("ghostnet-large", depths=depths), (3, 224, 224))
    wider = count_macs(build("ghostnet-large", widths=widths), (3, 224, 224))
    assert (round(deeper / 1e6, 1), round(wider / 1e6, 1)) == (deep, wide)


def test_one_enlarging_step_of_resolution():
    assert round(count_macs(build("ghostnet-large"), (3, 240, 240)) / 1e6, 1) == 168.4


def test_blur_filters_cost_nothing_but_their_macs():
    plain, blurred = build("mnist-b", blur=False), build("mnist-b", blur=True)
    assert count_params(plain) == count_params(blurred)
    assert plain.state_dict().keys() == {
        key.replace(".max.", ".").replace(".blur.", ".") for key in blurred.state_dict()
    }
    # 9 taps for each of 14 channels at 12x12 and 16 channels at 4x4.
    extra = count_macs(blurred, (1, 28, 28)) - count_macs(plain, (1, 28, 28))
    assert extra == 9 * (14 * 12 * 12 + 16 * 4 * 4)


# --- behaviour ------------------------------------------------------------------------------------


@pytest.mark.few(10)
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("extra", [0, 5, pytest.param(32, marks=pytest.mark.breadth)])
def test_any_size_gives_logits(name, extra):
    channels, height, width = zoo.entry(name).input_shape
    images = torch.empty(2, channels, height + extra, width, device="meta")
    assert build(name)(images).shape == (2, zoo.entry(name).num_classes)


@pytest.mark.few(6)
@pytest.mark.parametrize("name", ALL)
def test_every_builder_takes_classes_and_input_channels(name):
    _, height, width = zoo.entry(name).input_shape
    model = build(name, num_classes=7, in_channels=4)
    assert model(torch.empty(1, 4, height, width, device="meta")).shape == (1, 7)


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "name", ["mnist-b", "cifar-a", "cifar-b", "resnet20", "mobilenet-v1", "mobilenet-v2", "vgg16-bn", "ghostnet"]
)
def test_can_be_captured(name):
    torch.manual_seed(0)
    model = zoo.create(name).eval()
    channels, height, width = zoo.entry(name).input_shape
    side = min(height, 64)
    images = torch.randn(1, channels, side, min(width, 64))
    program = torch.export.export(model, (images,))
    torch.testing.assert_close(program.module()(images), model(images))


@pytest.mark.parametrize("name", ["mnist-a", "cifar-dw", "resnet20", "mobilenet-v1", "mobilenet-v2"])
def test_trains_on_real_tensors(name):
    torch.manual_seed(0)
    model = zoo.create(name).train()
    logits = model(torch.randn(4, *zoo.entry(name).input_shape))
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()
    missing = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "per_class"), [("resnet20", 64), ("ghostnet-large", 1280)])
def test_width_multiplier_keeps_the_classifier(name, per_class):
    assert count_params(build(name, width=0.5)) < 0.6 * count_params(build(name))
    difference = count_params(build(name, num_classes=12)) - count_params(build(name, num_classes=11))
    assert difference == per_class + 1


@pytest.mark.parametrize("name", ["resnet18_cifar", "resnet50_cifar"])
def test_a_residual_block_whose_branch_is_zero_is_its_shortcut(name):
    torch.manual_seed(0)
    model = zoo.create(name, width=0.125).eval()
    for block in model.layer2:
        last = block.bn3 if hasattr(block, "bn3") else block.bn2
        nn.init.zeros_(last.weight)
    first, *rest = model.layer2
    images = torch.randn(2, first.conv1.in_channels, 7, 11)
    torch.testing.assert_close(first(images), first.downsample(images).relu())
    assert first(images).shape == (2, rest[0].conv1.in_channels, 4, 6)
    for block in rest:
        wide = torch.randn(2, block.conv1.in_channels, 5, 3)
        torch.testing.assert_close(block(wide), wide.relu())


def test_discarded_sums_do_what_the_published_code_does():
    """Without the sums the shortcut of stages 2 and 3 must have no influence."""
    torch.manual_seed(0)
    model = zoo.create("cifar-dw").eval()
    images = torch.randn(2, 3, 32, 32)
    stage = model.stage2
    start = stage.first(model.stage1(images))
    torch.testing.assert_close(stage(model.stage1(images)), stage.pool(stage.second(start)))
    stage.keep_sum = True
    torch.testing.assert_close(stage(model.stage1(images)), stage.pool(start + stage.second(start)))


def test_ghost_module_follows_its_layers():
    """No width is stored outside the convolutions: swap them and the output follows."""
    module, narrow = GhostModule(8, 12), GhostModule(8, 6)
    module.primary, module.cheap = narrow.primary, narrow.cheap
    assert module(torch.randn(1, 8, 5, 5)).shape == (1, 6, 5, 5)


def test_ghostnet_computes_what_timm_computes():
    torch.manual_seed(0)
    ours = zoo.create("ghostnet").eval()
    theirs = timm.create_model("ghostnet_100", pretrained=False).eval()
    # Both register their layers in the order of use, so weights correspond by position.
    pairs = zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True)
    ours.load_state_dict({key: value for (key, _), value in pairs})
    images = torch.randn(2, 3, 75, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))


def test_ghost_module_refuses_odd_widths():
    with pytest.raises(ValueError, match="even output width"):
        GhostModule(8, 7)


# --- registry -------------------------------------------------------------------------------------


def test_names_are_sorted_and_unique():
    assert list(ALL) == sorted(set(ALL))
    assert {"resnet20", "resnet34_cifar", "mnist-b", "cifar-b", "ghostnet"} <= set(ALL)


def test_entry_describes_the_network():
    found = zoo.entry("resnet20")
    assert (found.name, found.input_shape, found.num_classes) == ("resnet20", (3, 32, 32), 10)
    assert found.source == "He et al. 2016"


def test_hyphen_and_underscore_are_one():
    assert zoo.entry("resnet34-cifar") is zoo.entry("resnet34_cifar")
    assert zoo.entry("MNIST_B") is zoo.entry("mnist-b")


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ReadError, match=r"'resnt20'\. Did you mean resnet20"):
        zoo.create("resnt20")


def test_unknown_option_is_named():
    with pytest.raises(ReadError, match=r"no option 'widht'\. Did you mean width"):
        zoo.create("resnet20", widht=2)


def test_wrong_number_of_stages_is_named():
    with pytest.raises(ReadError, match=r"ghostnet-large has 6 stages, but widths=\(16, 24\)"):
        zoo.create("ghostnet-large", widths=(16, 24))


def test_a_name_is_registered_once(monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", {})
    facts = {"input_shape": (3, 8, 8), "num_classes": 2, "source": "this test"}

    @zoo.register("tiny", **facts)
    def tiny(num_classes=2, in_channels=3):
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))

    assert zoo.names() == ("tiny",)
    assert isinstance(zoo.create("tiny"), nn.Sequential)
    with pytest.raises(ValueError, match="is taken by"):
        zoo.register("tiny", **facts)(tiny)


def test_mobilenet_v2_is_torchvisions():
    import torchvision

    ours, theirs = zoo.create("mobilenet-v2", num_classes=7), torchvision.models.mobilenet_v2(num_classes=7)
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    stage = theirs.features
    for module in (stage[0][0], stage[2].conv[1][0]):  # the strides for 32 pixels
        module.stride = (1, 1)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize("name", ["resnet20", "mobilenet-v2"])
def test_networks_that_draw_their_own_way_are_drawn_anew_that_way(name):
    width = {"width": 0.25} if name == "resnet20" else {"width": 0.25, "divisor": 4}
    model = zoo.create(name, **width)
    convs = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 1000]
    before = [weight.detach().clone() for weight in convs]
    draw_anew(model, 3)
    for old, new in zip(before, convs, strict=True):
        assert not torch.equal(old, new)
        fan_out = new.shape[0] * new[0, 0].numel()
        assert new.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)
