"""The command line: each command parses its options, calls the library and prints.

Results go to standard output, progress and errors to standard error; with ``--json`` standard output holds one
JSON document and nothing else. Exit codes: 0 done, 2 wrong input, 3 a result that breaks a promise, 130 Ctrl-C.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convwright import __version__
from convwright.arguments import OPTIMIZE
from convwright.cli import leaving, options, printing
from convwright.cli.paths import refuse_missing
from convwright.cli.recipes import recipes
from convwright.cli.reporting import export, report, write_report
from convwright.errors import ConvwrightError, did_you_mean

if TYPE_CHECKING:
    from convwright.runs import Result

# torch and everything built on it are imported where they are used: `version` and `--help` answer at once.


app = typer.Typer(
    name="convwright",
    cls=printing.Commands,
    help="Redesign convolutional networks to a budget, with the trained weights kept and every number proved.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

plans = typer.Typer(
    cls=printing.Commands,
    help="Look into plans: `convwright plan show PLAN` says what a plan would do.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(plans, name="plan")

app.add_typer(recipes, name="recipe")
app.command()(export)
app.command()(report)

# Written out, since to ask the registry is to load torch; a test compares the two.
_METHODS = (
    "auto, channel-search, conflicts, greedy, kernel, pareto, phased, random, receptive-field, saliency, scaling, "
    "uniform"
)
_TASKS = ("detection", "keypoints", "multilabel", "regression", "restoration", "segmentation")  # likewise


@app.callback()
def _common(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    """Redesign convolutional networks to a budget, with the trained weights kept and every number proved."""


@app.command()
def version() -> None:
    """Print the version."""
    print(f"convwright {__version__}")


@app.command()
def analyze(
    model: options.Model,
    input_shape: options.Input = None,
    latency: Annotated[bool, typer.Option("--latency", help="Measure the network and each of its layers.")] = False,
    as_json: options.Json = False,
) -> None:
    """Show what a network is made of, what it costs, and which layers see nothing new."""
    refuse_missing(model)
    from convwright.architecture import parse_inputs, read
    from convwright.cost import layer_latencies
    from convwright.diagnose.analyze import FieldReport, as_dict, field_tables
    from convwright.diagnose.tables import analysis

    arch = read(model, None if input_shape is None else parse_inputs(input_shape))
    latencies = layer_latencies(arch) if latency else None
    fields = FieldReport.of(arch)
    if as_json:
        return printing.print_json(as_dict(arch, latencies, fields))
    return printing.show(*analysis(arch, latencies), *field_tables(arch, fields))


@app.command()
def doctor(
    model: options.Model,
    input_shape: options.Input = None,
    num_classes: Annotated[int | None, typer.Option(help="Outputs of the network; default: its own.", min=1)] = None,
    latency: Annotated[
        str | None,
        typer.Option(
            help="Say instead where its time goes on a runtime (as in a budget, or `fastest`), and why.",
            metavar="RUNTIME",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --latency: where to write a roofline (.svg).")] = None,
    as_json: options.Json = False,
) -> None:
    """Say what of a network can be changed and what cannot, why, and which line to change; or where its time goes."""
    refuse_missing(model)
    if latency is not None:
        if out is not None and out.suffix != ".svg":
            raise ConvwrightError(f"--out {out}: the roofline is an SVG file; let its name end with .svg")
        from convwright.diagnose.latency import roofline, told, why_not_faster
        from convwright.runs.directory.files import write_text
        from convwright.runs.load import read_named

        found = why_not_faster(read_named(model, input_shape, num_classes), latency, leaving.say)
        if out is not None:
            write_text(out, roofline(found))
        return printing.print_json(found.as_dict()) if as_json else printing.show(*told(found))
    if out is not None:
        raise ConvwrightError("--out is for the picture of --latency; give --latency RUNTIME, too")
    from convwright.diagnose.doctor import diagnosed, examine

    diagnosis = examine(model, input_shape, num_classes)
    return printing.print_json(diagnosis.as_dict()) if as_json else printing.show(*diagnosed(diagnosis))


@app.command()
def train(
    model: options.Model,
    data: options.Data,
    task: options.Task = None,
    recipe: options.RecipeName = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the checkpoint and the trained weights.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    seed: options.Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the checkpoint in --out.")] = False,
    input_shape: options.Input = None,
    data_dir: options.DataDir = None,
    weights: options.Weights = None,
    pretrained: options.Pretrained = False,
    devices: Annotated[int, typer.Option(help="Processes that train together, one per device.", min=1)] = 1,
    reestimate: Annotated[bool, typer.Option("--reestimate/--no-reestimate", help=OPTIMIZE["reestimate"])] = True,
    as_json: options.Json = False,
) -> None:
    """Train a network by a recipe and judge it on the test part."""
    arguments = {**_without(locals(), "seed", "epochs", "as_json", "task"), "data": _of_task(task, data)}
    refuse_missing(model, data, weights=weights, recipe=recipe, data_dir=data_dir)
    from convwright.diagnose.tables import training, warned
    from convwright.runs.train import train_named

    chosen: dict[str, int] = {"seed": seed} if epochs is None else {"seed": seed, "epochs": epochs}
    with leaving.resumable(out, leaving.command()):
        content = train_named(**arguments, changes=chosen)
    return printing.print_json(content) if as_json else printing.show(*warned(content), training(content))


@app.command(cls=options.WithAddresses)
def optimize(
    model: options.Model,
    data: options.Data,
    task: options.Task = None,
    budget: Annotated[list[str] | None, typer.Option(help=OPTIMIZE["budget"])] = None,
    method: Annotated[str | None, typer.Option(help=f"{OPTIMIZE['method']} One of {_METHODS}.")] = None,
    objective: Annotated[str | None, typer.Option(help=OPTIMIZE["objective"])] = None,
    out: Annotated[Path | None, typer.Option(help=OPTIMIZE["out"])] = None,
    resume: Annotated[bool, typer.Option("--resume", help=OPTIMIZE["resume"])] = False,
    time: Annotated[str | None, typer.Option(help=OPTIMIZE["time"], metavar="LENGTH")] = None,
    jobs: options.Jobs = 1,
    isolate: options.Isolate = False,
    threads: options.Threads = None,
    ray: options.Ray = None,
    cpus_per_trial: options.CpusPerTrial = None,
    gpus_per_trial: options.GpusPerTrial = 0.0,
    storage: Annotated[str | None, typer.Option(help=OPTIMIZE["storage"], metavar="URL")] = None,
    device_command: Annotated[str | None, typer.Option(help=OPTIMIZE["device_command"], metavar="COMMAND")] = None,
    seed: options.Seed = 0,
    recipe: options.RecipeName = None,
    epochs: Annotated[int | None, typer.Option(help=OPTIMIZE["epochs"])] = None,
    tune_epochs: Annotated[int | None, typer.Option(help=OPTIMIZE["tune_epochs"])] = None,
    divisor: Annotated[str, typer.Option(help=OPTIMIZE["divisor"], metavar="N|auto")] = "auto",
    constraints: Annotated[Path | None, typer.Option(help=OPTIMIZE["constraints"], readable=False)] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="Layer or group to leave alone, or a pattern (layer1.*); one or several.", metavar="NAME"),
    ] = None,
    option: Annotated[list[str] | None, typer.Option(help=OPTIMIZE["options"], metavar="NAME=VALUE")] = None,
    proxy_classes: Annotated[int | None, typer.Option(help=OPTIMIZE["proxy_classes"], metavar="N")] = None,
    proxy_samples: Annotated[int | None, typer.Option(help=OPTIMIZE["proxy_samples"], metavar="N")] = None,
    max_drop: Annotated[float | None, typer.Option(help=OPTIMIZE["max_drop"], metavar="POINTS")] = None,
    baseline: Annotated[bool, typer.Option("--baseline/--no-baseline", help=OPTIMIZE["baseline"])] = True,
    reestimate: Annotated[bool, typer.Option("--reestimate/--no-reestimate", help=OPTIMIZE["reestimate"])] = True,
    merge: Annotated[bool | None, typer.Option("--merge/--no-merge", help=OPTIMIZE["merge"])] = None,
    refit: Annotated[bool | None, typer.Option("--refit/--no-refit", help=OPTIMIZE["refit"])] = None,
    calibration: Annotated[int, typer.Option(help=OPTIMIZE["calibration"], metavar="N")] = 512,
    distill: Annotated[bool, typer.Option("--distill/--no-distill", help=OPTIMIZE["distill"])] = False,
    input_shape: options.Input = None,
    data_dir: options.DataDir = None,
    weights: options.Weights = None,
    pretrained: options.Pretrained = False,
    as_json: options.Json = False,
) -> None:
    """Redesign a network to a budget, and prove the result."""
    _searched("optimize", locals())


def _of_task(task: str | None, data: str) -> str:
    """Return data with the name of their task, as Python takes them."""
    known = ("classification", *_TASKS)
    if task not in (None, *known):
        raise ConvwrightError(f"unknown task {task!r}.{did_you_mean(task or '', known)} Give one of {', '.join(known)}")
    return data if task in (None, "classification") else f"{task}:{data}"


def _without(arguments: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in names}


def compress(**arguments: Any) -> None:
    """Make a trained network cheaper: cut what it misses least, repair it, fine-tune it, and prove the result."""
    budget = arguments.pop("budget") or ["macs<=50%"]
    _searched("compress", {**arguments, "budget": budget, "method": None, "objective": None})


# Its options are those of `optimize` but for these two.
_OPTIONS = _without(inspect.signature(optimize, eval_str=True).parameters, "method", "objective")
compress.__signature__ = inspect.Signature(list(_OPTIONS.values()))  # type: ignore[attr-defined]
compress.__annotations__ = {name: each.annotation for name, each in _OPTIONS.items()}
app.command(cls=options.WithAddresses)(compress)


def _searched(command: str, given: dict[str, Any]) -> None:
    model, budget, objective = given["model"], given["budget"] or (), given["objective"] or ()
    arguments: dict[str, Any] = {name: value for name, value in given.items() if name in OPTIMIZE}
    refuse_missing(model, given["data"], **{name: given[name] for name in ("weights", "recipe", "data_dir")})
    from convwright.runs.config import default_folder
    from convwright.runs.executors import Placement
    from convwright.runs.optimize import compress as shrink
    from convwright.runs.optimize import optimize as run

    arguments["budget"], arguments["data"] = budget, _of_task(given["task"], given["data"])
    arguments["divisor"] = options.parse_divisor(given["divisor"])
    if given["keep"]:
        from convwright.edits.constraints import Constraints

        arguments["constraints"] = Constraints.of(given["constraints"]).also(given["keep"])
    arguments["out"] = folder = given["out"] or default_folder(model, budget, objective)
    arguments["options"] = options.parse_options(given["option"] or ())
    placed = ("jobs", "threads", "ray", "cpus_per_trial", "gpus_per_trial", "isolate")
    arguments["placement"] = Placement(*(given[name] for name in placed))
    as_json = given["as_json"]
    start: Callable[..., Result] = run
    if command == "compress":
        arguments, start = _without(arguments, "method", "objective"), shrink
    with leaving.resumable(folder, leaving.command()):
        try:
            result = start(**arguments, say=leaving.say, command=leaving.command())
        except ConvwrightError as error:
            kept: Result | None = getattr(error, "result", None)
            if kept is not None:  # it breaks a promise, and is there all the same
                _show_result(kept, as_json)
            raise
    _show_result(result, as_json)


@app.command()
def search(
    model: options.Model,
    budget: Annotated[list[str], typer.Option(help=OPTIMIZE["budget"])],
    train_command: Annotated[
        str, typer.Option(help="Trains a candidate; has {plan}, {weights}, {out}, {epochs}, {seed} and {trial}.")
    ],
    method: Annotated[str, typer.Option(help=f"One of {_METHODS}; but conflicts.")] = "auto",
    out: Annotated[Path | None, typer.Option(help=OPTIMIZE["out"])] = None,
    storage: Annotated[str | None, typer.Option(help=OPTIMIZE["storage"], metavar="URL")] = None,
    lower_is_better: Annotated[bool, typer.Option("--lower-is-better", help="The score is a loss.")] = False,
    epochs: Annotated[int, typer.Option(help="Of the first training; 0: the network comes trained.", min=0)] = 10,
    tune_epochs: Annotated[int, typer.Option(help="Of every later training.", min=1)] = 5,
    seed: options.Seed = 0,
    divisor: Annotated[str, typer.Option(help=OPTIMIZE["divisor"], metavar="N|auto")] = "auto",
    constraints: Annotated[Path | None, typer.Option(help=OPTIMIZE["constraints"], readable=False)] = None,
    option: Annotated[list[str] | None, typer.Option(help=OPTIMIZE["options"], metavar="NAME=VALUE")] = None,
    baseline: Annotated[bool, typer.Option("--baseline/--no-baseline", help=OPTIMIZE["baseline"])] = True,
    lease: Annotated[float, typer.Option(help="Seconds until the trial of a lost process is given on.")] = 60.0,
    input_shape: options.Input = None,
    num_classes: Annotated[int | None, typer.Option(help="Outputs of the network; default: its own.", min=1)] = None,
    weights: options.Weights = None,
    as_json: options.Json = False,
) -> None:
    """Redesign a network to a budget by trainings of your own: a command that trains each candidate."""
    arguments = _without(locals(), "option", "lower_is_better", "as_json")
    refuse_missing(model, weights=weights)
    from convwright.runs.config import default_folder
    from convwright.runs.train_command import search_by_command

    folder = out or default_folder(model, budget)
    more = {"out": folder, "divisor": options.parse_divisor(divisor), "options": options.parse_options(option or ())}
    how: dict[str, Any] = {"higher_is_better": not lower_is_better, "say": leaving.say, "command": leaving.command()}
    with leaving.resumable(folder, leaving.command(), flag=""):
        result = search_by_command(**{**arguments, **more, **how})
    _show_result(result, as_json)


@app.command()
def ablate(
    model: options.Model,
    data: options.Data,
    techniques: Annotated[str, typer.Option(help="Names, such as mixup,sam; with options: 'sam(rho=0.1),mixup'.")],
    seeds: Annotated[int, typer.Option(help="Trainings per row.")] = 3,
    all_pairs: Annotated[bool, typer.Option("--all-pairs", help="Also every pair of techniques.")] = False,
    together: Annotated[bool, typer.Option("--together", help="Also all techniques at once.")] = False,
    recipe: options.RecipeName = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    test: Annotated[bool, typer.Option("--test", help="At the end, judge all rows on the test images, too.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder; default: runs/ablate/MODEL-DATA.")] = None,
    jobs: options.Jobs = 1,
    threads: options.Threads = None,
    input_shape: options.Input = None,
    data_dir: options.DataDir = None,
    weights: options.Weights = None,
    as_json: options.Json = False,
) -> None:
    """Say what each training technique is worth on a network and data, beside a control without any."""
    arguments = _without(locals(), "out", "as_json")
    refuse_missing(model, data, weights=weights, recipe=recipe, data_dir=data_dir)
    from convwright.experiments.ablation import ablate as run
    from convwright.experiments.ablation import default_folder
    from convwright.experiments.results_table import ablated

    folder = out if out is not None else default_folder(model, data)
    with leaving.resumable(folder, leaving.command(), flag=""):
        content = run(**arguments, folder=folder, say=leaving.say, command=leaving.command())
    if as_json:
        return printing.print_json({**content, "folder": str(folder)})
    printing.show(ablated(content).rich())
    return leaving.say(f"table.md, picture.svg and result.json are in {folder}")


@app.command()
def reproduce(
    name: Annotated[str | None, typer.Argument(help="The experiment; without it, all are listed.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Minutes: few epochs, to see that all works.")] = False,
    full: Annotated[bool, typer.Option("--full", help="The paper's own size.")] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="A row, or a pattern ('a-*'); may be given several times.", metavar="ROW")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="At most so many trainings per row.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; default: runs/reproduce/NAME[-quick|-full].")] = None,
    jobs: options.Jobs = 1,
    threads: options.Threads = None,
    data: Annotated[
        str | None, typer.Option(help="Where the images of a folder are, for experiments on one: folder:PATH.")
    ] = None,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """Train the rows of a paper's table and set them beside its numbers."""
    arguments = _without(locals(), "quick", "full", "only", "out", "as_json")
    refuse_missing(data_dir=data_dir)
    from convwright.experiments.reproduce import default_folder, listed, size_of
    from convwright.experiments.reproduce import reproduce as run
    from convwright.experiments.results_table import experiments, reproduced

    size = size_of(quick, full)
    if name is None:
        return printing.print_json(listed()) if as_json else printing.show(experiments(listed()).rich())
    folder = out if out is not None else default_folder(name, size)
    with leaving.resumable(folder, leaving.command(), flag=""):
        call: dict[str, Any] = {"folder": folder, "size": size, "only": only or (), "say": leaving.say}
        content = run(**arguments, **call, command=leaving.command())
    if as_json:
        return printing.print_json({**content, "folder": str(folder)})
    printing.show(reproduced(content).rich())
    return leaving.say(f"table.md and result.json are in {folder}")


