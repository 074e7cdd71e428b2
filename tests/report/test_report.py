import json
import re
import shutil
from html import escape
from html.parser import HTMLParser

import numpy as np
import pytest

import convwright as cw
from convwright.cli import main
from convwright.errors import RunError
from convwright.report import Report, report_of
from convwright.report.changes import compared_networks, letter_of
from convwright.report.html import _for_script, charts
from convwright.report.trials import _distinct
from convwright.runs.directory.network_record import networks


@pytest.fixture(scope="module")
def report(finished):
    return report_of(finished)


@pytest.fixture(scope="module")
def page(report):
    return report.html()


def run(*arguments):
    with pytest.raises(SystemExit) as left:
        main(list(map(str, arguments)))
    return left.value.code


# ------------------------------------------------------------------ content


def test_every_number_of_the_head_is_the_records(finished, report):
    data = json.loads((finished / "result.json").read_text())
    rows = {row.name: row for row in report.compared}
    for name, metric in (("multiply-accumulates (MACs)", "macs"), ("parameters", "params")):
        before, after = data["baseline"]["costs"][metric], data["result"]["costs"][metric]
        assert (rows[name].before, rows[name].after) == (f"{before:,}", f"{after:,}")
        assert rows[name].share == after / before
    for part in ("test", "validation"):
        before, after = data["baseline"][part], data["result"][part]
        assert rows[f"{part} accuracy"].before == f"{before['accuracy']:.2%} ± {before['stderr']:.2%}"
        points = 100 * (after["accuracy"] - before["accuracy"])
        assert rows[f"{part} accuracy"].change == f"{points:+.2f} points"
    assert report.limits[0].met is data["budget_met"]["macs"]["met"]


def test_all_trials_are_there_and_the_front_is_what_no_other_beats(report):
    assert [trial.number for trial in report.trials] == list(range(13))
    for trial in report.trials:
        better = [
            other
            for other in report.trials
            if other.score >= trial.score
            and other.costs["macs"] <= trial.costs["macs"]
            and (other.score, other.costs["macs"]) != (trial.score, trial.costs["macs"])
        ]
        assert trial.front == (not better)
    assert sum(trial.chosen for trial in report.trials) == 1


def test_the_layers_sum_to_the_costs_of_both_networks(report):
    for side, name in (("before", "baseline"), ("after", "result")):
        layers = [facts for change in report.networks.layers if (facts := getattr(change, side)) is not None]
        recorded = json.loads((report.folder / "result.json").read_text())[name]["costs"]
        assert sum(layer.macs for layer in layers) == recorded["macs"]


def test_coupled_layers_have_one_letter_and_one_size(report):
    couplings = {c.letter: c for c in report.networks.couplings}
    shown = [change for change in report.networks.layers if change.coupled]
    assert shown
    for change in shown:
        coupling = couplings[change.coupled]
        assert change.name in coupling.layers
        assert (change.before.channels, change.after.channels) == (coupling.before, coupling.after)


def test_widths_of_each_trial_are_those_of_its_plan(finished, report):
    plan = cw.Plan.load(finished / "plan.json")
    chosen = next(t.number for t in report.trials if t.chosen)
    column = [row[chosen] for row in report.widths.values]
    assert dict(zip(report.widths.rows, column, strict=True)) == {e.target: e.size for e in plan.edits}
    assert all(row[0] is None for row in report.widths.values), "the untouched network has no width of its own"


def test_what_trials_observed_is_shown(report):
    assert [heat.title for heat in report.conflicts] == ["trial 1", "trial 11"]
    assert all(len(row) == len(heat.columns) for heat in report.conflicts + report.quality for row in heat.values)
    assert len(report.curves) == 2
    assert all(len(curve.val_acc) == 20 for curve in report.curves)


def test_an_unfinished_run_is_reported_as_such(unfinished):
    report = report_of(unfinished)
    assert not report.finished
    assert report.status.startswith("Unfinished: 6 trials finished")
    assert report.trials[-1].status == "unfinished"
    assert report.trials[-1].score is None
    assert report.limits[0].met is None
    assert not report.compared
    assert report.networks is not None, "a named network is built anew"
    assert "not judged yet" in report.html()
    assert "Unfinished" in report.markdown()


