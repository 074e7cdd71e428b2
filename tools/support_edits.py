"""What the support matrix does to one network: read it, try every kind of edit, and say what came of each.

A cell says ``exact`` (the measured difference to what the edit promises is at most 1e-10), ``inexact`` (more, and the
library says why), ``not applicable`` (the network has nothing that the edit is for) or ``fail``.
"""

from __future__ import annotations

import copy
import gc
import io
import math
import re
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from support_families import ignored_by_hand, own_loss
from support_networks import FREE, SIDES, family_of, make
from torch import Tensor, nn

import convwright as cw
from convwright.architecture import Architecture, Block, Layer, create
from convwright.architecture.capture.pytrees import Inputs, tensors_of
from convwright.cost.runtimes.onnxruntime import onnx_session
from convwright.edits import scale_widths
from convwright.edits.equivalence import randomise
from convwright.edits.surgery import tensors_in
from convwright.errors import ConvwrightError, EditError, ReadError
from convwright.export.programs import onnx_program

Cell = dict[str, Any]
SEED = 0
MOST_MACS = 2_000_000_000  # a network that costs more at its usual input is measured on a smaller one
SMALL_SIDES = (128, 160)
MANY = 40_000_000  # parameters; above, memory is given back after every edit
HUGE = 100_000_000  # parameters; above, every third group grows
APART = 1e-5  # between scores: what is nearer is equal, but for rounding
DRAWS = 4  # of weights, with which a detector's file may agree with it
ONNX_LIMIT = 1e-4  # of the largest output
SHARE = 0.6  # half of the channels must leave less than this of the parameters
WORDS = 240  # characters of a reason


@dataclass(eq=False)
class Subject:
    """One network while it is measured.

    Attributes:
        name: e.g. ``"timm:resnet18"``.
        arch: the network as it was read.
        worked: edits that were carried out, by kind; ``composed`` puts some of them together.
        halved: the network with every free group at half its width, once that is known.
    """

    name: str
    arch: Architecture
    worked: dict[str, list[Any]] = field(default_factory=dict)
    halved: Architecture | None = None


KINDS: dict[str, Callable[[Subject], Cell]] = {}


def kind(try_it: Callable[[Subject], Cell]) -> Callable[[Subject], Cell]:
    """Register a column of the matrix under its function's name."""
    KINDS[try_it.__name__] = try_it
    return try_it


# ------------------------------------------------------------------ reading


def build(name: str) -> tuple[nn.Module, tuple[int, ...] | list[Tensor]]:
    """Return a network, the same each time, and its usual input: a shape, or the nest that it is called with."""
    torch.manual_seed(SEED)
    if family_of(name):
        model, given = make(name)
        return model.eval(), given
    model, shape, _ = create(name)
    return model.eval(), shape or (3, 224, 224)


def read(name: str, side: int | None = None) -> tuple[Subject, Cell]:
    """Read a network on an input that keeps the measurements short, and return what is known of it."""
    model, shape = build(name)
    if family_of(name):
        arch, seconds = timed(lambda: cw.read(model, shape, free_outputs=name.endswith(FREE)))
        facts = _facts(arch, tuple(arch.example_input.shape[-3:]))
        return Subject(name, arch), {**facts, "read_seconds": round(seconds, 2)}
    assert isinstance(shape, tuple)
    side = side or SIDES.get(name)
    if side is not None:
        arch, seconds = timed(lambda: cw.read(model, (shape[0], side, side)))
    else:
        arch, seconds = timed(lambda: cw.read(model, shape))
        if arch.profile().macs > MOST_MACS:
            arch, seconds = _smaller(model, shape, (arch, seconds))
    return Subject(name, arch), {**_facts(arch, shape), "read_seconds": round(seconds, 2)}


def _smaller(model: nn.Module, shape: tuple[int, ...], usual: tuple[Architecture, float]) -> tuple[Architecture, float]:
    for side in SMALL_SIDES:
        try:
            return timed(lambda side=side: cw.read(model, (shape[0], side, side)))
        except ReadError:
            continue
    return usual


def _facts(arch: Architecture, usual: tuple[int, ...]) -> Cell:
    costs = arch.profile()
    free = {group.name for group in arch.free_groups}
    tensors = free_tensors(arch)
    touched = {layer.name for layer in arch.layers if free & {*layer.groups} or tensors & {*layer.parameters}}
    reasons = Counter(one_line(g.reason) for g in arch.groups if g.frozen)
    return {
        "input": "x".join(map(str, arch.example_input.shape[-len(usual) :])),
        "usual_input": "x".join(map(str, usual)),
        "params": costs.params,
        "macs": costs.macs,
        "groups": len(arch.groups),
        "free": len(free),
        "free_macs": round(sum(c.macs for c in costs.layers if c.name in touched) / max(costs.macs, 1), 4),
        "frozen": dict(reasons),
    }


