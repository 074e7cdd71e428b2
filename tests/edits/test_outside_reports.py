"""Faults that people outside reported, each with the network that showed it."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from edit_checks import apply_quietly, refused
from torch import Tensor, nn
from torch.nn import functional as F

from convwright import read
from convwright.diagnose.doctor import diagnose
from convwright.edits import Width, apply, check_execution, scale_widths
from convwright.errors import EditError


class Shuffled(nn.Module):
    """A grouped convolution, a shuffle, a grouped convolution."""

    def __init__(self, width: int, groups: int, literal: bool = False) -> None:
        super().__init__()
        self.a, self.o = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 2, 1)
        self.b = nn.Conv2d(width, width, 3, padding=1, groups=groups)
        self.c = nn.Conv2d(width, width, 3, padding=1, groups=groups)
        self.groups, self.literal = groups, literal

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x)).relu()
        n, c, h, w = y.shape
        per_group = c // self.groups if self.literal else -1
        return self.o(self.c(y.view(n, self.groups, per_group, h, w).transpose(1, 2).reshape(n, c, h, w)))


class ShuffledOnce(Shuffled):
    """Only what reads the shuffled channels is grouped."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        n, _, h, w = y.shape
        return self.o(self.c(y.view(n, self.groups, -1, h, w).transpose(1, 2).flatten(1, 2)))


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize(("width", "groups"), [(4, 2), (4, 4), (6, 2), (8, 2), (8, 4), (12, 4)])
def test_growth_through_a_shuffle_is_exact_or_refused(width: int, groups: int, times: int, literal: bool) -> None:
    arch = read(Shuffled(width, groups, literal), torch.zeros(2, 3, 8, 8))
    if (width, groups) in ((4, 2), (8, 2)):
        assert apply_quietly(arch, Width("b", times * width)).changes[0].exact
    else:
        refused(arch, Width("b", times * width), match="groups of a grouped operator|do not fit together")


@pytest.mark.parametrize(
    ("width", "groups", "size"), [(4, 2, 6), (4, 2, 2), (6, 2, 12), (8, 4, 12), (8, 2, 10), (12, 2, 18), (12, 2, 6)]
)
def test_channels_behind_a_shuffle_stay_in_their_groups(width: int, groups: int, size: int) -> None:
    arch = read(ShuffledOnce(width, groups), torch.zeros(2, 3, 8, 8))
    assert apply_quietly(arch, Width("a", size)).changes[0].exact


# ------------------------------------------------------------------ a width that is written in the code


class Written(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.m = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8)
        self.b, self.o = nn.Conv2d(8, 10, 1), nn.Conv2d(10, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        t = y.flatten(2).transpose(1, 2)
        t = t + self.m(t)
        return self.o(self.b(t.transpose(1, 2).reshape(-1, 8, 6, 6)).relu())


def test_code_fixes_a_width_for_doctor_and_apply_alike() -> None:
    arch = read(Written(), torch.zeros(2, 3, 6, 6))
    found = diagnose(arch)
    assert [group.name for group in found.free] == ["b"]
    assert any(o.names == ("a",) and "test_outside_reports.py" in o.reason for o in found.frozen)
    refused(arch, Width("a", 5), match="does not run with these widths")


def test_what_code_fixes_is_left_out_of_all_groups_and_named() -> None:
    arch = read(Written(), torch.zeros(2, 3, 6, 6))
    with pytest.warns(UserWarning, match=r"left as they are.*: a \(.*reshape"):
        edits = scale_widths(arch, 0.5)
    assert [edit.target for edit in edits] == ["b"]
    assert arch.apply(*edits).changes[0].exact


# ------------------------------------------------------------------ what a network's own code allows


class Float(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.a(x).float())


class Sampled(Float):
    def forward(self, x: Tensor) -> Tensor:
        turn = torch.tensor([[[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]]).expand(len(x), 2, 3)
        y = self.a(x)
        grid = F.affine_grid(turn, list(y.shape), align_corners=False)
        return self.o(F.grid_sample(y, grid, align_corners=False))


class Expected(Float):
    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.a(x)).mean((2, 3)).softmax(1) @ torch.linspace(0, 1, 4)


@pytest.mark.parametrize("network", [Float, Sampled, Expected])
@pytest.mark.parametrize("size", [4, 16])
def test_what_runs_in_float32_only_is_measured_there_and_says_so(network: type[Float], size: int) -> None:
    arch = read(network(), torch.zeros(2, 3, 8, 8))
    (change,) = arch.apply(Width("a", size)).changes
    assert change.exact
    assert change.notes[0].startswith("measured in float32: the network does not run in float64, at ")


class Overwriting(Float):
    """Has no backward pass: the sigmoid's output is needed and overwritten."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).sigmoid()
        y[:, :, 0] = 0
        return self.o(y)


def test_a_network_without_backward_pass_is_measured_forwards_and_says_so() -> None:
    arch = read(Overwriting(), torch.zeros(2, 3, 8, 8))
    (change,) = arch.apply(Width("a", 4)).changes
    assert change.exact
    assert change.notes[0].startswith("only the forward pass was run: the original has no backward pass")


class Hidden(nn.Module):
    """Few ReLUs, all zero by chance, hid that the group norm's statistic changes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8)
        self.head = nn.Sequential(nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.a(x)).relu().mean((2, 3)))


