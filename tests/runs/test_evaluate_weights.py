"""How candidates get their weights, and what is observed of their training."""

import copy
import json

import pytest
import torch
from small_pictures import pictures
from torch import nn

import convwright as cw
from convwright.edits import Kernel, Plan, Width
from convwright.edits.transfer import svd_transfer
from convwright.errors import RunError
from convwright.methods import Candidate, Evidence, Method, Stop
from convwright.runs import Evaluator, Study, search
from convwright.runs.directory.files import load_weights
from convwright.runs.evaluate import reshaped
from convwright.training import ImageData

SETTINGS = {"model": "own", "seed": 0}
METRICS = ("rank", "knowledge_gain", "condition", "qc", "new_qc")


class Tiny(nn.Module):
    """A residual stream of 7 channels, a branch of 11, a head of 13."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(1, 7, 3, padding=1, bias=False), nn.BatchNorm2d(7)
        self.a, self.bn_a = nn.Conv2d(7, 11, 3, padding=1), nn.BatchNorm2d(11)
        self.b, self.head = nn.Conv2d(11, 7, 3, padding=1), nn.Conv2d(7, 13, 1)
        self.fc = nn.Linear(13, 3)

    def forward(self, x):
        x = torch.relu(self.bn(self.stem(x)))
        x = x + self.b(torch.relu(self.bn_a(self.a(x))))
        return self.fc(torch.relu(self.head(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def arch():
    torch.manual_seed(0)
    return cw.read(Tiny(), (1, 8, 8))


@pytest.fixture
def plan(arch):
    """The beginning of every plan."""
    return Plan.empty(arch)


@pytest.fixture
def study(tmp_path):
    with Study(tmp_path / "run", SETTINGS) as study:
        yield study


@pytest.fixture
def evaluator(arch, plain, study):
    return make(arch, plain, study)


def make(arch, plain, study):
    data = ImageData("pictures", pictures(90, 1), pictures(41, 2), ("a", "b", "c"), lambda: pictures(20, 3))
    return Evaluator(arch, data, plain, study, progress=False)


WIDER, NARROWER = (Width("a", 19), Width("head", 17)), (Width("stem", 5), Width("head", 11))


def outputs(model):
    with torch.no_grad():
        return model.eval()(torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(4)))


def trained(evaluator, arch, number, plan):
    """The network of a trial, as it lies in the run directory."""
    network = reshaped(arch, plan)
    load_weights(network.model, evaluator.study.weights(number))
    return network.model


# ------------------------------------------------------------------ net2wider


def test_a_wider_child_begins_with_its_parent_s_function(evaluator, arch, plan):
    parent = Candidate(plan.with_edits(*NARROWER), None, 2, 3, weights="fresh")
    evaluator(0, parent, {})
    # Whole plans, both from the run's network: 11 channels of `a` to 19, 5 of the stem to 9, 11 of the head to 17.
    child = Candidate(plan.with_edits(Width("stem", 9), *WIDER), 0, 0, 5, weights="net2wider")
    built = evaluator.build(child, {0: parent})
    old, new = trained(evaluator, arch, 0, parent.plan), built.model
    assert (new.stem.out_channels, new.a.out_channels, new.head.out_channels) == (9, 19, 17)
    torch.testing.assert_close(outputs(new), outputs(old), rtol=1e-5, atol=1e-5)
    assert not torch.equal(new.bn.running_mean, torch.zeros(9))  # statistics are carried
    evidence = evaluator(1, child, {0: parent})
    assert evidence.score == evaluator.judge(old, evaluator.data.val).accuracy
    assert evidence.costs["params"] == sum(p.numel() for p in new.parameters())


def test_without_a_parent_the_weights_are_those_of_the_run(evaluator, arch, plan):
    before = copy.deepcopy(arch.model.state_dict())
    child = evaluator.build(Candidate(plan.with_edits(*WIDER), None, 0, 5, weights="net2wider"), {})
    torch.testing.assert_close(outputs(child.model), outputs(copy.deepcopy(arch.model)), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(t, before[name]) for name, t in arch.model.state_dict().items())


def test_a_narrower_child_keeps_the_important_channels(evaluator, arch, plan):
    parent = Candidate(plan, None, 1, 3)
    evaluator(0, parent, {})
    child = evaluator.build(Candidate(plan.with_edits(Width("head", 8)), 0, 0, 5, weights="net2wider"), {0: parent})
    network = reshaped(arch, plan)
    load_weights(network.model, evaluator.study.weights(0))
    assert torch.equal(child.model.head.weight, network.apply(Width("head", 8)).model.head.weight)
    assert not torch.equal(child.model.head.weight, network.model.head.weight[:8])


# ------------------------------------------------------------------ svd, fresh


def test_svd_carries_convolutions_and_nothing_else(evaluator, arch, plan):
    parent = Candidate(plan, None, 2, 3)
    evaluator(0, parent, {})
    old = trained(evaluator, arch, 0, plan)
    widths = (Width("stem", 15), Width("a", 4))
    made = [
        evaluator.build(Candidate(plan.with_edits(*widths), 0, 1, seed, weights="svd"), {0: parent}).model
        for seed in (5, 5, 6)
    ]
    new = made[0]
    for name in ("stem", "a", "b", "head"):
        weight = new.get_submodule(name).weight
        assert torch.equal(weight, svd_transfer(old.get_submodule(name).weight, weight.shape))
        assert torch.equal(weight, made[2].get_submodule(name).weight)
    assert torch.equal(new.bn.running_mean, torch.zeros(15))
    assert torch.equal(new.bn.weight, torch.ones(15))
    assert torch.equal(new.fc.weight, made[1].fc.weight)
    assert not torch.equal(new.fc.weight, old.fc.weight)
    assert not torch.equal(new.fc.weight, made[2].fc.weight)


def test_fresh_weights_depend_on_the_seed_only(evaluator, arch, plan):
    parent = Candidate(plan, None, 1, 3)
    evaluator(0, parent, {})
    wide = plan.with_edits(*WIDER)
    candidates = [Candidate(wide, p, 1, seed, weights="fresh") for p, seed in ((None, 5), (0, 5), (None, 6))]
    one, same, other = (evaluator.build(c, {0: parent}).model for c in candidates)
    planned = {name: t.shape for name, t in arch.apply(*WIDER).model.state_dict().items()}
    assert {name: t.shape for name, t in one.state_dict().items()} == planned
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, same.get_parameter(name)), name
        if parameter.ndim > 1:
            assert not torch.equal(parameter, other.get_parameter(name)), name
    for norm in (one.bn, one.bn_a):
        assert torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))
        assert torch.equal(norm.running_var, torch.ones_like(norm.running_var))
        assert norm.num_batches_tracked == 0


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize("weights", ["net2wider", "svd"])
def test_a_child_that_is_not_a_change_of_width_is_an_error_that_names_the_edit(evaluator, plan, weights):
    parent = Candidate(plan.with_edits(Width("a", 5)), None, 1, 3)
    child = Candidate(plan.with_edits(Width("a", 7), Kernel("head", 3)), 0, 1, 3, weights=weights)
    with pytest.raises(RunError, match=r"from trial 0 in widths only: edit 2 of the later plan \(kernel head -> 3\)"):
        evaluator(1, child, {0: parent})
    with pytest.raises(RunError, match="from the run's network in widths only"):
        evaluator(1, Candidate(child.plan, None, 1, 3, weights=weights), {})


def test_edits_that_both_plans_have_are_no_obstacle(evaluator, arch, plan):
    parent = Candidate(plan.with_edits(Kernel("head", 3), Width("a", 5)), None, 1, 3)
    evaluator(0, parent, {})
    child = Candidate(plan.with_edits(Kernel("head", 3), Width("a", 9)), 0, 0, 3, weights="net2wider")
    new = evaluator.build(child, {0: parent}).model
    torch.testing.assert_close(outputs(new), outputs(trained(evaluator, arch, 0, parent.plan)), rtol=1e-5, atol=1e-5)


def test_a_network_that_cannot_be_drawn_anew_fails_its_trial_and_not_the_run(plain, study):
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.scale = nn.Conv2d(1, 3, 3), nn.Parameter(torch.arange(3.0))

        def forward(self, x):
            return self.conv(x).mean((2, 3)) * self.scale

    arch = cw.read(Scale(), (1, 8, 8))
    evidence = make(arch, plain, study)(0, Candidate(Plan.empty(arch), None, 1, 0, weights="fresh"), {})
    assert evidence.status == "failed"
    assert "scale cannot be drawn anew" in evidence.message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probes": ("bundels",)}, "trial 4: unknown probe 'bundels'"),
        ({"stop": Stop("channel-quality", 0.5)}, "trial 4: the rule to stop early names 'channel-quality'"),
    ],
)
def test_what_cannot_be_observed_is_the_method_s_mistake(evaluator, plan, changes, message):
    with pytest.raises(RunError, match=message):
        evaluator(4, Candidate(plan, None, 1, 0, **changes), {})


# ------------------------------------------------------------------ candidates as data


def test_old_candidates_are_written_as_they_were(plan):
    candidate = Candidate(plan, 2, 3, 4, Stop("val_acc", 0.9), "baseline", ("channel-quality",), {"lr": 0.1})
    assert set(candidate.to_dict()) == {"plan", "parent", "epochs", "seed", "stop", "role", "probes", "recipe"}
    assert set(Candidate(plan, None, 1, 0).to_dict()) == set(candidate.to_dict()) - {"recipe"}
    assert Candidate.from_dict(json.loads(json.dumps(candidate.to_dict()))) == candidate


@pytest.mark.parametrize("weights", ["net2wider", "svd", "fresh"])
def test_weights_are_written_and_read(plan, weights):
    candidate = Candidate(plan, 2, 3, 4, weights=weights)
    written = json.loads(json.dumps(candidate.to_dict()))
    assert written["weights"] == weights
    assert Candidate.from_dict(written) == candidate
    with pytest.raises(RunError, match="weights 'stolen'"):
        Candidate.from_dict({**written, "weights": "stolen"})


# ------------------------------------------------------------------ observed


def test_evidence_tells_what_the_probes_found(evaluator, plan):
    evidence = evaluator(0, Candidate(plan, None, 2, 3, probes=("channel-quality",)), {})
    found = evidence.probes["channel-quality"]
    assert found["layers"] == ["stem", "a", "b", "head"]
    assert set(found["metrics"]) == set(METRICS)
    for rows in found["metrics"].values():
        assert [[len(pair) for pair in row] for row in rows] == [[2] * 4] * 2
        assert all(row[0][0] is None for row in rows)  # the stem reads one channel
    written = json.dumps(evidence.to_dict(), allow_nan=False)
    assert Evidence.from_dict(json.loads(written), evidence.candidate) == evidence


def test_a_network_that_is_only_judged_is_looked_at_once(evaluator, arch, plan):
    evidence = evaluator(0, Candidate(plan, None, 0, 3, probes=("channel-quality-parity",)), {})
    assert [len(rows) for rows in evidence.probes["channel-quality"]["metrics"].values()] == [1] * 5
    assert evidence.status == "done"


def test_a_stopped_trial_is_told_as_one_and_can_be_a_parent(evaluator, arch, plan):
    stop = Stop("channel-quality.qc", -1.0)
    parent = Candidate(plan, None, 2, 3, stop=stop, probes=("channel-quality",))
    evidence = evaluator(0, parent, {})
    assert evidence.status == "stopped"
    assert evidence.usable
    assert len(evidence.probes["channel-quality"]["metrics"]["qc"]) == 1
    child = evaluator.build(Candidate(plan.with_edits(*WIDER), 0, 1, 3, weights="net2wider"), {0: parent})
    old = trained(evaluator, arch, 0, plan)
    assert evaluator.judge(old, evaluator.data.val).accuracy == evidence.score
    torch.testing.assert_close(outputs(child.model), outputs(old), rtol=1e-5, atol=1e-5)


class Growing(Method):
    """A search of three trials that decides by what the probes found: one layer grows by what it was told."""

    def __init__(self, plan):
        self.plan, self.results = plan, []

    def ask(self):
        count = len(self.results)
        if count == 3:
            return ()
        seen = self.results[-1].probes["channel-quality"]["metrics"]["rank"][-1][1] if count else [0.0, 0.0]
        size = 8 + 3 * count + round(4 * sum(seen))
        weights = "net2wider" if count else "fresh"
        plan = self.plan.with_edits(Width("a", size))
        return (Candidate(plan, count - 1 if count else None, 2, count, probes=("channel-quality",), weights=weights),)

    def tell(self, evidence):
        self.results.append(evidence)

    def best(self):
        return self.results[-1]


def facts(evidence):
    return [(e.candidate.plan, e.score, e.probes, e.status, e.costs) for e in evidence]


@pytest.mark.parametrize("trial", [pytest.param(0, marks=pytest.mark.breadth), 1])
def test_a_search_that_is_killed_in_a_training_finds_the_same(arch, plan, plain, tmp_path, monkeypatch, trial):
    with Study(tmp_path / "whole", SETTINGS) as study:
        whole = search(Growing(plan), study, make(arch, plain, study))

    import convwright.training.run as run_module

    written, honest = [], run_module.write_checkpoint

    def write_and_die(folder, content):
        honest(folder, content)
        written.append(folder)
        if len(written) == 2 * trial + 1:  # after the first of the trial's two epochs
            raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "write_checkpoint", write_and_die)
    with Study(tmp_path / "killed", SETTINGS) as study, pytest.raises(KeyboardInterrupt):
        search(Growing(plan), study, make(arch, plain, study))
    with Study(tmp_path / "killed", SETTINGS, resume=True) as study:
        resumed = search(Growing(plan), study, make(arch, plain, study))
    assert len(written) == 6  # no epoch was trained twice
    assert facts(resumed) == facts(whole)
    with Study(tmp_path / "killed", SETTINGS, resume=True) as study:  # all told again from the record
        assert facts(search(Growing(plan), study, None)) == facts(whole)
