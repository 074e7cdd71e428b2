"""Rows whose widths a search decides: it is carried out once, whatever happens, and every network begins alike."""

import dataclasses
import json
import random
import threading
import time
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr

from convwright.architecture import read
from convwright.cost.budget import Limits
from convwright.edits import Width
from convwright.edits.reinitialize import draw_anew
from convwright.errors import ConvwrightError, RecipeError, RunError
from convwright.experiments import train_row as rows_module
from convwright.experiments.designs import search_design as searched
from convwright.experiments.designs.design import DesignContext, Drawn, NetworkSpec, UniformRatio, form_of, made, opened
from convwright.experiments.designs.search_design import Question, Searched, Walked
from convwright.experiments.papers import EXPERIMENTS, Experiment, Row, conetv2, rank_correlations
from convwright.experiments.reproduce import listed, reproduce
from convwright.experiments.statistics import correlated
from convwright.methods import Evidence, RandomWidths
from convwright.methods.random_widths import drawn
from convwright.methods.shared.width_surface import Surface
from convwright.plots import plotted
from convwright.runs.directory import study as study_module
from convwright.runs.evaluate import Evaluator

SECONDS = ("seconds", "processor_seconds", "elapsed_seconds")
FIELDS = {
    "batch_size": 32, "lr": 0.05, "schedule": "constant", "warmup": 0.0, "crop_padding": 1, "precision": "fp32",
    "memory_format": "contiguous", "val_fraction": 0.2,
}  # fmt: skip
OPTIONS = {"rule": "greedy", "trials": 3, "trial_epochs": 1, "start": 2}
SEARCH = Searched("channel-search", OPTIONS, "macs<=50%", FIELDS)


@pytest.fixture
def rows(monkeypatch, tiny, pictures, plain):
    """File an experiment with a row per design."""

    def file(**designs):
        recipe = plain.updated(val_fraction=0.0, epochs=1)
        made_rows = tuple(
            Row(name, tiny, pictures, recipe, (0, 1), design=design, fresh=True, quality=True)
            for name, design in designs.items()
        )
        monkeypatch.setitem(EXPERIMENTS, "small", Experiment("small", "t", "s", lambda size: made_rows))
        return made_rows

    return file


def run(folder, **options):
    return reproduce("small", Path(folder), say=lambda text: None, **options)


def timeless(value):
    if isinstance(value, dict):
        return {key: timeless(part) for key, part in value.items() if key not in SECONDS}
    return [timeless(part) for part in value] if isinstance(value, list) else value


# ------------------------------------------------------------------ a search decides


def test_rows_and_seeds_share_a_search(rows):
    rows(before=(), one=(SEARCH,), two=(SEARCH,), narrow=(SEARCH, UniformRatio("macs<=20%", widen=False)))
    content = {row["name"]: row for row in run("a", seeds=1)["rows"]}
    assert {row["name"]: len(row["searches"]) for row in run("a", only=["one"])["rows"][1:]} == dict.fromkeys(
        ("one", "two", "narrow"), 1
    )
    (folder,) = Path("a/searches").glob("[!.]*")
    found = json.loads((folder / "result.json").read_text())
    assert content["one"]["searches"] == content["two"]["searches"] == content["narrow"]["searches"] == [found]
    assert content["two"]["same_as"] == "one"
    assert content["one"]["macs"] <= content["before"]["macs"] / 2
    assert content["narrow"]["macs"] <= content["before"]["macs"] / 5
    assert [len(found[key]) for key in ("trials", "history")] == [3, 3]
    assert [trial["images"] for trial in found["trials"]] == [161, 161, 161]  # of 200, class by class
    assert found["image_macs"] == sum(161 * trial["macs"] for trial in found["trials"])
    assert found["seconds"] == pytest.approx(sum(trial["seconds"] for trial in found["trials"]))
    assert np.shape(found["qualities"]["qc"]) == (3, 2, 2)
    assert content["one"]["form"]["edits"] == found["edits"]
    targets = [edit["target"] for edit in content["narrow"]["form"]["edits"]]
    assert len(set(targets)) == len(targets)
    assert all(set(q) == {"qc", "qc_parity", "rank", "knowledge_gain"} for q in content["before"]["qualities"])
    assert "channel-search, 3 trials: " in Path("a/table.md").read_text()
    json.dumps(found, allow_nan=False)