def free_tensors(arch: Architecture) -> set[str]:
    """Return the names of the parameters that a free group reaches."""
    return {member.tensor for group in arch.free_groups for member in group.members}


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return a call's result and the processor seconds it took."""
    started = time.process_time()
    result = call()
    return result, time.process_time() - started


def one_line(said: object) -> str:
    """Return a message as one short line that names no folder of this machine."""
    text = f"{type(said).__name__}: {said}" if isinstance(said, Exception) else str(said)
    if isinstance(said, ConvwrightError):
        text = str(said)
    if isinstance(said, MemoryError) or "can't allocate memory" in text:
        return "out of memory"
    text = re.sub(r"(?:/[^\s/:]+)*/(?:site-packages|src)/", "", " ".join(text.split()))
    text = re.sub(r"/(?:tmp|root|home|work)/\S*/", "", text)
    return text if len(text) <= WORDS else text[: WORDS - 4] + " ..."


# ------------------------------------------------------------------ trying


def measure(subject: Subject, kinds: Sequence[str] = ()) -> Iterator[tuple[str, Cell]]:
    """Try every kind of edit (or those named) and yield its cell; an error is a cell too."""
    for name, try_it in KINDS.items():
        if not kinds or name in kinds:
            try:
                cell = try_it(subject)
            except Exception as error:  # whatever goes wrong is a result
                cell = failed(error)
            if subject.arch.profile().params > MANY:
                gc.collect()
            yield name, cell


def failed(error: object) -> Cell:
    """Return the cell of an edit that was not carried out as promised; a refusal has changed nothing."""
    refused = {"refused": True} if isinstance(error, EditError) else {}
    return {"status": "fail", "reason": one_line(error), **refused}


def absent(reason: str) -> Cell:
    """Return the cell of an edit that the network has nothing for."""
    return {"status": "not applicable", "reason": one_line(reason)}


def attempt(
    subject: Subject, kind_name: str, edits: Sequence[Any], alone: bool = True
) -> tuple[Cell, Architecture | None]:
    """Apply edits without (where ``alone``) and with verification and return the cell, and the changed network."""
    arch = subject.arch
    cell: Cell = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if alone:
                _, seconds = timed(lambda: arch.apply(*edits, verify=False))
                cell["seconds"] = round(seconds, 2)
            new, seconds = timed(lambda: arch.apply(*edits))
            cell["verified_seconds"] = round(seconds, 2)
        except Exception as error:  # whatever goes wrong is a result
            return {**failed(error), **cell}, None
    subject.worked[kind_name] = list(edits)
    return {**verdict(arch, new), **cell}, new


def verdict(before: Architecture, new: Architecture) -> Cell:
    """Return the status that the measured differences give, with the reason of an inexact edit."""
    changes = new.changes
    largest = max((float(c.max_difference or 0.0) for c in changes), default=0.0)
    shown = float(f"{largest:.2g}") if math.isfinite(largest) else str(largest)
    if all(c.exact is not False for c in changes):
        return {"status": "exact", "max_difference": shown}
    notes = dict.fromkeys(note for c in changes if not c.exact for note in c.notes)
    if not notes and any(c.edit.kind == "width" for c in changes if not c.exact):
        across = dict.fromkeys(op for group in before.free_groups for op in group.across)
        notes = {f"a statistic runs across these channels: {op}": None for op in across}
    if not notes or not math.isfinite(largest):
        return {"status": "fail", "max_difference": shown, "reason": f"differs by {largest:.2g}, without a reason"}
    said = next(iter(notes)) + (f" (and {len(notes) - 1} more)" if len(notes) > 1 else "")
    return {"status": "inexact", "max_difference": shown, "reason": one_line(said)}


# ------------------------------------------------------------------ widths


@kind
def shrink(subject: Subject) -> Cell:
    """Every free group at half its width."""
    arch = subject.arch
    edits = scale_widths(arch, 0.5)
    if not edits:
        return absent("no channel group is free")
    cell, new = attempt(subject, "shrink", edits)
    if new is not None:
        subject.halved = new
        before, after = arch.profile(), new.profile()
        free = sum(before.parameters.get(name, 0) for name in free_tensors(arch))
        share = (after.params - before.params + free) / free
        cell |= {"params_share": round(after.params / before.params, 4), "free_params_share": round(share, 4)}
        if share >= SHARE:
            cell |= failed(f"parameters of the free part fall to {share:.0%} only")
    return cell


