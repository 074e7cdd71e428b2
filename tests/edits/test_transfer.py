"""Weights carried to other widths: as published, with the function kept, and drawn anew."""

import copy

import networks
import pytest
import torch
from edit_checks import distance
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import convwright as cw
from convwright.edits import AddBlock, Kernel, Plan, Width
from convwright.edits.equivalence import randomise
from convwright.edits.proportional import proportional_widths
from convwright.edits.reinitialize import draw_anew
from convwright.edits.transfer import (
    check_widths_only,
    convolution_weights,
    fill_convolutions,
    svd_transfer,
    widened,
    width_edits,
)
from convwright.errors import EditError


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


# ------------------------------------------------------------------ as published

A = torch.tensor([[2.0, 1, 0, 3], [1, 4, 1, 0], [0, 2, 5, 1]], dtype=torch.float64)
RANK_2 = [[1.875152, 1.985439, -0.497027, 2.029664], [1.190542, 2.496028, 1.758561, 1.480923]]
# Computed with the published code.
PUBLISHED = {
    (2, 4): RANK_2,
    (3, 2): [[1.875152, 1.985439], [1.190542, 2.496028], [-0.085207, 2.672551]],
    (2, 2): [row[:2] for row in RANK_2],
    (1, 4): [[0.295104, 1.095307, 1.236041, 0.441258]],
    (4, 4): [[2, 1, 0, 3], [1, 4, 1, 0], [0, 2, 5, 1], [0, 2, 5, 1]],
    (3, 5): [[2, 1, 0, 3, 3], [1, 4, 1, 0, 0], [0, 2, 5, 1, 1]],
    (4, 6): [[2, 1, 0, 3, 0, 3], [1, 4, 1, 0, 1, 0], [0, 2, 5, 1, 5, 1], [0, 2, 5, 1, 5, 1]],
    (2, 5): [[*row, row[3]] for row in RANK_2],
    (4, 3): [[2, 1, 0], [1, 4, 1], [0, 2, 5], [0, 2, 5]],
}


@pytest.mark.parametrize("shape", PUBLISHED)
def test_it_gives_what_the_published_code_gives(shape):
    expected = torch.tensor(PUBLISHED[shape], dtype=torch.float64)
    torch.testing.assert_close(svd_transfer(A, shape), expected, rtol=0, atol=6e-7)
    # A kernel of one position is the same matrix.
    kernel = svd_transfer(A[:, :, None, None], (*shape, 1, 1))
    torch.testing.assert_close(kernel[:, :, 0, 0], expected, rtol=0, atol=6e-7)


@pytest.mark.parametrize(("shape", "rows", "columns"), [((7, 4), (2, 0, 1, 2), ()), ((3, 9), (), (3, 0, 1, 2, 3))])
def test_growing_further_than_the_published_code_can_repeats_cyclically(shape, rows, columns):
    assert torch.equal(svd_transfer(A, shape), A[[0, 1, 2, *rows]][:, [0, 1, 2, 3, *columns]])


weights = st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]), st.integers(0, 2**31))


def made(given_weight):
    outputs, inputs, kernel, seed = given_weight
    return torch.randn(outputs, inputs, kernel, kernel, generator=torch.Generator().manual_seed(seed))


