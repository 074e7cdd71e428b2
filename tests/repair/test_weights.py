"""Refit and merge: exact where removed channels depend on kept ones, never worse on the images, the rest untouched."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import convwright as cw
from convwright.edits.surgery import named_tensors
from convwright.errors import ConvwrightError, EditError
from convwright.repair import merge, reestimate_batch_norm, refit

FREE = ("conv1", "conv2", "grouped")  # layers with channels to remove: every other one depends on the one before it


class Net(nn.Module):
    """Dense, shared, grouped, depthwise and biasless layers, with a residual stream; linear without an activation."""

    def __init__(self, activation=nn.Identity):
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 6, 3, padding=1, bias=False), activation()
        self.norm = nn.BatchNorm2d(6)
        self.conv1, self.conv2 = nn.Conv2d(6, 8, 1, bias=False), nn.Conv2d(8, 6, 3, padding=1)
        self.depth, self.shared = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 6, 3, padding=1)
        self.wide, self.grouped = nn.Conv2d(6, 8, 1, bias=False), nn.Conv2d(8, 12, 3, groups=2)
        self.fc = nn.Linear(12, 4)

    def forward(self, x):
        x = self.act(self.norm(self.stem(x)))
        x = x + self.conv2(self.act(self.conv1(x)))
        x = self.shared(self.act(self.shared(self.depth(x))))
        return self.fc(self.act(self.grouped(self.act(self.wide(x)))).mean((2, 3)))


def dependent(weight, kept):
    """Make the removed output channels of a layer linear combinations of the kept ones."""
    gone = [i for i in range(len(weight)) if i not in kept]
    with torch.no_grad():
        mix = torch.randn(len(gone), len(kept), dtype=weight.dtype)
        weight[gone] = torch.einsum("gk,k...->g...", mix, weight[kept])


KEEP = {"conv1": [0, 3, 4, 6], "wide": [0, 1]}


def pair(dtype=torch.float64, depend=True, activation=nn.Identity, keep=KEEP):
    """A network and what is left of it, conv1 and wide with fewer channels."""
    net = Net(activation).to(dtype)
    with torch.no_grad():
        net.norm.running_mean.normal_(), net.norm.running_var.uniform_(0.5, 2)
        if depend:
            dependent(net.conv1.weight, keep["conv1"])
            for half in net.wide.weight.chunk(2):  # of each group the same positions stay
                dependent(half, keep["wide"])
    arch = cw.read(net.eval(), torch.zeros(1, 3, 8, 8, dtype=dtype))
    edits = [cw.Width(name, len(ranks) * arch.group(name).step, {name: ranks}) for name, ranks in keep.items()]
    return arch, arch.apply(*edits, verify=False)


def batches(count=2, size=24, dtype=torch.float64):
    return list(torch.randn(count, size, 3, 8, 8, dtype=dtype))


def answers(arch, x):
    with torch.no_grad():
        return arch.model(x)


@pytest.mark.parametrize("repair", [refit, merge])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_channels_that_depend_on_kept_ones_cost_nothing(repair, dtype, close):
    arch, pruned = pair(dtype)
    x = torch.randn(5, 3, 8, 8, dtype=dtype)
    assert (answers(pruned, x) - answers(arch, x)).abs().max() > 0.01
    done = repair(arch, pruned, batches(dtype=dtype), ridge=1e-14 if dtype == torch.float64 else 1e-9)
    torch.testing.assert_close(answers(pruned, x), answers(arch, x), rtol=0, atol=close)
    assert {"conv2", "grouped"} <= {layer.layer for layer in done}
    assert all(layer.after <= close < layer.before for layer in done if layer.layer in ("conv2", "grouped"))


@pytest.mark.parametrize("ridge", [0.0, 1e-6, 1e-2, 10.0])
def test_a_refit_never_errs_more_than_the_cut_weights_and_helps_with_activations(ridge):
    arch, pruned = pair(depend=False, activation=nn.ReLU)
    x = torch.cat(images := batches())
    before = (answers(pruned, x) - answers(arch, x)).square().mean()
    done = refit(arch, pruned, images, ridge=ridge, positions=10**6)
    assert [layer.layer for layer in done] == ["conv2", "shared", "wide", "grouped", "fc"]
    assert all(layer.after <= layer.before * (1 + 1e-9) for layer in done)
    assert (answers(pruned, x) - answers(arch, x)).square().mean() < before


def test_both_against_least_squares_by_hand():
    arch, pruned = pair(depend=False, activation=nn.ReLU, keep={"conv1": [1, 2, 5]})
    x = torch.cat(images := batches())
    with torch.no_grad():
        inner = F.relu(arch.model.conv1(F.relu(arch.model.norm(arch.model.stem(x)))))
        wanted = arch.model.conv2(inner).movedim(1, -1).reshape(-1, 6)
        seen = F.unfold(inner[:, [1, 2, 5]], 3, padding=1).mT.reshape(-1, 27)
        seen = torch.cat([seen, torch.ones(len(seen), 1, dtype=seen.dtype)], 1)
        found = torch.linalg.lstsq(seen, wanted).solution
    refit(arch, pruned, images, ridge=0.0, positions=10**6)
    torch.testing.assert_close(pruned.model.conv2.weight.flatten(1), found[:27].T)
    torch.testing.assert_close(pruned.model.conv2.bias, found[27])


def test_what_is_no_consumer_stays_and_so_do_modes_and_generators():
    arch, pruned = pair(depend=False)
    pruned.model.train(), pruned.model.norm.eval()
    before, modes = copy.deepcopy(pruned.model.state_dict()), [m.training for m in pruned.model.modules()]
    original, images = copy.deepcopy(arch.model.state_dict()), iter(batches())
    random = torch.get_rng_state()
    refit(arch, pruned, images, forward=lambda model, batch: (torch.rand(1), model(batch)))
    changed = {name for name, value in pruned.model.state_dict().items() if not torch.equal(value, before[name])}
    ends = {f"{name}.{kind}" for name in ("conv2", "shared", "grouped", "fc") for kind in ("weight", "bias")}
    assert changed - {"wide.weight"} == ends  # a step that would not help on other images is not taken
    assert [m.training for m in pruned.model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, original[name]) for name, value in arch.model.state_dict().items())
    arch, pruned = pair(depend=False)
    before = copy.deepcopy(pruned.model.state_dict())
    merge(arch, pruned, batches())
    changed = {name for name, value in pruned.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"conv2.weight", "conv2.bias", "grouped.weight", "grouped.bias"}


def test_cutting_and_merging_in_rounds_is_merging_once():
    """What the first round removed is not added again by the second."""
    images = batches()
    arch, first = pair(depend=False, activation=nn.ReLU)
    merge(arch, first, images)
    second = first.apply(cw.Width("conv1", 2, {"conv1": [0, 2]}), verify=False)
    merge(arch, second, images)
    once = arch.apply(cw.Width("conv1", 2, {"conv1": [0, 4]}), first.plan.edits[1], verify=False)
    merge(arch, once, images)
    torch.testing.assert_close(second.model.state_dict(), once.model.state_dict())


class Normed(nn.Module):
    """A layer without bias before a norm, one whose weight is computed, and a row of positions."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3, bias=False), nn.BatchNorm2d(5)
        self.c, self.d = parametrizations.weight_norm(nn.Conv2d(5, 7, 1)), nn.Linear(7, 6)

    def forward(self, x):
        x = self.c(F.relu(self.norm(self.b(self.a(x) + 3))))
        return self.d(x.flatten(2).mT).mean(1)


