"""What a repair of weights needs: which layers sum over channels, what enters them on data, and where bias goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from convwright.architecture.capture.graph import argument, operator_name
from convwright.architecture.capture.pytrees import parameters_of, run_model, samples_in, tensors_of
from convwright.architecture.layers import per_axis
from convwright.edits.origins import NONE, kept_entries, origin_of
from convwright.edits.plan import check_made_for
from convwright.edits.surgery import named_tensors
from convwright.errors import ConvwrightError, EditError, check_counts

if TYPE_CHECKING:
    from convwright.architecture import Architecture
    from convwright.architecture.channels import Ints

MOST_UNKNOWNS = 8192  # a second moment of more is half a gigabyte; the first linear layer of VGG has 25,088
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)  # from which the strength is chosen for each layer
_OPERATORS = {"conv1d": F.conv1d, "conv2d": F.conv2d, "conv3d": F.conv3d, "linear": F.linear}
_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
Forward: TypeAlias = Callable[[nn.Module, Any], object]


@dataclass(frozen=True)
class Repaired:
    """What a repair did to one layer.

    Attributes:
        layer: The layer.
        before: What was lacking on the calibration images, as a share of the variance of the whole: to a refit the
            squared error of the layer's responses, to a merge the channels that were removed from its inputs.
        after: What is lacking afterwards.
        rows: The number of positions, of all images together, that it was fitted on.
    """

    layer: str
    before: float
    after: float
    rows: int


@dataclass(frozen=True, eq=False)
class Consumer:
    """A convolution or linear layer whose weight is a parameter, in a network and in the one that it was cut from.

    Attributes:
        layer: Its name.
        weight: Name of its weight.
        source: Name of the original's weight.
        bias: Name of its bias; empty if it has none.
        mean: Running mean of a batch norm that alone reads its output: a layer without bias is shifted there.
        nodes: Its calls in the captured graph.
        outputs: The original's outputs that it has.
        inputs: The original's inputs (within a group) that it has.
    """

    layer: str
    weight: str
    source: str
    bias: str
    mean: str
    nodes: tuple[str, ...]
    outputs: Ints
    inputs: Ints

    @property
    def constant(self) -> bool:
        """Whether its responses can be shifted."""
        return bool(self.bias or self.mean)


def shift(site: Consumer, tensors: Mapping[str, Tensor], by: Tensor) -> None:
    """Add a constant to a layer's responses: in its bias, or by the mean that the norm behind it takes off."""
    target = tensors[site.bias or site.mean]
    target.add_(by.to(target.dtype) * (1 if site.bias else -1))


def kept_of_original(original: Mapping[str, Tensor], edited: Architecture, name: str) -> Tensor:
    """Return the original's values of a tensor of an edited network, at the channels that it still has."""
    value = original[origin_of(edited, name)]
    for axis in range(value.ndim):
        value = value.index_select(axis, torch.from_numpy(kept_entries(edited, name, axis)).to(value.device))
    return value


def consumers(original: Architecture, edited: Architecture) -> tuple[Consumer, ...]:
    """Return the layers that sum over channels and whose weights both networks have as parameters, in order.

    Depthwise convolutions sum over nothing; computed weights (parametrised, standardised) and weights that something
    else reads, too, have no one value to solve for.

    Raises:
        EditError: The second network was not made from the first by edits.
    """
    if original.plan.edits:
        raise EditError(f"the original {original.source} is an edited network; give the one that the plan begins with.")
    check_made_for(edited.plan, original)
    theirs, ours, known = named_tensors(original.model), named_tensors(edited.model), _weighted(original)
    for source in (origin_of(edited, name) for name in ours):
        if source and source not in theirs:
            raise EditError(f"{original.source} has no {source}: {edited.source} was not made from it by edits.")
    found = []
    for name, nodes in _weighted(edited).items():
        source, weight, groups = origin_of(edited, name), ours[name], _groups(nodes[0])
        before = known.get(source, [])
        if len(before) != len(nodes) or _groups(before[0]) != groups or weight.shape[1] == 1 != groups:
            continue
        outputs, inputs = (kept_entries(edited, name, axis) for axis in (0, 1))
        if NONE in outputs or NONE in inputs or weight[0].numel() > MOST_UNKNOWNS:
            continue
        if max(outputs) >= theirs[source].shape[0] or max(inputs) >= theirs[source].shape[1]:
            raise EditError(f"{name} has channels that {source} of the original has not: it was made from another one.")
        bias = argument(nodes[0], "bias")
        bias = edited.capture.tensors.get(bias.name, "") if isinstance(bias, fx.Node) else ""
        layer = next(layer.name for layer in edited.layers if layer.node == nodes[0].name)
        mean = _mean_behind(edited, nodes) if not bias else ""
        found.append(Consumer(layer, name, source, bias, mean, tuple(n.name for n in nodes), outputs, inputs))
    return tuple(found)


