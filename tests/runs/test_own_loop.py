"""Laws of a search around one's own training: the same scores give the same search, whoever tells them and when."""

import gc
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import convwright as cw
from convwright.errors import BudgetError, ConvwrightError, RunError
from convwright.methods import Candidate, ConfigurableMethod, register
from convwright.methods.base import METHODS
from convwright.runs.own_loop import Search

FEW = {"trials": 2}  # of method random
BATCHES = [(torch.randn(8, 1, 8, 8), torch.arange(8) % 3)] * 2


def quiet(text):
    """Say nothing."""


@pytest.fixture
def arch(tiny):
    return cw.read(tiny, (1, 8, 8))


@pytest.fixture
def wide():
    """A method that asks for one, four and two candidates; the last two inherit from the best of the four."""

    @register("wide")
    class Wide(ConfigurableMethod):
        def ask(self):
            plan = cw.Plan.empty(self.arch)
            told = len(self.results)
            first = [Candidate(plan, None, 1, 0, role="base")]
            second = [Candidate(plan.with_edits(cw.Width("conv1", n)), 0, 2, n) for n in (2, 3, 4, 5)]
            batches = [first, second]
            if told >= 5:
                best = max((self.results[n] for n in range(1, 5)), key=lambda e: e.score)
                onwards = best.candidate.plan.with_edits(cw.Width("conv2", 6))
                batches.append([Candidate(onwards, best.trial, 1, n) for n in (0, 1)])
            asked = [c for batch in batches[: 1 + (told >= 1) + (told >= 5)] for c in batch]
            return tuple(asked[told:])

        def tell(self, evidence):
            assert evidence.trial == len(self.results)  # in order
            self.results[evidence.trial] = evidence

        def best(self):
            met = [e for e in self.results.values() if e.usable and e.candidate.role == "candidate"]
            return max(met, key=lambda e: e.score, default=None)

    yield "wide"
    del METHODS["wide"]


def score(trial):
    """Made up, and of the trial alone."""
    return 0.5 + 0.07 * (trial.number * 5 % 7)


def mark(trial):
    """Train: the weights say which trial they came through."""
    with torch.no_grad():
        trial.model().fc.bias += 1.0 + trial.number
    return trial


def found(result):
    """What must not depend on who told what: plans, parents, scores and weights."""
    trials = [(t.candidate.plan.to_json(), t.candidate.parent, t.score, t.status) for t in result.trials]
    return trials, result.plan.to_json(), {n: t.tolist() for n, t in result.model.state_dict().items()}


def alone(arch, method, out, **options):
    search = Search(arch, "macs<=80%", method, out, say=quiet, **options)
    while trial := search.ask():
        search.tell(mark(trial), score(trial))
    return found(search.result())


@pytest.mark.parametrize("seed", [0, 1, pytest.param(2, marks=pytest.mark.breadth)])
def test_two_processes_that_finish_in_any_order_find_what_one_finds(arch, wide, tmp_path, seed):
    one = alone(arch, wide, tmp_path / "one")
    rng, waiting = random.Random(seed), []
    searches = [Search(arch, "macs<=80%", wide, tmp_path / "two", say=quiet, lease=30) for _ in range(2)]
    for count in (1, 4, 2):  # all of a batch are out before the first is told
        for _ in range(count):
            search = rng.choice(searches)
            waiting.append((search, mark(search.ask())))
        assert len({trial.number for _, trial in waiting}) == count
        rng.shuffle(waiting)
        while waiting:
            search, trial = waiting.pop()
            search.tell(trial, score(trial))
    assert [search.ask() for search in searches] == [None, None]
    assert [found(search.result()) for search in searches] == [one, one]


def test_a_search_that_is_made_again_goes_on_where_it_was(arch, wide, tmp_path):
    one = alone(arch, wide, tmp_path / "one")
    for _ in range(3):  # a new process for each trial; the last of each did not come to its end
        search = Search(arch, "macs<=80%", wide, tmp_path / "many", say=quiet)
        search.tell(mark(trial := search.ask()), score(trial))
        search.ask()
        del search
        gc.collect()
    assert alone(arch, wide, tmp_path / "many") == one


