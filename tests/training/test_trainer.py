"""Training: exact resume, seeds, failures, and what it leaves behind."""

import copy

import pytest
import torch
from torch import nn

import convwright.training.settings as settings_module
from convwright.errors import DataError, RecipeError, RunError
from convwright.training import ImageData, Recipe, evaluate, train
from convwright.training.checkpoint import FILE, read_checkpoint
from convwright.training.progress import ProgressLine

QUIET = {"progress": False, "accelerator": "cpu"}


class KilledError(Exception):
    pass


def kill_at(epoch):
    def on_epoch(record):
        if record.epoch == epoch:
            raise KilledError

    return on_epoch


def assert_same_state(one, two):
    left, right = one.state_dict(), two.state_dict()
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def records(result):
    """Records without the clock."""
    return [(r.epoch, r.train_loss, r.train_acc, r.val_loss, r.val_acc, r.lr) for r in result.history]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "adamw", "lr": 0.01},
        {"precision": "bf16", "memory_format": "channels_last"},
        {"precision": "auto", "memory_format": "auto"},
        {"max_steps": 10, "schedule": "cosine", "grad_clip": 0.5},
    ],
    ids=["sgd", "adamw", "bf16", "measured", "clipped"],
)
@pytest.mark.parametrize("killed", [1, 2])
def test_resume_equals_uninterrupted(small_data, small_recipe, make_network, tmp_path, changes, killed):
    recipe = small_recipe.updated(**changes)
    whole = train(make_network(), small_data, recipe, **QUIET)
    with pytest.raises(KilledError):
        train(make_network(), small_data, recipe, out=tmp_path, on_epoch=kill_at(killed), **QUIET)
    torch.randn(3)  # another process has other random states, and other initial weights
    resumed = train(make_network(seed=9), small_data, recipe, out=tmp_path, resume=True, **QUIET)
    if changes.get("precision") == "auto" and whole.settings != resumed.settings:
        assert whole.settings.measured == resumed.settings.measured  # kept for the process
    assert_same_state(whole.model, resumed.model)
    assert records(whole) == records(resumed)
    assert (whole.val, whole.test) == (resumed.val, resumed.test)
    for name, state in whole.optimizer_state.items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(resumed.optimizer_state[name][key]))


def test_finished_training_resumes_to_itself(small_data, small_recipe, make_network, tmp_path):
    whole = train(make_network(), small_data, small_recipe, out=tmp_path, **QUIET)
    again = train(make_network(1), small_data, small_recipe, out=tmp_path, resume=True, **QUIET)
    assert_same_state(whole.model, again.model)
    assert again.history == whole.history
    assert again.test == whole.test


def test_seeds(small_data, small_recipe, make_network):
    def weights(seed):
        recipe = small_recipe.updated(seed=seed, epochs=1)
        return train(make_network(), small_data, recipe, **QUIET).model[0].weight

    before = torch.get_rng_state()
    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert torch.equal(before, torch.get_rng_state())


def test_it_learns_and_reports(small_data, small_recipe, make_network):
    model = make_network(dropout=0.0)
    recipe = small_recipe.updated(epochs=12, cutout=0)
    result = train(model, small_data, recipe, **QUIET)
    assert result.model is model
    assert result.test.accuracy > 0.8
    assert result.test.samples == 17
    assert len(result.history) == 12
    assert result.last.epoch == 12
    assert result.best.val_acc == max(r.val_acc for r in result.history)
    assert (result.last.val_acc, result.last.val_loss) == (result.val.accuracy, result.val.loss)
    assert evaluate(model, small_data.test).accuracy == result.test.accuracy


