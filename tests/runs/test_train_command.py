"""A shell command trains the candidates: its last line is the score, its folder has the weights."""

import json
import sys
from pathlib import Path

import pytest

from convwright.cli import main
from convwright.errors import ConvwrightError
from convwright.runs.train_command import search_by_command

# As a user's script, without torch: the weights that are given are copied.
SCRIPT = """
import os, shutil, sys
plan, weights, out, epochs, seed, trial = sys.argv[1:7]
assert "convwright plan" in open(plan).read() and int(seed) >= 0
if os.environ.get("WRONG") == trial:
    exec(open("wrong.py").read())
shutil.copy(weights, out + "/model.safetensors")
print("trained", epochs)
print(0.5 + int(trial) / 10)
"""
COMMAND = f"{sys.executable} train.py {{plan}} {{weights}} {{out}} {{epochs}} {{seed}} {{trial}}"
HOW = {"input_shape": "1x8x8", "method": "random", "options": {"trials": 2}, "say": lambda text: None}


@pytest.fixture
def script(tiny):
    Path("train.py").write_text(SCRIPT)
    return tiny


def test_a_command_trains_the_candidates(script, capsys, monkeypatch):
    words = ["--method", "uniform", "--epochs", "2", "--no-baseline", "--out", "run", "--json"]
    words = ["search", script, "--input", "1x8x8", "--budget", "macs<=50%", "--train-command", COMMAND, *words]
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["result"]["validation"]["accuracy"] == 0.7
    assert "trial 2: score 0.7" in said.err
    assert Path("run/trials/0000/output.txt").read_text() == "trained 2\n0.5\n"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("sys.exit('no\\nroom')", "the command ended with code 1: room"),
        ("print('nan'); shutil.copy(weights, out + '/model.safetensors'); sys.exit()",
         "the last line that the command printed is 'nan', which is no finite number"),
        ("print(0.5); sys.exit()", "save the trained weights there with safetensors.torch.save_model"),
        ("open(out + '/model.safetensors', 'w').write('x'); print(0.5); sys.exit()", "model.safetensors: damaged"),
    ],
)  # fmt: skip
@pytest.mark.few(2)
def test_what_a_command_does_wrong_fails_its_trial_alone(script, monkeypatch, wrong, said):
    Path("wrong.py").write_text(wrong)
    monkeypatch.setenv("WRONG", "1")
    result = search_by_command(script, ["macs<=50%"], COMMAND, out="run", **HOW)
    assert [trial.status for trial in result.trials] == ["done", "failed", "done", "done"]
    assert said in result.trials[1].message
    assert "\n" not in result.trials[1].message


def test_a_command_without_a_place_for_the_plan_is_refused(script):
    with pytest.raises(ConvwrightError, match=r"--train-command has no \{plan\}"):
        search_by_command(script, ["macs<=50%"], "python train.py {out}", out="run")
    assert not Path("run").exists()


def test_an_interrupt_ends_the_command_too_and_the_search_goes_on(script, monkeypatch):
    Path("wrong.py").write_text("import time; open('begun', 'w').close(); time.sleep(60); open('late', 'w')")
    monkeypatch.setenv("WRONG", "1")

    def interrupted(process, seconds):
        while process.poll() is None:
            if Path("begun").exists():
                monkeypatch.setattr("convwright.runs.train_command._ended", ended)
                raise KeyboardInterrupt
        return True

    from convwright.runs.train_command import _ended as ended

    monkeypatch.setattr("convwright.runs.train_command._ended", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search_by_command(script, ["macs<=50%"], COMMAND, out="run", **HOW)
    monkeypatch.delenv("WRONG")
    result = search_by_command(script, ["macs<=50%"], COMMAND, out="run", **HOW)
    assert [trial.score for trial in result.trials] == [0.5, 0.6, 0.7, 0.8]
    assert not Path("late").exists()
