"""The probe of channel norms: what narrowing would rank, seen without touching the network."""

import copy

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from convwright.architecture import read
from convwright.edits.importance import l2
from convwright.training import ArrayImages, Recipe, load_data, train
from convwright.training.probes.base import Watched
from convwright.training.probes.saliency import ChannelNorms


@pytest.fixture
def watched():
    torch.manual_seed(3)
    arch = read("zoo:resnet20", (1, 1, 8, 8), widths=[5, 7, 11], depths=[1, 2, 2], in_channels=1, num_classes=3)
    data = load_data(pictures(23), val_fraction=0.2)
    return arch, Watched(arch.model, data, Recipe(), torch.device("cpu"), workers=0)


def pictures(count):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return TensorDataset(images, torch.arange(count) % 3)


def test_they_are_those_that_narrowing_ranks(watched):
    arch, seen = watched
    before = copy.deepcopy(arch.model.state_dict())
    random = torch.random.get_rng_state()
    found = ChannelNorms(seen).found()["norms"]
    assert set(found) == {group.name for group in arch.free_groups}
    for group in arch.free_groups:
        scores = np.sort(l2(group, arch))[::-1]
        assert found[group.name] == pytest.approx(scores / scores.mean(), abs=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in arch.model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)


def test_a_dead_channel_comes_last(watched):
    arch, seen = watched
    block = arch.model.get_submodule("layer3.1")
    with torch.no_grad():
        block.conv1.weight[4] = 0
        block.bn1.weight[4] = block.bn1.bias[4] = 0
        block.conv2.weight[:, 4] = 0
    norms = ChannelNorms(seen).found()["norms"]["layer3.1.conv1"]
    assert norms[-1] == 0
    assert norms[-2] > 0.1


def test_a_training_hands_them_over_and_is_the_same_without(tmp_path, watched):
    arch, seen = watched
    recipe = Recipe(epochs=1, batch_size=4, precision="fp32", seed=5)
    models = [copy.deepcopy(arch.model) for _ in range(2)]
    with_it, without = (
        train(model, seen.data, recipe, out=tmp_path / str(len(names)), progress=False, test=False, probes=names)
        for model, names in zip(models, (("channel-norms",), ()), strict=True)
    )
    one, other = (model.state_dict() for model in models)
    assert all(torch.equal(one[name], other[name]) for name in one)
    own = Watched(models[0], seen.data, recipe, torch.device("cpu"), workers=0)
    assert with_it.probes["channel-norms"] == ChannelNorms(own).found()
    assert not without.probes
    assert isinstance(seen.data.train, ArrayImages)
