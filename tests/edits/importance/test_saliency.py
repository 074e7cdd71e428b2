"""Saliency: the laws of the gates over networks with sums, concatenations, groups, attention and shared modules."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from convwright.architecture import read
from convwright.edits import RemoveBlock, Width
from convwright.edits.importance import IMPORTANCE, OBSERVERS, block_losses, loss_curve, mean_loss, saliency
from convwright.edits.importance.gates import Gates
from convwright.errors import ConvwrightError, EditError

CLASSES = 5


class Mixed(nn.Module):
    """A sum, a concatenation, a depthwise and a grouped layer, a gate, a module used twice, a flatten; prime widths."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.deep = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.grouped = nn.Conv2d(12, 14, 3, padding=1, groups=2)
        self.squeeze, self.gate = nn.Conv2d(14, 5, 1), nn.Conv2d(5, 14, 1)
        self.side = nn.Conv2d(12, 7, 1)
        self.twice = nn.Conv2d(21, 21, 1)
        self.flat = nn.Linear(21 * 4, 11)
        self.fc = nn.Linear(11, CLASSES)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = x + torch.relu(self.deep(x))
        y = self.grouped(x)
        y = y * torch.sigmoid(self.gate(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        z = torch.cat([y, torch.relu(self.side(x))], 1)
        z = torch.relu(self.twice(torch.relu(self.twice(z))))
        return self.fc(torch.relu(self.flat(nn.functional.adaptive_avg_pool2d(z, 2).flatten(1))))


class Attention(nn.Module):
    """Queries and keys meet in a product, so that nothing with weights consumes them; one weight is used as such."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 7, 4, stride=4)
        self.q, self.k, self.v = nn.Linear(7, 6), nn.Linear(7, 6), nn.Linear(7, 11)
        self.out = nn.Linear(11, 7)
        self.weight = nn.Parameter(torch.randn(CLASSES, 7))

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = x + self.out(scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))
        return nn.functional.linear(x.mean(1), self.weight)


class Tied(nn.Module):
    """Two layers have the very same weight."""

    def __init__(self):
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 3)
        self.second.weight = self.first.weight
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.fc(torch.sigmoid(self.second(torch.tanh(self.first(torch.tanh(self.stem(x)))))).mean((2, 3)))


def network(kind):
    torch.manual_seed(7)
    arch = read(kind(), (1, 3, 8, 8))
    for buffer in arch.model.buffers():
        buffer.copy_(torch.rand_like(buffer.float()) + 0.5)
    return arch


def batch(count=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 8, 8, generator=generator), torch.arange(count) % CLASSES


NETWORKS = [Mixed, Attention, Tied]


def singles(images, labels):
    return [(images[i : i + 1], labels[i : i + 1]) for i in range(len(images))]


def slope(arch, group, unit, images, labels, step=1e-3):
    """The loss's change by a factor on one channel at its consumers, by central differences in float64."""
    model = copy.deepcopy(arch.model).double().eval()

    def loss(factor):
        gates = Gates.of(arch, copy.deepcopy(model))
        with torch.no_grad():
            for site in gates.sites:
                if site.group == group.name:
                    weight = gates.parameter(site)
                    entries = site.entries[site.ranks == unit].tolist()
                    weight.index_copy_(
                        site.member.axis,
                        torch.tensor(entries),
                        weight.index_select(site.member.axis, torch.tensor(entries)) * factor,
                    )
                    if site.output:  # with what the layer adds
                        gates.model.get_submodule(site.module).bias[entries] *= factor
            return float(cross_entropy(gates.model(images.double()), labels))

    return (loss(1 + step) - loss(1 - step)) / (2 * step)


@pytest.mark.parametrize("kind", NETWORKS)
def test_taylor_is_the_squared_slope_of_each_sample_averaged(kind):
    arch, (images, labels) = network(kind), batch()
    found = saliency(arch, [(images, labels)], cross_entropy)
    assert set(found) == {group.name for group in arch.free_groups}
    for group in arch.free_groups:
        for unit in {0, group.units // 2, group.units - 1}:
            slopes = [slope(arch, group, unit, *one) for one in singles(images, labels)]
            assert found[group.name][unit] == pytest.approx(np.mean(np.square(slopes)), rel=2e-3, abs=1e-9), group.name


@pytest.mark.parametrize("kind", NETWORKS)
def test_samples_are_told_apart_whatever_batch_they_come_in(kind):
    arch, (images, labels) = network(kind), batch(4)
    whole = saliency(arch, [(images, labels)], cross_entropy)
    parts = saliency(arch, singles(images, labels), cross_entropy)
    for name, values in whole.items():
        assert values == pytest.approx(parts[name], rel=1e-4, abs=1e-10)


def test_the_change_of_a_batch_is_the_mean_of_its_samples_changes():
    arch, (images, labels) = network(Mixed), batch()
    whole = saliency(arch, [(images, labels)], cross_entropy, "taylor-batch")
    single = saliency(arch, [(images[:1], labels[:1])], cross_entropy, "taylor-batch")
    exact = saliency(arch, [(images[:1], labels[:1])], cross_entropy, "taylor")
    for name, values in single.items():
        assert values == pytest.approx(exact[name], rel=1e-5, abs=1e-12)
        assert (whole[name] <= saliency(arch, [(images, labels)], cross_entropy)[name] * (1 + 1e-4) + 1e-12).all()


@pytest.mark.parametrize("kind", [*OBSERVERS, *IMPORTANCE])
def test_nothing_of_the_network_changes(kind):
    arch, (images, labels) = network(Mixed), batch()
    arch.model.train()
    arch.model.norm.eval()
    arch.model.fc.weight.requires_grad_(False)
    arch.model.fc.bias.grad = torch.ones(CLASSES)
    before, random = copy.deepcopy(arch.model.state_dict()), torch.random.get_rng_state()
    found = saliency(arch, [(images, labels)], cross_entropy, kind)
    assert all((values >= 0).all() and np.isfinite(values).all() for values in found.values())
    assert all(torch.equal(value, before[name]) for name, value in arch.model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert arch.model.training
    assert not arch.model.norm.training
    assert not arch.model.fc.weight.requires_grad
    assert [name for name, p in arch.model.named_parameters() if p.grad is not None] == ["fc.bias"]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in arch.model.modules())


def test_silencing_is_what_cutting_promises():
    arch, (images, _) = network(Mixed), batch()
    rng = np.random.default_rng(5)
    gone = {group.name: rng.random(group.units) < 0.4 for group in arch.free_groups}
    for mask in gone.values():
        mask[0] = False
    keep = {name: np.flatnonzero(~mask).tolist() for name, mask in gone.items()}
    edits = [Width(g.name, len(keep[g.name]) * g.step, {g.name: keep[g.name]}) for g in arch.free_groups]
    cut = arch.apply(*edits, verify=False).model.eval()
    gates = Gates.of(arch)
    arch.model.eval()
    with gates.silenced(gone), torch.no_grad():
        silenced = arch.model(images)
    with torch.no_grad():
        assert torch.allclose(silenced, cut(images), atol=1e-5)


def test_blocks_are_worth_the_loss_without_them():
    arch = read("zoo:resnet20", "3x8x8", widths=[5, 7, 11], depths=[2, 1, 1])
    images, labels = batch(6)
    batches = [(images[:4], labels[:4]), (images[4:], labels[4:])]
    found = block_losses(arch, batches, cross_entropy)
    assert set(found) == {"layer1.0", "layer1.1"}
    without = arch.apply(RemoveBlock("layer1.1"), verify=False).model
    rise = mean_loss(without, batches, cross_entropy) - mean_loss(arch.model, batches, cross_entropy)
    assert found["layer1.1"] == pytest.approx(rise, abs=1e-6)
    curve = loss_curve(arch, batches, cross_entropy, saliency(arch, batches, cross_entropy))
    assert curve[0] == (0.0, 0.0)
    assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(curve))


def test_batches_that_can_be_gone_through_once_are_enough():
    arch, whole = read("zoo:resnet20", (3, 8, 8), depths=[1, 1, 1], widths=[4, 4, 4], num_classes=CLASSES), [batch(2)]
    assert block_losses(arch, iter(whole), cross_entropy) == block_losses(arch, whole, cross_entropy)
    scores = saliency(arch, whole, cross_entropy)
    assert loss_curve(arch, iter(whole), cross_entropy, scores) == loss_curve(arch, whole, cross_entropy, scores)


def test_a_dead_channel_is_worth_nothing():
    arch, (images, labels) = network(Mixed), batch()
    with torch.no_grad():
        arch.model.flat.weight[3] = 0
        arch.model.flat.bias[3] = 0
    for kind in ("taylor", "taylor-batch", "activation-mean", "activation-variance"):
        scores = saliency(arch, [(images, labels)], cross_entropy, kind)["flat"]
        assert scores[3] == 0
        assert np.delete(scores, 3).max() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], cross_entropy), "give at least one calibration batch"),
        (([], None), "is of a loss: give one"),
        (([], cross_entropy, "tailor"), "no saliency 'tailor'.*Did you mean taylor"),
        (([batch()], lambda output, _: output.sum() * float("nan")), "the loss of a calibration batch is nan"),
        (([batch()], lambda output, _: output[:, 0]), "must be one number with a gradient"),
        (([batch()], lambda output, _: 1.0), "must be one number with a gradient"),
        (([batch()[0]], cross_entropy), r"takes batches \(inputs, targets\), and one of them is a Tensor"),
    ],
)
def test_what_cannot_be_told_is_refused(arguments, message):
    with pytest.raises(ConvwrightError, match=message):
        saliency(network(Mixed), *arguments)


@pytest.mark.parametrize("kind", ["l2", "bn-scale", "taylor"])
def test_scores_are_those_of_the_network_in_use(kind):
    arch, other = network(Mixed), network(Mixed)
    for parameter in other.model.parameters():
        torch.nn.init.normal_(parameter)
    found = saliency(arch, [batch()], cross_entropy, kind, model=other.model)
    for name, values in saliency(other, [batch()], cross_entropy, kind).items():
        assert found[name] == pytest.approx(values)


def test_a_network_of_which_nothing_can_change_has_no_scores():
    assert saliency(read(nn.Sequential(nn.Conv2d(3, 4, 3)), (3, 8, 8)), [batch()], cross_entropy) == {}


def test_apply_takes_scores_and_refuses_the_name_of_one_that_looks_at_data():
    arch = network(Mixed)
    scores = saliency(arch, [batch()], cross_entropy)
    kept = arch.apply(Width("flat", 6), importance=scores).changes[0].edit.keep["flat"]
    assert kept == sorted(np.argsort(-scores["flat"], kind="stable")[:6].tolist())
    with pytest.raises(EditError, match=r"looks at data: give apply the scores that cw\.saliency returns"):
        arch.apply(Width("flat", 6), importance="taylor")