def test_bare_loop_gives_the_same_weights(small_data, small_recipe, make_network):
    """The trainer is nothing but this loop."""
    from convwright.training import Loader
    from convwright.training.recipe.optimizers import build_optimizer
    from convwright.training.recipe.schedules import Position

    recipe = small_recipe.updated(epochs=2)
    trained = train(make_network(), small_data, recipe, reestimate=False, **QUIET).model
    model = make_network()
    optimizer = build_optimizer(model, recipe)
    loader = Loader(small_data.train, 16, augment=recipe.augment, channels_last=False)
    criterion, step = nn.CrossEntropyLoss(label_smoothing=0.1), 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(2):
            for images, labels in loader:
                for group in optimizer.param_groups:
                    group["lr"] = recipe.lr * recipe.rates(Position(step, 2 * len(loader))).factor
                optimizer.zero_grad()
                criterion(model(images), labels).backward()
                optimizer.step()
                step += 1
    assert_same_state(model, trained)


@pytest.mark.parametrize("wrap", [lambda y: {"scores": y}, lambda y: (y,), lambda y: [None, y]])
def test_one_tensor_in_a_container(small_data, small_recipe, make_network, wrap):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = make_network()

        def forward(self, x):
            return wrap(self.inner(x))

    recipe = small_recipe.updated(epochs=1)
    plain = train(make_network(), small_data, recipe, **QUIET)
    wrapped = train(Wrapped(), small_data, recipe, **QUIET)
    assert_same_state(plain.model, wrapped.model.inner)


def test_two_tensors_are_refused(small_data, small_recipe, make_network):
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(DataError, match=r"tuple with 2 tensors"):
        train(Two(), small_data, small_recipe, **QUIET)


def test_nan_stops_and_keeps_the_checkpoint(small_data, small_recipe, make_network, tmp_path):
    recipe = small_recipe
    model = make_network()

    def poison(record):
        if record.epoch == 2:
            with torch.no_grad():
                model[6].bias[0] = float("nan")

    with pytest.raises(RecipeError, match=r"epoch 3: the loss became nan at step 9; lower lr") as e:
        train(model, small_data, recipe, out=tmp_path, on_epoch=poison, **QUIET)
    assert str(tmp_path / FILE) in str(e.value)
    assert "\n" not in str(e.value)
    kept = read_checkpoint(tmp_path)
    assert len(kept["history"]) == 2
    assert all(bool(t.isfinite().all()) for t in kept["model"].values())
    whole = train(make_network(), small_data, recipe, **QUIET)
    resumed = train(make_network(), small_data, recipe, out=tmp_path, resume=True, **QUIET)
    assert_same_state(whole.model, resumed.model)


def test_a_huge_rate_stops_too(small_data, small_recipe, make_network, tmp_path):
    recipe = small_recipe.updated(lr=1e30, warmup=0.0)
    with pytest.raises(RecipeError, match=r"broke down in epoch 1"):
        train(make_network(), small_data, recipe, out=tmp_path, **QUIET)
    assert not list(tmp_path.iterdir())


def test_spoiled_weights_are_not_saved(small_data, small_recipe, make_network, tmp_path):
    """The last step of an epoch may break the weights after its loss was fine."""
    model = make_network()
    steps = []

    def spoil(grad):
        steps.append(1)
        return grad * float("nan") if len(steps) == 8 else grad

    model[6].bias.register_hook(spoil)
    with pytest.raises(RecipeError, match=r"6\.bias is no longer finite after step 8"):
        train(model, small_data, small_recipe, out=tmp_path, **QUIET)
    assert len(read_checkpoint(tmp_path)["history"]) == 1


def test_keyboard_interrupt_leaves_the_checkpoint(small_data, small_recipe, make_network, tmp_path):
    def interrupt(record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make_network(), small_data, small_recipe, out=tmp_path, on_epoch=interrupt, **QUIET)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert read_checkpoint(tmp_path)["step"] == 4