def test_a_search_of_another_judgement_is_repeated(rows, monkeypatch):
    rows(before=(), one=(SEARCH,))
    first = run("a", seeds=1)
    file = Path("a/rows/one-0/result.json")
    trained = []
    honest = rows_module.train
    monkeypatch.setattr(rows_module, "train", lambda *args, **kw: (trained.append(1), honest(*args, **kw))[1])
    assert timeless(run("a", seeds=1)) == timeless(first)
    assert not trained
    for module in (rows_module, searched, study_module):  # from now on networks are judged otherwise
        monkeypatch.setattr(module, "JUDGEMENT", 3)
    (file.parent / "checkpoint.pt").write_text("of the network that the first search found")
    again = run("a", seeds=1)
    assert len(trained) == 1
    assert len(list(Path("a/searches").glob("[!.]*"))) == 2
    assert [row["judgement"] for row in again["rows"]] == [2, 3]
    assert again["rows"][1]["accuracies"] == first["rows"][1]["accuracies"]
    assert timeless(run("a", seeds=1)) == timeless(again)
    assert len(trained) == 1


def test_a_search_that_was_interrupted_again_and_again_finds_the_same(rows, monkeypatch):
    rows(one=(SEARCH,))
    whole = timeless(run("whole", seeds=1))
    done = []

    def interrupted(self, number, candidate, parents, evaluate=Evaluator.__call__):
        done.append(number)
        if len(done) % 2:  # at the first trial, and then after one more each time
            raise KeyboardInterrupt
        return evaluate(self, number, candidate, parents)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "__call__", interrupted)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                run("parts", seeds=1)
    assert done == [0, 0, 1, 1, 2]
    assert timeless(run("parts", seeds=1)) == whole


