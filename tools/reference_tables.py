"""Tables made anew from the package itself: the zoo, shares of stages, the support matrix, the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from functools import partial
from typing import Any

import support_page
from table_kit import load, markdown, missing, provenance, table

# ------------------------------------------------------------------ docs/zoo.md


@table("zoo")
def zoo() -> str:
    """Every registered network, built on empty weights and counted by torch's own counter."""
    import torch

    from convwright import zoo as registry
    from convwright.cost import count_by_torch

    rows = []
    for name in registry.names():
        entry = registry.entry(name)
        with torch.device("meta"):
            model, image = registry.create(name), torch.zeros(1, *entry.input_shape)
        params = sum(p.numel() for p in model.parameters())
        shape = "x".join(map(str, entry.input_shape))
        macs = count_by_torch(model, image)
        rows.append((f"`zoo:{name}`", shape, entry.num_classes, f"{params:,}", f"{macs:,}", entry.source))
    return markdown(("name", "image", "classes", "parameters", "MACs", "source"), rows, right=(2, 3, 4))


# ------------------------------------------------------------------ docs/greedy-enlarging.md


@table("enlarging")
def enlarging() -> str:
    """What the decisions of a whole greedy run cost."""
    data = load("enlarging")
    if not data:
        return missing("enlarging")
    rows = [(row["candidates"], f"{row['costed']:,}", f"{row['processor_seconds']:.2f} s") for row in data["rows"]]
    text = markdown(("candidates", "networks costed", "processor time"), rows, right=(0, 1, 2))
    course = f"a run of `{data['network']}` to {data['target'] / 1e6:.0f}M MACs in {data['steps']} steps"
    begin = (
        f"All decisions and plans of {course}, without training; "
        f"reading the network takes {data['reading_processor_seconds']:.1f} s before it."
    )
    return f"{begin}\n\n{text}\n\n{provenance(data)}"


# ------------------------------------------------------------------ docs/stage-shares.md


@table("stage-shares")
def stage_shares() -> str:
    """Where each network puts its MACs: stem, stages, head."""
    import torch
    import torchvision

    from convwright import zoo as registry

    networks = [(f"zoo:{n}", registry.entry(n).input_shape[-1], partial(registry.create, n)) for n in _STAGED]
    networks += [(f"torchvision:{n}", 224, getattr(torchvision.models, n)) for n in _STAGED_TORCHVISION]
    rows = []
    for name, side, make in networks:
        with torch.device("meta"):
            model, image = make().eval(), torch.zeros(1, 3, side, side)
        counts = _child_macs(model, image)
        total = sum(counts.values())
        places = [i for i, child in enumerate(counts) if re.fullmatch(r"(stage|layer)\d+", child)]
        values = list(counts.values())
        stages = [values[i] for i in places]
        ends = sum(values[: places[0]]), sum(values[places[-1] + 1 :])
        shares = "/".join(f"{100 * value / total:.1f}" for value in (ends[0], *stages, ends[1]))
        rows.append((f"`{name}`", side, f"{total:,}", shares))
    return markdown(("network", "image side", "MACs", "stem / stages / head, %"), rows, right=(1, 2))


_STAGED = (
    "ghostnet", "ghostnet-large", "s-ghostnet-b1", "s-ghostnet-eval-b1", "s-ghostnet-b4", "s-ghostnet-example",
    *(f"efficientnet-b{number}" for number in range(8)),
)  # fmt: skip
_STAGED_TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101")


def _child_macs(model: Any, image: Any) -> dict[str, int]:
    """Count the MACs of each child of a network, in the order of their names, by torch's own counter."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    found: dict[str, int] = {}
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.BatchNorm2d):  # no MACs, and by far the slowest on empty weights
                setattr(module, name, torch.nn.Identity())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for name, child in model.named_children():
            child.register_forward_pre_hook(lambda *_, n=name: found.update({n: -counter.get_total_flops() // 2}))
            child.register_forward_hook(lambda *_, n=name: found.update({n: found[n] + counter.get_total_flops() // 2}))
        model(image)
    return found


# ------------------------------------------------------------------ docs/support.md


@table("support-summary")
def support_summary() -> str:
    """How many networks each kind of edit works on."""
    return support_page.summary(markdown)


@table("support")
def support() -> str:
    """The matrix itself, a line per network."""
    return support_page.table(markdown)


@table("support-reasons")
def support_reasons() -> str:
    """Why cells of the matrix are not exact."""
    return support_page.reasons()


# ------------------------------------------------------------------ docs/api.md


@table("optimize")
def optimize() -> str:
    """What `optimize` takes, from its declaration."""
    from convwright.arguments import OPTIMIZE
    from convwright.runs.config import RunConfig

    rows = [
        (
            f"`{each.name}`",
            f"`{each.type.replace(' | ', ' or ')}`",
            "" if each.default is MISSING else f"`{each.default!r}`",
            OPTIMIZE[each.name],
        )
        for each in fields(RunConfig)
    ]
    return markdown(("argument", "type", "default", "meaning"), rows)


# ------------------------------------------------------------------ docs/cli.md


@table("cli")
def command_line() -> str:
    """Every command with its arguments and options, from the program itself."""
    import typer.main

    from convwright.cli import app

    group: Any = typer.main.get_command(app)
    return "\n\n".join(_command(name, command) for name, command in _leaves(group))


def _leaves(group: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the commands of a group by their full names, those of groups in it included."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _leaves(command, f"{above}{name} ")
        else:
            yield above + name, command


def _command(name: str, command: Any) -> str:
    rows = [
        (
            f"`{_spelling(p)}`",
            "yes" if p.required else "no",
            _default(p),
            getattr(p, "help", None) or "",
        )
        for p in command.params
        if p.name != "help"
    ]
    usage = " ".join(_spelling(p) for p in command.params if p.required)
    head = f"### {name}\n\n{command.help}\n\n```text\nconvwright {name}{' ' + usage if usage else ''} [options]\n```"
    listed = markdown(("argument or option", "required", "default", "meaning"), rows) if rows else "No options."
    return f"{head}\n\n{listed}"


def _spelling(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return parameter.name.upper()
    text = parameter.opts[0]
    if getattr(parameter, "is_flag", False):
        return "/".join((text, *parameter.secondary_opts))
    return f"{text} {parameter.name.upper().removesuffix('_SHAPE').replace('_', '-')}"


def _default(parameter: Any) -> str:
    value = parameter.default
    plain = isinstance(value, (str, int)) and not isinstance(value, bool)
    return f"`{value}`" if plain else ""
