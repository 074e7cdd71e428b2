"""Damaged run directories: each command says in one line which file is wrong, or does what the file is not needed for.

Never a traceback, and never a new start in silence. `tests/assets/runs` holds a finished and an interrupted run; each
of their files is damaged in each way, and then the run is reported, exported, resumed, and its plan applied.
"""

import contextlib
import json
import os
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from convwright.cli import main
from convwright.runs.directory.provenance import JUDGEMENT

ASSETS = Path(__file__).parents[2] / "assets" / "runs"
FOUND = {"finished": "uniform", "interrupted": "phased"}  # by method


@pytest.fixture
def copied(tmp_path, lines, monkeypatch):
    """Return a function that copies a run to where it may be damaged, beside its data."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(lines, "lines.npz")
    shutil.copy(ASSETS / "fp32.yaml", "fp32.yaml")
    monkeypatch.setattr("convwright.runs.evaluate.train", _interrupt)  # what goes on truthfully need not go on here
    return lambda name: _copy(name)


def _copy(name):
    folder = Path(shutil.copytree(ASSETS / name, name))
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**run, "judgement": JUDGEMENT}))
    return folder


def _interrupt(*args, **named):
    raise KeyboardInterrupt


# ------------------------------------------------------------------ what is done to a file


def truncated(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def folder_instead(file):
    file.unlink()
    file.mkdir()


def looped(file):
    file.unlink()
    file.symlink_to(file.name)


def unreadable(file):
    file.chmod(0)
    if os.access(file, os.R_OK):
        pytest.skip("root reads everything")


def shuffled(file):
    file.write_bytes(np.random.default_rng(1).bytes(max(100, file.stat().st_size)))


def _changed(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def _tensors(change):
    def damage(file):
        save_file({name: tensor for key, value in load_file(file).items() for name, tensor in change(key, value)}, file)

    return damage


def _twice(file):
    text = file.read_text()
    file.write_text(text.replace("{", '{"format": "other", ', 1) if '"format"' in text else text.replace("]", "", 1))


ANY = {
    "missing": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "truncated": truncated,
    "random": shuffled,
    "folder": folder_instead,
    "loop": looped,
    "unreadable": unreadable,
}
TEXT = {
    "version 9": lambda file: _changed(file, version=9),
    "version true": lambda file: _changed(file, version=True),
    "format": lambda file: _changed(file, format="other"),
    "twice": _twice,
    "trailing": lambda file: file.write_text(file.read_text() + "}"),
    "list": lambda file: file.write_text("[1]"),
    "nan": lambda file: file.write_text(file.read_text().replace("1,", "NaN,", 1)),
}
TENSORS = {
    "header": lambda file: file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:]),
    "shape": _tensors(lambda name, tensor: [(name, torch.zeros((3, *tensor.shape)))]),
    "names": _tensors(lambda name, tensor: [(f"x.{name}", tensor)]),
    "lacking": _tensors(lambda name, tensor: [(name, tensor)] if "bias" not in name else []),
}
FILES = {
    "finished": ["run.json", "run.db", "result.json", "plan.json", "networks.json", "model.safetensors",
                 "initial.safetensors", "trials/0002/model.safetensors", "trials/0002/history.json"],
    "interrupted": ["run.json", "run.db", "decisions.json", "initial.safetensors", "trials/0000/model.safetensors",
                    "trials/0004/model.safetensors", "trials/0004/history.json"],
}  # fmt: skip
CASES = [
    (run, file, damage)
    for run, files in FILES.items()
    for file in files
    for damage in [
        *ANY,
        *(TENSORS if file.endswith("tensors") else TEXT if file.count("/") == 0 and "json" in file else []),
    ]
]

# What a command cannot do without: whatever else is damaged, it may go on. Only some of it may be missing.
NEEDED = {
    ("finished", "report"): {"run.json", "run.db", "result.json", "networks.json", "plan.json",
                             "trials/0002/history.json"},
    ("finished", "export"): {"result.json", "plan.json", "model.safetensors"},
    ("finished", "resume"): {"run.json", "run.db", "result.json", "plan.json", "model.safetensors"},
    ("finished", "apply"): {"plan.json"},
    ("interrupted", "report"): {"run.json", "run.db", "decisions.json", "trials/0004/history.json"},
    ("interrupted", "export"): {"run.json", "run.db"},
    ("interrupted", "resume"): {"run.json", "run.db", "initial.safetensors"},
}  # fmt: skip
MAY_BE_MISSING = {"result.json", "networks.json", "plan.json", "decisions.json", "history.json"}


def commands(run):
    """Return the calls by name."""
    search = ["optimize", "zoo:mnist-b", "--data", "npz:lines.npz", "--budget", "macs<=60%", "--method", FOUND[run]]
    search += [
        "--epochs",
        "1",
        "--tune-epochs",
        "1",
        "--recipe",
        "fp32.yaml",
        "--threads",
        "1",
        "--out",
        run,
        "--resume",
    ]
    calls = {
        "report": ["report", run, "--json"],
        "export": ["export", run, "--to", "safetensors", "--out", "exported"],
        "resume": search,
    }
    return calls if run == "interrupted" else {**calls, "apply": ["apply", f"{run}/plan.json", "zoo:mnist-b", "--json"]}


def called(capsys, words):
    """Return exit code, output and the lines of the errors of a call; a traceback fails the test by itself."""
    with pytest.raises(SystemExit) as leave:
        main(words)
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return leave.value.code, out, err.strip().splitlines()


def checked(capsys, run, name, file, words):
    """See that a command refuses in one line that names the file, or tells the truth; return its exit code."""
    code, out, err = called(capsys, words)
    if code == 2:
        assert [line for line in err if "error" in line] == err[-1:], err
        assert err[-1].startswith("convwright: error: ")
        assert Path(file).name in err[-1], err[-1]
        return 2
    if name == "report":
        assert [t["seconds"] for t in json.loads(out)["trials"] if t["seconds"]] == SECONDS[run]
    if name == "export":
        unfinished = run == "interrupted" or not Path(run, "result.json").exists()
        assert ("not finished" in out) == unfinished
        if not unfinished:
            one, other = load_file("exported/model.safetensors"), load_file(ASSETS / run / "model.safetensors")
            assert all(torch.equal(one[key], other[key]) for key in other)
    if name == "resume":
        assert sum("done earlier" in line for line in err) == len(SECONDS[run]), err
    assert code == (130 if (run, name) == ("interrupted", "resume") else 0), (name, code, err)
    return code


def _seconds(run):
    with contextlib.closing(sqlite3.connect(ASSETS / run / "run.db")) as base:
        found = base.execute("SELECT value_json FROM trial_user_attributes WHERE key = 'evidence' ORDER BY trial_id")
        return [json.loads(text)["seconds"] for (text,) in found]


SECONDS = {run: _seconds(run) for run in FILES}  # of all finished trials


@pytest.mark.parametrize("run", list(FILES))
def test_an_undamaged_run_works(run, copied, capsys):
    copied(run)
    for name, words in commands(run).items():
        assert checked(capsys, run, name, "", words) != 2


@pytest.mark.few(5)
@pytest.mark.parametrize(("run", "file", "damage"), CASES, ids=lambda value: value)
def test_a_damaged_file_is_named_or_not_needed(run, file, damage, copied, capsys):
    folder = copied(run)
    (ANY | TEXT | TENSORS)[damage](folder / file)
    for name, words in commands(run).items():
        code = checked(capsys, run, name, file, words)
        optional = damage == "missing" and Path(file).name in MAY_BE_MISSING
        assert code == 2 or optional or file not in NEEDED[run, name], (name, code)


# ------------------------------------------------------------------ values of another kind


def test_weights_that_are_no_numbers_are_not_exported(copied, capsys):
    file = copied("finished") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-64] + b"\xff" * 64)
    code, _, err = called(capsys, commands("finished")["export"])
    assert (code, len(err)) == (2, 1)
    assert "holds NaN;" in err[0]


@pytest.mark.parametrize("path", [("validation", "stderr"), ("counts", "macs", "torch"), ("costs", "weights")])
def test_a_value_of_another_kind_deep_in_a_result_ends_in_one_line(path, copied, capsys):
    folder = copied("finished")
    content = json.loads((folder / "result.json").read_text())
    inner = content["result"]
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = ["x"]
    (folder / "result.json").write_text(json.dumps(content))
    code, _, err = called(capsys, commands("finished")["export"])
    assert (code, len(err)) == (2, 1)
    assert "damaged, its record cannot be understood" in err[0]
    assert not (folder / "export").exists()


READERS = {"run.json": ("report", "resume"), "networks.json": ("report",), "decisions.json": ("report",)}


def _kinds():
    files = [("finished", name) for name in ("run.json", "result.json", "networks.json", "plan.json")]
    for run, file in [*files, ("interrupted", "decisions.json")]:
        values = json.loads((ASSETS / run / file).read_text())
        yield from ((run, file, "", key) for key in values)
        yield from ((run, file, "settings", key) for key in values.get("settings", ()))


@pytest.mark.few(5)
@pytest.mark.parametrize(("run", "file", "inside", "key"), list(_kinds()), ids=lambda value: value or "top")
def test_a_value_of_another_kind_is_named_or_not_needed(run, file, inside, key, copied, capsys):
    folder = copied(run)
    content = json.loads((folder / file).read_text())
    values = content[inside] if inside else content
    values[key] = 7.5 if isinstance(values[key], list) else [["x"]]
    (folder / file).write_text(json.dumps(content))
    for name in READERS.get(file, commands(run)):
        code, _, err = called(capsys, commands(run)[name])
        assert code in (0, 2), err
        if code == 2:
            assert [line for line in err if "error" in line] == err[-1:], err
            assert file in err[-1] or f"{run}: the run was started with {key}" in err[-1], err[-1]


COLUMNS = [
    ("UPDATE trial_user_attributes SET value_json = '[1]' WHERE trial_id = 2", "wrong kind"),
    ("UPDATE trial_user_attributes SET value_json = '{\"plan\": 1}' WHERE trial_id = 2", "no candidate"),
    ("UPDATE trial_user_attributes SET value_json = 'x{' WHERE trial_id = 2", "no JSON"),
    ("UPDATE trial_user_attributes SET value_json = NULL WHERE trial_id = 2", "null"),
    ("UPDATE trials SET state = 'DREAMING' WHERE trial_id = 2", "state"),
    ("UPDATE trials SET number = 'x' WHERE trial_id = 2", "number"),
    ("UPDATE trials SET datetime_start = 5 WHERE trial_id = 2", "date"),
    ("DELETE FROM trials WHERE trial_id = 2", "a trial less"),
    ("DELETE FROM trials", "no trials"),
    ("DELETE FROM studies", "no study"),
    ("UPDATE studies SET study_name = 'other'", "another study"),
    ("DROP TABLE trial_user_attributes", "no table"),
    ("UPDATE alembic_version SET version_num = 'v2.6.0.a'", "another version"),
    ("UPDATE version_info SET schema_version = 99", "another schema"),
]
HARMLESS = ("UPDATE version_info SET schema_version = 99",)  # Optuna reads the version of its tables elsewhere


@pytest.mark.few(3)
@pytest.mark.parametrize("run", list(FILES))
@pytest.mark.parametrize("change", [change for change, _ in COLUMNS], ids=[name for _, name in COLUMNS])
def test_what_is_wrong_inside_the_storage_is_named(run, change, copied, capsys):
    folder = copied(run)
    with contextlib.closing(sqlite3.connect(folder / "run.db")) as base:
        base.execute(change)
        base.commit()
    for name, words in commands(run).items():
        code = checked(capsys, run, name, "run.db", words)
        assert code == 2 or "run.db" not in NEEDED[run, name] or change in HARMLESS, name


def test_a_locked_storage_is_named(copied, capsys, monkeypatch):
    monkeypatch.setattr("convwright.runs.directory.storage._WRITE_WAIT", 0.05)
    copied("finished")
    other = sqlite3.connect("finished/run.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    for name, words in commands("finished").items():
        code = checked(capsys, "finished", name, "run.db", words)
        assert code == (2 if name in ("report", "resume") else 0)
    other.close()


def test_files_have_the_permissions_of_the_umask(tmp_path):
    from convwright.runs.directory.files import save_weights, write_json

    before = os.umask(0o027)
    try:
        save_weights(torch.nn.Linear(1, 1), tmp_path / "model.safetensors")
        write_json(tmp_path / "x.json", {})
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o640}
