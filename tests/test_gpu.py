"""On a real GPU: what no pretended device can show. Skipped without one; `tools/gpu_check.py` runs it and more."""

import every_task
import pytest
import torch

import convwright as cw
from convwright.devices import device_of
from convwright.edits import Plan
from convwright.edits.importance import BatchLoss, saliency
from convwright.methods import Candidate
from convwright.repair import merge, refit
from convwright.runs import Evaluator, Study, memory
from convwright.runs.load import load_model_and_data
from convwright.training import evaluate, train
from convwright.training.preflight import read_with
from convwright.training.statistics import calibration, reestimate
from convwright.training.tasks.loader import loader_of

GPU = "cuda"
every = pytest.mark.parametrize("name", every_task.TASKS)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.fixture(autouse=True)
def exact():
    """Convolutions in float32 are computed in float32, not in TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def trained(name, accelerator, **changes):
    task, network = every_task.made(name)
    how = {name: changes.pop(name) for name in ("out", "resume", "on_epoch") if name in changes}
    return train(network, task, every_task.recipe(**changes), accelerator=accelerator, progress=False, **how)


@every
@pytest.mark.parametrize(("precision", "rel"), [("fp32", 1e-3), ("bf16", 0.1), ("fp16", 0.05)])
def test_losses_are_those_of_the_cpu(name, precision, rel):
    here, there = trained(name, "cpu"), trained(name, GPU, precision=precision, grad_clip=10.0)
    assert device_of(there.model).type == GPU
    assert there.history[0].train_loss == pytest.approx(here.history[0].train_loss, rel=rel)
    assert there.test.accuracy == pytest.approx(here.test.accuracy, rel=rel, abs=0.3 if name == "two inputs" else 0.15)
    assert all(bool(torch.isfinite(value).all()) for value in there.model.state_dict().values())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_resuming_goes_on_with_the_same_losses(precision, tmp_path):
    """With a scale so large at first that steps are left out."""
    changes = {"epochs": 4, "precision": precision, "techniques": {"sam": {}, "swa": {"start": 0.5}}, "accumulate": 2}
    whole = trained("two inputs", GPU, **changes)
    trained("two inputs", GPU, **changes, out=tmp_path, on_epoch=lambda record: record.epoch == 2)
    again = trained("two inputs", GPU, **changes, out=tmp_path, resume=True)
    losses = [[record.train_loss for record in result.history] for result in (whole, again)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@every
def test_saliency_and_repair_are_those_of_the_cpu(name):
    scores, judged = [], []
    for device in ("cpu", GPU):
        task, network = every_task.made(name)
        network = network.to(device).eval()
        arch = cw.read(network, read_with(task, network))
        batches = list(loader_of(task.train, 4, shuffle=False, device=device))
        scores.append(saliency(arch, batches, BatchLoss(task.loss)))
        cut = arch.apply(cw.Width(arch.free_groups[0].name, 5), verify=False)
        images = calibration(task.train, 8, device_of(network), 4)
        merge(arch, cut, images)
        refit(arch, cut, images)
        reestimate(cut.model, task.train, count=8)
        judged.append(evaluate(cut.model, task.val).loss)
    for group, values in scores[0].items():
        assert scores[1][group].tolist() == pytest.approx(values.tolist(), rel=0.02, abs=1e-9), group
    if judged[0] is not None:
        assert judged[1] == pytest.approx(judged[0], rel=0.02)


@pytest.mark.parametrize("name", ["classification", "inputs by name"])
@pytest.mark.parametrize("precision", ["auto", "fp16"])
def test_compressing(name, precision, tmp_path):
    task, network = every_task.made(name)
    recipe = every_task.recipe(precision=precision, techniques={"distill": {}})
    result = cw.compress(network, task, "macs<=70%", recipe=recipe, progress=False, out=tmp_path)
    assert result.model is not None


class Hungry(every_task.Sizes):
    """Asks for a petabyte where a batch has more than two images."""

    def loss(self, model, batch):
        if model.training and len(batch[0]) > 2:
            torch.empty(2**50, dtype=torch.uint8, device=batch[1].device)
        return super().loss(model, batch)


def test_short_memory_makes_the_parts_smaller(tmp_path):
    loaded = load_model_and_data(every_task.made("lists")[1], Hungry())
    with Study(tmp_path, {"model": "lists"}) as study:
        evaluator = Evaluator(loaded.arch, loaded.data, every_task.recipe(batch_size=8), study, progress=False)
        found = evaluator(0, Candidate(Plan.empty(loaded.arch), None, 1, 3, role="base"), {})
    assert (found.usable, found.probes[memory.PROBE]) == (True, 4)


def test_two_gpus_train_as_one(tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    one, two = (
        train(network, task, every_task.recipe(), accelerator=GPU, progress=False, devices=devices)
        for devices in (1, 2)
        for task, network in [every_task.made("inputs by name")]
    )
    assert two.history[0].train_loss == pytest.approx(one.history[0].train_loss, rel=1e-3)