def test_a_failed_write_keeps_the_old_checkpoint(small_data, small_recipe, make_network, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        args[1].write(b"half")
        raise OSError(28, "No space left on device")

    def break_disk(record):
        monkeypatch.setattr(torch, "save", full)

    with pytest.raises(RunError, match=r"No space left.* previous checkpoint is unchanged"):
        train(make_network(), small_data, small_recipe, out=tmp_path, on_epoch=break_disk, **QUIET)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert len(read_checkpoint(tmp_path)["history"]) == 1


def test_checkpoints_of_something_else(small_data, small_recipe, make_network, tmp_path):
    train(make_network(), small_data, small_recipe, out=tmp_path, **QUIET)
    again = {"out": tmp_path, "resume": True, **QUIET}
    with pytest.raises(RecipeError, match=r"trained with lr=0.05, not 0.2"):
        train(make_network(), small_data, small_recipe.updated(lr=0.2), **again)
    wider = make_network()
    wider[0], wider[1], wider[6] = nn.Conv2d(3, 7, 3, padding=1), nn.BatchNorm2d(7), nn.Linear(28, 3)
    with pytest.raises(RecipeError, match=r"another network \(0.weight: \(5, 3, 3, 3\)"):
        train(wider, small_data, small_recipe, **again)
    other = ImageData("others", small_data.train, small_data.val, ("a", "b", "c"))
    with pytest.raises(RecipeError, match=r"trained on pictures .* not on others"):
        train(make_network(), other, small_recipe, **again)
    with pytest.raises(RecipeError, match=r"resume needs the folder"):
        train(make_network(), small_data, small_recipe, resume=True, **QUIET)
    content = (tmp_path / FILE).read_bytes()
    for broken in (b"", b"text", content[:1000], content[:-500]):
        (tmp_path / FILE).write_bytes(broken)
        with pytest.raises(RunError, match=r"damaged"):
            train(make_network(), small_data, small_recipe, **again)
    torch.save({"format": 99}, tmp_path / FILE)
    with pytest.raises(RunError, match=r"not a checkpoint of this version"):
        train(make_network(), small_data, small_recipe, **again)


def test_a_pickle_with_code_is_not_run(small_data, small_recipe, make_network, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save(Evil(), tmp_path / FILE)
    with pytest.raises(RunError, match=r"damaged"):
        train(make_network(), small_data, small_recipe, out=tmp_path, resume=True, **QUIET)
    assert not (tmp_path / "ran").exists()


def test_a_fresh_start_forgets_an_old_checkpoint(small_data, small_recipe, make_network, tmp_path):
    train(make_network(), small_data, small_recipe, out=tmp_path, **QUIET)
    with pytest.raises(RecipeError, match=r"broke down"):
        train(make_network(), small_data, small_recipe.updated(lr=1e30), out=tmp_path, **QUIET)
    assert not (tmp_path / FILE).exists()


def test_data_that_do_not_fit(small_data, small_recipe, make_network):
    with pytest.raises(DataError, match=r"does not take its 3x8x8 images"):
        train(make_network(channels=1), small_data, small_recipe, **QUIET)
    with pytest.raises(DataError, match=r"3 classes and the network returns"):
        train(make_network(classes=2), small_data, small_recipe, **QUIET)
    with pytest.raises(DataError, match=r"unknown data"):
        train(make_network(), "nothing", small_recipe, **QUIET)
    with pytest.raises(RecipeError, match=r"accelerator"):
        train(make_network(), small_data, small_recipe, accelerator="quantum", progress=False)


def test_what_is_left_behind(small_data, small_recipe, make_network):
    model = make_network().eval()
    model[1].train()
    model[0].weight.grad = torch.full_like(model[0].weight, 1e6)  # must not enter the first step
    recipe = small_recipe.updated(memory_format="channels_last", epochs=1)
    clean = train(make_network(), small_data, recipe, **QUIET)
    result = train(model, small_data, recipe, **QUIET)
    assert_same_state(clean.model, model)
    assert [module.training for module in model] == [False, True] + [False] * 5
    assert all(p.is_contiguous() and p.grad is None for p in model.parameters())
    copy.deepcopy(model)(torch.zeros(1, 3, 8, 8))
    assert result.settings.memory_format == "channels_last"
    assert result.settings.measured == ()


def test_measuring_changes_nothing(small_data, make_network, monkeypatch):
    from convwright.training.settings import choose_settings

    monkeypatch.setattr(settings_module, "_cache", {})
    model = make_network()
    before = copy.deepcopy(model)
    images, labels = torch.randn(8, 3, 8, 8), small_data.train.labels[:8]
    device, random = torch.device("cpu"), torch.get_rng_state()
    first = choose_settings(model, (images, labels), small_data.loss, Recipe(), device)
    assert_same_state(before, model)
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(random, torch.get_rng_state())
    tried = {(m.precision, m.memory_format) for m in first.measured}
    assert tried == {("fp32", "contiguous"), ("fp32", "channels_last"), ("bf16", "channels_last")}
    assert choose_settings(model, (images, labels), small_data.loss, Recipe(), device) == first
    fixed = Recipe(precision="bf16", memory_format="contiguous")
    assert choose_settings(model, (images, labels), small_data.loss, fixed, device).measured == ()


def test_a_network_without_bf16_or_channels_last_still_trains(small_data, small_recipe, make_network):
    class Strict(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = make_network()

        def forward(self, x):
            if self.training and not x.is_contiguous():
                raise RuntimeError("view size is not compatible")
            return self.inner(x)

    recipe = small_recipe.updated(precision="auto", memory_format="auto", epochs=1)
    result = train(Strict(), small_data, recipe, **QUIET)
    assert (result.settings.precision, result.settings.memory_format) == ("fp32", "contiguous")


def test_stopping_early_and_steps(small_data, small_recipe, make_network):
    stop = train(make_network(), small_data, small_recipe, on_epoch=lambda r: r.epoch == 2, **QUIET)
    assert len(stop.history) == 2
    few = train(make_network(), small_data, small_recipe.updated(max_steps=6), **QUIET)
    assert len(few.history) == 2


def test_without_validation_or_test(small_data, small_recipe, make_network):
    bare = ImageData("bare", small_data.train, None, ("a", "b", "c"))
    result = train(make_network(), bare, small_recipe, **QUIET)
    assert result.val is None
    assert result.test is None
    assert result.last.val_acc is None
    assert result.best.train_acc == max(r.train_acc for r in result.history)
    unasked = train(make_network(), small_data, small_recipe, test=False, **QUIET)
    assert unasked.test is None
    assert "test" not in vars(small_data)  # not even read


def test_optimizer_state_is_taken_up(small_data, small_recipe, make_network):
    recipe = small_recipe.updated(epochs=1)
    first = train(make_network(), small_data, recipe, **QUIET)
    start = copy.deepcopy(first.model)
    cold = train(copy.deepcopy(start), small_data, recipe, **QUIET)
    warm = train(start, small_data, recipe, optimizer_state=first.optimizer_state, **QUIET)
    assert not torch.equal(cold.model[0].weight, warm.model[0].weight)


def test_evaluate_restores_modes_and_needs_no_parameters(small_data, make_network):
    model = make_network()
    model[5].eval()
    one = evaluate(model, small_data.val, batch_size=4)
    two = evaluate(model, small_data.val, batch_size=13, channels_last=True)
    assert one.accuracy == two.accuracy
    assert one.loss == pytest.approx(two.loss)
    assert [module.training for module in model] == [True] * 5 + [False, True]
    assert 0 < one.stderr < 0.5 or one.accuracy in (0, 1)


def test_plain_lines_off_a_terminal(small_data, small_recipe, make_network, capsys):
    train(make_network(), small_data, small_recipe, accelerator="cpu")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]


def test_bar_on_a_terminal():
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with ProgressLine(30, 0, True, console) as line:
        for step in range(1, 31):
            line.step(step)
        line.line("epoch 1/1")
    assert line.bar.tasks[0].completed == 30
    assert "epoch 1/1" in console.file.getvalue()
