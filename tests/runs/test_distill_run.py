"""Distillation in a search: the untouched network with its trained weights teaches every later trial, anywhere."""

import pytest
import torch
from safetensors.torch import load_file

from convwright.edits import Plan, Resolution, Width
from convwright.errors import RecipeError
from convwright.methods import Candidate
from convwright.runs import Evaluator, Study, evaluate, optimize
from convwright.runs.directory.files import save_weights
from convwright.runs.executors import Task
from convwright.runs.executors.worker import Setup, WorkerTask, answered
from convwright.runs.load import load_model_and_data


@pytest.fixture
def recipe(plain):
    return plain.updated(techniques={"distill": {"features": 0.1}})


@pytest.fixture
def seen(monkeypatch):
    """Recipe and teacher of each training."""
    calls, train = [], evaluate.train

    def watched(model, data, recipe, **options):
        calls.append((recipe, options["teacher"]))
        return train(model, data, recipe, **options)

    monkeypatch.setattr(evaluate, "train", watched)
    return calls


def test_trial_0_teaches_and_has_no_teacher(tiny, pictures, recipe, seen):
    how = {"epochs": 1, "tune_epochs": 1, "progress": False, "out": "run"}
    result = optimize(tiny, pictures, "macs<=60%", "uniform", recipe=recipe, **how)
    (first, none), *others = seen
    assert (dict(first.techniques), none) == ({}, None)
    taught = load_file(result.folder / "trials" / "0000" / "model.safetensors")
    assert len(others) >= 2
    for changed, teacher in others:
        assert list(changed.techniques) == ["distill"]
        assert all(torch.equal(taught[name], value) for name, value in teacher.model.state_dict().items())


def test_a_network_that_nobody_trained_teaches_nobody(tiny, pictures, recipe):
    with pytest.raises(RecipeError, match="there is no trained original here"):
        optimize(tiny, pictures, "macs<=60%", "uniform", recipe=recipe, epochs=0, progress=False)


@pytest.mark.parametrize("given", [False, True])
def test_a_worker_has_the_same_teacher(tiny, pictures, recipe, tmp_path, given, seen):
    loaded = load_model_and_data(tiny, pictures)
    empty = Plan.empty(loaded.arch)
    smaller = empty.with_edits(Width("conv1", 5), Resolution(6))
    asked = {0: Candidate(empty, None, int(not given), 3, role="base"), 1: Candidate(smaller, 0, 1, 4)}
    with Study(tmp_path / "run", {"model": tiny}) as study:
        save_weights(loaded.arch.model, initial := study.folder / "initial.safetensors")
        evaluator = Evaluator(loaded.arch, loaded.data, recipe, study, progress=False, trained=given)
        packed = Setup.of(evaluator, tiny, initial, torch.get_num_threads()).packed()
        for number, candidate in asked.items():
            here = evaluator(number, candidate, asked)
            weights = study.weights(number).read_bytes()
            for file in study.trial_folder(number).iterdir():
                file.unlink()
            errand = WorkerTask.of(Task(number, candidate, asked), study.trial_folder)
            there = answered(packed, errand).evidence(Task(number, candidate, asked))
            assert (there.score, there.status, there.message) == (here.score, "done", "")
            assert study.weights(number).read_bytes() == weights
    assert seen[-1][1].size == (8, 8)
    assert len(seen[-1][1].channels["bn1"]) == 5
    assert same_weights(seen[-1][1].model, loaded.arch.model) == given


def same_weights(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
