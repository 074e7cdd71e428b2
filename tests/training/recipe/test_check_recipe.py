"""What a recipe, its data and its network do not bear is refused before the first batch; useless fields warn."""

import pytest
import torch
from torch import nn

from convwright.errors import RecipeError
from convwright.training import Recipe
from convwright.training.preflight import prepare, resolve, setting_for
from convwright.training.recipe.check_recipe import check_alone, check_setting
from convwright.training.recipe.schedules import SCHEDULES, schedule


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": "adamww"}, r"recipe field optimizer: unknown optimizer 'adamww'. Did you mean"),
        ({"optimizer": "lambb"}, r"Did you mean .*lamb"),
        ({"optimizer": "SAM"}, r"'SAM' is a technique; write techniques: {sam: {}}"),
        ({"momentum": 0.0}, r"nesterov=True: there is no Nesterov step with momentum=0"),
        ({"optimizer": "adagrad", "schedule_options": {"cycle_momentum": True}}, r"cycle_momentum: .*no momentum"),
        ({"optimizer_options": {"damp": 0.1}}, r"'optimizer_options.damp': .*It has dampening"),
        ({"optimizer": "adamw", "optimizer_options": {"betas": 3}}, r"'adamw' refuses its options"),
    ],
)
def test_refused_alone(values, message):
    with pytest.raises(RecipeError, match=message) as error:
        check_alone(Recipe(**values))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": "adagrad"}, "momentum=0.9 has no effect: optimizer 'adagrad'"),
        ({"optimizer": "rprop", "momentum": 0.0}, "weight_decay=0.0005 has no effect: optimizer 'rprop'"),
        ({"cutout": 3, "techniques": ["cutmix"]}, "cutout with cutmix: "),
    ],
)
def test_warned_alone(values, message):
    (line,) = check_alone(Recipe(**values))
    assert line.startswith(message)
    assert check_alone(Recipe(momentum=0.0, nesterov=False)) == check_alone(Recipe(optimizer="adamw")) == ()


BAD = [
    ({"max_steps": 1}, r"schedule='onecycle': a cycle of one step"),
    ({"schedule": "cosine", "warmup": 0.95}, r"warmup=0.95: of 12 step"),
    ({"schedule": "triangular", "schedule_options": {"cycles": 7}}, r"cycles=7: 12 step\(s\) have room for 6"),
    ({"cutout": 9}, r"cutout=9"),
    ({"crop_padding": 8}, r"crop_padding=8"),
]


@pytest.mark.parametrize(("values", "message"), BAD)
def test_refused_with_data_and_network(values, message, small_data, small_recipe, make_network):
    model = make_network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    fine = setting_for(model, small_data, small_recipe)
    assert check_setting(fine) == ()
    with pytest.raises(RecipeError, match=message):
        check_setting(setting_for(model, small_data, small_recipe.updated(**values)))
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_edges_that_are_still_possible(small_data, small_recipe, make_network):
    for values in ({"batch_size": 61}, {"max_steps": 2, "warmup": 0.4}, {"cutout": 8}, {"crop_padding": 7}):
        assert check_setting(setting_for(make_network(), small_data, small_recipe.updated(**values))) == ()


def test_a_batch_larger_than_the_data_is_all_of_them(small_data, small_recipe, make_network):
    large = small_recipe.updated(batch_size=62)
    setting = setting_for(make_network(), small_data, large)
    assert (setting.steps_per_epoch, *check_setting(setting)) == (
        1,
        "batch_size=62: there are 61 training images; each step takes all of them",
    )


def test_class_counts_have_to_agree(small_data, small_recipe, make_network):
    with pytest.raises(RecipeError, match=r"3 classes and the network has 5 outputs.*build it with 3"):
        prepare(make_network(classes=5), small_data, small_recipe)
    with pytest.raises(RecipeError, match=r"no trainable parameter"):
        prepare(nn.Flatten(), small_data, small_recipe)


@pytest.mark.parametrize("techniques", [{}, {"sam": {}}, {"squeeze_excite": {"min_channels": 1}}])
def test_each_network_runs_once_before_the_first_batch(techniques, small_data, small_recipe, make_network):
    """The network given, and where techniques edited it, the edited one; its modules are copies with the same hook."""
    model, runs = make_network(), []
    model[6].register_forward_hook(lambda module, args, scores: runs.append(module))
    recipe = small_recipe.updated(techniques=techniques)
    prepared = prepare(model, small_data, recipe)
    runs_before = len(runs)
    resolve(prepared.model, small_data, recipe, torch.device("cpu"), None)
    assert runs_before == len(runs)
    assert (prepared.plan is None) == ("squeeze_excite" not in techniques)
    assert prepared.plan is not None or runs == [model[6]]
    assert runs[0] is model[6]
    assert runs[-1] is prepared.model.get_submodule("6")


@pytest.mark.parametrize("factor", [-0.1, 1.5, float("nan")])
def test_a_schedule_that_gives_no_share_is_refused(factor, small_data, small_recipe, make_network, monkeypatch):
    monkeypatch.setattr("convwright.training.recipe.schedules.SCHEDULES", dict(SCHEDULES))

    @schedule("odd")
    def odd(at):
        """Odd at its last step."""
        return factor if at.step == at.total - 1 else 1.0

    with pytest.raises(RecipeError, match=r"schedule='odd': gives .* at step 12 of 12"):
        check_setting(setting_for(make_network(), small_data, small_recipe.updated(schedule="odd")))