@kind
def grow(subject: Subject) -> Cell:
    """Every free group (of huge networks every third) at one and a half times its width."""
    arch = subject.arch
    third = arch.profile().params > HUGE
    ratio = {group.name: 1.5 for group in arch.free_groups[::3]} if third else 1.5
    edits = scale_widths(arch, ratio)
    if not edits:
        return absent("no channel group is free")
    cell, _ = attempt(subject, "grow", edits)
    return {**cell, "on": "every third group"} if third else cell


# ------------------------------------------------------------------ depth


@kind
def remove_block(subject: Subject) -> Cell:
    """The first and the last block that keeps its shape."""
    return _at_both_ends(subject, "remove_block", cw.RemoveBlock)


@kind
def add_block(subject: Subject) -> Cell:
    """A copy behind the first and behind the last block that keeps its shape."""
    return _at_both_ends(subject, "add_block", cw.AddBlock)


def _at_both_ends(subject: Subject, kind_name: str, edit: Callable[[str], Any]) -> Cell:
    names = [block.name for block in subject.arch.blocks if _skippable(block)]
    if not names:
        return absent("no block keeps its shape" if subject.arch.blocks else "no residual block and no repeated unit")
    ends = list(dict.fromkeys((names[0], names[-1])))
    cell, _ = attempt(subject, kind_name, [edit(name) for name in ends])
    if cell["status"] != "fail":
        return {**cell, "on": ", ".join(ends)}
    return _each_alone(subject, kind_name, edit, ends)


def _each_alone(subject: Subject, kind_name: str, edit: Callable[[str], Any], ends: Sequence[str]) -> Cell:
    """Try each end alone, and return the worse of the two."""
    cells = [_nearest(subject, kind_name, edit, name) for name in ends]
    worst = max(cells, key=lambda c: ("exact", "inexact", "fail").index(c["status"]))
    return {**worst, "on": ", ".join(dict.fromkeys(str(c["on"]) for c in cells))}


def _nearest(subject: Subject, kind_name: str, edit: Callable[[str], Any], name: str) -> Cell:
    """Try a block; where it is refused, the modules above it."""
    cell: Cell = {}
    for target in (name, *_above(subject.arch, name)):
        cell = {**attempt(subject, kind_name, [edit(target)])[0], "on": target}
        if cell["status"] != "fail":
            break
    return cell


def _skippable(block: Block) -> bool:
    return block.keeps_shape and (block.identity or not block.join)


def _above(arch: Architecture, name: str) -> Iterator[str]:
    """Yield the modules above a block that keep the shape, the nearest first."""
    path = name.partition("#")[0]
    held = [path] if path != name else []
    while "." in path:
        path = path.rpartition(".")[0]
        held.append(path)
    for candidate in held[:3]:
        try:
            keeps = arch.block(candidate).keeps_shape
        except EditError:
            continue
        if keeps:
            yield candidate


# ------------------------------------------------------------------ kernels and operators


@kind
def kernel_up(subject: Subject) -> Cell:
    """A dense and a depthwise kernel, two larger."""
    return _resized(subject, "kernel_up", 2)


@kind
def kernel_down(subject: Subject) -> Cell:
    """A dense and a depthwise kernel, two smaller."""
    return _resized(subject, "kernel_down", -2)


def _resized(subject: Subject, kind_name: str, more: int) -> Cell:
    chosen = [pair for pair in (_middle(subject.arch, dense, more) for dense in (True, False)) if pair]
    if not chosen:
        return absent("no convolution has a kernel larger than 1x1 that keeps the size")
    edits = [cw.Kernel(name, [k + more * (k > 1) for k in kernel]) for name, kernel in chosen]
    cell, _ = attempt(subject, kind_name, edits)
    return {**cell, "on": ", ".join(name for name, _ in chosen)}


def convolutions(arch: Architecture) -> Iterator[tuple[Layer, nn.Conv2d]]:
    """Yield the two-dimensional convolutions that are modules."""
    modules = dict(arch.model.named_modules())
    for layer in arch.layers:
        module = modules.get(layer.name)
        if layer.kind == "conv" and isinstance(module, nn.Conv2d):
            yield layer, module


