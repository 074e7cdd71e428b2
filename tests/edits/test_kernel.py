"""Kernel: zeros around it or its centre, by hand and against oracles; what has no such kernel is refused."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from edit_checks import apply_quietly, attempt, check_attributes, check_edited, check_plan, distance, outputs, refused
from random_networks import StandardisedConv, randomised
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from convwright.architecture import Architecture, read
from convwright.edits import Kernel, Plan, Width, apply
from convwright.errors import EditError


def conv_net(conv: nn.Module, inner: int = 5, outer: int = 7) -> nn.Module:
    """Put a convolution between two others."""
    dims = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
    dimension = next((d for kind, d in dims.items() if isinstance(conv, kind)), 2)
    kind = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dimension - 1]
    pool = [nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d][dimension - 1]
    return nn.Sequential(kind(3, inner, 1), nn.ReLU(), conv, nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(outer, 2))


SIZES = {1: (17,), 2: (11, 13), 3: (6, 7, 5)}
CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(5, 7, 3, padding=1),
    "no padding": lambda: nn.Conv2d(5, 7, 5),
    "strided": lambda: nn.Conv2d(5, 7, 3, 2, 1),
    "dilated": lambda: nn.Conv2d(5, 7, 3, padding=2, dilation=2),
    "same": lambda: nn.Conv2d(5, 7, 3, padding="same"),
    "valid": lambda: nn.Conv2d(5, 7, 3, padding="valid"),
    "even": lambda: nn.Conv2d(5, 7, 4, 2, 1),
    "oblong": lambda: nn.Conv2d(5, 7, (3, 5), padding=(1, 2)),
    "depthwise": lambda: nn.Conv2d(5, 5, 3, padding=1, groups=5),
    "line": lambda: nn.Conv1d(5, 7, 3, padding=1),
    "volume": lambda: nn.Conv3d(5, 7, 3, padding=1),
    "weight_norm": lambda: parametrizations.weight_norm(nn.Conv2d(5, 7, 3, padding=1)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Conv2d(5, 7, 3, padding=1)),
    "standardised": lambda: StandardisedConv(5, 7, 3, padding=1),
    "bare": lambda: nn.Conv2d(5, 7, 3, padding=1, bias=False),
}


def sizes_after(name: str, step: int) -> tuple[int, ...]:
    conv = CONVOLUTIONS[name]()
    return tuple(k + step for k in conv.kernel_size)


@functools.cache
def reading(name: str, seed: int = 1) -> Architecture:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        conv = CONVOLUTIONS[name]()
        model = randomised(conv_net(conv, outer=conv.out_channels), seed)
    generator = torch.Generator().manual_seed(seed)
    dimension = conv.weight.ndim - 2
    return read(model, torch.randn(2, 3, *SIZES[dimension], dtype=torch.float64, generator=generator))


def with_effective_weight(model: nn.Module, after: tuple[int, ...]) -> nn.Module:
    """Return the model with the weight that its convolution really uses, zero outside the centre."""
    model = copy.deepcopy(model)
    conv = model[2]
    weight = conv.weight.detach().clone()
    if isinstance(conv, StandardisedConv):
        mean, std = weight.mean((1, 2, 3), keepdim=True), weight.std((1, 2, 3), keepdim=True)
        weight = (weight - mean) / (std + 1e-5)
    for axis, (size, wanted) in enumerate(zip(weight.shape[2:], after, strict=True), start=2):
        margin = max(0, size - wanted) // 2
        weight.narrow(axis, 0, margin).zero_()
        weight.narrow(axis, size - margin, margin).zero_()
    plain = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[weight.ndim]
    new = plain(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups,
        bias=conv.bias is not None, dtype=torch.float64,
    )  # fmt: skip
    new.weight.data.copy_(weight)
    if conv.bias is not None:
        new.bias.data.copy_(conv.bias)
    model[2] = new
    return model


@pytest.mark.parametrize("step", [2, 4, -2])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_zeros_around_it_or_its_centre(name: str, step: int) -> None:
    arch = reading(name)
    after = sizes_after(name, step)
    if name == "no padding" and step:
        refused(arch, Kernel("2", after), match="kernel of 2 cannot") if step < 0 else None
        if step < 0:
            return
    if name == "valid" and step < 0:
        refused(arch, Kernel("2", after), match="kernel of 2 cannot")
        return
    if name == "spectral_norm":  # its singular vectors have the kernel's size
        refused(arch, Kernel("2", after), match="kernel of 2 cannot become")
        return
    new = apply_quietly(arch, Kernel("2", after))
    measured = distance(new.model, with_effective_weight(arch.model, after), arch.example_input)
    assert new.changes[0].exact == (measured <= 1e-10), measured
    computed = name in ("standardised", "weight_norm", "spectral_norm")
    assert new.changes[0].exact or computed
    assert new.model[2].kernel_size == after
    assert new.layer("2").output_shape == arch.layer("2").output_shape
    check_edited(arch, new, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        fresh = randomised(conv_net(CONVOLUTIONS[name](), outer=arch.model[2].out_channels), 5)
    check_plan(arch, new, fresh, arch.example_input)


def test_by_hand() -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    conv.weight.data.copy_(torch.arange(9.0).reshape(1, 1, 3, 3))
    arch = read(nn.Sequential(conv), torch.zeros(1, 1, 5, 5))
    larger = arch.apply(Kernel("0", 5)).model[0]
    expected = [[0, 0, 0, 0, 0], [0, 0, 1, 2, 0], [0, 3, 4, 5, 0], [0, 6, 7, 8, 0], [0, 0, 0, 0, 0]]
    assert larger.weight[0, 0].tolist() == expected
    assert (larger.kernel_size, larger.padding) == ((5, 5), (2, 2))
    smaller = arch.apply(Kernel("0", 1)).model[0]
    assert smaller.weight.flatten().tolist() == [4]
    assert (smaller.kernel_size, smaller.padding) == ((1, 1), (0, 0))
    oblong = arch.apply(Kernel("0", (1, 3))).model[0]
    assert oblong.weight.flatten().tolist() == [3, 4, 5]
    assert (oblong.kernel_size, oblong.padding) == ((1, 3), (0, 1))
    there_and_back = arch.apply(Kernel("0", 7)).apply(Kernel("0", 3))
    assert torch.equal(there_and_back.model[0].weight, conv.weight)
    check_attributes(there_and_back.model)


def test_steps_of_separate_calls_replay() -> None:
    arch = reading("plain")
    new = arch.apply(Kernel("2", 5)).apply(Kernel("2", 7), Width("2", 3)).apply(Kernel("2", 1))
    again = apply(Plan.from_json(new.plan.to_json()), arch.model, arch.example_input)
    assert again.plan == new.plan
    assert distance(again.model, new.model, arch.example_input) == 0


def test_a_size_as_row_survives_json() -> None:
    plan = reading("plain").apply(Kernel("2", (5, 3))).plan
    assert Plan.from_json(plan.to_json()) == plan
    assert hash(plan.edits[0]) == hash(Kernel("2", [5, 3]))


def test_momentum_is_padded_and_cropped_with_the_kernel() -> None:
    for after, margin in ((5, 1), (1, -1)):
        model = conv_net(CONVOLUTIONS["plain"]()).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        x = torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        model(x).square().sum().backward()
        optimizer.step()
        momentum = optimizer.state[model[2].weight]["momentum_buffer"].clone()
        new = read(model, x).apply(Kernel("2", after), optimizer=optimizer).model
        assert torch.equal(optimizer.state[new[2].weight]["momentum_buffer"], F.pad(momentum, [margin] * 4))
        assert model[2].weight not in optimizer.state


# ------------------------------------------------------------------ kernels used twice


class TwoReaders(nn.Module):
    """A module called twice, at two sizes, and a weight that two modules hold."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 1)
        self.a, self.b = nn.Conv2d(5, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1)
        if tied:
            self.b.weight = self.a.weight
        self.tied, self.fc = tied, nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(self.stem(x)))
        x = self.b(x) if self.tied else self.a(F.max_pool2d(x, 2))
        return self.fc(x.mean((2, 3)))


