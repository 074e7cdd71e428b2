"""Probes: what they find, that they touch nothing, that a resumed training observes the same; early stops."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from convwright.errors import RecipeError
from convwright.methods import Stop
from convwright.training import StreamImages, train
from convwright.training.checkpoint import FILE, read_checkpoint, write_checkpoint
from convwright.training.probes.base import PROBES, Probe, Watched, check_observed, probe

QUIET = {"progress": False, "accelerator": "cpu"}
METRICS = ("rank", "knowledge_gain", "condition", "qc", "new_qc")


class KilledError(Exception):
    pass


def kill_at(epoch):
    def on_epoch(record):
        if record.epoch == epoch:
            raise KilledError

    return on_epoch


def same_weights(one, two):
    return all(torch.equal(t, two.state_dict()[name]) for name, t in one.state_dict().items())


def separable(seed=0):
    """A dense and a depthwise convolution, as layers of a block."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        block = nn.Sequential(nn.Conv2d(7, 7, 3, padding=1, groups=7), nn.BatchNorm2d(7), nn.Dropout(0.2))
        return nn.Sequential(
            nn.Conv2d(3, 7, 3), nn.ReLU(), block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 3)
        )


class Nosy(Probe):
    """Does everything that a probe may do: hooks, a sample, draws, another mode, its own steps."""

    metrics = ("mean",)
    every = 3

    def __init__(self, watched):
        super().__init__(watched)
        self.rows, self.seen, self.hooks = [], [], []

    def __enter__(self):
        layers = [module for module in self.watched.model.modules() if isinstance(module, nn.ReLU)]
        self.hooks = [layer.register_forward_hook(self.keep) for layer in layers]
        return self

    def keep(self, module, inputs, output):
        self.seen.append(float(output.detach().mean()))

    def __exit__(self, kind, error, trace):
        for hook in self.hooks:
            hook.remove()

    def due(self, moment):
        return moment.event != "epoch" and moment.step % self.every == 0

    def measure(self, moment):
        images, labels = self.watched.sample(10)
        self.watched.model.eval()
        self.seen.clear()
        scores = self.watched.model(images)
        torch.randn(17)
        assert not scores.requires_grad
        row = [moment.event, moment.epoch, moment.step, self.seen[0], float(images.sum()), labels.tolist()]
        self.rows.append([*row, moment.learning_rate])

    def found(self):
        return {"rows": self.rows}

    def value(self, metric):
        return self.rows[-1][3] if self.rows else math.nan

    def load_state_dict(self, state):
        self.rows = state["rows"]


@pytest.fixture
def nosy(monkeypatch):
    monkeypatch.setattr("convwright.training.probes.base.PROBES", PROBES.copy())
    probe("nosy")(Nosy)


@pytest.fixture
def recipe(small_recipe):
    return small_recipe.updated(epochs=3)


# ------------------------------------------------------------------ what is found


def test_channel_quality_is_measured_after_every_epoch(small_data, recipe):
    result = train(separable(), small_data, recipe, probes=["channel-quality"], **QUIET)
    found = result.probes["channel-quality"]
    assert found["layers"] == ["0", "2.0"]
    assert set(found["metrics"]) == set(METRICS)
    for rows in found["metrics"].values():
        assert [len(row) for row in rows] == [2, 2, 2]
        dense, depthwise = rows[-1]
        assert all(isinstance(value, float) for value in dense)
        assert depthwise[0] is None  # one row: no rank to speak of
        assert isinstance(depthwise[1], float)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize("parity", [False, True])
def test_the_numbers_are_those_of_the_metric(small_data, recipe, parity):
    from convwright.metrics.quality.channel_quality import channel_qualities

    name = "channel-quality-parity" if parity else "channel-quality"
    weight = 4 * torch.eye(7, 27)[:, torch.arange(27)].reshape(7, 3, 3, 3) + 0.1 * torch.randn(
        7, 3, 3, 3, generator=torch.Generator().manual_seed(0)
    )
    model = separable()
    model[0].weight.data.copy_(weight)
    result = train(model, small_data, recipe.updated(epochs=1, lr=1e-4), probes=[name], **QUIET)
    expected = channel_qualities({"0": result.model[0].weight.detach()}, parity=parity)["0"]
    for metric, rows in result.probes["channel-quality"]["metrics"].items():
        assert rows[0][0] == [float(getattr(expected.input, metric)), float(getattr(expected.output, metric))], metric
    assert result.probes["channel-quality"]["metrics"]["rank"][0][0][0] > 0