def _weighted(architecture: Architecture) -> dict[str, list[fx.Node]]:
    """Return the calls of each weight that is a parameter and that nothing but convolutions or linear layers reads."""
    capture = architecture.capture
    found: dict[str, list[fx.Node]] = {}
    for node in capture.graph.nodes:
        weight = argument(node, "weight") if operator_name(node) in _OPERATORS else None
        if isinstance(weight, fx.Node) and capture.tensors.get(weight.name) in capture.parameters:
            found.setdefault(capture.tensors[weight.name], []).append(node)
    readers = {
        name: {user for node in capture.graph.nodes if capture.tensors.get(node.name) == name for user in node.users}
        for name in found
    }
    return {name: nodes for name, nodes in found.items() if readers[name] == set(nodes)}


def _groups(node: fx.Node) -> int:
    return int(argument(node, "groups", 1))


def _mean_behind(architecture: Architecture, nodes: Sequence[fx.Node]) -> str:
    """Return the running mean of the batch norm that alone reads the output of the one call of a layer."""
    users = list(nodes[0].users)
    if len(nodes) != 1 or len(users) != 1 or operator_name(users[0]) != "batch_norm":
        return ""
    mean = argument(users[0], "running_mean")
    return architecture.capture.tensors.get(mean.name, "") if isinstance(mean, fx.Node) and len(mean.users) == 1 else ""


@dataclass(frozen=True, eq=False)
class LayerCall:
    """One call of a convolution on a batch, or of a linear layer, which is one with a kernel of 1.

    Attributes:
        x: What enters.
        weight: Its weight.
        output: Its response.
        stride: Per spatial axis; as many for the others.
        padding: Zeros before and behind.
        dilation: Of the kernel.
        groups: Parts that its channels fall into.
    """

    x: Tensor
    weight: Tensor
    output: Tensor
    stride: tuple[int, ...] = (1,)
    padding: tuple[tuple[int, int], ...] = ((0, 0),)
    dilation: tuple[int, ...] = (1,)
    groups: int = 1

    @property
    def places(self) -> tuple[int, ...]:
        """The positions at which it responds."""
        return tuple(self.output.shape[2:])

    def drawn(self, count: int, seed: int) -> Tensor:
        """Return ``count`` different positions of each image, or all there are, shape (n, positions)."""
        every, images = math.prod(self.places), len(self.x)
        if every <= count:
            return torch.arange(every).expand(images, every)
        return torch.rand(images, every, generator=torch.Generator().manual_seed(seed)).topk(count).indices

    def entering(self, positions: Tensor) -> Tensor:
        """Return what the weights see at some positions, shape (rows, groups, inputs of a group, kernel)."""
        x = F.pad(self.x, [side for pair in reversed(self.padding) for side in pair])
        kernel = zip(self.weight.shape[2:], self.stride, self.dilation, strict=True)
        for axis, (size, step, gap) in enumerate(kernel, start=2):
            x = x.unfold(axis, (size - 1) * gap + 1, step)[..., ::gap]
        spatial = len(self.stride)
        x = x.permute(0, *range(2, 2 + spatial), 1, *range(2 + spatial, 2 + 2 * spatial))
        return self._at(x, positions).reshape(positions.numel(), self.groups, self.weight.shape[1], -1)

    def responses(self, positions: Tensor) -> Tensor:
        """Return its responses at some positions, shape (rows, outputs)."""
        return self._at(self.output.movedim(1, -1), positions)

    def _at(self, values: Tensor, positions: Tensor) -> Tensor:
        """Take positions of values of shape (n, places, ...)."""
        images = torch.arange(len(positions), device=values.device).unsqueeze(1)
        indices = torch.unravel_index(positions.to(values.device), self.places)
        found = values[(images, *indices)].flatten(0, 1)
        return found if found.dtype == torch.float64 else found.float()  # also of mixed precision