SCRIPT = """
import os, sys, torch
import convwright as cw
sys.path.insert(0, "."); from net import Tiny
torch.manual_seed(3)
search = cw.Search(cw.read(Tiny(), (1, 8, 8)), "macs<=50%", "random", "run", epochs=1, tune_epochs=1, lease=0.5,
                   options={"trials": 4, "trial_epochs": 1})
print("ready", flush=True)
while trial := search.ask():
    if trial.number == int(sys.argv[1]):
        os.kill(os.getpid(), 9)
    with torch.no_grad():
        trial.model().fc.bias += 1.0 + trial.number
    search.tell(trial, 0.5 + 0.07 * (trial.number * 5 % 7))
search.result()
"""


@pytest.mark.parametrize("kill_at", [2, 0])
@pytest.mark.breadth
def test_after_a_kill_two_processes_find_what_one_finds(tiny, tmp_path, kill_at):
    def begun(at, folder):
        folder.mkdir(exist_ok=True)
        (folder / "net.py").write_text(Path("net.py").read_text())
        path = os.pathsep.join([str(Path(cw.__file__).parents[1]), *sys.path])
        how = {"env": {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, "stderr": subprocess.PIPE}
        return subprocess.Popen([sys.executable, "-c", SCRIPT, str(at)], cwd=folder, text=True, **how)

    def recorded(name):
        content = json.loads((tmp_path / name / "run" / "result.json").read_text())
        weights = (tmp_path / name / "run" / "model.safetensors").read_bytes()
        return [{k: v for k, v in t.items() if k != "seconds"} for t in content["trials"]], weights

    (killed := begun(kill_at, tmp_path / "killed")).communicate(timeout=100)
    assert killed.returncode == -9
    both = [begun(-1, tmp_path / "killed") for _ in range(2)]
    said = [each.communicate(timeout=200)[1] for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    assert "after 1 that ended without a word" in "".join(said)
    assert "".join(said).count(": score ") == 6 - kill_at  # no trial twice
    begun(-1, tmp_path / "whole").communicate(timeout=100)
    assert recorded("killed") == recorded("whole")


def test_a_lease_that_ends_is_handed_on_and_is_lost_to_the_first(arch, tmp_path):
    first, second = (Search(arch, "macs<=50%", "uniform", tmp_path / "run", say=quiet) for _ in range(2))
    trial = first.ask()
    os.utime(trial.lease.file, (0, 0))  # as if it had been silent for long
    other = second.ask()
    assert other.number == trial.number == 0
    with pytest.raises(RunError, match="trial 0: its lease was lost, another process has it now"):
        trial.heartbeat()
    with pytest.raises(RunError, match="lease was lost"):
        first.tell(trial, 0.5)
    second.tell(other, 0.6)
    assert first.ask().number == 1
    assert first._found[0].score == 0.6


def test_a_heartbeat_keeps_a_lease(arch, tmp_path):
    first, second = (Search(arch, "macs<=50%", "uniform", tmp_path / "run", say=quiet, lease=0.4) for _ in range(2))
    trial = first.ask()
    os.utime(trial.lease.file, (0, 0))
    first._leases.clear()  # its thread is silent
    trial.heartbeat()
    second._advanced(claim=True)
    assert second._claimed is None


def test_a_search_that_ends_gives_its_trials_back(arch, tmp_path):
    search = Search(arch, "macs<=50%", "uniform", tmp_path / "run", say=quiet)
    lease = search.ask().lease
    assert lease.held
    del search
    gc.collect()
    assert not lease.held


def test_a_trial_that_ends_five_processes_has_failed(arch, tmp_path):
    search = Search(arch, "macs<=50%", "uniform", tmp_path / "run", say=quiet)
    for _ in range(5):
        trial = search.ask()
        search._forget(trial.number)  # killed: nothing is given back
        os.utime(trial.lease.file, (0, 0))
    assert search.ask() is None


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("auto", {}), ("auto", {"epochs": 0, "batches": BATCHES, "loss": cross_entropy}),
        ("saliency", {"batches": BATCHES, "loss": cross_entropy}), ("saliency", {"options": {"kind": "l2"}}),
        ("uniform", {"baseline": False}), ("random", {"options": {"trials": 3}}), ("phased", {}), ("kernel", {}),
        ("channel-search", {"options": {"trials": 2}}), ("pareto", {"options": {"search_epochs": 6}}),
    ],
)  # fmt: skip
@pytest.mark.few(4)
def test_methods_search_with_made_up_scores(arch, tmp_path, method, options):
    search = Search(
        arch, "macs<=60%", method, tmp_path / "run", say=quiet, **{"epochs": 2, "tune_epochs": 2, **options}
    )
    while trial := search.ask():
        assert not trial.candidate.recipe
        search.tell(trial, score(trial))
    result = search.result()
    assert result.data["budget_met"]["macs"]["met"]
    assert result.plan.edits
    assert type(result.model).__name__ == "Tiny"