def test_a_module_called_twice_changes_for_both_calls() -> None:
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    arch = read(randomised(TwoReaders(False), 1), x)
    new = arch.apply(Kernel("a", 5))
    assert new.changes[0].exact
    assert distance(new.model, arch.model, x) <= 1e-12
    check_edited(arch, new, 1)


def test_a_kernel_shared_between_layers_does_not_change_alone() -> None:
    arch = read(TwoReaders(True), torch.zeros(2, 3, 9, 8))
    message = refused(arch, Kernel("a", 5), match="kernel of a is shared with b")
    assert message == message.strip()
    refused(arch, Kernel("a", 5), Kernel("b", 5), match=r"\bb\b")


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    "size", [0, -1, True, False, 2.0, "3", None, (), (3,), (3, 3, 3), (3, 0), (3, True), float("nan")]
)
def test_sizes_that_are_none_are_refused(size: object) -> None:
    refused(reading("plain"), Kernel("2", size), match="kernel of 2 must be a whole number")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [10**9 + 1, 10**30 + 1, 99, (3, 101)])
def test_kernels_larger_than_the_padded_input_are_refused_at_once(size: object) -> None:
    refused(reading("plain"), Kernel("2", size), match="kernel of 2 cannot be .* larger than its padded input")


@pytest.mark.parametrize(("size", "near"), [(2, "1 or 3"), (4, "3 or 5"), ((3, 6), "5 or 7")])
def test_a_centre_does_not_move(size: object, near: str) -> None:
    refused(reading("plain"), Kernel("2", size), match=f"kernel of 2 cannot go from 3 to .*{near}")


