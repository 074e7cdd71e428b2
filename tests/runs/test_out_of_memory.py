"""Short memory, whatever a batch is made of: smaller parts of it are tried, and it is said."""

import every_task
import pytest
import torch

from convwright.devices import out_of_memory
from convwright.edits import Plan
from convwright.methods import Candidate
from convwright.runs import Evaluator, Study, memory
from convwright.runs.load import load_model_and_data
from convwright.training import Recipe
from convwright.training.settings import choose_settings

SHORT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


class Short(every_task.Sizes):
    """Batches are lists of images, of which so many fit."""

    fits = 2
    tried: list[int]

    def loss(self, model, batch):
        if model.training:
            self.tried.append(len(batch[0]))
            if len(batch[0]) > self.fits:
                raise SHORT
        return super().loss(model, batch)


@pytest.mark.parametrize("changes", [{}, {"lr": "auto"}])
def test_batches_that_are_lists_are_divided(changes, tmp_path):
    task, network, Short.tried = Short(), every_task.made("lists")[1], []
    loaded = load_model_and_data(network, task)
    with Study(tmp_path, {"model": "lists"}) as study:
        evaluator = Evaluator(
            loaded.arch, loaded.data, every_task.recipe(batch_size=8, **changes), study, progress=False
        )
        found = evaluator(0, Candidate(Plan.empty(loaded.arch), None, 1, 3, role="base"), {})
    if not changes:  # no rate helps this network in so few steps: but its parts were tried
        assert (found.probes[memory.PROBE], found.usable) == (4, True)
        assert "4 parts" in found.message
    assert task.tried[:3] == [6, 3, 2]
    assert set(task.tried[2:]) == {2}


def test_what_is_measured_fits(tmp_path):
    task, network, Short.tried = Short(), every_task.made("lists")[1], []
    batch = next(iter(task.batches("train")))
    chosen = choose_settings(network, batch, task.loss, Recipe(batch_size=6), torch.device("cpu"))
    assert task.tried[:2] == [6, 3]
    assert chosen.measured
    task.fits = 0
    with pytest.raises(torch.OutOfMemoryError):
        choose_settings(network, batch, task.loss, Recipe(batch_size=6), torch.device("cpu", 0))


def test_libraries_of_a_gpu_say_it_their_way():
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
