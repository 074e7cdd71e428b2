"""EfficientNet-B0 to B7: exact counts, and the same network as timm's."""

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from convwright import zoo
from convwright.zoo.efficientnet import SCALINGS

# MACs are those of convolutions, squeeze-and-excitation and the classifier, at the published image size.
EXACT = [
    (0, 224, 385_814_752, 5_288_548),
    (1, 240, 686_802_832, 7_794_184),
    (2, 260, 993_561_872, 9_109_994),
    (3, 300, 1_827_141_392, 12_233_232),
    (4, 380, 4_393_771_024, 19_341_616),
]
ROUNDED = [(5, 456, 10.27, 30.39), (6, 528, 19.07, 43.04), (7, 600, 37.75, 66.35)]


def build(number, **options):
    with torch.device("meta"):
        return zoo.create(f"efficientnet-b{number}", **options).eval()


def macs(model, side):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, side, side, device="meta"))
    return counter.get_total_flops() // 2


def params(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("number", "side", "expected_macs", "expected_params"), EXACT)
def test_counts_are_exact(number, side, expected_macs, expected_params):
    model = build(number)
    assert (macs(model, side), params(model)) == (expected_macs, expected_params)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "side", "billions", "millions"), ROUNDED)
def test_large_ones_to_the_printed_digits(number, side, billions, millions):
    model = build(number)
    assert (round(macs(model, side) / 1e9, 2), round(params(model) / 1e6, 2)) == (billions, millions)


def test_the_given_sizes_are_those_of_the_registry():
    sides = [side for _, side, *_ in [*EXACT, *ROUNDED]]
    assert [zoo.entry(f"efficientnet-b{n}").input_shape for n in range(8)] == [(3, s, s) for s in sides]
    assert [side for _, _, side, _ in SCALINGS] == sides


@pytest.mark.parametrize("number", [0, 4])
def test_shapes_are_those_of_timm(number):
    with torch.device("meta"):
        other = timm.create_model(f"efficientnet_b{number}")
    ours = sorted(tuple(p.shape) for p in build(number).parameters())
    assert ours == sorted(tuple(p.shape) for p in other.parameters())


def test_a_small_one_equals_timm_with_its_weights():
    torch.manual_seed(5)
    widths, depths = (8, 12, 16, 20, 24, 28, 36), (1, 1, 2, 1, 1, 1, 1)
    ours = zoo.create("efficientnet-b0", widths=widths, depths=depths, num_classes=7).eval()
    from timm.models._efficientnet_builder import decode_arch_def
    from timm.models.efficientnet import EfficientNet

    rows = zip(widths, depths, (1, 2, 2, 2, 1, 2, 1), (3, 3, 5, 3, 5, 5, 3), (1, *(6,) * 6), strict=True)
    blocks = [[f"{'ds' if e == 1 else 'ir'}_r{d}_k{k}_s{s}_e{e}_c{w}_se0.25"] for w, d, s, k, e in rows]
    other = EfficientNet(
        decode_arch_def(blocks), num_classes=7, num_features=1280, stem_size=32, fix_stem=True,
        act_layer=torch.nn.SiLU, round_chs_fn=lambda channels, **_: int(channels),
    ).eval()  # fmt: skip
    weights = [(n, t) for n, t in ours.state_dict().items() if t.ndim]
    others = [(n, t) for n, t in other.state_dict().items() if t.ndim]
    assert [t.shape for _, t in weights] == [t.shape for _, t in others]
    for (_, target), (_, source) in zip(others, weights, strict=True):
        target.copy_(torch.rand_like(source) * 0.2 + 0.4 if source.ndim == 1 else torch.randn_like(source) * 0.2)
        source.copy_(target)
    image = torch.randn(2, 3, 37, 41)
    with torch.no_grad():
        torch.testing.assert_close(ours(image), other(image), rtol=1e-4, atol=1e-5)


def test_stem_and_head_scale_with_the_width():
    model = build(2)
    assert model.stem.conv.out_channels == 32
    assert model.head.conv.out_channels == 1408


def test_drop_path_grows_to_the_end():
    model = zoo.create("efficientnet-b0", drop_path=0.2)
    rates = [m.p for m in model.modules() if type(m).__name__ == "StochasticDepth"]
    assert rates == sorted(rates)
    assert 0 < rates[0] < rates[-1] < 0.2
