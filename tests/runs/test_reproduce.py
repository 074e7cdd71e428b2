"""Experiments: every row trained once per seed, whatever happens in between; the table says what was measured."""

import json
import statistics
from pathlib import Path

import filelock
import pytest

from convwright.cli import main
from convwright.errors import ConvwrightError, RecipeError, RunError
from convwright.runs import rows as rows_module
from convwright.runs.experiment_tables import Sheet, reproduced
from convwright.runs.experiments import EXPERIMENTS, Experiment, Row
from convwright.runs.gains import gain
from convwright.runs.reproduce import default_folder, listed, reproduce

SECONDS = ("seconds", "processor_seconds", "elapsed_seconds")


@pytest.fixture
def recipe(plain):
    return plain.updated(val_fraction=0.0)


@pytest.fixture
def experiment(monkeypatch, tiny, pictures, recipe):
    """File an experiment of two rows with two seeds each; return a function that changes its rows."""

    def file(**changes):
        rows = {
            "first": Row("first", tiny, pictures, recipe, (0, 1), paper={"accuracy": 0.5, "params": 77}, target=0.99),
            "second": Row("second", tiny, pictures, recipe.updated(lr=0.2), (0, 1), control="first", note="a|b"),
        }
        rows = tuple(changes.get(name, row) for name, row in rows.items())
        monkeypatch.setitem(EXPERIMENTS, "small", Experiment("small", "A small one", "nobody", lambda size: rows))
        return rows

    file()
    return file


@pytest.fixture
def run():
    """Run it, silently."""
    return lambda folder, **options: reproduce("small", Path(folder), say=lambda text: None, **options)


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("trained again")

    return lambda: monkeypatch.setattr(rows_module, "train", refuse)


@pytest.fixture
def interrupted(monkeypatch):
    """Ctrl-C after a number of epochs, counted over all trainings."""

    def after(epochs):
        train, seen = rows_module.train, []

        def stop(record):
            seen.append(record)
            if len(seen) == epochs:
                raise KeyboardInterrupt

        monkeypatch.setattr(rows_module, "train", lambda *args, **kw: train(*args, **kw, on_epoch=stop))

    return after


def timeless(value):
    """Leave out what depends on the clock, at any depth."""
    if isinstance(value, dict):
        return {key: timeless(part) for key, part in value.items() if key not in SECONDS}
    return [timeless(part) for part in value] if isinstance(value, list) else value


def stored(folder):
    return {path.parent.name: json.loads(path.read_text()) for path in Path(folder).glob("rows/*/result.json")}


# ------------------------------------------------------------------ what is trained


def test_every_row_and_seed_once(experiment, run, no_training):
    content = run("a")
    assert content == json.loads(Path("a/result.json").read_text())
    assert set(stored("a")) == {"first-0", "first-1", "second-0", "second-1"}
    for row in content["rows"]:
        assert row["seeds"] == [0, 1]
        single = [stored("a")[f"{row['name']}-{seed}"]["test"]["accuracy"] for seed in (0, 1)]
        assert row["accuracies"] == single
        assert row["mean"] == pytest.approx(sum(single) / 2)
        assert row["deviation"] == pytest.approx(statistics.stdev(single))
        assert row["params"] == 8 * 9 + 16 + 8 * 12 * 9 + 12 + 12 * 3 + 3
        assert not list(Path("a/rows").glob("*/checkpoint.pt"))
    no_training()
    assert timeless(run("a")) == timeless(content)


def test_fashion_mini_by_steps(monkeypatch, recipe):
    asked = recipe.updated(max_steps=3, batch_size=16)
    row = Row("few", "zoo:mnist-b", "fashion-mini", asked, (5,), limit=1500)
    monkeypatch.setitem(EXPERIMENTS, "mini", Experiment("mini", "Few steps", "nobody", lambda size: (row,)))
    content = reproduce("mini", say=lambda text: None)["rows"][0]
    assert (content["seeds"], content["params"]) == ([5], 1460)
    assert default_folder("mini", "standard") / "rows" == Path("runs/reproduce/mini/rows")
    assert json.loads(Path("runs/reproduce/mini/rows/few-5/result.json").read_text())["test"]["samples"] == 2000