@pytest.mark.parametrize("repair", [refit, merge])
def test_a_layer_without_bias_is_shifted_at_its_norm_and_a_computed_weight_stays(repair):
    net = Normed().double().eval()
    with torch.no_grad():
        net.a.weight[3:], net.a.bias[3:] = net.a.weight[:3] * 2, 7.0  # the rest is a constant
    arch = cw.read(net, torch.zeros(1, 3, 9, 9, dtype=torch.float64))
    pruned = arch.apply(cw.Width("a", 3, {"a": [0, 1, 2]}), verify=False)
    before = copy.deepcopy(pruned.model.state_dict())
    x = torch.randn(32, 3, 9, 9, dtype=torch.float64)
    repair(arch, pruned, [x], ridge=1e-14)
    torch.testing.assert_close(answers(pruned, x), answers(arch, x))
    changed = {name for name, value in pruned.model.state_dict().items() if not torch.allclose(value, before[name])}
    assert changed == {"b.weight", "norm.running_mean"}


@pytest.mark.parametrize("repair", [refit, merge])
def test_few_rows_dead_channels_and_blank_images_are_solved(repair):
    arch, pruned = pair(depend=False)
    for model in (arch.model, pruned.model):
        with torch.no_grad():
            model.norm.weight[1] = model.norm.bias[1] = 0.0
    before = copy.deepcopy(pruned.model.state_dict())
    for images in (torch.randn(1, 3, 8, 8).double(), torch.zeros(4, 3, 8, 8).double()):
        for ridge in (0.0, 1e-3):
            pruned.model.load_state_dict(before)
            assert all(layer.after <= layer.before + 1e-9 for layer in repair(arch, pruned, [images], ridge=ridge))
            assert all(bool(torch.isfinite(value).all()) for value in pruned.model.state_dict().values())