@given(weights, st.integers(1, 30), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_any_growth_factor_has_the_shape_asked_for(drawn, outputs, inputs):
    weight = made(drawn)
    before = weight.clone()
    new = svd_transfer(weight, (outputs, inputs, *weight.shape[2:]))
    assert new.shape == (outputs, inputs, *weight.shape[2:])
    assert new.dtype == weight.dtype
    assert torch.isfinite(new).all()
    assert torch.equal(weight, before)
    if outputs >= weight.shape[0] and inputs >= weight.shape[1]:  # nothing but copies of channels that were there
        assert torch.equal(new[: weight.shape[0], : weight.shape[1]], weight)
        assert all(any(torch.equal(row, old) for old in new[: weight.shape[0]]) for row in new)


@given(weights)
@settings(max_examples=30, deadline=None)
def test_equal_sizes_are_the_identity_and_twice_the_size_is_a_tile(drawn):
    weight = made(drawn)
    same = svd_transfer(weight, weight.shape)
    assert torch.equal(same, weight)
    assert same.data_ptr() != weight.data_ptr()
    outputs, inputs = weight.shape[:2]
    for times in ((2, 2), (2, 1), (1, 2), (3, 4)):
        shape = (times[0] * outputs, times[1] * inputs, *weight.shape[2:])
        assert torch.equal(svd_transfer(weight, shape), weight.repeat(*times, 1, 1))


@given(weights, st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_shrinking_crops_the_truncated_svd(drawn, outputs, inputs):
    weight = made(drawn).double()
    outputs, inputs = min(outputs, weight.shape[0]), min(inputs, weight.shape[1])
    matrix = weight.flatten(1)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    positions = weight.shape[2] ** 2
    sizes = [outputs] * (outputs < weight.shape[0]) + [inputs * positions] * (inputs < weight.shape[1])
    rank = min([*sizes, len(s)])
    expected = (u[:, :rank] @ torch.diag(s[:rank]) @ v[:rank])[:outputs, : inputs * positions]
    found = svd_transfer(weight, (outputs, inputs, *weight.shape[2:])).flatten(1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(3, 4, 1), (0, 4), (3,), ()])
def test_a_shape_that_cannot_be_is_refused(shape):
    with pytest.raises(EditError, match="only the first two axes may differ"):
        svd_transfer(A, shape)
    with pytest.raises(EditError, match="only the first two axes may differ"):
        svd_transfer(torch.ones(3, 4, 3, 3), (3, 4, 1, 3))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name(bad):
    source, target = networks.Plain(), networks.Plain()
    source.conv2.weight.data[3, 2, 1, 0] = bad
    with pytest.raises(EditError, match=r"conv2\.weight: the weight has values that are not finite"):
        fill_convolutions(source, target)


def test_only_convolutions_are_filled():
    arch = cw.read(randomise(networks.Mobile()), (3, 9, 9))
    target = arch.apply(Width("expand", 23), Width("stem", 3), verify=False).model
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    filled = fill_convolutions(arch.model, target)
    assert set(filled) == {f"{n}.weight" for n in ("stem", "expand", "depth", "down", "up", "project")}
    for name, tensor in target.state_dict().items():
        if name in filled:
            assert torch.equal(tensor, svd_transfer(arch.model.get_parameter(name), tensor.shape)), name
        else:
            assert torch.equal(tensor, before[name]), name
    assert target.depth.weight.shape == (23, 1, 3, 3)


def test_a_convolution_that_is_not_there_is_named():
    with pytest.raises(EditError, match=r"stem\.weight: the network that the weights come from has no such"):
        fill_convolutions(networks.Plain(), networks.Residual())


def test_kernels_of_own_layers_count_and_scales_do_not():
    model = networks.Scaled()
    model.kernel, model.scale = nn.Parameter(torch.ones(2, 3, 1, 1)), nn.Parameter(torch.ones(1, 7, 1, 1))
    assert set(convolution_weights(model)) == {"a.weight", "b.weight", "c.weight", "kernel"}


# ------------------------------------------------------------------ the function kept

KINDS = [networks.Plain, networks.Residual, networks.Mobile, networks.Dense, networks.Flattened]
TIED = [networks.Grouped, networks.Split, networks.Shuffled]


def read_random(kind):
    return cw.read(randomise(kind(), seed=3).float(), torch.randn(2, 3, 9, 9))


def in_widths(arch, seed, least=1.0, most=3.0):
    """The same network in random widths; its weights do not matter."""
    rng = torch.Generator().manual_seed(seed)
    ratios = {g.name: least + (most - least) * float(torch.rand((), generator=rng)) for g in arch.free_groups}
    return arch.apply(*proportional_widths(arch, ratios), verify=False, importance="first")


@pytest.mark.few(4)
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", KINDS + TIED, ids=lambda kind: kind.__name__)
def test_growing_keeps_the_function(kind, seed):
    arch = read_random(kind)
    like = in_widths(arch, seed, most=2.0 if kind in TIED else 3.0)
    before = copy.deepcopy(arch.model.state_dict())
    new = widened(arch, like, seed=seed)
    shapes = {name: t.shape for name, t in like.model.state_dict().items()}
    assert shapes == {name: t.shape for name, t in new.model.state_dict().items()}
    assert shapes != {name: t.shape for name, t in before.items()}
    assert distance(new.model.eval(), arch.model.eval(), torch.randn(4, 3, 9, 9)) < 1e-5
    assert all(torch.equal(t, before[name]) for name, t in arch.model.state_dict().items())


def test_growing_is_the_same_for_the_same_seed_only():
    arch = read_random(networks.Plain)
    like = in_widths(arch, 1)
    one, same, other = (widened(arch, like, seed=s).model.conv2.weight for s in (5, 5, 6))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("kind", [networks.Plain, networks.Residual, networks.Mobile, networks.Dense])
def test_copies_of_a_channel_are_no_twins_for_training(kind):
    """With equal shares their gradients would be equal, and stay so: the width would be of no use."""
    arch = read_random(kind)
    first = arch.free_groups[0]
    like = arch.apply(Width(first.name, 2 * first.size), verify=False)
    model = widened(arch, like, seed=1).model.train()
    model(torch.randn(8, 3, 9, 9)).square().sum().backward()
    gradient = model.get_submodule(first.name).weight.grad.flatten(1)
    for one, two in zip(gradient[0::2], gradient[1::2], strict=True):
        assert (one - two).norm() > 0.02 * (one + two).norm()


def test_shrinking_drops_the_least_important_channels():
    arch = read_random(networks.Residual)
    model, dead = arch.model, (1, 4, 9)
    with torch.no_grad():
        for channel in dead:  # what computes nothing and is read by nobody
            model.a.weight[channel], model.a.bias[channel], model.b.weight[:, channel] = 0, 0, 0
    like = arch.apply(Width("a", 8), verify=False, importance="first")
    new = widened(arch, like)
    kept = [channel for channel in range(11) if channel not in dead]
    assert torch.equal(new.model.a.weight, model.a.weight[kept])
    assert distance(new.model.eval(), model.eval(), torch.randn(4, 3, 9, 9)) < 1e-5


def test_between_two_plans_some_groups_shrink_and_others_grow():
    """From trial to trial of a search: both plans start at the run's network, not at each other."""
    arch = read_random(networks.Dense)
    earlier = arch.apply(Width("a", 9), Width("b", 5), Width("c", 13), verify=False)
    later = arch.apply(Width("a", 4), Width("b", 11), Width("c", 14), verify=False)
    assert {edit.target.partition("[")[0]: edit.size for edit in width_edits(earlier, later)} == {
        "a": 4,
        "b": 11,
        "c": 14,
    }
    new = widened(earlier, later)
    assert new.model.c.weight.shape == (14, 15, 1, 1)
    assert new.model.bn.running_mean.shape == (15,)
    assert torch.isfinite(new.model.eval()(torch.randn(2, 3, 9, 9))).all()
    assert widened(earlier, earlier) is earlier


def test_an_optimizer_follows():
    arch = read_random(networks.Plain)
    optimizer = torch.optim.SGD(arch.model.parameters(), lr=0.1, momentum=0.9)
    arch.model(torch.randn(8, 3, 9, 9)).square().sum().backward()
    optimizer.step()
    old = optimizer.state[arch.model.conv1.weight]["momentum_buffer"].clone()
    new = widened(arch, arch.apply(Width("conv1", 14), verify=False), optimizer=optimizer).model
    assert {id(p) for p in new.parameters()} == {id(p) for p in optimizer.param_groups[0]["params"]}
    assert torch.equal(optimizer.state[new.conv1.weight]["momentum_buffer"], old.repeat_interleave(2, 0))
    new(torch.randn(8, 3, 9, 9)).square().sum().backward()
    optimizer.step()


def test_other_layers_are_refused():
    with pytest.raises(EditError, match="differ in more than widths"):
        width_edits(read_random(networks.Plain), read_random(networks.Residual))


# ------------------------------------------------------------------ plans that differ in widths only


def test_plans_that_differ_in_widths_only_are_let_through():
    plan = Plan((), "zoo:x", (1, 3, 8, 8), 100, 1000)
    kernel = Kernel("conv2", 5)
    check_widths_only(plan, plan.with_edits(Width("a", 3)))
    check_widths_only(plan.with_edits(kernel, Width("a", 3)), plan.with_edits(Width("b", 3), kernel, Width("a", 5)))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ((), (Width("a", 3), Kernel("conv2", 5)), r"edit 2 of the later plan \(kernel conv2 -> 5\)"),
        ((AddBlock("layer1"),), (Width("a", 3),), r"edit 1 of the earlier plan \(add block layer1\)"),
        ((Kernel("conv2", 5),), (Width("a", 3), Kernel("conv2", 3)), r"edit 2 of the later plan \(kernel conv2 -> 3\)"),
    ],
)
def test_an_edit_that_is_no_width_is_named(before, after, message):
    plan = Plan((), "zoo:x", (1, 3, 8, 8), 100, 1000)
    with pytest.raises(EditError, match=message):
        check_widths_only(plan.with_edits(*before), plan.with_edits(*after))
    other = Plan((), "zoo:y", (1, 3, 8, 8), 100, 1000)
    with pytest.raises(EditError, match="one plan is for zoo:x, the other for zoo:y"):
        check_widths_only(plan, other)


