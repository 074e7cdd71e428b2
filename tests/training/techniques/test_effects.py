"""What techniques do during a training: each against its definition, and resumed against uninterrupted."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from convwright.errors import RecipeError, RecipeWarning
from convwright.techniques import frozen_statistics
from convwright.training import Recipe, train
from convwright.training.techniques.averaging import reestimate_batch_norm, swa_rate
from convwright.training.techniques.flip_test import Flipped
from convwright.training.techniques.lookahead import lookahead
from convwright.training.techniques.mixing import cutmix, mixup
from convwright.training.techniques.recipe_fields import smoothed
from convwright.training.techniques.sam import sam_gradients

QUIET = {"progress": False, "accelerator": "cpu"}


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


# ------------------------------------------------------------------ resume


class KilledError(Exception):
    pass


def killed_after(epoch):
    def on_epoch(record):
        if record.epoch == epoch:
            raise KilledError

    return on_epoch


COMBINATIONS = {
    "mixup": {"mixup": {"alpha": 0.4}},
    "cutmix, half of the batches": {"cutmix": {"probability": 0.5}},
    "both, the first half": {"mixup": {"until": 0.5}, "cutmix": {"until": 0.4}},
    "sam": {"sam": {"rho": 0.1}},
    "sam now and then, adaptive": {"sam": {"rho": 0.5, "adaptive": True, "interval": 3}},
    "ema": {"ema": {"decay": 0.8}},
    "ema late": {"ema": {"decay": 0.8, "start": 0.5, "interval": 2}},
    "swa": {"swa": {"start": 0.3, "lr": 0.5}},
    "lookahead": {"lookahead": {"k": 5}},
    "distill": {"distill": {"features": 0.5}, "freeze_batch_norm": {}},
    "distill of mixed images, with sam and ema": {
        "distill": {"labels": False},
        "mixup": {},
        "sam": {},
        "ema": {"decay": 0.8},
    },
    "many": {"mixup": {}, "sam": {}, "swa": {"start": 0.5}, "lookahead": {"k": 2}},
}


@pytest.mark.parametrize("techniques", COMBINATIONS.values(), ids=COMBINATIONS)
@pytest.mark.parametrize(("precision", "accumulate"), [("fp32", 1), ("bf16", 2)])
def test_resume_equals_uninterrupted(
    small_data, small_recipe, make_network, tmp_path, techniques, precision, accumulate
):
    recipe = small_recipe.updated(techniques=techniques, precision=precision, accumulate=accumulate, cutout=0)
    quiet = QUIET | ({"teacher": make_network(seed=5)} if "distill" in techniques else {})
    whole = train(make_network(), small_data, recipe, **quiet)
    with pytest.raises(KilledError):
        train(make_network(), small_data, recipe, out=tmp_path, on_epoch=killed_after(2), **quiet)
    torch.randn(3)
    resumed = train(make_network(seed=9), small_data, recipe, out=tmp_path, resume=True, **quiet)
    assert_same(state(whole.model), state(resumed.model))
    assert (whole.val, whole.test) == (resumed.val, resumed.test)
    # Finished trainings, too: the checkpoint holds the weights in training, the result the averaged ones.
    again = train(make_network(seed=8), small_data, recipe, out=tmp_path, resume=True, **quiet)
    assert_same(state(whole.model), state(again.model))


def test_techniques_leave_nothing_on_the_network(small_data, small_recipe, make_network):
    model = make_network()
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    techniques = {"sam": {}, "ema": {"decay": 0.5}, "lookahead": {}, "mixup": {}, "distill": {"features": 1.0}}
    train(model, small_data, small_recipe.updated(techniques=techniques), teacher=make_network(seed=5), **QUIET)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert model[1].momentum == 0.1


# ------------------------------------------------------------------ SAM


def loss_of(model, images, labels):
    return F.cross_entropy(model(images), labels)


@pytest.mark.parametrize("rho", [0.01, 0.3])
def test_sam_takes_the_gradient_at_the_worst_weights(make_network, rho):
    torch.manual_seed(3)
    images, labels = torch.randn(11, 3, 8, 8), torch.randint(3, (11,))
    model = make_network(dropout=0.0).double().train()
    images = images.double()
    twin = copy.deepcopy(model)

    loss_of(twin, images, labels).backward()
    norm = torch.sqrt(sum(p.grad.square().sum() for p in twin.parameters()))
    moved = copy.deepcopy(twin)
    with torch.no_grad():
        for there, here in zip(moved.parameters(), twin.parameters(), strict=True):
            there += rho * here.grad / norm
    moved.zero_grad()
    loss_of(moved, images, labels).backward()

    before = state(model)
    loss_of(model, images, labels).backward()
    first = state(model)  # the first pass moves the running statistics, the second must not
    sam_gradients(model, lambda: loss_of(model, images, labels).backward(), rho)
    assert_same(state(model), first)
    assert any(not torch.equal(first[name], before[name]) for name in first)
    for found, wanted in zip(model.parameters(), moved.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-5, atol=1e-9)


def test_sam_puts_the_weights_back_after_an_error(make_network):
    model = make_network().train()
    loss_of(model, torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1])).backward()
    before = state(model)
    with pytest.raises(ZeroDivisionError):
        sam_gradients(model, lambda: 1 / 0, 0.2)
    assert_same(state(model), before)
    assert model[1].momentum == 0.1


@pytest.mark.parametrize("momentum", [0.1, None])
def test_frozen_statistics_normalise_by_the_batch(momentum):
    norm = nn.BatchNorm2d(5, momentum=momentum).train()
    images = torch.randn(7, 5, 3, 3) * 3 + 2
    norm(images)
    before = state(norm)
    with frozen_statistics(norm):
        out = norm(images * 2)
    assert_same(state(norm), before)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(5), atol=1e-5, rtol=0)


def test_sam_changes_the_first_step_already(small_data, small_recipe, make_network):
    """Also with an interval longer than the training."""
    one_step = small_recipe.updated(max_steps=1, epochs=1, schedule="constant", warmup=0)
    plain = train(make_network(), small_data, one_step, **QUIET)
    sam = train(make_network(), small_data, one_step.updated(techniques={"sam": {"interval": 100}}), **QUIET)
    assert not torch.equal(plain.model[0].weight, sam.model[0].weight)


# ------------------------------------------------------------------ averages


def weights_after_each_step(data, recipe, make_network):
    """The weights that a plain training passes through, found by stopping it after 1, 2, ... steps."""
    seen = []
    for steps in range(1, recipe.max_steps + 1):
        stopped = recipe.updated(max_steps=steps, schedule="constant", warmup=0)
        seen.append(state(train(make_network(dropout=0.0), data, stopped, **QUIET).model))
    return seen


def test_ema_equals_its_recursion(small_data, small_recipe, make_network):
    recipe = small_recipe.updated(max_steps=6, schedule="constant", warmup=0)
    passed = weights_after_each_step(small_data, recipe, make_network)
    averaged = {name: value.clone() for name, value in passed[0].items()}
    for later in passed[1:]:
        averaged = {name: 0.6 * averaged[name] + 0.4 * later[name] for name in averaged}
    ema = recipe.updated(techniques={"ema": {"decay": 0.6}})
    found = train(make_network(dropout=0.0), small_data, ema, **QUIET).model
    for name, parameter in found.named_parameters():
        torch.testing.assert_close(parameter, averaged[name], rtol=1e-5, atol=1e-7)


def test_swa_is_the_mean_of_the_last_epochs(small_data, small_recipe, make_network):
    """4 batches of 16 make an epoch; averaging begins after half of 4 epochs."""
    recipe = small_recipe.updated(epochs=4, max_steps=16, schedule="constant", warmup=0)
    passed = weights_after_each_step(small_data, recipe, make_network)
    swa = recipe.updated(techniques={"swa": {"start": 0.5}})
    found = train(make_network(dropout=0.0), small_data, swa, **QUIET).model
    for name, parameter in found.named_parameters():
        torch.testing.assert_close(parameter, (passed[11][name] + passed[15][name]) / 2, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("technique", [{"swa": {"start": 0.3}}, {"ema": {"decay": 0.8}}])
def test_the_averaged_weights_are_judged_with_their_own_statistics(small_data, small_recipe, make_network, technique):
    from convwright.training import evaluate

    result = train(make_network(), small_data, small_recipe.updated(techniques=technique), **QUIET)
    assert result.val == evaluate(result.model, small_data.val)
    assert result.test == evaluate(result.model, small_data.test)
    # The running statistics are those of the averaged weights: a fresh estimate agrees up to the augmentation drawn.
    images = (small_data.train.images / 255 - 0.4) / 0.3
    fresh = copy.deepcopy(result.model)
    reestimate_batch_norm(fresh, [images])
    torch.testing.assert_close(fresh[1].running_var, result.model[1].running_var, rtol=0.5, atol=0.05)


def test_reestimated_statistics_are_means_over_the_batches(make_network):
    model = make_network(dropout=0.0).train()
    batches = [torch.randn(7, 3, 8, 8) * (k + 1) + k for k in range(3)]
    reestimate_batch_norm(model, iter(batches), forward=lambda x: model(x))
    with torch.no_grad():
        outputs = [model[0](batch) for batch in batches]
    mean = torch.stack([out.mean((0, 2, 3)) for out in outputs]).mean(0)
    variance = torch.stack([out.var((0, 2, 3)) for out in outputs]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model[1].running_var, variance, rtol=1e-5, atol=1e-5)
    assert model.training
    assert model[1].momentum == 0.1


def test_swa_holds_its_rate(small_data, small_recipe, make_network):
    recipe = small_recipe.updated(epochs=4, schedule="cosine", warmup=0)
    plain = train(make_network(), small_data, recipe, **QUIET)
    held = train(make_network(), small_data, recipe.updated(techniques={"swa": {"start": 0.5}}), **QUIET)
    lrs = [record.lr for record in held.history]
    assert lrs[:2] == [record.lr for record in plain.history[:2]]
    begin = recipe.lr * 0.5 * (1 + math.cos(math.pi * 0.5))
    assert lrs[2:] == pytest.approx([begin, begin])


def test_swa_rate_goes_from_the_present_to_its_own():
    assert swa_rate(0.3, 0.5, 0.2, -1) == 0.3
    assert swa_rate(0.3, 0.5, 0.2, 0) == pytest.approx(0.5)
    assert swa_rate(0.3, 0.5, 0.2, 0.5) == pytest.approx(0.35)
    assert swa_rate(0.3, 0.5, 0.2, 7) == pytest.approx(0.2)


def test_lookahead_equals_its_recursion():
    slow, fast = [torch.tensor([1.0, 2.0])], [torch.tensor([3.0, -2.0])]
    lookahead(fast, slow, 0.25)
    assert slow[0].tolist() == [1.5, 1.0]
    assert fast[0].tolist() == [1.5, 1.0]


def test_lookahead_hands_back_the_slow_weights(small_data, small_recipe, make_network):
    """The training has 3 steps, k is 2: the last step is not in the slow weights."""
    recipe = small_recipe.updated(max_steps=3, schedule="constant", warmup=0)
    passed = weights_after_each_step(small_data, recipe, make_network)
    initial = state(make_network(dropout=0.0))
    found = train(make_network(dropout=0.0), small_data, recipe.updated(techniques={"lookahead": {"k": 2}}), **QUIET)
    for name, parameter in found.model.named_parameters():
        torch.testing.assert_close(parameter, (initial[name] + passed[1][name]) / 2, rtol=1e-5, atol=1e-7)


# ------------------------------------------------------------------ mixing


@given(
    st.integers(2, 13),
    st.integers(2, 7),
    st.floats(0.05, 8),
    st.sampled_from([mixup, cutmix]),
    st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_mixing_is_a_blend_of_two_images_and_their_targets(count, classes, alpha, mix, seed):
    torch.manual_seed(seed)
    images = torch.randn(count, 3, 11, 7).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(classes, (count,))
    mixed, targets = mix(images, labels, classes, alpha)
    assert mixed.shape == images.shape
    torch.testing.assert_close(targets.sum(1), torch.ones(count))
    partner, hard = images.roll(1, 0), F.one_hot(labels, classes).float()
    share = None
    for index in range(count):
        if labels[index] != labels[index - 1]:
            share = float(targets[index, labels[index]])
    if share is None:
        return
    torch.testing.assert_close(targets, share * hard + (1 - share) * hard.roll(1, 0), atol=1e-6, rtol=0)
    if mix is mixup:
        torch.testing.assert_close(mixed, share * images + (1 - share) * partner, atol=1e-5, rtol=1e-4)
    else:
        own, other = (mixed == images).all(1), (mixed == partner).all(1)
        assert bool((own | other).all())
        assert float(own.double().mean()) == pytest.approx(share, abs=1e-5)


def test_mixing_stops_when_it_should(small_data, small_recipe, make_network):
    """With `until` so small that no step is blended, nothing changes."""
    plain = train(make_network(), small_data, small_recipe, **QUIET)
    never = train(make_network(), small_data, small_recipe.updated(techniques={"mixup": {"until": 1e-6}}), **QUIET)
    always = train(make_network(), small_data, small_recipe.updated(techniques={"mixup": {}}), **QUIET)
    assert_same(state(plain.model), state(never.model))
    assert not torch.equal(plain.model[0].weight, always.model[0].weight)


@pytest.mark.parametrize("amount", [0.0, 0.1, 0.5])
def test_smoothed_targets_give_torch_s_loss(amount):
    torch.manual_seed(0)
    scores, labels = torch.randn(13, 5), torch.randint(5, (13,))
    wanted = F.cross_entropy(scores, labels, label_smoothing=amount)
    torch.testing.assert_close(F.cross_entropy(scores, smoothed(labels, 5, amount)), wanted)


# ------------------------------------------------------------------ test-time flip


def test_flip_averages_probabilities(make_network):
    model = make_network().eval()
    images = torch.randn(7, 3, 8, 8)
    mean = (model(images).softmax(1) + model(images.flip(-1)).softmax(1)) / 2
    torch.testing.assert_close(Flipped(model)(images).exp(), mean)


def test_flip_is_reported_beside_the_plain_result(small_data, small_recipe, make_network):
    plain = train(make_network(), small_data, small_recipe, **QUIET)
    both = train(make_network(), small_data, small_recipe.updated(techniques={"test_flip": {}}), **QUIET)
    assert both.test == plain.test
    assert plain.test_flip is None
    assert both.test_flip is not None
    assert both.test_flip.loss != both.test.loss


# ------------------------------------------------------------------ parts of a batch


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulated_gradients_are_those_of_the_batch(small_data, small_recipe, parts):
    def network():
        torch.manual_seed(5)
        return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(180, 3))

    whole = train(network(), small_data, small_recipe, **QUIET)
    divided = train(network(), small_data, small_recipe.updated(accumulate=parts), **QUIET)
    for one, two in zip(whole.model.parameters(), divided.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decay", [0.99, 0.999])
def test_an_average_that_reaches_back_to_the_first_weights_is_warned_of(small_data, small_recipe, make_network, decay):
    recipe = small_recipe.updated(techniques={"ema": {"decay": decay}})
    with pytest.warns(RecipeWarning, match=r"techniques\.ema\.decay"):
        result = train(make_network(), small_data, recipe, **QUIET)
    assert len(result.warnings) == 1


# ------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("techniques", "said"),
    [
        ({"mixup": {"alpha": 0}}, "techniques.mixup.alpha=0"),
        ({"mixup": {"alfa": 0.2}}, "techniques.mixup.alfa"),
        ({"mixpu": {}}, "Did you mean mixup"),
        ({"sam": {"rho": -0.1}}, "techniques.sam.rho=-0.1"),
        ({"ema": {"decay": 1.0}}, "techniques.ema.decay=1.0"),
        ({"swa": {"start": 1.0}}, "techniques.swa.start=1.0"),
        ({"swa": {}, "ema": {}}, "swa with ema"),
        ({"lookahead": {"k": 0}}, "techniques.lookahead.k=0"),
        ({"label_smoothing": {}}, "label_smoothing: 0.1"),
        (3, "techniques"),
    ],
)
def test_bad_techniques_are_refused_by_path(techniques, said):
    with pytest.raises(RecipeError) as error:
        Recipe(techniques=techniques)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"techniques": {"swa": {"start": 0.9}}}, "techniques.swa.start"),
        ({"techniques": {"ema": {"interval": 1000}}}, "techniques.ema"),
        ({"techniques": {"mixup": {}}, "batch_size": 1}, "batch_size=1"),
    ],
)
def test_techniques_that_cannot_work_here_are_refused_before_the_first_batch(
    small_data, small_recipe, make_network, changes, said
):
    model = make_network()
    before = state(model)
    with pytest.raises(RecipeError, match=said):
        train(model, small_data, small_recipe.updated(**changes), **QUIET)
    assert_same(state(model), before)


def test_lists_of_names_and_switches():
    assert Recipe(techniques=["mixup", "sam"]) == Recipe(techniques={"mixup": None, "sam": True})
    assert Recipe(techniques={"mixup": False, "sam": {}}).techniques.keys() == {"sam"}
    recipe = Recipe(techniques={"sam": {"rho": 0.1}})
    assert Recipe(**recipe.model_dump()) == recipe