def test_a_grown_network_and_an_unchanged_one_stay_as_they_are():
    arch, _ = pair(depend=False)
    assert refit(arch, arch, batches()) == () == merge(arch, arch, batches())
    grown = arch.apply(cw.Width("conv1", 11), verify=False)
    x = torch.cat(batches())
    assert all(layer.before < 1e-20 for layer in refit(arch, grown, [x]))
    torch.testing.assert_close(answers(grown, x), answers(arch, x))


def test_what_cannot_be_repaired_is_said_in_a_line():
    arch, pruned = pair(depend=False)
    other = cw.read("zoo:mnist-m1")
    for repair in (refit, merge):
        with pytest.raises(EditError, match="was made for"):
            repair(other, pruned, batches())
        with pytest.raises(EditError, match="is an edited network"):
            repair(pruned, pruned, batches())
        with pytest.raises(ConvwrightError, match="are of nothing"):
            repair(arch, pruned, [])
        with pytest.raises(ConvwrightError, match="without labels; these are of tuple"):
            repair(arch, pruned, [(batches()[0], torch.zeros(24))])
        with pytest.raises(ConvwrightError, match="ridge=-1"):
            repair(arch, pruned, batches(), ridge=-1)
        with pytest.raises(ConvwrightError, match="computes on the calibration images is not finite"):
            repair(arch, pruned, [batches()[0] * float("nan")])
        assert all(bool(torch.isfinite(value).all()) for value in named_tensors(pruned.model).values())


ZOO = [
    "zoo:resnet20", "torchvision:shufflenet_v2_x0_5", "torchvision:squeezenet1_1", "timm:ghostnet_050",
    "timm:convnext_atto", "timm:nf_regnet_b0",
]  # fmt: skip


@pytest.mark.breadth
@pytest.mark.parametrize("name", ZOO)
def test_networks_of_the_zoo_err_less_on_the_images_afterwards(name):
    arch = cw.read(name, None if name.startswith("zoo") else (3, 64, 64))
    arch.model.eval()
    pruned = arch.apply(*cw.scale_widths(arch, 0.75), verify=False)
    images = list(torch.randn(2, 8, *arch.example_input.shape[1:]))
    x = torch.cat(images)
    errors = [(answers(pruned, x) - answers(arch, x)).square().mean()]
    for repair in (merge, refit):
        assert all(0 <= layer.after <= layer.before * (1 + 1e-6) for layer in repair(arch, pruned, images))
        errors.append((answers(pruned, x) - answers(arch, x)).square().mean())
    assert errors[2] < errors[0]


def test_refit_after_merge_leaves_running_means_that_batch_norm_has():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
    )
    images = torch.randn(256, 3, 10, 10)
    reestimate_batch_norm(model, [images])
    original = cw.read(model, (3, 10, 10))
    pruned = original.apply(cw.Width("0", 6))
    merge(original, pruned, [images])
    refit(original, pruned, [images])
    norm, before = pruned.model[3], pruned.model[3].running_mean.clone()
    reestimate_batch_norm(pruned.model, [images])
    assert ((before - norm.running_mean).abs() / norm.running_var.sqrt()).max() < 0.05