@pytest.mark.parametrize("method", ["greedy", "scaling", "receptive-field"])
@pytest.mark.breadth
def test_methods_of_networks_with_blocks_search_with_made_up_scores(tmp_path, method):
    budget = "macs<=130%" if method != "receptive-field" else "macs<=100%"
    search = Search(cw.read("zoo:resnet20"), budget, method, tmp_path / "run", say=quiet, epochs=1, tune_epochs=1)
    while trial := search.ask():
        search.tell(trial, score(trial))
    assert search.result().data["budget_met"]["macs"]["met"]


def test_children_inherit_what_was_told(arch, tmp_path):
    search = Search(arch, "macs<=50%", "uniform", tmp_path / "run", say=quiet)
    base = search.ask()
    trained = type(base.model())()
    nn.init.constant_(trained.fc.bias, 7.0)
    search.tell(base, 0.5, model=trained)
    child = search.ask()
    assert child.model().training
    assert child.model().fc.bias.tolist() == [7.0] * 3
    assert not torch.equal(arch.model.fc.bias, trained.fc.bias)


def test_lower_scores_can_be_better(arch, tmp_path):
    search = Search(arch, "macs<=50%", "random", tmp_path / "run", say=quiet, higher_is_better=False, options=FEW)
    while trial := search.ask():
        search.tell(trial, 9.0 - trial.number)
    scores = [trial.score for trial in search.result().trials]
    assert scores == [n - 9.0 for n in range(len(scores))]
    assert search.result().best.trial == len(scores) - 2  # the last but the baseline


def test_a_failed_trial_is_recorded_and_the_search_goes_on(arch, tmp_path):
    search = Search(arch, "macs<=50%", "random", tmp_path / "run", say=quiet, options=FEW)
    search.fail(search.ask(), "out of\nmemory")
    while trial := search.ask():
        search.tell(trial, score(trial))
    failed = search.result().trials[0]
    assert (failed.status, failed.message) == ("failed", "out of memory")


def test_batch_norm_is_re_estimated_where_there_are_batches(arch, tmp_path):
    search = Search(arch, "macs<=50%", "uniform", tmp_path / "run", say=quiet, batches=BATCHES)
    search.tell(search.ask(), 0.5)
    assert [search.ask().reestimated for _ in range(2)] == [0, 16]  # the baseline keeps its function


def test_several_inputs(tmp_path):
    class Siamese(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 2)

        def forward(self, one, two):
            return self.head((self.body(one) - self.body(two)).abs().mean((2, 3)))

    search = Search(cw.read(Siamese(), ((1, 8, 8), (1, 8, 8))), "macs<=50%", "uniform", tmp_path / "run", say=quiet)
    while trial := search.ask():
        assert trial.model()(*BATCHES[0][:1] * 2).shape == (8, 2)
        search.tell(trial, score(trial))
    assert search.result().model.body.out_channels == 4


