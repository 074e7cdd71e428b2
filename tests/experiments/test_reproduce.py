"""Experiments: every row trained once per seed, whatever happens in between; the table says what was measured."""

import copy
import json
import pickle
import random
import statistics
import time
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import ClassVar

import filelock
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from convwright.cli import main
from convwright.edits import Replace
from convwright.errors import ConvwrightError, RecipeError, RunError
from convwright.experiments import train_row as rows_module
from convwright.experiments.designs import design as designs
from convwright.experiments.designs.design import Organized, RollingEverywhere, form_of, made
from convwright.experiments.papers import EXPERIMENTS, Conclusion, Experiment, Row, rank_correlations
from convwright.experiments.papers.receptive_field import counted_rows
from convwright.experiments.reproduce import default_folder, listed, reproduce
from convwright.experiments.results_table import counts_beside, reproduced
from convwright.experiments.statistics import gain
from convwright.experiments.train_row import Job
from convwright.methods.receptive_field.unit_moves import Rule
from convwright.tables import Sheet

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


@pytest.mark.parametrize("epochs", [1, 5, *(pytest.param(n, marks=pytest.mark.breadth) for n in (2, 8))])
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


# ------------------------------------------------------------------ counted rows, edits, designs


def test_a_row_without_a_recipe_is_counted_once(experiment, run, no_training, monkeypatch):
    good = Row("good", "zoo:mnist-m3", "", None, paper={"params": 1560, "mmacs": "0.254"})
    bad = Row("bad", "zoo:mnist-m3", "", None, paper={"params": 1500, "macs": 253_782})
    experiment(first=good, second=bad)
    no_training()
    content = run("a")
    assert [(row["params"], row["macs"], row["seeds"]) for row in content["rows"]] == [(1560, 253_782, [])] * 2
    assert [counts_beside(row, row["paper"]) for row in content["rows"]] == ["equal", "parameters +60"]
    assert listed()[-1]["trainings"] == dict.fromkeys(("quick", "standard", "full"), 0)
    assert set(stored("a")) == {"good", "bad"}
    monkeypatch.setattr(rows_module, "opened", None)  # to count again would break
    assert timeless(run("a")) == timeless(content)


def test_edits_come_before_the_training_and_depend_on_the_seed(experiment, run):
    row = EXPERIMENTS["small"].rows("standard")[0]
    edit = Replace("conv2", "dw_separable")
    experiment(second=Row("second", row.model, row.data, row.recipe, (0, 1), edits=(edit,), control="first"))
    content = run("a")
    assert content["rows"][1]["params"] == 8 * 9 + 16 + 8 * 9 + 8 * 12 + 12 + 12 * 3 + 3
    assert content["rows"][1]["form"]["edits"] == [
        {"edit": "replace", "target": "conv2", "operator": "dw_separable", "init": "fresh"}
    ]
    assert stored("a")["second-0"]["asked"]["edits"] == [edit.to_dict()]
    assert "edits" not in stored("a")["first-0"]["asked"]  # so that older results stay those of their rows
    assert pickle.loads(pickle.dumps(edit)) == copy.deepcopy(edit) == edit  # it goes to other processes


