"""Laws of width edits: growing keeps the function, shrinking equals the masked original, refusals change nothing."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import (
    EXACT,
    STATISTIC,
    Auxiliary,
    Flattened,
    Grouped,
    LastNorm,
    Mobile,
    Plain,
    Residual,
    Scaled,
    Shuffled,
    Split,
)
from torch import nn

from convwright.architecture import read
from convwright.edits import InexactEditWarning, Width, scale_widths, solve
from convwright.edits.remap import signature
from convwright.errors import EditError

SHAPE = (3, 11, 13)


def random_statistics(model: nn.Module, seed: int) -> nn.Module:
    """Float64, eval, and nothing at its initial value, so that no error hides behind a zero or a one."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data.uniform_(0.3, 1.0, generator=generator).mul_(
                torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
            )
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.data.abs_()
    return model


def output(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        result = model.eval()(x)
    return result["logits"] if isinstance(result, dict) else result


@pytest.mark.parametrize("network", EXACT, ids=lambda n: n.__name__)
@given(ratio=st.floats(1.01, 3.5), seed=st.integers(0, 2**31 - 1))
@settings(max_examples=5, deadline=None)
def test_growing_keeps_the_function(network: type[nn.Module], ratio: float, seed: int) -> None:
    model = random_statistics(network(), seed)
    arch = read(model, SHAPE)
    edits = scale_widths(arch, ratio)
    grown = arch.apply(*edits, verify=False)
    x = torch.randn(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = output(model, x)
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(output(grown.model, x) / scale, expected / scale, rtol=0, atol=1e-10)


@pytest.mark.parametrize("network", EXACT + STATISTIC, ids=lambda n: n.__name__)
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8, 1.5, 2.0])
def test_edited_networks_train_and_are_read_as_predicted(network: type[nn.Module], ratio: float) -> None:
    arch = read(network(), SHAPE)
    edits = scale_widths(arch, ratio)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InexactEditWarning)
        new = arch.apply(*edits)
    assert type(new.model) is network
    predicted = {signature(g): (g.units, g.step, g.frozen) for g in solve(arch, edits).after.groups}
    assert {signature(g): (g.units, g.step, g.frozen) for g in new.groups} == predicted
    optimizer = torch.optim.SGD(new.model.parameters(), lr=0.1)
    outputs = new.model.train()(torch.randn(2, *SHAPE))
    values = outputs if isinstance(outputs, tuple) else outputs.values() if isinstance(outputs, dict) else [outputs]
    sum(v.square().sum() for v in values).backward()
    assert all(p.grad is not None for p in new.model.parameters())
    optimizer.step()


