"""Nothing is copied to the host in secret: all that looks at a network gives the CPU's numbers on another device."""

import copy

import every_task
import pytest
import torch
from pretended_device import CopiedToHostError, OnDevice, pretended_or_skip
from torch import nn

import convwright as cw
from convwright.devices import device_of, to_host
from convwright.edits.importance import OBSERVERS, BatchLoss, block_losses, loss_curve, saliency
from convwright.repair import merge, refit
from convwright.training import evaluate, train
from convwright.training.preflight import read_with
from convwright.training.statistics import calibration, reestimate
from convwright.training.tasks.loader import loader_of

device = pytest.fixture(pretended_or_skip)
every = pytest.mark.parametrize("name", every_task.TASKS)


def test_the_pretended_device_raises_where_a_gpu_does(device):
    here, there = torch.ones(3), torch.arange(3.0).to(device)
    for mix in (lambda: here + there, lambda: there[torch.tensor([0])], lambda: there.index_select(0, here.long())):
        with pytest.raises(RuntimeError, match="meets one on the device"):
            mix()
    for copied in (there.cpu, there.numpy, lambda: here.copy_(there)):
        with pytest.raises((CopiedToHostError, RuntimeError, TypeError)):
            copied()
    assert torch.equal(to_host(there * 2 + torch.tensor(1.0)), torch.tensor([1.0, 3.0, 5.0]))
    assert (float(there.sum()), there.tolist()) == (3.0, [0.0, 1.0, 2.0])
    network = nn.Linear(3, 2).to(device)
    assert device_of(network) == device
    assert isinstance(copy.deepcopy(network).weight, nn.Parameter)


def both(name, device):
    """Return a task, and its network here and there."""
    task, network = every_task.made(name)
    return task, network, copy.deepcopy(network).to(device)


def assert_same(here, there):
    """Weights and buffers are the same numbers, each network being where it was put."""
    there_state = there.state_dict()
    for key, value in here.state_dict().items():
        assert isinstance(there_state[key], OnDevice)
        assert torch.equal(value, there_state[key].inner), key


PLAIN = {"epochs": 2}
WAYS = [(name, PLAIN) for name in every_task.TASKS]
MIXED = {"techniques": {"mixup": {}, "stochastic_depth": {}, "progressive_resizing": {}}, "optimizer": "adamw"}
SHARP = {"techniques": {"sam": {}, "swa": {"start": 0.0}, "distill": {"features": 0.1}}}
MEASURED = {"lr": "auto", "precision": "auto", "memory_format": "auto"}
WAYS += [("classification", MIXED), ("two inputs", {**SHARP, "accumulate": 2, "grad_clip": 0.5}), ("dense", MEASURED)]
OTHERS = "branch_sparsity", "cutmix", "depthwise_separable", "freeze_batch_norm", "global_pool", "test_flip"
OTHERS = {name: {} for name in OTHERS} | {"lookahead": {"k": 1}}  # of two steps, one is looked back from
WAYS += [pytest.param("classification", {"techniques": {n: o}}, marks=pytest.mark.breadth) for n, o in OTHERS.items()]
PROBES = "saliency", "block-losses", "channel-quality", "bundles"


@pytest.mark.parametrize(("name", "changes"), WAYS)
def test_training(name, changes, device, tmp_path):
    """And its checkpoint, the judgement, and what resumes."""
    task, here, there = both(name, device)
    how, recipe = {"progress": False, "teacher": every_task.made(name, seed=1)[1]}, every_task.recipe(**changes)
    how |= {"probes": PROBES} if (name, changes) == ("classification", PLAIN) else {}
    found = train(there, task, recipe, out=tmp_path, **how)
    assert device_of(found.model) == device
    if changes is PLAIN:
        again = train(copy.deepcopy(there), task, recipe, out=tmp_path, resume=True, **how)
        assert (again.history, again.test) == (found.history, found.test)
    if "lr" in changes:  # what is fastest is another matter each time
        settled = {"precision": found.settings.precision, "memory_format": found.settings.memory_format}
        recipe, there = recipe.updated(lr=found.settings.lr, **settled), copy.deepcopy(here).to(device)
        found = train(there, task, recipe, **how)
    expected = train(here, task, recipe, accelerator="cpu", **how)
    assert_same(expected.model, found.model)
    assert (found.test, found.probes) == (expected.test, expected.probes)


def batches_of(task, device, size=4):
    return list(loader_of(task.train, size, shuffle=False, device=device))


@every
def test_saliency(name, device):
    found = []
    task, *networks = both(name, device)
    for network in networks:
        where, loss = device_of(network), BatchLoss(task.loss)
        arch = cw.read(network, read_with(task, network))
        batches = batches_of(task, where)[:2]
        scores = {kind: saliency(arch, batches, loss, kind) for kind in (*OBSERVERS, "l2", "bn-scale")}
        blocks, curve = block_losses(arch, batches, loss), loss_curve(arch, batches, loss, scores["taylor"])
        assert blocks or name == "two inputs"  # a block that is run twice cannot go
        found.append((scores, blocks, curve))
        assert {p.device for p in network.parameters()} == {where}
    (one, *others), (two, *same) = found
    assert others == same
    for kind, groups in one.items():
        for group, values in groups.items():
            assert values.tolist() == two[kind][group].tolist(), (kind, group)


@every
def test_repair(name, device):
    task, *networks = both(name, device)
    pruned = []
    for network in networks:
        arch = cw.read(network.eval(), read_with(task, network))
        cut = arch.apply(cw.Width(arch.free_groups[0].name, 5), verify=False)
        images = calibration(task.train, 8, device_of(network), 4)
        assert merge(arch, cut, images)
        assert refit(arch, cut, images)
        reestimate(cut.model, task.train, count=8)
        evaluate(cut.model, task.val)
        pruned.append(cut.model)
    assert_same(*pruned)
    assert evaluate(pruned[0], task.val) == evaluate(pruned[1], task.val)


@every
@pytest.mark.few(2)
def test_compressing(name, device, tmp_path):
    """A whole search: saliency, allocation, repair, distilled fine-tuning, and what is kept of it."""
    task, network = every_task.made(name)
    how = {"budget": "macs<=70%", "recipe": every_task.recipe(), "progress": False}
    result = cw.compress(network.to(device), task, **how, out=tmp_path)
    assert result.model is not None