def test_only_some_rows_and_seeds(experiment, run):
    content = run("a", only=["second"], seeds=1)
    assert [row["seeds"] for row in content["rows"]] == [[], [0]]
    assert set(stored("a")) == {"second-0"}
    assert "not trained yet" in Path("a/table.md").read_text()


@pytest.mark.parametrize("epochs", [1, 2, 5, 8])
def test_an_interruption_changes_nothing_but_seconds(experiment, run, interrupted, monkeypatch, epochs):
    whole = run("whole")
    with monkeypatch.context() as patch:
        patch.setattr(rows_module, "train", rows_module.train)  # so that the context puts it back
        interrupted(epochs)
        with pytest.raises(KeyboardInterrupt):
            run("parts")
        patch.undo()
    left = [name for name in ("first-0", "second-0", "first-1", "second-1") if name not in stored("parts")]
    assert len(left) == 4 - (epochs - 1) // 2
    assert Path("parts/rows", left[0], "checkpoint.pt").is_file()
    again = run("parts")
    assert timeless(again) == timeless(whole)
    assert timeless(stored("parts")) == timeless(stored("whole"))


def test_a_changed_row_is_trained_anew(experiment, run):
    before = run("a")
    row = EXPERIMENTS["small"].rows("standard")[1]
    experiment(second=Row("second", row.model, row.data, row.recipe.updated(epochs=1), (0, 1)))
    after = run("a")
    assert timeless(after["rows"][0]) == timeless(before["rows"][0])
    assert [len(stored("a")[f"second-{seed}"]["history"]) for seed in (0, 1)] == [1, 1]


def test_a_checkpoint_of_another_recipe_is_dropped(experiment, run, interrupted, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(rows_module, "train", rows_module.train)
        interrupted(1)
        with pytest.raises(KeyboardInterrupt):
            run("a")
        patch.undo()
    row = EXPERIMENTS["small"].rows("standard")[0]
    experiment(first=Row("first", row.model, row.data, row.recipe.updated(lr=0.01), (0, 1)))
    assert timeless(run("a")) == timeless(run("b"))


def test_a_changed_file_is_another_network(experiment, run, no_training, tmp_path):
    run("a", only=["first"], seeds=1)
    (tmp_path / "net.py").write_text((tmp_path / "net.py").read_text() + "\n# another\n")
    no_training()
    with pytest.raises(AssertionError, match="trained again"):
        run("a", only=["first"], seeds=1)


def test_a_row_that_breaks_down_does_not_stop_the_others(experiment, run):
    row = EXPERIMENTS["small"].rows("standard")[0]
    wild = row.recipe.updated(lr=1e30, schedule="constant", warmup=0.0)
    experiment(first=Row("first", row.model, row.data, wild, (0, 1)))
    with pytest.raises(RecipeError, match=r"2 of 4 trainings broke down.*first seed 0: training broke down in epoch"):
        run("a")
    assert set(stored("a")) == {"second-0", "second-1"}
    assert [r["seeds"] for r in json.loads(Path("a/result.json").read_text())["rows"]] == [[], [0, 1]]


@pytest.mark.slow
def test_side_by_side_is_the_same(experiment, run):
    alone, together = run("a", threads=1), run("b", threads=1, jobs=2)
    assert timeless(alone["rows"]) == timeless(together["rows"])


# ------------------------------------------------------------------ what is refused


def test_a_second_process_waits_outside(experiment, run):
    run("a", seeds=1)
    with filelock.FileLock("a/.lock"), pytest.raises(RunError, match="another process is working"):
        run("a")
    assert run("a")["rows"][0]["seeds"] == [0, 1]


def test_a_file_is_no_folder(experiment, run):
    Path("a").touch()
    with pytest.raises(RunError, match="is a file"):
        run("a")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("smal", {}, "unknown experiment 'smal'. Did you mean small"),
        ("small", {"only": ["frist"]}, "no row 'frist'. Did you mean first"),
        ("small", {"seeds": 0}, "seeds=0: give at least 1"),
        ("small", {"jobs": 0}, "jobs=0: give at least 1"),
        ("small", {"threads": 0}, "threads=0: give at least 1"),
        ("small", {"data_dir": Path("gone")}, "gone"),
    ],
)
def test_wrong_names_and_numbers(experiment, name, options, said):
    if "data_dir" in options:
        row = EXPERIMENTS["small"].rows("standard")[0]
        experiment(first=Row("first", row.model, "npz:gone.npz", row.recipe))
    with pytest.raises(ConvwrightError, match=said.replace("?", ".")) as error:
        reproduce(name, Path("a"), say=lambda text: None, **options)
    assert "\n" not in str(error.value)
    assert stored("a") == {}