def _middle(arch: Architecture, dense: bool, more: int) -> tuple[str, tuple[int, ...]] | None:
    """Return the middle one of the convolutions whose kernel can change with the size kept."""
    found = [
        (layer.name, tuple(module.kernel_size))
        for layer, module in convolutions(arch)
        if (module.groups == 1 if dense else 1 < module.groups == module.in_channels)
        and max(module.kernel_size) > 1
        and all(k == 1 or k + more >= 1 for k in module.kernel_size)
        and _pads(layer, module)
        and all(
            map(_covers, layer.input_shapes[0][2:], module.kernel_size, module.padding, module.dilation, (more,) * 2)
        )
    ]
    return found[len(found) // 2] if found else None


def _pads(layer: Layer, module: nn.Conv2d) -> bool:
    """Whether the output is the input's size by the stride: what a kernel of any size can keep."""
    sides = zip(layer.input_shapes[0][2:], layer.output_shape[2:], module.stride, module.kernel_size, strict=True)
    return all(
        after == -(-before // stride) and (kernel > stride or kernel == 1) for before, after, stride, kernel in sides
    )


def _covers(side: int, kernel: int, padding: int, dilation: int, more: int) -> bool:
    """Whether the padded input is at least as long as the kernel."""
    return side + 2 * padding >= dilation * (kernel + more * (kernel > 1) - 1) + 1


@kind
def replace(subject: Subject) -> Cell:
    """One dense convolution made depthwise separable; squeeze-and-excitation behind another."""
    plain = [(layer.name, module) for layer, module in convolutions(subject.arch) if _untouched(module)]
    dense = [name for name, module in plain if module.groups == 1 and max(module.kernel_size) > 1]
    separable = dense[len(dense) // 2] if dense else ""
    others = [name for name, _ in plain if name != separable]
    edits = [cw.Replace(separable, "dw_separable")] if separable else []
    edits += [cw.Replace(others[len(others) // 3], "squeeze_excite")] if others else []
    if not edits:
        return absent("no convolution is a plain Conv2d")
    cell, _ = attempt(subject, "replace", edits)
    return {**cell, "on": ", ".join(f"{edit.target} -> {edit.operator}" for edit in edits)}


def _untouched(module: nn.Conv2d) -> bool:
    same = all(getattr(type(module), name) is getattr(nn.Conv2d, name) for name in ("forward", "_conv_forward"))
    return same and not hasattr(module, "parametrizations")


# ------------------------------------------------------------------ resolution


@kind
def resolution(subject: Subject) -> Cell:
    """A smaller input, by 32 pixels a side."""
    arch = subject.arch
    if not arch.inputs.one:
        return absent("the network brings its images to a size of its own")
    side = int(arch.example_input.shape[-1])
    smaller = max(32, (side - 1) // 32 * 32)
    cell, _ = attempt(subject, "resolution", [cw.Resolution(smaller)], alone=False)  # alone it takes as long
    if cell["status"] == "fail":
        try:
            with torch.no_grad():
                arch.model.eval()(torch.zeros(1, arch.example_input.shape[1], smaller, smaller))
        except Exception as error:  # the network's own forward may raise anything
            return absent(f"the network itself takes no input of {smaller}x{smaller}: {one_line(error)}")
    return {**cell, "on": f"{side} -> {smaller}"}


# ------------------------------------------------------------------ all together


@kind
def composed(subject: Subject) -> Cell:
    """Depth, kernel and widths in one plan: saved, loaded, replayed on a fresh model, and trained one step."""
    gone = subject.worked.get("remove_block", [])[:1]
    kernels = [e for e in subject.worked.get("kernel_up", []) if not _lies_in(e.target, [b.target for b in gone])]
    first = [*gone, *kernels[:1]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        halfway = subject.arch.apply(*first, verify=False)  # verified on their own above
    widths = scale_widths(halfway, 0.75)
    if not first and not widths:
        return absent("no edit has anything to work on")
    cell, new = attempt(Subject(subject.name, halfway), "composed", widths, alone=False)
    if new is not None:
        problem, cell["seconds"] = _replay(subject, new)
        problem = problem or _train_step(subject.name, new)
        if problem:
            cell |= failed(problem)
    kinds = dict.fromkeys(edit.kind for edit in (*first, *widths))
    return {**cell, "on": ", ".join(kinds)}


def _lies_in(layer: str, blocks: Sequence[str]) -> bool:
    return any(f"{layer}.".startswith(f"{block.partition('#')[0]}.") for block in blocks)


def _replay(subject: Subject, new: Architecture) -> tuple[str, float]:
    """Send the plan through a file and onto a fresh model; return what is not as it was, and the seconds it took."""
    fresh, _ = build(subject.name)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "plan.json"
        new.plan.save(path)
        plan = cw.Plan.load(path)
        free = subject.arch.free_outputs
        again, seconds = timed(lambda: cw.apply(plan, fresh, subject.arch.inputs, verify=False, free_outputs=free))
    again.model.load_state_dict(new.model.state_dict())
    x = new.inputs.random(SEED)
    with torch.no_grad():
        pairs = zip(tensors_in(x.call(new.model.eval())), tensors_in(x.call(again.model.eval())), strict=True)
        same = all(torch.equal(a, b) for a, b in pairs)
    return "" if same else "the replayed plan gives another output", round(seconds, 2)


def _train_step(name: str, new: Architecture) -> str:
    """Run forward in training mode, backward and an optimizer step; return what is not right."""
    model = new.model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    if family_of(name):
        loss = own_loss(name, model, new.inputs)
    else:
        x = torch.randn(2, *new.example_input.shape[1:], generator=torch.Generator().manual_seed(SEED))
        loss = sum((t.float().square().mean() for t in tensors_in(model(x))), torch.zeros(()))
    loss.backward()
    optimizer.step()
    model.eval()
    return "" if bool(torch.isfinite(loss)) else "the training step's loss is not finite"


# ------------------------------------------------------------------ what is no classifier


def _halved(subject: Subject) -> Architecture:
    """Return the network with every free group at half its width."""
    if subject.halved is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            subject.halved = subject.arch.apply(*scale_widths(subject.arch, 0.5), verify=False)
    return subject.halved


@kind
def loss(subject: Subject) -> Cell:
    """The halved network's own loss in training mode, and backward to each parameter that the original's reaches."""
    new = _halved(subject)
    found, missing = _backward(subject.name, new)
    if missing:
        missing -= _backward(subject.name, subject.arch)[1]
    if missing or not math.isfinite(found):
        return failed(f"the loss is {found}" + f"; it does not reach {', '.join(sorted(missing))}" * bool(missing))
    return {"status": "done"}


def _backward(name: str, arch: Architecture) -> tuple[float, set[str]]:
    """Return a network's own loss, and the parameters that backward does not reach."""
    model = copy.deepcopy(arch.model)
    value = own_loss(name, model, arch.inputs)
    value.backward()
    return float(value.detach()), {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}


@kind
def outputs(subject: Subject) -> Cell:
    """What the halved network gives: of the original's class, the same nest of tensors of the same kinds and sizes."""
    new = _halved(subject)
    given = subject.arch.inputs.random(SEED)
    with torch.no_grad():
        pairs = [_described(given.call(arch.model.eval()), subject) for arch in (subject.arch, new)]
    if type(new.model) is not type(subject.arch.model) or pairs[0] != pairs[1]:
        return failed(f"the outputs were {pairs[0]} and became {pairs[1]}")
    return {"status": "done"}


def _described(output: object, subject: Subject) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return place, type and size of each tensor; how many boxes there are depends on the weights."""
    first = 1 if isinstance(output, list) and isinstance(subject.arch.inputs.args[0], list) else 0
    kept = [slice(first, None)] if not subject.arch.free_outputs else [slice(0, 1), slice(2, None)]
    return [
        (place, str(t.dtype), tuple(side for part in kept for side in t.shape[part])) for place, t in tensors_of(output)
    ]


@kind
def onnx(subject: Subject) -> Cell:
    """The halved network as an ONNX file, against the network itself in ONNX Runtime."""
    new = _halved(subject)
    gap, problem = _exported(new)
    if not problem:
        return {"status": "exact", "max_difference": float(f"{gap:.2g}")}
    _, before = _exported(subject.arch)
    return absent(f"the original does not pass: {before}") if before else failed(problem)


def _exported(arch: Architecture) -> tuple[float, str]:
    """Return how far a network's ONNX file is from it, and what is wrong with it."""
    gap = math.inf
    try:
        for seed in range(1 if arch.inputs.one else DRAWS):
            if (gap := min(gap, _exported_gap(arch, seed))) <= ONNX_LIMIT:
                break
    except Exception as error:  # whatever an exporter raises
        return math.inf, one_line(error)
    return gap, "" if gap <= ONNX_LIMIT else f"the ONNX file differs by {gap:.2g} of the largest output"


def _exported_gap(arch: Architecture, seed: int) -> float:
    """Return the largest difference between a network and its ONNX file, as a share of the largest output."""
    if arch.inputs.one:
        model, x = arch.model, arch.inputs.random(SEED + 1)
        content, _ = onnx_program(model, arch.example_input, dynamic=False)
    else:  # untrained, a detector finds nothing, or boxes of equal scores, of which others may be left out
        model, x = randomise(arch.model, seed - 1, torch.float32) if seed else arch.model, arch.inputs
        content = _classic(model, x)
    session = onnx_session(content)
    with torch.no_grad():
        output = x.call(model.eval())
    feed = dict(zip((each.name for each in session.get_inputs()), (t.numpy() for t in x.tensors), strict=True))
    wanted = [(place, t.double()) for place, t in tensors_of(output)]
    if not any(t.numel() for _, t in wanted):
        return math.inf
    got = [torch.from_numpy(each).double() for each in session.run(None, feed)]
    if [t.shape for _, t in wanted] != [t.shape for t in got]:
        return math.inf
    pairs = [(t, other) for (_, t), other in zip(wanted, got, strict=True)]
    if (found := dict(wanted)).get("0.boxes") is not None:
        clear, order = _matched(found, {place: t for (place, _), t in zip(wanted, got, strict=True)})
        if not len(clear):
            return math.inf
        pairs = [(t[clear], other[order]) for t, other in pairs]
    gaps = [float((a - b).abs().max()) for a, b in pairs if a.numel()]
    return max(gaps, default=0.0) / max([1.0, *(float(t.abs().max()) for t, _ in pairs if t.numel())])


def _matched(wanted: dict[str, Tensor], got: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return which boxes have a score of their own, and which found box each of them is.

    Of boxes with equal scores, another library leaves others out, and gives them in another order.
    """
    scores = wanted["0.scores"]
    apart = (scores[:, None] - scores).abs() + torch.eye(len(scores))
    clear = torch.where(apart.min(1)[0] > APART)[0] if len(scores) > 1 else torch.arange(len(scores))
    rows = [torch.cat([t["0.boxes"], t["0.scores"][:, None], t["0.labels"][:, None]], 1) for t in (wanted, got)]
    return clear, torch.cdist(rows[0][clear], rows[1]).argmin(1) if len(clear) else clear


def _classic(model: nn.Module, inputs: Inputs) -> bytes:
    """Export by TorchScript: torchvision's detectors, which count their boxes, take no other way."""
    held = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), inputs.args, held, dynamo=False, opset_version=17)
    return held.getvalue()


# ------------------------------------------------------------------ beside us


def rival(name: str) -> Cell:
    """torch-pruning's stock call at half the channels, what makes the outputs protected by hand."""
    import torch_pruning

    model, given = build(name)
    example = Inputs.of(torch.randn(1, *given)) if isinstance(given, tuple) else Inputs((given,))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    with torch.no_grad():
        sizes = [tuple(t.shape) for t in tensors_in(example.call(model))]
    if family_of(name):
        ignored = ignored_by_hand(name, model)
    else:
        ignored = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == sizes[0][1]]
    more: dict[str, Any] = {}
    if not (example.one and isinstance(model(*example.args), Tensor)):
        more = {"forward_fn": lambda model, x: tensors_in(model(x))}
    before = sum(p.numel() for p in model.parameters())
    importance = torch_pruning.importance.MagnitudeImportance(p=2)

    def halve() -> None:
        pruner = torch_pruning.pruner.BasePruner(
            model, example.args[0], importance, pruning_ratio=0.5, ignored_layers=ignored, **more
        )
        pruner.step()

    try:
        _, seconds = timed(halve)
        after = [tuple(t.shape) for t in tensors_in(example.call(model))]
    except Exception as error:  # a rival's failure is a result, not ours to mend
        return {"ok": False, "reason": one_line(error)}
    share = sum(p.numel() for p in model.parameters()) / before
    problem = "" if share < SHARE else f"parameters fall to {share:.0%} only"
    if family_of(name) == "timm-features":  # the maps' own channels are pruned, too
        sizes, after = ([(shape[0], *shape[2:]) for shape in each] for each in (sizes, after))
    elif family_of(name) == "detection":  # how many boxes there are depends on the weights
        sizes, after = ([shape[1:] for shape in each] for each in (sizes, after))
    problem = problem if after == sizes else f"the output's shape becomes {after}"
    cell = {"ok": not problem, "params_share": round(share, 4), "seconds": round(seconds, 2)}
    return {**cell, "reason": one_line(problem)} if problem else cell