def test_a_network_of_whole_numbers_is_loaded_with_its_inputs(tmp_path):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.body, self.head = nn.Embedding(9, 4), nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, ids, mask):
            return self.head(self.body(self.words(ids)) * mask[..., None])

    given = {"ids": torch.zeros(1, 5, dtype=torch.int64), "mask": torch.ones(1, 5)}
    search = Search(cw.read(Words(), given), "macs<=60%", "uniform", tmp_path / "run", say=quiet)
    while trial := search.ask():
        search.tell(trial, score(trial))
    width = search.result().model.body.out_features
    assert cw.load(tmp_path / "run", Words, given).model.body.out_features == width < 8


@pytest.mark.parametrize(
    ("tell", "said"),
    [
        (lambda s, t: s.tell(t, float("nan")), "trial 0: its score is nan, which is no finite number"),
        (lambda s, t: s.tell(t, "good"), "trial 0: its score is 'good', which is no finite number"),
        (lambda s, t: s.tell(t, torch.ones(2)), "which is no finite number"),
        (lambda s, t: (t.model().fc.bias.data.fill_(torch.nan), s.tell(t, 0.5)), r"fc\.bias of its network holds NaN"),
        (lambda s, t: s.tell(3, 0.5), "3 is no trial; tell what search.ask"),
        (lambda s, t: s.tell(t, 0.5, nn.Sequential(t.model())), r"is another network \(0.bn1.bias\)"),
        (lambda s, t: s.ask(), "trial 0 was handed out; tell it or fail it"),
        (lambda s, t: s.result(), "no result yet; go on with ask and tell, trial 0 comes next"),
        (lambda s, t: (s.tell(t, 0.5), s.tell(t, 0.5)), "trial 0 was told already"),
    ],
)
def test_wrong_tellings_are_refused_in_one_line(arch, tmp_path, tell, said):
    search = Search(arch, "macs<=50%", "uniform", tmp_path / "run", say=quiet)
    with pytest.raises(RunError, match=said) as caught:
        tell(search, search.ask())
    assert "\n" not in str(caught.value)


def test_a_trial_of_another_search_is_refused(arch, tmp_path):
    one, two = (Search(arch, "macs<=50%", "uniform", tmp_path / name, say=quiet) for name in "ab")
    one.ask()
    with pytest.raises(RunError, match="trial 0 is another search's"):
        one.tell(two.ask(), 0.5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "saliency"}, "method saliency scores channels .* give Search batches="),
        ({"method": "saliency", "batches": BATCHES}, "loss=function"),
        ({"method": "auto", "epochs": 0}, "method auto scores channels of the trained network on your data"),
        ({"method": "unifrom"}, "uniform"),
        ({"budget": "latency<=1ms"}, "only `optimize` keeps a budget on latency"),
        ({"budget": "macs<=0.01%"}, "macs"),
        ({"lease": 0}, "lease=0 must be seconds above 0"),
        ({"options": {"trials": 2}}, "method uniform has no option 'trials'"),
        ({"arch": nn.Linear(1, 1)}, "Search takes what cw.read returns, not Linear"),
    ],
)
def test_wrong_searches_are_refused_before_any_folder_is_made(arch, tmp_path, options, said):
    with pytest.raises((ConvwrightError, BudgetError), match=said):
        Search(**{"arch": arch, "budget": "macs<=50%", "method": "uniform", "out": tmp_path / "run", **options})
    assert not (tmp_path / "run").exists()


def test_a_method_that_watches_trainings_is_refused(tmp_path):
    with pytest.raises(ConvwrightError, match="method conflicts watches trainings"):
        Search(cw.read("zoo:resnet20"), "macs<=90%", "conflicts", tmp_path / "run")


def test_another_search_does_not_go_on_in_a_directory(arch, tmp_path):
    Search(arch, "macs<=50%", "uniform", tmp_path / "run", say=quiet)
    with pytest.raises(RunError, match="started with method=uniform, not random"):
        Search(arch, "macs<=50%", "random", tmp_path / "run", say=quiet)