def test_inserted_weights_are_drawn_from_the_seed(tiny):
    form = form_of(Row("r", tiny, "", None, edits=(Replace("conv2", "dw_separable"),)))
    weights = [made(tiny, form, (1, 8, 8), seed).conv2.pointwise.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_every_result_has_the_facts(experiment, run):
    known = run("a", seeds=1)["rows"][0]["facts"]
    assert known["depth"] == 2
    assert 0 < known["q_effective"] <= known["q_sum"]
    assert known["q_log"] < 0
    folder = Path("a/rows/first-0/result.json")
    older = {key: value for key, value in json.loads(folder.read_text()).items() if key != "facts"}
    folder.write_text(json.dumps(older))
    assert run("a", seeds=1)["rows"][0]["facts"] is None


@pytest.mark.parametrize("judgement", [7, None])
def test_a_row_without_a_search_stays_finished_whatever_the_judgement(experiment, run, no_training, judgement):
    assert [row["judgement"] for row in run("a", only=["first"], seeds=1)["rows"]] == [2, None]
    file = Path("a/rows/first-0/result.json")
    content = json.loads(file.read_text())
    assert content.pop("judgement") == 2
    file.write_text(json.dumps(content if judgement is None else {**content, "judgement": judgement}))
    no_training()
    assert run("a", only=["first"], seeds=1)["rows"][0]["judgement"] == (judgement or 1)


@dataclass(frozen=True)
class Kept:
    """A design that finds nothing to change."""

    kind: ClassVar[str] = "kept"

    def resolve(self, model, form, setting):
        return form


@pytest.mark.breadth
def test_a_design_that_leads_to_another_rows_network_is_not_trained_again(monkeypatch, recipe, no_training):
    asked = recipe.updated(max_steps=2, batch_size=16, memory_format="contiguous")
    model, options = "zoo:resnet18_cifar", {"width": 0.02, "in_channels": 1}
    rows = [Row("before", model, "fashion-mini", asked, (0,), options)]
    rows += [
        Row(name, model, "fashion-mini", asked, (0,), options, design=(design,), control="before")
        for name, design in (
            ("moved", Organized()),
            ("again", Organized(Rule(per_cost=True))),
            ("kept", Kept()),
        )
    ]
    monkeypatch.setitem(EXPERIMENTS, "levels", Experiment("levels", "t", "s", lambda size: tuple(rows)))
    reproduce("levels", Path("a"), only=["before", "moved"], say=lambda text: None)
    no_training()
    content = reproduce("levels", Path("a"), say=lambda text: None)
    assert [row["same_as"] for row in content["rows"]] == [None, None, "moved", "before"]
    accuracies = [row["accuracies"] for row in content["rows"]]
    assert (accuracies[2], accuracies[3]) == (accuracies[1], accuracies[0])
    depths = (content["rows"][1]["form"] or {})["options"]["depths"]
    assert sum(depths) == 8
    assert depths != [2, 2, 2, 2]
    assert "the same network as moved" in Path("a/table.md").read_text()


def test_the_organizers_depths_come_first():
    designs = (RollingEverywhere(2), Organized())
    with pytest.raises(RunError, match="name it before what edits the network"):
        form_of(Row("r", "zoo:resnet20", "", None, design=designs))


def test_what_follows_is_recorded_and_shown(monkeypatch, experiment, run):
    def conclude(content):
        return Conclusion((Sheet("More", ("a",), (("b|c",),)),), {"rows": len(content["rows"])}, {"dots": "<svg/>"})

    rows = EXPERIMENTS["small"].rows
    monkeypatch.setitem(EXPERIMENTS, "small", Experiment("small", "A small one", "nobody", rows, conclude))
    content = run("a", seeds=1)
    assert content["conclusion"]["values"] == {"rows": 2}
    assert Path("a/dots.svg").read_text() == "<svg/>"
    assert "**More**\n\n| a |\n| --- |\n| b\\|c |" in Path("a/table.md").read_text()
    assert reproduced(content).more == (Sheet("More", ("a",), (("b|c",),)),)


# ------------------------------------------------------------------ the 3D receptive field


COUNTED = {row.name: row for row in counted_rows()}
FAST = ("mobilenet-organizer-count", "mobilenet-both-g4-count", "vgg16-organizer-count")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow]) for n in COUNTED])
def test_every_count_is_the_expected_one(name, tmp_path):
    row = COUNTED[name]
    counts = rows_module.carry_out(Job(row, 0, tmp_path))
    assert counts_beside(counts, row.paper) == "equal"
    assert "params" in row.paper


def test_experiments_are_listed_at_once(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("read a network")

    for name in ("read", "create"):
        monkeypatch.setattr(designs, name, refuse)
    start = time.process_time()
    found = {each["name"]: each for each in listed()}
    assert time.process_time() - start < 1.0
    assert found["3drf"]["trainings"]["standard"] == (2 * 7 + 5) * 3
    assert found["3drf-rank"]["trainings"]["standard"] == 2 * 24 * 2


@pytest.mark.parametrize(("family", "total", "stages"), [("plain", 13, 5), ("residual", 8, 4)])
def test_the_distributions_are_those_that_were_drawn(family, total, stages):
    cuts = combinations(range(1, total), stages - 1)
    every = ["-".join(str(b - a) for a, b in zip((0, *cut), (*cut, total), strict=True)) for cut in cuts]
    by_numbers = sorted(random.Random(2021).sample(every, 24), key=lambda text: [*map(int, text.split("-"))])
    assert rank_correlations.FAMILIES[family][1] == tuple(by_numbers)


def rank_row(units, q, mean, **changes):
    facts = {"q_sum": q, "q_log": -q, "q_effective": q * 10, "depth": 9}
    row = {"name": f"plain-{units}", "mean": mean, "deviation": 0.01, "seeds": [0, 1], "params": 7, "macs": 5}
    return {**row, "facts": facts, **changes}


def test_rank_correlations_are_scipys_and_left_out_where_nothing_differs():
    rng = np.random.default_rng(3)
    q = rng.integers(0, 9, 17) / 7
    mean = q / 40 + rng.normal(0, 0.01, 17)
    rows = [rank_row(i, a, b) for i, (a, b) in enumerate(zip(q.tolist(), mean.tolist(), strict=True))]
    rows += [rank_row("x", 1.0, None, seeds=[]), rank_row("y", 1.0, 0.9, facts=None)]
    found = rank_correlations.conclude_fields({"rows": rows})
    rho = {name: value and value["rho"] for name, value in found.values["plain"]["spearman"].items()}
    expected = float(spearmanr(q, mean).statistic)
    assert rho["Q, sum"] == rho["Q, effective fields"] == pytest.approx(expected)
    assert rho["Q, sum of logarithms"] == pytest.approx(-expected)
    assert rho["parameters"] is rho["MACs"] is rho["depth"] is None
    interval = found.values["plain"]["spearman"]["Q, sum"]
    assert -1 <= interval["low"] < expected < interval["high"] <= 1
    assert found.values["plain"]["networks"] == 17
    assert set(found.pictures) == {"3drf-rank-plain"}
    assert found == rank_correlations.conclude_fields({"rows": rows})  # drawn with a fixed seed
    json.dumps(dict(found.values), allow_nan=False)


def test_nothing_is_concluded_from_nothing():
    rows = [rank_row(i, float(i), None, seeds=[]) for i in range(9)]
    assert rank_correlations.conclude_fields({"rows": rows}) == Conclusion()


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