def test_an_unfinished_run_tells_what_was_decided(unfinished, tmp_path):
    folder = tmp_path / "on its way"
    shutil.copytree(unfinished, folder)
    assert report_of(folder).missing["decisions"] == "The method has not decided anything yet."
    decision = {"phase": "rung 1", "trials": {"1": "narrow"}, "kept": 1, "reason": "narrow 71.00%"}
    content = {
        "format": "convwright decisions",
        "version": 1,
        "decisions": [decision],
        "log": ["rung 1: narrow 71.00%"],
    }
    (folder / "decisions.json").write_text(json.dumps(content))
    report = report_of(folder)
    assert [(d.phase, d.reason) for d in report.decisions] == [("rung 1", "narrow 71.00%")]
    assert "narrow 71.00%" in report.html()
    (folder / "decisions.json").write_text("{")
    with pytest.raises(RunError, match=r"decisions\.json"):
        report_of(folder)


def test_a_run_without_any_trial_is_reported(unfinished, tmp_path):
    folder = tmp_path / "begun"
    folder.mkdir()
    shutil.copy(unfinished / "run.json", folder)
    report = report_of(folder)
    assert report.status.startswith("Unfinished: 0 trials finished")
    assert report.networks is None
    assert "no trial yet" in report.missing["networks"]
    assert report.html()


def test_reading_changes_nothing(finished):
    def state():
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(finished.rglob("*"))}

    before = state()
    report_of(finished).html()
    assert state() == before


def test_sections_without_data_say_why(bench, finished, tmp_path):
    folder = tmp_path / "plain"
    shutil.copytree(finished, folder)
    for file in folder.rglob("history.json"):
        file.unlink()
    report = report_of(folder)
    assert not report.curves
    assert "epochs" in report.missing["curves"]
    assert report.missing["curves"] in report.html()
    assert report.missing["curves"] in report.markdown()


# ------------------------------------------------------------------ damage


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.json", "{}"),
        ("run.json", '{"format": "convwright run"}'),
        ("run.db", "not a database, whatever else it may be"),
        ("result.json", "{"),
        ("result.json", '{"format": "convwright result"}'),
        ("networks.json", '{"format": "convwright networks"}'),
        ("networks.json", '{"format": "convwright networks", "before": {"layers": [1]}, "after": null}'),
        ("plan.json", "[]"),
        ("trials/0001/history.json", '[{"epoch": 1}]'),
    ],
)
def test_a_damaged_file_is_named(finished, tmp_path, capsys, name, text):
    folder = tmp_path / "damaged"
    shutil.copytree(finished, folder)
    (folder / name).write_text(text)
    with pytest.raises(RunError, match=re.escape(name)):
        report_of(folder)
    assert run("report", folder) == 2
    assert name in capsys.readouterr().err
    assert not (folder / "report.html").exists()