# ------------------------------------------------------------------ the table


def table_row(**changes):
    row = {
        "name": "n", "params": 1500, "limit": 1500, "macs": 7, "paper": {}, "mean": 0.99, "deviation": 0.01,
        "seeds": [0, 1], "accuracies": [0.98, 1.0], "target": None, "control": "", "seconds": [2.0, 4.0],
        "processor_seconds": [None, 3.0], "note": "",
    }  # fmt: skip
    return {**row, **changes}


def shown(*rows):
    sheet = reproduced({"name": "x", "size": "quick", "title": "t", "rows": list(rows)})
    return [dict(zip(sheet.columns, cells, strict=True)) for cells in sheet.rows]


def test_the_table_tells_kept_from_broken_and_reached_from_missed():
    (kept,) = shown(table_row(target=0.99, paper={"accuracy": 0.992, "params": 1560}))
    assert kept["limit"] == "1,500: kept"
    assert kept["target"] == "99.00 %: reached"
    assert kept["ours"] == "99.00 ± 1.00 %"
    assert kept["paper"] == "99.20 %, 1,560 parameters"
    assert (kept["seconds per seed"], kept["processor seconds per seed"]) == ("3", "3")
    (broken,) = shown(table_row(params=1501, target=0.9925))
    assert broken["limit"] == "1,500: BROKEN"
    assert broken["target"] == "99.25 %: missed by 0.25 points"


def test_the_table_compares_with_the_control_seed_by_seed():
    control = table_row(name="c", seeds=[1, 0], accuracies=[0.90, 0.80])
    row = table_row(control="c", seeds=[0, 1, 2], accuracies=[0.81, 0.93, 0.5])
    expected = gain({0: 0.81, 1: 0.93}, {0: 0.80, 1: 0.90})
    assert shown(control, row)[1]["against its control, points"] == "+2.00 ± 1.00"
    assert (expected.mean, expected.stderr) == (pytest.approx(0.02), pytest.approx(0.01))


def test_markdown_and_terminal_hold_the_same_cells():
    sheet = Sheet("[bold]t", ("a", "b", "c"), (("x|y", "", "[red]1"), ("z", "", "2")), (2,), ("note",)).without_empty()
    assert sheet.columns == ("a", "c")
    assert sheet.markdown() == "| a | c |\n| --- | ---: |\n| x\\|y | [red]1 |\n| z | 2 |\n\nnote"
    from rich.console import Console

    console = Console(width=80)
    with console.capture() as captured:
        console.print(sheet.rich())
    assert all(word in captured.get() for word in ("x|y", "[red]1", "z", "2", "note"))


# ------------------------------------------------------------------ the command


@pytest.fixture
def command(capsys):
    def call(*words):
        with pytest.raises(SystemExit) as leave:
            main(words)
        out, err = capsys.readouterr()
        return leave.value.code, out, err

    return call


def test_command(experiment, command):
    code, out, err = command("reproduce", "small", "--out", "a", "--seeds", "1")
    assert (code, "first" in out, "second" in out) == (0, True, True)
    assert err.splitlines()[0].startswith("1/2  first seed 0: ")
    assert Path("a/table.md").read_text().startswith("# A small one\n")
    code, out, _ = command("reproduce", "small", "--out", "a", "--seeds", "1", "--json")
    assert (code, json.loads(out)["name"]) == (0, "small")


def test_command_without_a_name_lists_all(experiment, command):
    code, out, _ = command("reproduce")
    assert code == 0
    assert all(name in out for name in ("small", "mnist-1500"))
    assert [each["name"] for each in json.loads(command("reproduce", "--json")[1])] == [e["name"] for e in listed()]


def test_command_refuses_in_one_line(experiment, command):
    for words in (("reproduce", "smal"), ("reproduce", "small", "--quick", "--full")):
        code, out, err = command(*words)
        assert (code, out, len(err.splitlines())) == (2, "", 1)


def test_ctrl_c_names_the_same_command(experiment, command, interrupted):
    interrupted(1)
    code, out, err = command("reproduce", "small", "--out", "a")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "convwright: interrupted; continue with: convwright reproduce small --out a"