def test_a_probe_leaves_no_trace(nosy, small_data, recipe):
    before = torch.get_rng_state()
    bare = train(separable(), small_data, recipe, **QUIET)
    model = separable()
    watched = train(model, small_data, recipe, probes=["channel-quality", "nosy"], **QUIET)
    assert same_weights(bare.model, watched.model)
    assert [r.train_loss for r in bare.history] == [r.train_loss for r in watched.history]
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module._forward_hooks for module in model.modules())
    assert bare.probes == {}


def test_a_probe_is_asked_at_the_start_at_steps_and_at_epochs(nosy, small_data, recipe):
    rows = train(separable(), small_data, recipe, probes=["nosy"], **QUIET).probes["nosy"]["rows"]
    expected = [["start", 0, 0], ["step", 0, 3], ["step", 1, 6], ["step", 2, 9], ["step", 2, 12]]  # 4 steps an epoch
    assert [row[:3] for row in rows] == expected
    assert [row[6] > 0 for row in rows] == [False, True, True, True, True]
    images, labels = {row[4] for row in rows}, {tuple(row[5]) for row in rows}
    assert (len(images), len(labels)) == (1, 1)  # the same sample each time
    assert len(labels.pop()) == 10


def test_hooks_go_when_a_training_fails(nosy, small_data, recipe):
    model = separable()
    with pytest.raises(RecipeError, match="broke down"):
        train(model, small_data, recipe.updated(lr=1e30), probes=["nosy"], **QUIET)
    assert not any(module._forward_hooks for module in model.modules())


# ------------------------------------------------------------------ resuming


@pytest.mark.parametrize("killed", [1, 2, 3])
def test_a_resumed_training_observes_the_same(nosy, small_data, recipe, tmp_path, killed):
    names = ["channel-quality", "nosy"]
    whole = train(separable(), small_data, recipe, probes=names, **QUIET)
    with pytest.raises(KilledError):
        train(separable(), small_data, recipe, out=tmp_path, on_epoch=kill_at(killed), probes=names, **QUIET)
    torch.randn(3)
    resumed = train(separable(9), small_data, recipe, out=tmp_path, resume=True, probes=names, **QUIET)
    assert resumed.probes == whole.probes
    assert same_weights(resumed.model, whole.model)


def test_a_training_that_was_not_observed_cannot_be_resumed_observed(small_data, recipe, tmp_path):
    with pytest.raises(KilledError):
        train(separable(), small_data, recipe, out=tmp_path, on_epoch=kill_at(1), **QUIET)
    with pytest.raises(RecipeError, match="without probe 'channel-quality'"):
        train(separable(), small_data, recipe, out=tmp_path, resume=True, probes=["channel-quality"], **QUIET)


def test_checkpoints_from_before_there_were_probes_are_resumed(small_data, recipe, tmp_path):
    with pytest.raises(KilledError):
        train(separable(), small_data, recipe, out=tmp_path, on_epoch=kill_at(1), **QUIET)
    content = read_checkpoint(tmp_path)
    del content["probes"], content["format"]
    write_checkpoint(tmp_path, content)
    whole = train(separable(), small_data, recipe, **QUIET)
    resumed = train(separable(), small_data, recipe, out=tmp_path, resume=True, **QUIET)
    assert same_weights(resumed.model, whole.model)


# ------------------------------------------------------------------ stopping


@pytest.mark.parametrize(
    ("stop", "epochs"),
    [
        (Stop("train_loss", 0.0), 1),
        (Stop("train_loss", 0.0, epoch=2), 2),
        (Stop("train_loss", 100.0), 3),
        (Stop("val_acc", 1.5, above=False), 1),
        (Stop("channel-quality", -1.0, epoch=2), 2),
        (Stop("channel-quality.rank", 2.0, above=False), 1),
        (Stop("channel-quality.condition", -1.0, above=False), 3),
    ],
)
def test_a_training_ends_when_a_number_passes_the_threshold(small_data, recipe, stop, epochs):
    result = train(separable(), small_data, recipe, probes=["channel-quality"], stop=stop, **QUIET)
    assert len(result.history) == epochs
    assert result.stopped == (epochs < 3)
    assert len(result.probes["channel-quality"]["metrics"]["qc"]) == epochs
    assert result.val is not None
    assert result.test is not None