def test_a_missing_database_is_named(finished, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(finished, folder)
    (folder / "run.db").unlink()
    with pytest.raises(RunError, match=r"run\.db: missing"):
        report_of(folder)


@pytest.mark.parametrize("made", [False, True])
def test_a_folder_without_a_run_is_refused(tmp_path, capsys, made):
    folder = tmp_path / "none"
    if made:
        folder.mkdir()
    assert run("report", folder) == 2
    assert "none" in capsys.readouterr().err


# ------------------------------------------------------------------ forms


def test_the_three_forms_say_the_same(report, page):
    as_json = json.dumps(report.as_dict(), allow_nan=False)
    markdown = report.markdown()
    for row in report.compared:
        for form in (page, as_json, markdown):
            assert row.after in form.replace("\\u00b1", "±")
    for decision in report.decisions:
        assert decision.reason in page
        assert decision.reason in markdown
    assert escape(report.plan.splitlines()[1]) in page
    assert json.loads(as_json)["trials"][3]["costs"]["macs"] == report.trials[3].costs["macs"]


def test_the_table_of_a_terminal(report):
    lines = str(report).splitlines()
    assert lines[0] == report.status
    assert any(line.startswith("test accuracy") for line in lines)
    assert any("macs <= " in line for line in lines)


class _Tags(HTMLParser):
    VOID = frozenset({"meta", "link", "br", "hr", "input", "img", "rect", "path"})

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.ids = [], [], []

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        self.addresses += [known[name] for name in ("src", "href", "action") if name in known]
        self.ids += [known["id"]] if "id" in known else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_refers_to_nothing_outside(page):
    tags = _Tags()
    tags.feed(page)
    assert tags.open == []
    assert all(address.startswith(("#", "data:")) for address in tags.addresses)
    assert {address[1:] for address in tags.addresses if address.startswith("#")} <= set(tags.ids)
    assert len(tags.ids) == len(set(tags.ids))
    assert page.count("plotly.js v") <= 2, "plotly stands in the page once"
    assert len(page.encode()) < 8_000_000


def test_names_from_outside_cannot_become_tags(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    evil = "</script><script>alert(1)</script><b>"
    content = json.loads((folder / "result.json").read_text())
    content["log"] = [evil]
    content["decisions"] = [{"phase": evil, "trials": {"3": evil}, "kept": 3, "reason": evil}]
    (folder / "result.json").write_text(json.dumps(content))
    report = report_of(folder)
    page = report.html()
    assert "alert(1)</script>" not in page
    assert "<b>" not in _for_script([evil])
    assert json.loads(_for_script([evil])) == [evil]
    assert "<script>" not in report.markdown()


def test_charts_have_a_value_for_every_trial(report):
    drawn = charts(report)
    assert list(drawn) == ["history", "costs", "widths", "conflicts", "quality", "losses", "accuracies"]
    for name in ("history", "costs"):
        for variant in drawn[name].variants:
            points = [trace for trace in variant.figure.data if trace.mode == "markers"]
            assert sum(len(trace.x) for trace in points) == len(report.trials)
    assert [v.label for v in drawn["costs"].variants] == ["MACs per image", "parameters"]


def test_letters_go_on_after_z():
    letters = [letter_of(n) for n in range(800)]
    assert letters[:2] + letters[25:28] + [letters[701], letters[702]] == ["A", "B", "Z", "AA", "AB", "ZZ", "AAA"]
    assert len(set(letters)) == 800


def test_columns_of_one_name_stay_apart():
    assert _distinct(["a", "b", "a", "a"]) == ("a", "b", "a (2)", "a (3)")


# ------------------------------------------------------------------ networks


def test_every_kind_of_edit_is_seen():
    arch = cw.read("zoo:resnet20")
    edits = (
        cw.RemoveBlock("layer3.2"),
        cw.AddBlock("layer1.1"),
        cw.Width("layer2.0.conv2", 23),
        cw.Kernel("layer1.2.conv1", 5),
        cw.Replace("layer3.1.conv1", "dw_rpw", groups=2),
    )
    found = compared_networks(networks(arch, arch.apply(*edits, verify=False)), None)
    states = {change.name: change.state for change in found.layers}
    blocks = {block.name: block.state for stage in found.stages for block in stage.blocks}
    assert blocks["layer3.2"] == "removed"
    assert blocks["layer1.1_copy1"] == "new"
    assert states["layer1.2.conv1"] == "changed"
    assert states["layer3.1.conv1"] == "removed"
    assert states["layer3.1.conv1.depthwise"] == "new"
    assert states["layer1.0.conv1"] == "same"
    (coupling,) = found.couplings
    assert (coupling.letter, coupling.before, coupling.after) == ("A", 32, 23)
    wide = {"layer2.0.conv2", "layer2.0.downsample.0", "layer2.1.conv2", "layer2.2.conv2"}
    assert set(coupling.layers) == wide
    order = [change.name for change in found.layers]
    assert order.index("layer1.1_copy1.conv1") == order.index("layer1.1.conv2") + 1
    assert [stage.name for stage in found.stages] == ["stage1", "stage2", "stage3", "head"]


def test_a_network_beside_itself_has_no_change():
    arch = cw.read("zoo:mnist-a")
    found = compared_networks(networks(arch, None), None)
    assert {change.state for change in found.layers} == {"same"}
    assert not found.couplings


# ------------------------------------------------------------------ command line


def test_the_command_writes_the_page(finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    assert run("report", folder) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_command_prints_the_other_forms(finished, capsys):
    assert run("report", finished, "--json") == 0
    assert json.loads(capsys.readouterr().out)["format"] == "convwright report"
    assert run("report", finished, "--markdown") == 0
    assert capsys.readouterr().out.startswith("# zoo:resnet20")
    assert run("report", finished, "--markdown", "--json") == 2
    assert run("report", finished, "--json", "--out", "x.html") == 2
    assert not (finished / "report.html").exists()


def test_a_training_is_reported(tmp_path):
    from convwright.runs.train import train_named

    labels = np.arange(60) % 3
    images = np.random.default_rng(0).integers(0, 255, (60, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", x_train=images, y_train=labels, x_test=images[:30], y_test=labels[:30])
    changes = {"epochs": 1, "seed": 0, "batch_size": 20}
    train_named("zoo:mnist-a", "npz:set.npz", "fast-cpu", changes, out=tmp_path / "t")
    report = report_of(tmp_path / "t")
    assert isinstance(report, Report)
    assert report.finished
    assert report.networks is not None
    assert len(report.curves[0].train_loss) == 1
    assert report.html()
    (tmp_path / "t" / "training.json").unlink()
    left = report_of(tmp_path / "t")  # as after a crash: only the checkpoint is there
    assert left.status.startswith("Unfinished: 1 epoch trained")
    assert left.html()