@app.command()
def apply(
    plan: Annotated[Path, typer.Argument(help="A plan.json.", readable=False)],
    model: options.Model,
    weights: options.Weights = None,
    save: Annotated[Path | None, typer.Option(help="Write the changed network's weights (.safetensors).")] = None,
    num_classes: Annotated[int | None, typer.Option(help="Outputs; default: as recorded beside the plan.")] = None,
    as_json: options.Json = False,
) -> None:
    """Replay a plan on a fresh copy of its network; with --weights, take the weights saved with it."""
    refuse_missing(model, plan=plan, weights=weights)
    from convwright.diagnose.apply_plan import replay
    from convwright.diagnose.tables import replayed

    content = replay(plan, model, weights=weights, save=save, num_classes=num_classes)
    return printing.print_json(content) if as_json else printing.show(replayed(content))


@plans.command("show")
def plan_show(
    plan: Annotated[Path, typer.Argument(help="A plan.json.", readable=False)],
    model: Annotated[str | None, typer.Option(help="Its network; default: the one that the plan names.")] = None,
    input_shape: options.Input = None,
    num_classes: Annotated[int | None, typer.Option(help="Outputs; default: as recorded with the plan.")] = None,
    as_json: options.Json = False,
) -> None:
    """Show what a plan would do, edit by edit: what changes, what changes along and why, what it costs."""
    refuse_missing(model, plan=plan)
    from convwright.diagnose.apply_plan import planned, show

    loaded, steps = show(plan, model, input_shape=input_shape, num_classes=num_classes)
    if as_json:
        return printing.print_json({"model": loaded.model, "edits": [step.as_dict() for step in steps]})
    return printing.show(planned(loaded, steps))


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="Run directory; default: a new one in runs/.")] = None,
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Halve a small residual network on embedded data, in a few minutes on any machine."""
    from convwright.runs.demo import command_line, free_folder
    from convwright.runs.demo import demo as run

    folder = out if out is not None else free_folder()
    with leaving.resumable(folder, command_line(folder, seed)):
        result = run(folder, seed, leaving.say)
    _show_result(result, as_json)


def _show_result(result: Result, as_json: bool) -> None:
    write_report(result)
    if as_json:
        return printing.print_json({**result.data, "folder": str(result.folder)})
    from convwright.diagnose.tables import front_table, result_table, trials_table, warned

    if result.data.get("decisions"):
        printing.show(trials_table(result.data))
    if result.data.get("front"):
        printing.show(front_table(result.data))
        leaving.say(f"each of them but the untouched network is in {result.folder / 'front'}")
    printing.show(*warned(result.data), result_table(result.data))
    return leaving.say(f"plan.json, model.safetensors and result.json are in {result.folder}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    # Before torch is loaded: on a machine that others use too, threads that spin while they wait for each other make a
    # training several times slower (a ResNet-20 step on two busy cores: 1.3 s, and 0.3 s where they sleep).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(leaving.run(app, list(sys.argv[1:] if arguments is None else arguments)))
