"""What `optimize` takes is declared once: signature, docstring, reference and command line follow."""

import inspect
import json
import shlex
import sys
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import get_type_hints

import pytest
import typer.main

from convwright import cli
from convwright.arguments import OPTIMIZE
from convwright.edits import Constraints
from convwright.runs import optimize
from convwright.runs.config import OptimizeOptions, RunConfig
from convwright.runs.executors import Placement
from convwright.training import Recipe

FIELDS = {each.name: each for each in fields(RunConfig)}
POSITIONAL = ("model", "data", "budget", "method", "out", "seed", "recipe")
COMMAND = {p.name: p for p in typer.main.get_command(cli.app).commands["optimize"].params}
# What the command line puts together to one argument, or keeps to itself.
PUT_TOGETHER = {
    "task",
    "jobs",
    "isolate",
    "threads",
    "ray",
    "cpus_per_trial",
    "gpus_per_trial",
    "option",
    "keep",
    "as_json",
}


def test_every_argument_is_described():
    assert list(OPTIMIZE) == list(FIELDS)


def test_the_options_are_those_of_the_config():
    declared = get_type_hints(RunConfig)
    assert get_type_hints(OptimizeOptions) == {n: declared[n] for n in FIELDS if n not in POSITIONAL}
    *named, rest = inspect.signature(optimize).parameters.values()
    assert tuple(p.name for p in named) == POSITIONAL
    assert rest.kind is inspect.Parameter.VAR_KEYWORD
    for parameter in named:
        default = FIELDS[parameter.name].default
        assert parameter.annotation == FIELDS[parameter.name].type
        assert parameter.default == (inspect.Parameter.empty if default is MISSING else default)


def test_the_docstring_lists_every_argument():
    words = " ".join(inspect.getdoc(optimize).split())
    for name, text in OPTIMIZE.items():
        assert f" {name}: {text} " in words
    assert words.index("Args:") < words.index("Returns:") < words.index("Raises:")


@pytest.mark.parametrize(
    ("wrong", "hint"), [("epoch", " Did you mean epochs?"), ("budgets", " Did you mean budget?"), ("q", "")]
)
def test_an_unknown_argument_is_refused_as_python_does(wrong, hint):
    with pytest.raises(TypeError) as refused:
        optimize("zoo:mnist-a", "fashion-mini", "macs<=50%", **{wrong: 3})
    assert str(refused.value) == f"optimize() got an unexpected keyword argument {wrong!r}.{hint}"


def test_the_command_line_has_the_same_words_and_defaults():
    assert COMMAND.keys() - OPTIMIZE.keys() == PUT_TOGETHER
    for name in (COMMAND.keys() & OPTIMIZE.keys()) - {"model", "data"}:
        assert OPTIMIZE[name] in COMMAND[name].help
        if name != "budget":  # None stands for none
            assert COMMAND[name].default == FIELDS[name].default


def test_the_command_line_hands_everything_on(monkeypatch, tmp_path):
    seen = {}
    (tmp_path / "d").mkdir()
    (tmp_path / "w").touch()
    (tmp_path / "c").write_text("keep: [a]\nresolution: fixed\n")

    def stop(**arguments):
        seen.update(arguments)
        raise KeyboardInterrupt

    # By the table of modules: the package has the function under the name of the module.
    monkeypatch.setattr(sys.modules["convwright.runs.optimize"], "optimize", stop)
    words = (
        "optimize net --data set --budget macs<=1 --budget params<=2 --method auto --objective macs --out o --resume"
    )
    words += (
        " --time 3m --jobs 4 --isolate --threads 5 --ray a --cpus-per-trial 6 --gpus-per-trial 7 --storage s --seed 8"
    )
    words += " --recipe r --epochs 9 --tune-epochs 10 --divisor 11 --option x=12 --proxy-classes 13 --proxy-samples 14"
    words += " --constraints c --keep b.* --keep fc"
    words += " --no-baseline --no-reestimate --input 1x2x3 --data-dir d --weights w --pretrained --max-drop 15"
    words += " --no-merge --refit --calibration 16 --distill --device-command y"
    with pytest.raises(SystemExit):
        cli.main(words.split())
    assert seen.pop("say")
    assert seen == {
        "model": "net", "data": "set", "budget": ["macs<=1", "params<=2"], "method": "auto", "objective": "macs",
        "out": Path("o"), "resume": True, "time": "3m", "placement": Placement(4, 5, "a", 6.0, 7.0, True),
        "storage": "s", "seed": 8, "recipe": "r", "epochs": 9, "tune_epochs": 10, "divisor": 11, "options": {"x": 12},
        "proxy_classes": 13, "proxy_samples": 14, "input_shape": "1x2x3", "data_dir": Path("d"), "weights": Path("w"),
        "constraints": Constraints(keep=("a", "b.*", "fc"), resolution="fixed"),
        "pretrained": True, "max_drop": 15.0, "baseline": False, "reestimate": False,
        "merge": False, "refit": True, "calibration": 16, "distill": True, "device_command": "y",
        "command": f"convwright {shlex.join(words.split())}",
    }  # fmt: skip


# ------------------------------------------------------------------ trained weights are fine-tuned


def test_trained_weights_without_a_recipe_are_fine_tuned(tmp_path):
    tuned = RunConfig("zoo:resnet20", "fashion-mini", "macs<=50%", weights="w.safetensors")
    assert tuned.finetunes
    assert tuned.training == Recipe.preset("finetune")
    assert (tuned.base_epochs(trained=True), tuned.later_epochs) == (0, tuned.training.epochs)
    stated = replace(tuned, recipe="default", tune_epochs=3)
    assert (stated.finetunes, stated.training, stated.later_epochs) == (False, Recipe(), 3)
    plain = replace(tuned, weights=None)
    assert (plain.finetunes, plain.training, plain.later_epochs) == (False, Recipe(), 10)


@pytest.mark.parametrize(("begun", "finetunes"), [("default", False), ("finetune", True)])
def test_a_run_that_was_begun_with_another_default_keeps_it(tmp_path, begun, finetunes):
    recipe = Recipe.preset(begun).model_dump(mode="json")
    recipe = {name: value for name, value in recipe.items() if not name.startswith("lr_")}  # added since
    recipe |= {} if begun == "default" else Recipe.preset(begun).model_dump(mode="json")
    content = {"format": "convwright run", "version": 1, "settings": {"recipe": recipe}, "settled": {}}
    (tmp_path / "run.json").write_text(json.dumps(content))
    config = RunConfig("zoo:resnet20", "fashion-mini", out=tmp_path, resume=True, weights="w.safetensors")
    assert config.finetunes == finetunes
    assert config.training == Recipe.preset(begun)
    assert config.later_epochs == (config.training.epochs if finetunes else 10)