def test_who_comes_second_waits_and_reads(monkeypatch, tiny, tmp_path):
    began = []

    def carry_out(question, make, folder):
        began.append(folder)
        time.sleep(0.3)
        folder.mkdir()
        (folder / "result.json").write_text("{}")

    monkeypatch.setattr(searched, "_carry_out", carry_out)
    question = Question(SEARCH, tiny, NetworkSpec({}), DesignContext(searches=tmp_path / "searches"))
    threads = [threading.Thread(target=question.answered, args=(None,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert began == [question.folder]


def test_a_search_is_another_where_anything_it_depends_on_is(tiny, tmp_path):
    def folder(design=SEARCH, form=None, **setting):
        common = {"searches": Path("s"), "data": "d", "start": NetworkSpec({})}
        return Question(design, tiny, form or NetworkSpec({}), DesignContext(**{**common, **setting})).folder

    others = [
        *(
            folder(dataclasses.replace(SEARCH, **change))
            for change in (
                {"seed": 1},
                {"budget": "macs<=51%"},
                {"options": {**OPTIONS, "gamma": 0.7}},
                {"method": "random"},
                {"recipe": {**FIELDS, "lr": 0.06}},
            )
        ),
        folder(Walked(SEARCH, "svd")),
        folder(Walked(SEARCH, "fresh")),
        folder(form=NetworkSpec({"width": 2})),
        folder(form=NetworkSpec({}, (Width("conv1", 3),))),
        folder(start=NetworkSpec({"width": 2})),
        folder(data="e"),
        folder(shape=(1, 8, 8)),
    ]
    assert folder() == folder(data_dir=Path("x"), threads=3)
    assert len({folder(), *others}) == len(others) + 1
    before = folder()
    (tmp_path / "net.py").write_text((tmp_path / "net.py").read_text() + "\n# another\n")
    assert folder() != before


def test_a_search_without_a_result_is_its_own_rows_failure(rows):
    hopeless = dataclasses.replace(SEARCH, budget="macs<=0.01%")
    lost = dataclasses.replace(SEARCH, recipe={**FIELDS, "lr": 1e30})
    rows(lost=(lost,), hopeless=(hopeless,), fine=())
    with pytest.raises(RecipeError, match="2 of 3 trainings broke down"):
        run("a", seeds=1)
    assert Path("a/rows/fine-0/result.json").is_file()


def test_no_search_where_nothing_is_recorded(tiny):
    with pytest.raises(RunError, match="can only be asked where its search is recorded"):
        form_of(Row("r", tiny, "", None, design=(SEARCH,)))


@pytest.mark.breadth
def test_walks_have_the_widths_of_the_search(monkeypatch, tiny, pictures):
    transfers = ("svd", "net2wider", "fresh")
    walks = tuple(Row(name, tiny, pictures, None, design=(Walked(SEARCH, name),)) for name in transfers)
    # A file has no usual input, so the rows are trained.
    recipe = searched.Recipe(**{**FIELDS, "epochs": 1, "val_fraction": 0.0})
    walks = tuple(dataclasses.replace(row, recipe=recipe, seeds=(0,), fresh=True) for row in walks)
    monkeypatch.setitem(
        EXPERIMENTS, "small", Experiment("small", "t", "s", lambda size: walks, conetv2.conclude_transfer)
    )
    content = run("a")
    (folder,) = Path("a/searches").glob("[!.]*channel-search*")
    trials = json.loads((folder / "result.json").read_text())["trials"]
    assert len({json.dumps(trial["edits"]) for trial in trials}) > 1
    found = {row["name"]: row["searches"][-1]["trials"] for row in content["rows"]}
    for name, steps in found.items():
        assert [step["edits"] for step in steps] == [trial["edits"] for trial in trials]
        assert [step["weights"] for step in steps] == ["fresh", name, name]
        assert [step["parent"] for step in steps] == ([None] * 3 if name == "fresh" else [None, 0, 1])
    scores = {name: [step["score"] for step in steps] for name, steps in found.items()}
    assert scores["net2wider"] == [trial["score"] for trial in trials]  # that is how the search carried them
    assert len({tuple(each) for each in scores.values()}) > 1
    assert content["conclusion"]["values"]["svd"]["scores"] == scores["svd"]
    xml.etree.ElementTree.fromstring(Path("a/conetv2-transfer.svg").read_text())


# ------------------------------------------------------------------ widths without a search


def test_an_edited_network_begins_like_one_that_was_built_so():
    build = {"depths": (1, 1, 1), "in_channels": 1}
    form = form_of(
        Row("r", "zoo:resnet20", "", None, options={**build, "width": 0.25}, design=(Drawn(5, 0.5, 0.5),)),
        DesignContext(shape=(1, 16, 16)),
    )
    assert len(form.edits) == 6
    edited = made("zoo:resnet20", form, (1, 16, 16), 7, fresh=True)
    built = made("zoo:resnet20", NetworkSpec({**build, "width": 0.125}), (1, 16, 16), 7, fresh=True)
    again = made("zoo:resnet20", NetworkSpec({**build, "width": 0.125}), (1, 16, 16), 8)
    draw_anew(again, 7)
    for name, tensor in built.state_dict().items():
        assert torch.equal(edited.state_dict()[name], tensor), name
        assert torch.equal(again.state_dict()[name], tensor), name
    other = made("zoo:resnet20", form, (1, 16, 16), 8, fresh=True)
    assert not torch.equal(other.conv1.weight, built.conv1.weight)


def test_uniform_narrows_what_breaks_the_budget_and_leaves_what_does_not(tiny):
    setting = DesignContext(shape=(1, 8, 8))
    full = opened(tiny, NetworkSpec({}), (1, 8, 8)).profile().macs
    small = NetworkSpec({}, (Width("conv1", 2), Width("conv2", 3)))
    assert UniformRatio("macs<=50%", widen=False).resolve(tiny, small, setting) == small
    wider = UniformRatio("macs<=50%").resolve(tiny, small, setting)
    assert 0.4 * full < opened(tiny, wider, (1, 8, 8)).profile().macs <= full / 2
    large = NetworkSpec({}, (Width("conv1", 29), Width("conv2", 31)))
    narrowed = UniformRatio("macs<=50%", widen=False).resolve(tiny, large, setting)
    assert [edit.target for edit in narrowed.edits] == ["conv1", "conv2"]
    assert opened(tiny, narrowed, (1, 8, 8)).profile().macs <= full / 2


@pytest.mark.parametrize("seed", range(5))
def test_drawn_widths_lie_within_their_factors_or_on_the_budget(tiny, seed):
    setting = DesignContext(shape=(1, 8, 8))
    sizes = {"conv1": 8, "conv2": 12}
    free = Drawn(seed, 0.25, 1.5).resolve(tiny, NetworkSpec({}), setting)
    for edit in free.edits:
        assert 0.25 * sizes[edit.target] - 0.5 <= edit.size <= 1.5 * sizes[edit.target] + 0.5
    assert free == Drawn(seed, 0.25, 1.5).resolve(tiny, NetworkSpec({}), setting)
    full = opened(tiny, NetworkSpec({}), (1, 8, 8)).profile().macs
    on = Drawn(seed, 0.5, 2.0, "macs<=50%").resolve(tiny, NetworkSpec({}), setting)
    assert 0.3 * full < opened(tiny, on, (1, 8, 8)).profile().macs <= full / 2


def test_random_widths_end_with_the_most_accurate_draw(tiny):
    arch = read(tiny, (1, 1, 8, 8))
    limits = Limits({"macs": arch.profile().macs // 2})
    method = RandomWidths(arch, limits, epochs=3, trials=5, trial_epochs=2, seed=4)
    batch = method.ask()
    assert batch == RandomWidths(arch, limits, epochs=3, trials=5, trial_epochs=2, seed=4).ask()
    assert [(c.epochs, c.weights, c.seed) for c in batch] == [(2, "fresh", 4 + i) for i in range(5)]
    assert len({c.plan.to_json() for c in batch}) > 1
    surface = Surface(arch, limits)
    rng = random.Random(4)
    for number, candidate in enumerate(batch):
        assert candidate.plan.edits == drawn(surface, rng, 0.5, 2.0, scaled=True)
        macs = arch.apply(*candidate.plan.edits, verify=False).profile().macs
        assert 0.8 * limits.limits["macs"] < macs <= limits.limits["macs"]
        usable = number != 3  # the best one failed
        score = [0.1, 0.5, 0.3, 0.9, 0.2][number] if usable else float("nan")
        method.tell(Evidence(candidate, number, score, 0.01, {"macs": macs}, status="done" if usable else "failed"))
    final, baseline = method.ask()
    assert (final.plan, final.epochs, baseline.role) == (batch[1].plan, 3, "baseline")
    assert "trial 1 of 5, accuracy 50.00%" in method.log[0]
    with pytest.raises(ConvwrightError, match="trials=0"):
        RandomWidths(arch, limits, trials=0)


# ------------------------------------------------------------------ the experiments


def test_experiments_are_data():
    found = {each["name"]: each for each in listed()}
    assert found["conetv2"]["trainings"] == {"quick": 23, "standard": 69, "full": 78}
    assert found["conetv2-rank"]["trainings"]["standard"] == 32
    rows = {row.name: row for row in EXPERIMENTS["conetv2"].rows("standard")}
    assert all(row.fresh for row in rows.values())
    assert len({json.dumps(row.recipe.model_dump(mode="json")) for row in rows.values()}) == 2  # by precision
    full = {row.name: row for row in EXPERIMENTS["conetv2"].rows("full")}
    assert full["resnet20-parity-macs"].design[0] == full["resnet20-parity-params"].design[0]  # searched once
    assert rows["resnet20-search-macs"].design[0] != rows["resnet20-annealing-macs"].design[0]
    for row in rows.values():
        assert row.name.endswith("-before") or rows[row.control].design or row.control.endswith("-before")
        for design in row.design:
            if isinstance(design, Searched):
                assert 0 < design.recipe["val_fraction"] < 1
                assert design.options["trials"] == (12 if row.name.startswith("resnet20") else 8)
                searched.Recipe(**design.recipe)


def ranked(number, rng):
    qc, macs = rng.random(), int(rng.integers(10, 99))
    mean = 0.5 + 0.1 * qc + macs / 1000
    quality = {"qc": qc, "qc_parity": 1 - qc, "rank": 0.3, "knowledge_gain": qc**2}
    return {
        "name": f"widths-{number}", "mean": mean, "deviation": None, "seeds": [0], "params": 7, "macs": macs,
        "qualities": [quality], "train_losses": [2 - mean],
    }  # fmt: skip


def test_rank_correlations_by_themselves_and_given_macs():
    rng = np.random.default_rng(7)
    rows = [ranked(i, rng) for i in range(19)]
    left_out = [{**rows[0], "mean": None}, {**rows[0], "qualities": [None]}]
    found = rank_correlations.conclude_quality({"rows": rows + left_out})
    assert found.values["networks"] == 19
    accuracy, qc, macs = ([f(row) for row in rows] for f in (
        lambda r: r["mean"], lambda r: r["qualities"][0]["qc"], lambda r: r["macs"]
    ))  # fmt: skip
    assert found.values["spearman"]["QC, corrected"]["rho"] == pytest.approx(spearmanr(qc, accuracy).statistic)
    assert found.values["spearman"]["training loss (lower first)"]["rho"] == pytest.approx(1)
    assert found.values["spearman"]["rank"] is found.values["given_macs"]["parameters"] is None
    # What is left of ranks after a straight line through those of the MACs.
    ranks = [np.asarray(rankdata(values)) for values in (qc, accuracy)]
    rest = [r - np.polyval(np.polyfit(rankdata(macs), r, 1), rankdata(macs)) for r in ranks]
    partial = found.values["given_macs"]["QC, corrected"]
    assert partial["rho"] == pytest.approx(np.corrcoef(*rest)[0, 1])
    assert partial["low"] < partial["rho"] < partial["high"] <= 1
    assert correlated(macs, np.array(accuracy), [float(m) for m in macs]) is None
    xml.etree.ElementTree.fromstring(found.pictures["conetv2-rank"])
    assert rank_correlations.conclude_quality({"rows": rows[:3]}).tables == ()


def test_pictures_are_drawn_from_the_record(rows):
    rows(**{"resnet20-before": (), "resnet20-search-macs": (SEARCH,)})
    content = run("a", seeds=1)
    found = conetv2.conclude(content)
    name = "conetv2-resnet20-search-macs"
    costs = {"conetv2-resnet20-macs", "conetv2-resnet20-params"}
    assert set(found.pictures) == {f"{name}-widths", f"{name}-quality", f"{name}-score"} | costs
    for text in found.pictures.values():
        xml.etree.ElementTree.fromstring(text)
    assert all(f">{group}<" in found.pictures[f"{name}-widths"] for group in ("conv1", "conv2"))
    assert [len(series["points"]) for series in plotted(found.pictures[f"{name}-widths"])["series"]] == [3, 3]
    assert conetv2.conclude({"rows": []}).pictures == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conetv2", "conetv2-rank", "conetv2-transfer"])
def test_the_quick_size_runs_on_embedded_images(monkeypatch, name, tmp_path):
    quick = EXPERIMENTS[name].rows("quick")
    embedded = {"data": "fashion-mini", "shape": (3, 28, 28), "seeds": (0,)}
    replaced = tuple(dataclasses.replace(row, **embedded) for row in quick[:6])
    kept = EXPERIMENTS[name]
    monkeypatch.setitem(EXPERIMENTS, name, dataclasses.replace(kept, rows=lambda size: replaced))
    assert reproduce(name, tmp_path / "out", size="quick", say=lambda text: None)["rows"]