def test_dead_units_do_not_hide_a_difference() -> None:
    arch = read(Hidden(), torch.zeros(1, 3, 6, 6))
    for size in range(1, 8):
        (change,) = apply_quietly(arch, Width("a", size)).changes
        assert not change.exact
        assert change.notes


# ------------------------------------------------------------------ tensors that modules keep


class Caching(nn.Module):
    """Keeps plain tensors, as YOLO's head does: strides from the start, a grid from the first forward pass on."""

    def __init__(self) -> None:
        super().__init__()
        self.c = 4
        self.a, self.b, self.o = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 2, 1)
        self.stride, self.shape, self.kept = torch.tensor([2.0, 4.0]), None, {}

    def forward(self, x: Tensor) -> Tensor:
        if x.shape != self.shape:
            self.shape = x.shape
            self.grid = torch.stack([x.new_full(x.shape[2:], s) for s in self.stride]).sum(0)
            self.kept["rows"] = [torch.arange(x.shape[2]).float()[:, None]]
        a, b = self.a(x).split((self.c, self.c), 1)
        return self.o(torch.cat([a, self.b(b)], 1)) * self.grid + self.kept["rows"][0]


@pytest.mark.parametrize("passes", [0, 1])
@pytest.mark.parametrize("verify", [False, True])
def test_plain_tensors_do_not_stop_the_rehearsal(passes: int, verify: bool) -> None:
    model, x = Caching().eval(), torch.randn(1, 3, 8, 8)
    for _ in range(passes):
        model(x)
    before = dict(vars(model))
    arch = read(model, x)
    assert vars(model) == before
    assert check_execution(arch).rehearsed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new = arch.apply(*scale_widths(arch, 0.5), verify=verify)
    assert new.model.c == 2
    assert new.model(x).shape == model(x).shape


class ReadsValues(nn.Module):
    """Looks at values, which tensors without data do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.o(y * float(y.abs().max() >= 0))


@pytest.mark.parametrize("verify", [False, True])
def test_code_that_reads_values_can_be_edited(verify: bool) -> None:
    arch = read(ReadsValues(), torch.zeros(1, 3, 8, 8))
    assert arch.apply(Width("a", 4), verify=verify).model.o.weight.shape == (2, 4, 1, 1)
    assert check_execution(arch).architecture.free_groups
    assert diagnose(arch).free


def test_a_plan_is_refused_with_the_reason_too() -> None:
    arch = read(Written(), torch.zeros(2, 3, 6, 6))
    plan: Any = arch.plan.with_edits(Width("a", 5))
    with pytest.raises(EditError, match=r"edit 1 .*does not run with these widths"):
        apply(plan, Written(), torch.zeros(2, 3, 6, 6), verify=False)


# ------------------------------------------------------------------ no inexact change without a reason


class Deep(nn.Module):
    """Rounding grows from layer to layer, far beyond 1e-10."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sin(self.b(self.a(x)))
        for _ in range(40):
            y = torch.sin(4 * y)
        return y


def test_rounding_that_grows_is_named_as_the_reason() -> None:
    arch = read(Deep(), torch.zeros(1, 3, 6, 6))
    (change,) = apply_quietly(arch, Width("a", 20)).changes
    assert not change.exact
    assert change.notes == ("rounding grows this far in this network under random weights",)


def test_what_differs_without_a_known_reason_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convwright.edits.width.compensate", lambda model, changed, plan: changed.o.bias.data.add_(1))
    arch = read(Float(), torch.zeros(1, 3, 6, 6))
    refused(arch, Width("a", 16), match="convwright does not know why")
