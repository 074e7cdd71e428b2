"""The kernel-level optimizer: fewest parameters with which no stage sees less, predicted exactly."""

from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import convwright as cw
from convwright.cost import parse_budget
from convwright.errors import BudgetError, ConvwrightError
from convwright.methods import Menu, optimize_kernels
from convwright.methods.receptive_field.layer_operators import choices, find_places


def check(arch, found, tolerance=1.0):
    """Predicted costs and shares are those of the applied network, and no stage falls below the tolerance."""
    new = arch.apply(*found.edits, verify=False) if found.edits else arch
    assert (new.profile().macs, new.profile().params) == (found.macs[1], found.params[1])
    shares = {stage.name: stage.share for stage in cw.receptive_field(new).stages}
    before = {stage.name: stage.share for stage in cw.receptive_field(arch).stages}
    assert shares.keys() == before.keys()
    for stage in found.stages:
        assert before[stage.stage] == pytest.approx(stage.share_before, abs=1e-12)
        assert shares[stage.stage] == pytest.approx(stage.share_after, abs=1e-12)
    assert all(shares[name] >= tolerance * before[name] - 1e-9 for name in before)
    assert found.params[1] <= found.params[0]
    return new


def plain(*widths, size=3, bias=False, padding=1):
    layers = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, size, padding=padding, bias=bias), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 5))


@pytest.fixture(scope="module")
def mobilenet():
    return cw.read("zoo:mobilenet-v1")


# ------------------------------------------------------------------ what is chosen


@pytest.mark.few(1)
def test_the_published_counts_of_mobilenet(mobilenet):
    for groups, params in ((2, 1_647_434), (4, 862_538), (8, 470_090)):
        found = optimize_kernels(mobilenet, Menu(operators=("rpw",), groups=(groups,)))
        assert found.params == (3_217_226, params)
        check(mobilenet, found)


def test_the_published_placements():
    vgg = cw.read("zoo:vgg16-bn")
    found = optimize_kernels(vgg, Menu(operators=("dw_separable", "dw_rpw")))
    assert {edit.operator for edit in found.edits} <= {"dw_separable", "dw_rpw"}
    assert "features.0" not in {edit.target for edit in found.edits}
    resnet = cw.read("zoo:resnet20")
    found = optimize_kernels(resnet)
    assert {edit.target.rpartition(".")[2] for edit in found.edits} == {"conv2"}
    check(resnet, found)


def test_a_larger_menu_never_costs_more(mobilenet):
    costs = []
    for groups in ((2,), (2, 4), (2, 4, 8)):
        costs.append(optimize_kernels(mobilenet, Menu(operators=("rpw",), groups=groups)).params[1])
    assert costs == sorted(costs, reverse=True)


@pytest.mark.parametrize("tolerance", [1.0, 0.9, 0.5, 0.1])
def test_no_stage_falls_below_the_tolerance(tolerance):
    arch = cw.read(plain(3, 8, 12, 16), "3x13x13")
    check(arch, optimize_kernels(arch, Menu(placement="all"), tolerance), tolerance)


def test_layers_whose_channels_do_not_divide_choose_for_themselves():
    arch = cw.read(plain(3, 16, 7, 16, 24), "3x17x17")
    found = optimize_kernels(arch)
    chosen = {name: choice for stage in found.stages for name, choice in stage.chosen.items()}
    assert {chosen[name].groups for name in ("3", "6") if name in chosen} <= {1}  # 7 channels on one side
    assert chosen["9"].groups > 1
    check(arch, found)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.sampled_from([5, 6, 7, 8, 12, 22, 16, 24]), min_size=2, max_size=4),
    st.sampled_from([1, 3, 5]),
    st.booleans(),
    st.sampled_from(["interleaved", "blocked"]),
)
def test_predictions_hold_for_drawn_networks(widths, size, bias, order):
    arch = cw.read(plain(3, *widths, size=size, bias=bias, padding=size // 2), "3x11x11")
    menu = Menu(placement="all", order=order)
    if not any(choices(arch, place, menu) for place in find_places(arch, menu)[0]):
        with pytest.raises(ConvwrightError, match="no convolution whose operator could change"):
            optimize_kernels(arch, menu)
    else:
        check(arch, optimize_kernels(arch, menu))


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["published", "all"])
@pytest.mark.parametrize(
    "name",
    ["torchvision:mobilenet_v2", "torchvision:resnet18", "torchvision:efficientnet_b0", "timm:mobilenetv3_small_050"],
)
def test_predictions_hold_for_published_networks(name, placement):
    arch = cw.read(name, "3x64x64")
    check(arch, optimize_kernels(arch, Menu(placement=placement)))


def test_weights_are_not_read():
    one, two = cw.read("zoo:resnet20"), cw.read("zoo:resnet20")
    with torch.no_grad():
        for parameter in two.model.parameters():
            parameter.fill_(float("nan"))
    assert optimize_kernels(one) == optimize_kernels(two)


# ------------------------------------------------------------------ what stays


@pytest.mark.slow
def test_every_convolution_is_chosen_or_accounted_for():
    for name in ("torchvision:efficientnet_b0", "torchvision:squeezenet1_1", "timm:mobilenetv3_small_050"):
        arch = cw.read(name, "3x64x64")
        found = optimize_kernels(arch)
        considered = {place.layer.name for place in find_places(arch, Menu())[0]} - set(found.stays)
        convs = {layer.name for layer in arch.layers if layer.kind == "conv"}
        assert convs == considered | set(found.stays)
        assert set(found.stays) & {edit.target for edit in found.edits} == set()
        for reason in set(found.stays.values()):
            assert any(reason.rstrip(".") in line for line in found.log())


def test_gates_are_left_alone_and_projections_behind_them_are_not():
    arch = cw.read("torchvision:efficientnet_b0", "3x64x64")
    found = optimize_kernels(arch, Menu(placement="all"))
    gates = [n for n in found.stays if n.endswith(("fc1", "fc2"))]
    assert len(gates) == 32
    assert all("as in a gate" in found.stays[name] for name in gates)
    published = optimize_kernels(arch)
    assert "features.2.0.block.3.0" in {edit.target for edit in published.edits}


def test_windows_that_are_computed_densely_are_not_offered():
    # Shifts 9 and 6 in 22 channels: 22 or 11 windows of 11, every channel copied eleven or six times.
    arch = cw.read(plain(3, 22, 22), "3x9x9")
    with pytest.raises(ConvwrightError, match="no operator of the menu fits it"):
        optimize_kernels(arch, Menu(operators=("dw_rpw",), groups=(2,), overlaps=(0.25, 0.5)))


def test_no_padding_keeps_the_size():
    arch = cw.read(plain(3, 8, 8, size=3, padding=0), "3x9x9")
    check(arch, optimize_kernels(arch, Menu(placement="all"), 0.1), 0.1)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (lambda: plain(3, 8), "3x9x9", "the first convolution stays dense"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), "3x4x4", "it has none"),
        (lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.Conv1d(8, 8, 3)), "3x19", "it has none"),
    ],
)
def test_networks_in_which_nothing_could_change_are_refused(model, shape, message):
    arch = cw.read(model(), torch.zeros(1, *map(int, shape.split("x"))))
    with pytest.raises(ConvwrightError, match=message):
        optimize_kernels(arch)