# ------------------------------------------------------------------ drawn anew


def drawn(seed, kind=networks.Plain):
    model = randomise(kind(), seed=9).float()
    before = torch.get_rng_state()
    draw_anew(model, seed)
    assert torch.equal(torch.get_rng_state(), before)
    return model


def test_seeds_decide_the_draws_and_the_process_s_generators_do_not():
    one, same, other = drawn(1), drawn(1), drawn(2)
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, same.get_parameter(name))
        if parameter.ndim > 1:
            assert not torch.equal(parameter, other.get_parameter(name))


def test_weights_and_statistics_are_as_in_a_new_network():
    torch.manual_seed(0)
    new, again = networks.Plain(), drawn(0)
    assert torch.equal(again.bn1.running_mean, torch.zeros(7))
    assert torch.equal(again.bn1.running_var, torch.ones(7))
    assert again.bn1.num_batches_tracked == 0
    for name, parameter in new.named_parameters():
        bound = float(parameter.detach().abs().max())
        assert parameter.shape == again.get_parameter(name).shape
        assert float(again.get_parameter(name).detach().abs().max()) == pytest.approx(bound, rel=0.35)


def test_a_network_s_own_way_to_start_wins():
    class Own(networks.Plain):
        def reset_parameters(self):
            nn.init.constant_(self.fc.weight, 0.25)

    assert torch.equal(drawn(0, Own).fc.weight, torch.full((5, 11), 0.25))


def test_what_nobody_draws_is_kept_if_constant_and_else_refused():
    model = networks.Scaled()
    draw_anew(model, 0)
    assert torch.equal(model.gamma, torch.ones(7, 1, 1))
    with torch.no_grad():
        model.gamma[3] = 2.0
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(EditError, match=r"gamma cannot be drawn anew: Scaled has no reset_parameters\(\)"):
        draw_anew(model, 0)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
