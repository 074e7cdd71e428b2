import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convwright import __version__, cli
from convwright.cli import main
from convwright.methods import METHODS
from convwright.report import report_of
from convwright.runs import BrokenBudgetError, optimize, prove
from convwright.runs.directory.files import owned

NETWORK = """
import torch
from torch import nn


class Tiny(nn.Module):
    def __init__(self, num_classes=3, in_channels=1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1)
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x):
        return self.fc(torch.relu(self.conv2(torch.relu(self.conv1(x)))).mean((2, 3)))


class Pair(Tiny):
    def forward(self, x, y):
        return super().forward(x + y)


class Named(Tiny):
    def forward(self, x):
        return {"scores": super().forward(x)}


class Several(Tiny):
    def forward(self, x):
        return {"scores": super().forward(x), "more": super().forward(x)}


class Two(Tiny):
    def __init__(self):
        super().__init__(2)
"""
RECIPE = "epochs: 1\nbatch_size: 32\nlr: 0.05\ncrop_padding: 1\nprecision: fp32\nmemory_format: contiguous\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with networks, data and a recipe; all commands run in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CONVWRIGHT_DATA", raising=False)
    rng = np.random.default_rng(0)

    def pictures(count):
        labels = np.arange(count) % 3
        return (rng.integers(0, 110, (count, 8, 8)) + labels[:, None, None] * 60).astype(np.uint8), labels

    (x, y), (x_test, y_test) = pictures(120), pictures(30)
    np.savez("set.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    np.savez("labels.npz", x_train=x, y_train=y - 1)
    np.savez("odd.npz", x_train=x, y_train=y.astype(float))
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "broken.py").write_text("def Net(:")
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "nan.yaml").write_text(RECIPE.replace("0.05", "1.0e+30") + "schedule: constant\nwarmup: 0\n")
    (tmp_path / "bad.yaml").write_text("epochz: 1\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos" / "a").mkdir(parents=True)
    (tmp_path / "photos" / "a" / "1.png").write_bytes(b"no image")
    return tmp_path


@pytest.fixture
def run(capsys):
    """Run a command; return exit code, standard output and standard error."""

    def command(*words):
        with pytest.raises(SystemExit) as leave:
            main(words)
        out, err = capsys.readouterr()
        return leave.value.code, out, err

    return command


OPTIMIZE = ("optimize", "net.py:Tiny", "--data", "npz:set.npz", "--budget", "macs<=50%", "--recipe", "r.yaml",
            "--method", "uniform")  # fmt: skip


# ------------------------------------------------------------------ what works


def test_version(run):
    assert run("version") == (0, f"convwright {__version__}\n", "")


def test_version_does_not_wait_for_torch():
    code = "import sys, convwright.cli; assert 'torch' not in sys.modules and 'optuna' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help(run):
    code, out, _ = run("--help")
    assert code == 0
    for command in ("analyze", "doctor", "train", "optimize", "apply", "plan", "demo", "version"):
        assert command in out


def test_analyze(run):
    code, out, err = run("analyze", "net.py:Tiny", "--input", "1x8x8")
    assert (code, err) == (0, "")
    assert "conv1" in out
    assert "2 free" in out
    assert "frozen: " in out
    assert "MACs by torch's counter" in out