@pytest.mark.slow
def test_costs_are_exact_beside_attention():
    arch = cw.read("timm:coatnet_pico_rw_224", "3x64x64", img_size=64)
    found = optimize_kernels(arch)
    new = arch.apply(*found.edits, verify=False)
    assert (new.profile().macs, new.profile().params) == (found.macs[1], found.params[1])


@pytest.mark.parametrize("tolerance", [0, -1, 1.01, float("nan"), "1"])
def test_a_tolerance_out_of_range(mobilenet, tolerance):
    with pytest.raises(ConvwrightError, match="tolerance is a number above 0 and at most 1"):
        optimize_kernels(mobilenet, tolerance=tolerance)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operators": ("rwp",)}, r"operators are some of .*rpw.*, not \['rwp'\]"),
        ({"operators": ()}, "operators are some of"),
        ({"groups": (0,)}, r"groups are whole numbers from 1 on, not \[0\]"),
        ({"groups": (2.5,)}, "groups are whole numbers"),
        ({"overlaps": (1.0,)}, "overlaps are at least 0 and less than 1"),
        ({"order": "random"}, "order is one of interleaved, blocked"),
        ({"placement": "some"}, "placement is one of published, all"),
    ],
)
def test_menus_that_make_no_sense(options, message):
    with pytest.raises(ConvwrightError, match=message):
        Menu(**options)


# ------------------------------------------------------------------ as a method


def test_a_budget_must_be_met_by_the_cheapest(mobilenet):
    profile = mobilenet.profile()
    method = cw.methods.KernelOptimizer(mobilenet, parse_budget("params<=20%").resolve(profile))
    assert [c.role for batch in method.batches for c in batch] == ["base", "baseline", "candidate"]
    assert method.decisions[0].kept == 2
    with pytest.raises(BudgetError, match="reach params 470K, not"):
        cw.methods.KernelOptimizer(mobilenet, parse_budget("params<=10%").resolve(profile))
    with pytest.raises(BudgetError, match="budgets of macs and params, not of activations"):
        cw.methods.KernelOptimizer(mobilenet, parse_budget("activations<=90%").resolve(profile))


@pytest.mark.parametrize(
    "budget",
    [
        "params<=80%",
        pytest.param("macs<=50%,params<=50%", marks=pytest.mark.breadth),
        *(pytest.param(text, marks=pytest.mark.slow) for text in ("params<=35%", "params<=23%", "macs<=60%")),
    ],
)
def test_operators_get_no_cheaper_than_the_budget_needs(mobilenet, budget):
    limits = parse_budget(budget.split(",")).resolve(mobilenet.profile())
    cheapest, found = optimize_kernels(mobilenet), optimize_kernels(mobilenet, limits=limits)
    new = check(mobilenet, found)
    assert limits.met({"macs": new.profile().macs, "params": new.profile().params})
    assert found.params[1] > cheapest.params[1]
    assert len(found.edits) <= len(cheapest.edits)
    # No layer can have its own operator back within the budget.
    for edit in found.edits:
        without = mobilenet.apply(*(other for other in found.edits if other is not edit), verify=False).profile()
        assert not limits.met({"macs": without.macs, "params": without.params})


def test_a_budget_that_only_the_cheapest_meet_takes_the_cheapest(mobilenet):
    cheapest = optimize_kernels(mobilenet)
    limits = parse_budget(f"params<={cheapest.params[1]}").resolve(mobilenet.profile())
    assert optimize_kernels(mobilenet, limits=limits).edits == cheapest.edits


def test_a_budget_that_is_met_is_refused_before_training(mobilenet):
    limits = parse_budget("macs<=100%").resolve(mobilenet.profile())
    with pytest.raises(BudgetError, match="as it is"):
        cw.methods.KernelOptimizer(mobilenet, limits)


def test_nothing_is_drawn_to_decide() -> None:
    """A method only decides: the random numbers of the caller's program stay what they were."""
    arch = cw.read("zoo:mobilenet-v1", width=0.375)  # sizes that no other test has asked for
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    cw.methods.optimize_kernels(arch)
    assert torch.equal(torch.random.get_rng_state(), before)