def _call(func: Any, given: Mapping[str, Any], output: Tensor) -> LayerCall:
    x, weight = given["input"], given["weight"]
    if func is F.linear:
        x, output = (value.reshape(len(value), -1, value.shape[-1]).mT for value in (x, output))
        return LayerCall(x, weight.unsqueeze(-1), output)
    kernel = weight.shape[2:]
    stride, dilation = (per_axis(given.get(name, 1), len(kernel)) for name in ("stride", "dilation"))
    padding = given.get("padding", 0)
    if padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        pairs = tuple((t // 2, t - t // 2) for t in total)
    else:
        pairs = tuple((p, p) for p in per_axis(0 if padding == "valid" else padding, len(kernel)))
    return LayerCall(x, weight, output, stride, pairs, dilation, int(given.get("groups", 1)))


class _Reached(Exception):  # noqa: N818  # no error: what was wanted of a forward pass is there
    """The last of the wanted layers has been run."""


class _Watch(TorchFunctionMode):
    """Shows each call of some weights; ends the forward pass after as many as there are.

    Calls are recognised by the parameter that they are given: so whatever computes the weight or pads the input first
    needs no rule, and a layer may be a module or code in a forward.
    """

    def __init__(self, model: nn.Module, calls: Mapping[str, int]) -> None:
        super().__init__()
        tensors = named_tensors(model)
        self.names, self.left = {id(tensors[name]): name for name in calls}, sum(calls.values())
        self.found: dict[str, list[LayerCall]] = {name: [] for name in calls}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = layer_arguments(func, args, kwargs)
        if (name := self.names.get(id(given.get("weight")))) is not None:
            self.found[name].append(_call(func, given, result))
            self.left -= 1
            if not self.left:
                raise _Reached
        return result


def layer_arguments(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return what a convolution or linear layer is called with, by name; nothing of another function."""
    return {**dict(zip(_ARGUMENTS, args, strict=False)), **(kwargs or {})} if func in _OPERATORS.values() else {}


def watched(
    model: nn.Module,
    calls: Mapping[str, int],
    batch: Any,
    forward: Forward | None,
    within: TorchFunctionMode | None = None,
) -> dict[str, list[LayerCall]]:
    """Run a network on a batch up to the last call of some weights, and return the calls of each.

    Args:
        model: The network.
        calls: How often each weight is called.
        batch: Images (n, ...), or whatever the network takes.
        forward: How to run the model; None: ``model(batch)``.
        within: A mode that sees each call first.
    """
    watch = _Watch(model, calls)
    with suppress(_Reached), watch, within or nullcontext():
        forward(model, batch) if forward else run_model(model, batch)
    return watch.found


def kept_of(site: Consumer, responses: Tensor) -> Tensor:
    """Return those of the original's responses, shape (rows, outputs), that the cut layer has."""
    return responses[:, torch.from_numpy(site.outputs).to(responses.device)]


def checked(images: Iterable[Any], repair: str, ridge: float | None, positions: int, model: nn.Module) -> list[Any]:
    """Return the calibration batches as a list: they are gone through more than once.

    Raises:
        ConvwrightError: There are none, or they are not batches of images; or another option has no sense.
    """
    check_counts(positions=positions)
    if ridge is not None and not 0 <= ridge < math.inf:
        raise ConvwrightError(f"ridge={ridge!r} must be a finite number from 0 on.")
    batches = list(images)
    tensors = [tensor for batch in batches for _, tensor in tensors_of(batch)]
    most = len(parameters_of(model))
    labelled = any(isinstance(batch, tuple) and len(batch) > most for batch in batches)
    if labelled or not tensors or not all(map(samples_in, batches)) or any(tensor.ndim < 1 for tensor in tensors):
        given = f"of {type(batches[0]).__name__}" if batches else "of nothing"
        raise ConvwrightError(f"{repair} takes batches of images, shape (n, ...), without labels; these are {given}.")
    return batches


class Moments:
    """Sums of products over rows, per group of a layer: of what enters with itself, and with what is wanted.

    They are kept for two halves of the images, so that the one can judge what is fitted on the other.

    Attributes:
        constant: Whether the last unknown is a constant.
        gram: (halves, groups, unknowns, unknowns).
        cross: (halves, groups, unknowns, wanted).
        square: Sum of squares of what is wanted.
        rows: How many.
    """

    def __init__(self, constant: bool) -> None:
        self.constant = constant
        self.gram: Tensor | float = 0.0
        self.cross: Tensor | float = 0.0
        self.square, self.rows = 0.0, 0
        self._sums: tuple[Tensor | float, float] = 0.0, 0.0

    def add(self, entering: Tensor, wanted: Tensor, responses: Tensor) -> None:
        """Add rows of a batch, image by image; sums are in double precision where the device has it.

        Args:
            entering: What enters, shape (rows, groups, inputs of a group).
            wanted: What is to be explained by it, (rows, groups, outputs of a group).
            responses: What that is a part of, (rows, groups, outputs of a group).
        """
        exact, x = torch.float64 if entering.device.type != "mps" else torch.float32, entering
        if self.constant:
            x = torch.cat([x, x.new_ones(*x.shape[:2], 1)], 2)
        middle = len(x) // 2
        halves = [(v[:middle].movedim(0, 1), v[middle:].movedim(0, 1)) for v in (x, wanted)]
        self.gram = self.gram + torch.stack([a.mT @ a for a in halves[0]]).to(exact)
        self.cross = self.cross + torch.stack([a.mT @ b for a, b in zip(*halves, strict=True)]).to(exact)
        self.square += float(wanted.to(exact).square().sum())
        whole = responses.to(exact)
        self._sums = self._sums[0] + whole.sum(0), self._sums[1] + float(whole.square().sum())
        self.rows += len(x)

    def solved(self, layer: str, ridge: float | None) -> tuple[Tensor, Repaired]:
        """Return the solution, (groups, unknowns, wanted), and what it is worth.

        Args:
            layer: For the record and the error.
            ridge: What holds the unknowns back, as a share of the mean square of the inputs (the constant is free);
                None: what is best on the half of the images that it was not fitted on, no step at all included.

        Raises:
            ConvwrightError: A sum is not finite.
        """
        gram, cross = torch.as_tensor(self.gram).sum(0), torch.as_tensor(self.cross).sum(0)
        if not (bool(torch.isfinite(gram).all()) and math.isfinite(self.square)):
            raise ConvwrightError(
                f"what {layer} computes on the calibration images is not finite; check the images and the weights."
            )
        if ridge is None:
            # By how much each half's solution lowers the sum of squares on the other half.
            halves = torch.as_tensor(self.gram), torch.as_tensor(self.cross)
            others = halves[0].flip(0), halves[1].flip(0)
            best, ridge = max((_gain(*others, _least_squares(*halves, r, self.constant)), r) for r in RIDGES)
            ridge = ridge if best > 0 else math.inf
        step = _least_squares(gram, cross, ridge, self.constant) if ridge < math.inf else torch.zeros_like(cross)
        gain = _gain(gram, cross, step)
        total, squares = self._sums
        spread = squares - float(torch.as_tensor(total).square().sum()) / self.rows
        share = 1 / spread if spread > 0 else 0.0
        return step, Repaired(layer, share * self.square, share * max(0.0, self.square - gain), self.rows)


def _gain(gram: Tensor, cross: Tensor, step: Tensor) -> float:
    return float((step * (2 * cross - gram @ step)).sum())


def _least_squares(gram: Tensor, cross: Tensor, ridge: float, constant: bool) -> Tensor:
    inputs = gram.shape[-1] - constant
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    held = torch.zeros_like(diagonal)
    held[..., :inputs] = ridge * diagonal[..., :inputs].mean(-1, keepdim=True)
    matrix = gram + torch.diag_embed(held)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    found: Tensor = torch.cholesky_solve(cross, factor)
    if bool(failed.any()) or not bool(torch.isfinite(found).all()):  # inputs that are zero, or depend on each other
        found = torch.linalg.pinv(matrix, hermitian=True) @ cross
    return found