def test_analyze_json(run):
    code, out, _ = run("analyze", "net.py:Tiny", "--input", "1x8x8", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["macs"] == found["macs_by_torch"] == sum(layer["macs"] for layer in found["layers"])
    assert {"groups", "stages", "by_kind", "feasible"} <= set(found)


def test_analyze_says_which_kernels_see_nothing_new(run):
    code, out, err = run("analyze", "net.py:Tiny", "--input", "1x3x3")
    assert (code, err) == (0, "")
    for text in ("1 of 2 kernels", "nothing new", 'cw.Kernel("conv2", 1)', "Q, the sum of rho", "global pooling"):
        assert text in out
    assert '{"edit": "kernel", "target": "conv2", "size": 1}' in out


def test_analyze_json_has_the_fields(run):
    code, out, _ = run("analyze", "net.py:Tiny", "--input", "1x3x3", "--json")
    found = json.loads(out)["receptive_field"]
    assert code == 0
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert layers["conv2"]["wasted"]
    assert layers["conv2"]["useful_from"] == [4, 4]
    assert found["q"] == sum(stage["share"] for stage in found["stages"])
    (advice,) = found["advice"]
    assert advice["edit"] == {"edit": "kernel", "target": "conv2", "size": 1}
    assert advice["params_saved"] == 8 * 12 * 8
    assert advice["macs_saved"] == 9 * 8 * 12 * 8


def test_doctor(run):
    code, out, err = run("doctor", "net.py:Tiny", "--input", "1x8x8")
    assert (code, err) == (0, "")
    assert "2 of 3 channel groups, 100% of the MACs, can change" in out
    assert "they are the network's output" in out


def test_doctor_json(run):
    code, out, _ = run("doctor", "net.py:Tiny", "--input", "1x8x8", "--num-classes", "5", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["seconds"] > 0
    assert {group["name"] for group in found["free"]} == {"conv1", "conv2"}


def test_plan_show(run, folder):
    import convwright as cw

    arch = cw.read("net.py:Tiny", "1x8x8", num_classes=5)
    plan = arch.apply(cw.Width("conv1", 4), cw.Kernel("conv2", 5)).plan
    plan.save("plan.json")
    code, out, err = run("plan", "show", "plan.json")
    assert (code, err) == (0, "")
    for text in ("1. width conv1: 8 -> 4", "read by conv2", "2. kernel conv2: 3x3 -> 5x5", "in total: MACs "):
        assert text in out
    found = json.loads(run("plan", "show", "plan.json", "--model", "net.py:Tiny", "--json")[1])
    assert [step["edit"]["edit"] for step in found["edits"]] == ["width", "kernel"]
    assert json.loads(run("apply", "plan.json", "net.py:Tiny", "--json")[1])["options"]["num_classes"] == 5
    (folder / "plan.json").write_text(plan.to_json().replace('"conv1"', '"conv7"'))
    code, out, err = run("plan", "show", "plan.json")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "edit 1 (width of conv7) is refused" in err


def test_plan_show_asks_for_a_network_without_a_name(run):
    from convwright.architecture import create, read

    read(create("net.py:Tiny")[0], "1x8x8").plan.save("plan.json")
    code, out, err = run("plan", "show", "plan.json")
    assert (code, out) == (2, "")
    assert "give --model" in err
    assert run("plan", "show", "plan.json", "--model", "net.py:Tiny")[0] == 0


def test_a_long_network_is_folded(run):
    code, out, _ = run("analyze", "zoo:resnet56")
    assert code == 0
    assert "alike, each" in out
    assert len(out.splitlines()) < 130


def test_train(run, folder):
    code, out, err = run("train", "net.py:Tiny", "--data", "npz:set.npz", "--recipe", "r.yaml", "--out", "t", "--json")
    found = json.loads(out)
    assert code == 0
    assert "epoch 1/1" in err
    assert found["test"]["samples"] == 30
    written = {"checkpoint.pt", "model.safetensors", "training.json"}
    assert {path.name for path in (folder / "t").iterdir()} == {*written, ".lock"}
    assert "test accuracy" in run("train", "net.py:Tiny", "--data", "npz:set.npz", "--recipe", "r.yaml")[1]


def test_train_with_techniques_that_edit(run, folder):
    """What is written is the network that was trained, and its plan replays on a fresh one."""
    text = (folder / "r.yaml").read_text(encoding="utf-8")
    (folder / "se.yaml").write_text(
        text + "\ntechniques:\n  squeeze_excite: {min_channels: 1}\n  test_flip: {}\nhflip: true\n", encoding="utf-8"
    )
    code, out, _ = run("train", "net.py:Tiny", "--data", "npz:set.npz", "--recipe", "se.yaml", "--out", "t", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["test_flip"]["samples"] == 30
    words = ("apply", "t/plan.json", "net.py:Tiny", "--weights", "t/model.safetensors")
    code, out, _ = run(*words, "--json")
    replayed = json.loads(out)
    assert code == 0
    assert replayed["after"]["params"] == found["params"] > replayed["before"]["params"]


@pytest.mark.filterwarnings("default")
def test_our_warnings_are_one_line(run, folder):
    text = (folder / "r.yaml").read_text(encoding="utf-8")
    (folder / "ema.yaml").write_text(text + "\ntechniques: {ema: {decay: 0.9999}}\n", encoding="utf-8")
    code, _, err = run("train", "net.py:Tiny", "--data", "npz:set.npz", "--recipe", "ema.yaml")
    assert code == 0
    (line,) = [line for line in err.splitlines() if "warning" in line.lower()]
    assert line.startswith("convwright: warning: techniques.ema.decay=0.9999")


def test_optimize_then_apply(run, folder):
    code, out, err = run(*OPTIMIZE, "--out", "run")
    assert code == 0
    assert "MACs, counted by torch" in out
    assert "met" in out
    assert "feasible macs" in err
    assert json.loads((folder / "run" / "run.json").read_text())["command"].startswith(
        "convwright optimize net.py:Tiny"
    )
    words = ("apply", "run/plan.json", "net.py:Tiny", "--weights", "run/model.safetensors", "--save", "new.safetensors")
    code, out, _ = run(*words, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["after"]["macs"] == found["after"]["macs_by_torch"] <= found["before"]["macs"] / 2
    assert (folder / "new.safetensors").is_file()
    assert run(*words)[0] == 0


def test_optimize_json_is_one_document(run):
    code, out, _ = run(*OPTIMIZE, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["folder"] == "runs/net.py-tiny-macs50pct"
    assert found["budget_met"]["macs"]["met"]


def test_a_dictionary_of_one_tensor_is_fine(run):
    assert run("optimize", "net.py:Named", *OPTIMIZE[2:])[0] == 0


def test_demo_is_an_optimize(monkeypatch, run):
    import convwright.runs.demo as demo

    changes = {"MODEL": "net.py:Tiny", "DATA": "npz:set.npz", "RECIPE": "r.yaml", "EPOCHS": 1, "TUNE_EPOCHS": 1}
    for name, value in changes.items():
        monkeypatch.setattr(demo, name, value)
    code, out, err = run("demo")
    assert code == 0
    assert "This is the same as: convwright optimize net.py:Tiny" in err
    assert "test accuracy" in out
    assert run("demo", "--json")[0] == 0


# ------------------------------------------------------------------ Ctrl-C


def test_ctrl_c_says_how_to_continue(run, monkeypatch):
    from convwright.runs import Evaluator

    def stop(self, number, candidate, parents):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "__call__", stop)
        code, out, err = run(*OPTIMIZE, "--out", "run")
    assert (code, out) == (130, "")
    line = err.splitlines()[-1]
    assert line.startswith("convwright: interrupted; continue with: convwright optimize net.py:Tiny")
    assert line.endswith("--out run --resume")
    assert run(*OPTIMIZE, "--out", "run", "--resume")[0] == 0


def test_ctrl_c_before_anything_is_there(run, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("convwright.architecture.read", stop)
    assert run("analyze", "net.py:Tiny") == (130, "", "convwright: interrupted\n")


def test_ctrl_c_before_a_command_began(run, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("convwright.cli.printing.Commands.make_context", stop)
    code, out, err = run("version")
    assert (code, out) == (130, "")
    assert err.split() == ["convwright:", "interrupted"]


# ------------------------------------------------------------------ results that are worse than they look


@pytest.fixture
def collapsed(monkeypatch):
    """What is handed back is near chance: its weights are gone."""
    honest = prove.prove

    def emptied(arch, plan, weights):
        found = honest(arch, plan, weights)
        for parameter in found.arch.model.parameters() if plan.edits else ():
            parameter.data.zero_()
        return found

    monkeypatch.setitem(optimize.__globals__, "prove", emptied)


LONG = ("--epochs", "3", "--tune-epochs", "2", "--out", "run")


@pytest.mark.usefixtures("collapsed")
@pytest.mark.breadth
def test_a_collapse_heads_table_report_and_record_and_ends_as_it_was_asked_to(run, folder):
    code, out, err = run(*OPTIMIZE, *LONG, "--max-drop", "2")
    assert code == 3
    lines = " ".join(out.split())
    assert lines.index("WARNING: test accuracy is 33.3%, ") < lines.index("net.py:Tiny on npz:set.npz")
    assert "Likely cause: only 2 epochs of training after a cut to" in lines
    assert "points below the baseline, and --max-drop allows 2. It is kept in run" in err.splitlines()[-1]
    recorded = json.loads((folder / "run" / "result.json").read_text())
    assert recorded["warnings"][0]["what"].startswith("test accuracy is 33.3%")
    assert [row["images"] for row in recorded["classes"]["accuracies"]] == [10, 10, 10]
    # The report has it first, in each of its forms; so has the finished run when it is resumed.
    report = report_of("run")
    assert "Warning: test accuracy is 33.3%" in report.markdown()[:200]
    assert "Warning: test accuracy is 33.3%" in report.html()
    assert "Classes of the test part, the largest loss first" in report.html()
    assert str(report).startswith("WARNING: test accuracy is 33.3%")
    assert report.as_dict()["classes"][0]["images"] == 10
    assert run(*OPTIMIZE, *LONG, "--resume")[:2] == (0, out)
    assert run(*OPTIMIZE, *LONG, "--resume", "--max-drop", "100")[0] == 0
    code, printed, _ = run(*OPTIMIZE, *LONG, "--resume", "--max-drop", "2", "--json")
    assert (code, json.loads(printed)["warnings"]) == (3, recorded["warnings"])
    again = {"recipe": "r.yaml", "epochs": 3, "tune_epochs": 2, "resume": True, "progress": False}
    with pytest.raises(BrokenBudgetError) as broken:
        optimize("net.py:Tiny", "npz:set.npz", "macs<=50%", "uniform", "run", max_drop=2, **again)
    assert broken.value.result.warnings[0].what.startswith("test accuracy is 33.3%")


def test_an_old_result_has_no_warnings_and_is_still_reported(run, folder):
    assert run(*OPTIMIZE, *LONG)[0] == 0
    path = folder / "run" / "result.json"
    old = json.loads(path.read_text())
    del old["warnings"], old["classes"], old["baseline"]["train"], old["result"]["train"]
    path.write_text(json.dumps(old))
    assert "Warning" not in report_of("run").markdown()
    assert run(*OPTIMIZE, *LONG, "--resume", "--max-drop", "100")[0] == 0


def test_train_tells_of_over_fitting(run, folder):
    for part, moved in (("train", 0), ("val", 1)):  # as if the validation images were of another world
        for number in range(90):
            path = folder / "gap" / part / "abc"[(number + moved) % 3] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), number % 3 * 90 + number % 5).save(path)
    words = ("--recipe", "r.yaml", "--epochs", "8", "--out", "t")
    code, out, _ = run("train", "net.py:Tiny", "--data", "folder:gap", *words)
    assert code == 0
    assert out.startswith("WARNING: validation accuracy ")
    content = json.loads((folder / "t" / "training.json").read_text())
    assert "points below the training accuracy" in content["result_warnings"][0]["what"]
    assert report_of("t").warnings[0].what in report_of("t").markdown()


# ------------------------------------------------------------------ bad input: one line, exit code 2, nothing written


def changed(**options):
    """The optimize command with some options replaced."""
    words = list(OPTIMIZE)
    for name, value in options.items():
        if name == "model":
            words[1] = value
        elif f"--{name}" in words:
            words[words.index(f"--{name}") + 1] = value
        else:
            words += [f"--{name}", value]
    return tuple(words)


BAD = {
    "unknown model": (changed(model="zoo:resnet200"), "Did you mean resnet20"),
    "unknown kind of model": (changed(model="resnet18"), "Did you mean torchvision:resnet18"),
    "missing file": (changed(model="gone.py:Net"), "no file gone.py"),
    "broken file": (changed(model="broken.py:Net"), "broken.py could not be imported"),
    "unknown class": (changed(model="net.py:Tinny"), "Did you mean Tiny"),
    "two inputs": (changed(model="net.py:Pair"), "input"),
    "several outputs": (changed(model="net.py:Several"), "2 tensors"),
    "too few outputs": (changed(model="net.py:Two"), "3 classes and the network has 2 outputs"),
    "unknown data": (changed(data="fashion-mny"), "Did you mean fashion-mini"),
    "missing data": (changed(data="npz:gone.npz"), "no such file"),
    "labels outside": (changed(data="npz:labels.npz"), "label -1 at position 0"),
    "labels of a wrong type": (changed(data="npz:odd.npz"), "integer class numbers"),
    "empty folder": (changed(data="folder:empty"), "no images"),
    "unreadable image": (changed(data="folder:photos"), "not a readable image"),
    "wrong input shape": (changed(input="3x"), "not an input shape"),
    "flat input shape": (changed(input="8x8"), "channels, height and width"),
    "input too small": (changed(model="zoo:mnist-base"), "larger --input"),
    "budget that does not parse": (changed(budget="half"), "does not parse"),
    "empty budget": (changed(budget=""), "the budget is empty"),
    "unknown metric": (changed(budget="mcas<=5"), "Did you mean macs"),
    "infeasible budget": (changed(budget="macs<=10"), "Did you mean macs<=10%?"),
    "unknown method": (changed(method="unifrom"), "Did you mean uniform"),
    "unknown recipe": (changed(recipe="fast"), "Did you mean fast-cpu"),
    "unknown field": (changed(recipe="bad.yaml"), "Did you mean epochs"),
    "nothing to resume": ((*OPTIMIZE, "--resume"), "no run to resume"),
    "missing weights": (changed(weights="gone.pt"), "no such file"),
    "negative epochs": (changed(epochs="-1"), "epochs=-1"),
    "unknown plan": (("apply", "gone.json", "zoo:resnet20"), "gone.json: no such file"),
    "plan that is none": (("apply", "r.yaml", "zoo:resnet20"), "not JSON"),
    "show unknown plan": (("plan", "show", "gone.json"), "gone.json: no such file"),
    "doctor unknown": (("doctor", "timm:resnett18"), "timm has no model"),
    "doctor unknown runtime": (
        ("doctor", "net.py:Tiny", "--input", "1x8x8", "--latency", "openvinno"),
        "Did you mean openvino",
    ),
    "doctor picture of nothing": (("doctor", "net.py:Tiny", "--out", "r.svg"), "give --latency RUNTIME"),
    "doctor picture": (("doctor", "net.py:Tiny", "--latency", "eager", "--out", "r.png"), "SVG file"),
    "analyze unknown": (("analyze", "timm:resnett18"), "timm has no model"),
    "train unknown data": (("train", "net.py:Tiny", "--data", "mnst"), "Did you mean mnist"),
    "train resume without out": (("train", "net.py:Tiny", "--data", "npz:set.npz", "--resume"), "give --out"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(run, folder, case):
    before = sorted(folder.rglob("*"))
    words, expected = BAD[case]
    code, out, err = run(*words)
    lines = [line for line in err.splitlines() if not line.startswith(("feasible", "budget", "net.py", "zoo"))]
    assert (code, out) == (2, "")
    assert len(lines) == 1, err
    assert lines[0].startswith("convwright: error: ")
    assert expected in lines[0]
    left = [p for p in sorted(folder.rglob("*")) if p not in before and "__pycache__" not in p.parts]
    assert left == []


def test_a_plan_for_another_network(run):
    assert run(*OPTIMIZE, "--out", "run")[0] == 0
    code, _, err = run("apply", "run/plan.json", "zoo:resnet20")
    assert code == 2
    assert "this plan was made for net.py:Tiny" in err
    assert len(err.splitlines()) == 1


def test_a_loss_that_is_not_finite(run, folder):
    code, _, err = run("train", "net.py:Tiny", "--data", "npz:set.npz", "--recipe", "nan.yaml", "--out", "t")
    assert code == 2
    assert "training broke down in epoch 1" in err.splitlines()[-1]
    assert not (folder / "t" / "model.safetensors").exists()
    code, _, err = run(*changed(recipe="nan.yaml", out="run"))
    assert code == 2
    assert "found nothing: trial 0: training broke down" in err.splitlines()[-1]
    assert not (folder / "run" / "result.json").exists()


def test_a_second_process_on_one_directory(run, folder):
    import filelock

    assert run(*OPTIMIZE, "--out", "run")[0] == 0
    with filelock.FileLock(folder / "run" / ".lock"):
        code, _, err = run(*OPTIMIZE, "--out", "run", "--resume")
    assert code == 2
    assert "another process is working" in err.splitlines()[-1]


def test_an_existing_directory(run):
    assert run(*OPTIMIZE, "--out", "run")[0] == 0
    code, _, err = run(*OPTIMIZE, "--out", "run")
    assert code == 2
    assert "continue it with --resume" in err


def test_a_broken_result_is_code_3(run, monkeypatch):
    monkeypatch.setattr("convwright.runs.prove.count_by_torch", lambda model, example: 1)
    code, out, err = run(*OPTIMIZE, "--out", "run")
    assert (code, out) == (3, "")
    assert err.splitlines()[-1].startswith("convwright: error: ")


def test_usage_errors_are_code_2(run):
    assert run("optimize", "net.py:Tiny")[0] == 2
    assert run("analyze", "net.py:Tiny", "--colour")[0] == 2
    assert run("analyse")[0] == 2


def test_debug_shows_the_traceback(run):
    assert "Traceback" not in run("analyze", "zoo:x")[2]
    assert "Traceback" in run("analyze", "zoo:x", "--debug")[2]
    assert "Traceback" in run("--debug", "analyze", "zoo:x")[2]


def test_help_names_every_method():
    assert ", ".join(sorted(METHODS)) == cli._METHODS


def test_one_training_per_folder(run):
    with owned(Path("t")):
        code, out, err = run("train", "net.py:Tiny", "--data", "npz:set.npz", "--recipe", "r.yaml", "--out", "t")
    assert (code, out) == (2, "")
    assert "another process is working" in err
    assert run("train", "net.py:Tiny", "--data", "npz:set.npz", "--recipe", "r.yaml", "--out", "t")[0] == 0


def test_ctrl_c_while_the_command_line_is_loaded():
    start = """
import sys

class Impatient:
    def find_spec(self, name, *rest):
        if name == "convwright.cli":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Impatient())
from convwright.__main__ import main
main()
"""
    found = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (130, "", "convwright: interrupted\n")


def test_the_package_runs_as_a_module():
    found = subprocess.run([sys.executable, "-m", "convwright", "version"], capture_output=True, text=True, check=True)
    assert found.stdout == f"convwright {__version__}\n"
