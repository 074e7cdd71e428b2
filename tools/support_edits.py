"""What the support matrix does to one network: read it, try every kind of edit, and say what came of each.

A cell says ``exact`` (the measured difference to what the edit promises is at most 1e-10), ``inexact`` (more, and the
library says why), ``not applicable`` (the network has nothing that the edit is for) or ``fail``.
"""

from __future__ import annotations

import gc
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
from support_networks import SIDES
from torch import Tensor, nn

import convwright as cw
from convwright.architecture import Architecture, Block, Layer, create
from convwright.edits import scale_widths
from convwright.errors import ConvwrightError, EditError, ReadError

Cell = dict[str, Any]
SEED = 0
MOST_MACS = 2_000_000_000  # a network that costs more at its usual input is measured on a smaller one
SMALL_SIDES = (128, 160)
MANY = 40_000_000  # parameters; above, memory is given back after every edit
HUGE = 100_000_000  # parameters; above, every third group grows
SHARE = 0.6  # half of the channels must leave less than this of the parameters
WORDS = 240  # characters of a reason


@dataclass(eq=False)
class Subject:
    """One network while it is measured.

    Attributes:
        name: e.g. ``"timm:resnet18"``.
        arch: the network as it was read.
        worked: edits that were carried out, by kind; ``composed`` puts some of them together.
    """

    name: str
    arch: Architecture
    worked: dict[str, list[Any]] = field(default_factory=dict)


KINDS: dict[str, Callable[[Subject], Cell]] = {}


def kind(try_it: Callable[[Subject], Cell]) -> Callable[[Subject], Cell]:
    """Register a column of the matrix under its function's name."""
    KINDS[try_it.__name__] = try_it
    return try_it


# ------------------------------------------------------------------ reading


def build(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a network, the same each time, and its usual input shape."""
    torch.manual_seed(SEED)
    model, shape, _ = create(name)
    return model.eval(), shape or (3, 224, 224)


def read(name: str, side: int | None = None) -> tuple[Subject, Cell]:
    """Read a network on an input that keeps the measurements short, and return what is known of it."""
    model, shape = build(name)
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
        "input": "x".join(map(str, arch.example_input.shape[1:])),
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
    ]
    return found[len(found) // 2] if found else None


def _pads(layer: Layer, module: nn.Conv2d) -> bool:
    """Whether the output is the input's size by the stride: what a kernel of any size can keep."""
    sides = zip(layer.input_shapes[0][2:], layer.output_shape[2:], module.stride, module.kernel_size, strict=True)
    return all(
        after == -(-before // stride) and (kernel > stride or kernel == 1) for before, after, stride, kernel in sides
    )


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
        problem = problem or _train_step(new)
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
        again, seconds = timed(lambda: cw.apply(plan, fresh, subject.arch.example_input, verify=False))
    again.model.load_state_dict(new.model.state_dict())
    x = torch.randn(new.example_input.shape, generator=torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        pairs = zip(tensors(new.model.eval()(x)), tensors(again.model.eval()(x)), strict=True)
        same = all(torch.equal(a, b) for a, b in pairs)
    return "" if same else "the replayed plan gives another output", round(seconds, 2)


def _train_step(new: Architecture) -> str:
    """Run forward in training mode, backward and an optimizer step; return what is not right."""
    model = new.model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = torch.randn(2, *new.example_input.shape[1:], generator=torch.Generator().manual_seed(SEED))
    loss = sum(t.float().square().mean() for t in tensors(model(x)))
    assert isinstance(loss, Tensor)
    loss.backward()
    optimizer.step()
    model.eval()
    return "" if bool(torch.isfinite(loss)) else "the training step's loss is not finite"


def tensors(output: object) -> list[Tensor]:
    """Return the tensors of a model's output, which may be a tuple with gaps."""
    return [output] if isinstance(output, Tensor) else [t for t in output if isinstance(t, Tensor)]  # type: ignore[attr-defined]


# ------------------------------------------------------------------ beside us


def rival(name: str, shape: tuple[int, ...]) -> Cell:
    """torch-pruning's stock call at half the channels, its classifier protected by hand."""
    import torch_pruning

    model, _ = build(name)
    example = torch.randn(1, *shape)
    with torch.no_grad():
        classes = model(example).shape[1]
    before = sum(p.numel() for p in model.parameters())
    ignored = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    importance = torch_pruning.importance.MagnitudeImportance(p=2)

    def halve() -> None:
        pruner = torch_pruning.pruner.BasePruner(model, example, importance, pruning_ratio=0.5, ignored_layers=ignored)
        pruner.step()

    try:
        _, seconds = timed(halve)
        after = tuple(model(example).shape)
    except Exception as error:  # a rival's failure is a result, not ours to mend
        return {"ok": False, "reason": one_line(error)}
    share = sum(p.numel() for p in model.parameters()) / before
    problem = "" if share < SHARE else f"parameters fall to {share:.0%} only"
    problem = problem if after == (1, classes) else f"the output's shape becomes {after}"
    cell = {"ok": not problem, "params_share": round(share, 4), "seconds": round(seconds, 2)}
    return {**cell, "reason": problem} if problem else cell
