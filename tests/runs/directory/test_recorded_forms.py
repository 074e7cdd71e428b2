"""What was recorded once is found again: the plain forms that digests and files are made of do not change.

A digest here that changes means that recorded runs, searches and experiments are orphaned: undo the renaming, or
read the old form, too.
"""

import hashlib
import json

import pytest

import convwright as cw
from convwright.experiments.papers import EXPERIMENTS, small_networks
from convwright.experiments.train_row import Job, asked
from convwright.methods import Candidate, Evidence, Stop
from convwright.runs.config import digest_of as digest_of_architecture
from convwright.runs.directory.trial_index import key_of
from convwright.training import Recipe

EDITS = (
    cw.Width("layer1.0.conv1", 8),
    cw.RemoveBlock("layer2.1"),
    cw.AddBlock("layer3.1", copies=1),
    cw.Kernel("layer1.1.conv2", 5),
    cw.Replace("layer3.2.conv1", "dw_rpw", groups=2),
    cw.Resolution(24),
)
PLAN = cw.Plan(EDITS, "zoo:resnet20", (1, 3, 32, 32), 269722, 40813184)
CANDIDATE = Candidate(PLAN, 3, 2, 7, Stop("val_loss", 0.5), "candidate", ("rank",), {"cutout": 4}, "svd", "proxy", True)
EVIDENCE = Evidence(CANDIDATE, 4, 0.5, 0.01, {"macs": 7}, {"rank": [1.0]}, "stopped", 2.0, "why")

EXPERIMENTS_THEN = {
    "3drf": "26eb07ebbb5b",
    "3drf-rank": "eddf8b60ef24",
    "cifar10-140k": "0cd0c70d66c9",
    "cifar10-techniques": "40c0fb3193f2",
    "conetv2": "6ce5a001499f",
    "conetv2-rank": "ca875887a49b",
    "conetv2-transfer": "288ead6eb91d",
    "conflicts-boundary": "a63ab5d2123a",
    "conflicts-lesion": "6809a585fac5",
    "conflicts-tune": "06bff582a4a0",
    "greedy": "d70e987ff7f9",
    "greedy-rank": "d8587b5ec82c",
    "mnist-1500": "3dcecbf8af08",
    "mnist-phases": "84d18d2824f7",
    "mnist-techniques": "06c7602c0cc8",
    "rivals": "454af5fa4708",
}


def short(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


@pytest.mark.parametrize("name", EXPERIMENTS_THEN)
def test_trained_rows_of_an_experiment_are_found_again(name, monkeypatch):
    monkeypatch.setattr(small_networks, "has_avx512", lambda: True)  # recipes say bf16 only where it is computed
    rows = EXPERIMENTS[name].rows("full")
    # Without the recipe: its fields may grow, and are compared as recipes, not as texts.
    plain = [{**asked(Job(row, 0, None)), "recipe": None, "row": row.name} for row in (rows[0], rows[-1])]
    assert short(plain) == EXPERIMENTS_THEN[name]


@pytest.mark.parametrize(
    ("what", "then"),
    [
        (PLAN.to_json, "1819a749a065"),
        (CANDIDATE.to_dict, "9c5205b51f8d"),
        (EVIDENCE.to_dict, "692ebcffcce9"),
        (lambda: key_of(CANDIDATE.to_dict(), "3"), "c4bdf5724e2c"),
        (lambda: digest_of_architecture(cw.read("zoo:resnet20")), "2ffeda69e3aa"),
        (lambda: sorted(Recipe().model_dump(mode="json"))[:10], "21d027aa3dbc"),
    ],
    ids=["plan", "candidate", "evidence", "trial-key", "architecture", "recipe-fields"],
)
def test_plain_forms_stay(what, then):
    assert short(what()) == then
