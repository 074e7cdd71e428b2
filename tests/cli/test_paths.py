"""A path that leads nowhere is refused before torch is loaded."""

import subprocess
import sys

import pytest

from convwright.cli.paths import refuse_missing
from convwright.errors import ReadError

COMMANDS = {
    "analyze gone.py:Net": "there is no file gone.py",
    "analyze gone.py": "there is no file gone.py",
    "analyze weights.pt": "a file of weights is no network",
    "train zoo:resnet20 --data folder:gone": "gone: no such folder; check the path after folder:",
    "doctor gone.py:Net": "there is no file gone.py",
    "train zoo:resnet20 --data npz:gone.npz": "gone.npz: no such file; check the path after npz:",
    "train zoo:resnet20 --data mnist --data-dir gone": "gone: no such folder; check the path after --data-dir",
    "optimize gone.py:Net --data mnist --budget macs<=50%": "there is no file gone.py",
    "optimize zoo:resnet20 --data mnist --budget macs<=50% --weights gone.pt": "gone.pt: no such file",
    "ablate zoo:resnet20 --data mnist --techniques sam --recipe gone.yaml": "gone.yaml: no such file",
    "reproduce mnist-1500 --data-dir gone": "gone: no such folder",
    "apply gone.json zoo:resnet20": "gone.json: no such file; check the path of the plan",
    "plan show gone.json": "gone.json: no such file; check the path of the plan",
    "report gone": "gone: no such folder; give the run directory",
    "export gone --to onnx": "gone: no such folder; give the run directory",
    "recipe show gone.yaml": "gone.yaml: no such file",
    "recipe validate gone.yaml": "gone.yaml: no such file",
}
WITHOUT_TORCH = f"""
import sys
sys.modules["torch"] = None  # any import of it fails
from convwright.cli import main
for command in {list(COMMANDS)!r}:
    try:
        main(command.split())
    except SystemExit as leave:
        print(leave.code, file=sys.stderr)
"""


def test_each_command_names_what_is_missing_without_torch(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    lines = done.stderr.splitlines()
    assert lines[1::2] == ["2"] * len(COMMANDS), done.stderr
    for line, (command, expected) in zip(lines[::2], COMMANDS.items(), strict=True):
        assert line.startswith("convwright: error: "), command
        assert expected in line, command


def test_what_is_there_or_has_a_name_passes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").touch()
    (tmp_path / "photos").mkdir()
    refuse_missing("net.py:Net", "folder:photos", data_dir=tmp_path, plan=tmp_path / "net.py", folder=tmp_path)
    refuse_missing("zoo:resnet20", "mnist", recipe="fast-cpu")
    refuse_missing("timm:resnet18.a1_in1k", "npz:")
    with pytest.raises(ReadError):
        refuse_missing("gone.py:Net")