def test_shrinking_equals_the_original_with_removed_channels_zeroed() -> None:
    model = random_statistics(Plain(), 5)
    arch = read(model, SHAPE)
    kept = [0, 2, 5]
    new = arch.apply(Width("conv1", 3, keep={"conv1": kept}))
    masked = copy.deepcopy(model)
    masked.conv2.register_forward_pre_hook(lambda _, args: (args[0] * keep_only(kept, 7),))
    x = torch.randn(2, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(output(new.model, x), output(masked, x), rtol=0, atol=1e-12)
    torch.testing.assert_close(new.model.bn1.running_var, model.bn1.running_var[kept])


def test_shrinking_a_residual_stream_equals_the_masked_original() -> None:
    model = random_statistics(Residual(), 7)
    arch = read(model, SHAPE)
    kept = [1, 4, 6]
    new = arch.apply(Width("stem", 3, keep={"stem": kept}))
    masked = copy.deepcopy(model)
    for layer in (masked.a, masked.c, masked.short):
        layer.register_forward_pre_hook(lambda _, args: (args[0] * keep_only(kept, 7),))
    x = torch.randn(2, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(output(new.model, x), output(masked, x), rtol=0, atol=1e-12)


def keep_only(kept: list[int], size: int) -> torch.Tensor:
    mask = torch.zeros(1, size, 1, 1, dtype=torch.float64)
    mask[:, kept] = 1
    return mask


@pytest.mark.parametrize("network", EXACT, ids=lambda n: n.__name__)
@pytest.mark.parametrize("ratio", [0.31, 0.5, 0.77, 1.3, 2.0])
def test_changes_report_exactness_and_costs(network: type[nn.Module], ratio: float) -> None:
    arch = read(network(), SHAPE)
    edits = scale_widths(arch, ratio)
    new = arch.apply(*edits)
    assert len(new.changes) == len(edits)
    assert all(c.exact and c.max_difference is not None and c.max_difference <= 1e-10 for c in new.changes)
    before, after = arch.profile(), new.profile()
    assert (new.changes[0].macs[0], new.changes[-1].macs[1]) == (before.macs, after.macs)
    assert (new.changes[0].params[0], new.changes[-1].params[1]) == (before.params, after.params)


@pytest.mark.parametrize("network", STATISTIC, ids=lambda n: n.__name__)
def test_a_statistic_across_channels_is_exact_for_whole_multiples_only(network: type[nn.Module]) -> None:
    arch = read(network(), SHAPE)
    group = arch.group("a")
    assert arch.apply(Width("a", 2 * group.size)).changes[0].exact
    with pytest.warns(InexactEditWarning, match="statistic"):
        change = arch.apply(Width("a", group.size + group.step)).changes[0]
    assert change.exact is False
    assert change.max_difference is not None
    assert change.max_difference > 1e-6
    assert "norm" in change.notes[0]


def test_shrinking_what_was_doubled_gives_back_the_function() -> None:
    model = random_statistics(Residual(), 3)
    arch = read(model, SHAPE)
    there = arch.apply(*scale_widths(arch, 2.0), verify=False)
    x = torch.randn(2, *SHAPE, dtype=torch.float64)
    firsts = {g.name: list(range(0, g.units, 2)) for g in there.free_groups}
    back = there.apply(*[Width(n, len(k), keep={n: k}) for n, k in firsts.items()], verify=False)
    assert back.profile().params == arch.profile().params
    assert output(back.model, x).shape == output(model, x).shape


def test_the_original_is_untouched() -> None:
    model = Residual().train()
    model.b.eval()
    before = copy.deepcopy(model.state_dict())
    arch = read(model, SHAPE)
    new = arch.apply(Width("a", 5))
    assert model.training
    assert not model.b.training
    assert new.model.training
    assert not new.model.b.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert arch.group("a").size == 11
    assert arch.plan.edits == ()


def test_attributes_agree_with_tensors() -> None:
    model = read(Mobile(), SHAPE).apply(Width("expand", 23), Width("stem", 7), Width("down", 2)).model
    assert (model.depth.in_channels, model.depth.out_channels, model.depth.groups) == (23, 23, 23)
    assert (model.expand.in_channels, model.expand.out_channels) == (7, 23)
    assert (model.down.in_channels, model.down.out_channels) == (23, 2)
    assert model.fc.in_features == 7
    norm = read(LastNorm(), SHAPE).apply(Width("a", 14)).model.norm
    assert norm.normalized_shape == (14,)


def test_flattened_channels_move_as_blocks() -> None:
    model = random_statistics(Flattened(), 1)
    new = read(model, SHAPE).apply(Width("conv", 2, keep={"conv": [1, 4]})).model
    expected = model.fc1.weight.detach().reshape(13, 7, 25)[:, [1, 4]].reshape(13, 50)
    torch.testing.assert_close(new.fc1.weight.detach(), expected)


def test_halves_of_a_split_stay_equal() -> None:
    new = read(Split(), SHAPE).apply(Width("a[0:7]", 4))
    assert new.changes[0].coupled == ("a[7:14]",)
    assert new.model.a.out_channels == 8
    assert read(Split(), SHAPE).apply(Width("a", 6)).model.a.out_channels == 6


@pytest.mark.parametrize("size", [4, 6, 8, 12, 14, 16, 20, 30])
def test_shuffled_channels_follow_any_even_width(size: int) -> None:
    model = random_statistics(Shuffled(), 2)
    arch = read(model, SHAPE)
    (edit,) = (e for e in scale_widths(arch, size / 10) if e.target == "d")
    new = arch.apply(edit)
    assert new.changes[0].exact
    assert new.model.a.out_channels == new.model.b.out_channels


def test_training_only_heads_follow() -> None:
    new = read(Auxiliary(), SHAPE).apply(Width("a", 4)).model
    assert new.aux.in_channels == 4
    assert new.train()(torch.randn(2, *SHAPE))[1].shape == (2, 5)


def test_repeated_parameters_keep_their_flags_and_shared_ones_stay_shared() -> None:
    model = Plain()
    model.conv1.weight.requires_grad_(False)
    model.again = model.conv1
    new = read(model, SHAPE).apply(Width("conv1", 5)).model
    assert not new.conv1.weight.requires_grad
    assert new.again is new.conv1


def test_divisor_rounds_widths() -> None:
    model = nn.Sequential(nn.Conv2d(3, 29, 3), nn.ReLU(), nn.Conv2d(29, 31, 3), nn.Flatten(), nn.LazyLinear(5))
    model(torch.zeros(1, *SHAPE))
    new = read(model, SHAPE).apply(Width("0", 13), Width("2", 21), divisor=8)
    assert (new.model[0].out_channels, new.model[2].out_channels) == (16, 24)
    assert [e.size for e in new.plan.edits] == [16, 24]


def test_scores_choose_the_channels() -> None:
    arch = read(Plain(), SHAPE)
    scores = {"conv1": [3, 9, 1, 8, 2, 7, 4]}
    new = arch.apply(Width("conv1", 3), importance=scores)
    assert torch.equal(new.model.conv1.weight, arch.model.conv1.weight[[1, 3, 5]])
    assert new.plan.edits[0].keep == {"conv1": [1, 3, 5]}
    called = arch.apply(Width("conv1", 3), importance=lambda group, _: torch.tensor(scores[group.name]))
    assert torch.equal(called.model.conv1.weight, new.model.conv1.weight)


def test_l2_keeps_the_strongest_channels() -> None:
    model = Plain()
    with torch.no_grad():
        for parameter in model.conv1.parameters():
            parameter[[0, 3, 6]] *= 100
    new = read(model, SHAPE).apply(Width("conv1", 3))
    assert torch.equal(new.model.conv1.weight, model.conv1.weight[[0, 3, 6]])


def test_optimizer_state_follows() -> None:
    model = Residual()
    first, *others = model.parameters()
    optimizer = torch.optim.AdamW([{"params": [first], "lr": 0.01}, {"params": others}])
    model(torch.randn(2, *SHAPE)).sum().backward()
    optimizer.step()
    moment = optimizer.state[model.a.weight]["exp_avg"].clone()
    new = read(model, SHAPE).apply(Width("a", 4, keep={"a": [0, 2, 3, 8]}), optimizer=optimizer).model
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in new.parameters()}
    assert torch.equal(optimizer.state[new.a.weight]["exp_avg"], moment[[0, 2, 3, 8]])
    assert model.a.weight not in optimizer.state
    new(torch.randn(2, *SHAPE)).sum().backward()
    optimizer.step()


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("network", "edit", "message"),
    [
        (Plain, Width("fc", 3), "output"),
        (Plain, Width("conv9", 3), "Did you mean"),
        (Plain, Width("conv1", 0), "whole number"),
        (Plain, Width("conv1", 2.5), "whole number"),  # type: ignore[arg-type]
        (Grouped, Width("g", 20), "multiples of 3"),
        (Plain, Width("conv1", 3, keep={"conv1": [0, 1]}), "must keep 3"),
        (Plain, Width("conv1", 3, keep={"conv1": [0, 1, 99]}), "below 7"),
        (Scaled, Width("input", 2), "input"),
    ],
)
def test_refused_edits_say_why(network: type[nn.Module], edit: Width, message: str) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(EditError, match=message):
        read(model, SHAPE).apply(edit)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Written(nn.Module):
    """A size written down in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 7, 1), nn.Conv2d(7, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        x = x.view(x.shape[0], 7, -1).view(x.shape)
        return self.b(x).mean((2, 3))


def test_a_size_written_in_forward_is_named_by_its_line() -> None:
    arch = read(Written(), SHAPE)
    with pytest.raises(EditError, match=r"test_width.py:\d+ `x = x.view\(x.shape\[0\], 7, -1\)"):
        arch.apply(Width("a", 5))


def test_modules_that_share_a_weight_both_follow() -> None:
    model = nn.Sequential(*(nn.Conv2d(i, o, 1) for i, o in [(3, 7), (7, 7), (7, 7), (7, 5)]))
    model[2].weight = model[1].weight
    new = read(model, SHAPE).apply(Width("1", 11)).model
    assert new[2].weight is new[1].weight
    assert [(m.in_channels, m.out_channels) for m in new] == [(3, 11), (11, 11), (11, 11), (11, 5)]


def test_families_of_tied_groups_are_fitted_together(monkeypatch):
    from convwright.edits import proportional

    class Families(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(3 if k == 0 else 4, 8, 1) for k in range(3))
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            for conv in self.convs:
                x, other = conv(x).chunk(2, 1)
            return self.fc((x + other.mean()).mean((2, 3)))

    arch, solved = read(Families().eval(), (3, 5, 5)), []
    solve = proportional.solve
    monkeypatch.setattr(proportional, "solve", lambda *given: solved.append(given) or solve(*given))
    edits = proportional.proportional_widths(arch, 0.5)
    assert len(edits) == 3
    assert all(edit.size == 2 for edit in edits)
    assert len(solved) == 1