@pytest.mark.parametrize(
    ("target", "message"),
    [("6", "6 is no convolution"), ("1", "1 is no convolution"), ("9", "9"), ("2.weight", "2.weight"), ("", "''")],
)
def test_other_layers_have_no_kernel(target: str, message: str) -> None:
    refused(reading("plain"), Kernel(target, 5), match=message)


@pytest.mark.parametrize("target", [None, 2, ["2"], {}])
def test_targets_of_another_type_are_refused(target: object) -> None:
    with pytest.raises(EditError):
        reading("plain").apply(Kernel(target, 5))  # type: ignore[arg-type]


def test_two_edits_of_one_kernel_are_refused() -> None:
    refused(reading("plain"), Kernel("2", 5), Kernel("2", 7), match="2")


def test_one_that_fails_takes_the_other_with_it() -> None:
    refused(reading("plain"), Kernel("0", 3), Kernel("2", 4), match="kernel of 2")


class Written(nn.Module):
    """A kernel that is computed, and padding that forward writes down."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.register_buffer("blur", torch.ones(5, 1, 3, 3) / 9)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.pad(x, (1, 1, 1, 1)))
        return F.conv2d(x, self.blur, padding=1, groups=5)


def test_padding_outside_the_layer_still_gives_the_same_function() -> None:
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    arch = read(randomised(Written(), 1), x)
    new = arch.apply(Kernel("conv", 5))
    assert new.model.conv.padding == (1, 1)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(outputs(new.model, x), outputs(arch.model, x),
                                                                        strict=True))  # fmt: skip
    filtered = next(layer.name for layer in arch.layers if layer.kind == "conv" and layer.name != "conv")
    refused(arch, Kernel(filtered, 5), match=filtered.replace(".", r"\."))


def test_transposed_convolutions_keep_their_function_or_are_refused() -> None:
    for options in ({"stride": 2}, {"padding": 1}, {"stride": 2, "padding": 1, "output_padding": 1}):
        conv = nn.ConvTranspose2d(5, 7, 3, **options)
        x = torch.randn(2, 3, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        arch = read(randomised(conv_net(conv), 1), x)
        for size in (5, 1):
            new = attempt(arch, Kernel("2", size))
            if new is None:
                continue
            cropped = copy.deepcopy(arch.model)
            if size == 1:
                kept = cropped[2].weight.data[..., 1:2, 1:2].clone()
                cropped[2].weight.data.zero_()[..., 1:2, 1:2] = kept
            assert distance(new.model, cropped, x) <= 1e-10, (options, size)
            check_edited(arch, new, 1)