def test_what_is_stopped_stays_stopped_when_resumed(small_data, recipe, tmp_path):
    stop = Stop("train_loss", 0.0, epoch=2)
    whole = train(separable(), small_data, recipe, stop=stop, **QUIET)
    with pytest.raises(KilledError):  # after the checkpoint that says so, before it was heard
        train(separable(), small_data, recipe, out=tmp_path, on_epoch=kill_at(2), stop=stop, **QUIET)
    resumed = train(separable(), small_data, recipe, out=tmp_path, resume=True, stop=stop, **QUIET)
    assert resumed.stopped
    assert len(resumed.history) == 2
    assert same_weights(resumed.model, whole.model)


def test_a_caller_s_own_stop_is_told_as_one(small_data, recipe):
    assert train(separable(), small_data, recipe, on_epoch=lambda record: True, **QUIET).stopped
    assert not train(separable(), small_data, recipe, on_epoch=lambda record: None, **QUIET).stopped


def test_what_is_not_a_number_stops_nothing(nosy, small_data, recipe):
    class Never(Nosy):
        def due(self, moment):
            return False

    probe("never")(Never)
    for above in (True, False):
        result = train(separable(), small_data, recipe, probes=["never"], stop=Stop("never", 0.0, above), **QUIET)
        assert not result.stopped
        assert result.probes["never"] == {"rows": []}


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("names", "stop", "message"),
    [
        (["channel-qualty"], None, "unknown probe 'channel-qualty'"),
        (["channel-quality", "channel-quality-parity"], None, "both go by 'channel-quality'"),
        ([], Stop("channel-quality", 0.5), "names 'channel-quality', which is not observed"),
        (["channel-quality"], Stop("channel-quality.qcc", 0.5), "names 'channel-quality.qcc', which is not observed"),
        ([], Stop("lr", 0.5), "names 'lr'"),
    ],
)
def test_mistakes_are_told_before_any_training(small_data, recipe, make_network, names, stop, message):
    with pytest.raises(RecipeError, match=message):
        train(make_network(), small_data, recipe, probes=names, stop=stop, **QUIET)


@pytest.mark.parametrize("path", ["channel-quality.qc", "channel-quality-parity.qc", "channel-quality"])
def test_a_variant_goes_by_both_names(path):
    check_observed(["channel-quality-parity"], Stop(path, 0.5))


def test_probes_work_in_one_process(small_data, recipe, make_network):
    with pytest.raises(RecipeError, match="cannot be called from 2 processes"):
        train(make_network(), small_data, recipe, probes=["channel-quality"], devices=2, **QUIET)


def test_a_checkpoint_holds_plain_text(small_data, recipe, tmp_path):
    train(separable(), small_data, recipe, out=tmp_path, probes=["channel-quality"], **QUIET)
    state = json.loads(read_checkpoint(tmp_path)["probes"])
    assert len(state["channel-quality"]["metrics"]["qc"]) == recipe.epochs
    assert (tmp_path / FILE).is_file()


def test_a_sample_is_the_same_from_memory_and_from_a_stream(small_data, recipe, make_network):
    held = small_data.train
    stream = StreamImages(
        lambda i: held.images[i], torch.arange(len(held)), held.labels, held.shape, held.mean, held.std
    )
    model, device = make_network(), torch.device("cpu")
    images, labels = Watched(model, small_data, recipe, device).sample(13)
    streamed = Watched(model, replace(small_data, train=stream), recipe, device, workers=0)
    assert images.shape == (13, 3, 8, 8)
    assert all(torch.equal(*pair) for pair in zip(streamed.sample(13), (images, labels), strict=True))
    assert len(Watched(model, small_data, recipe, device).sample(1000)[1]) == len(held)
    other = Watched(model, small_data, recipe.updated(seed=1), device).sample(13)[0]
    assert not torch.equal(other, images)
