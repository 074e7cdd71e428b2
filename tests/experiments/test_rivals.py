"""Method auto beside its rivals: all rows of a table within one budget, at one total of compute."""

import dataclasses
import json
import re
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from convwright.architecture import read
from convwright.cost import count_by_torch
from convwright.cost.budget import parse_budget
from convwright.edits import RemoveBlock
from convwright.errors import ConvwrightError
from convwright.experiments.designs.design import DesignContext, NetworkSpec, made, opened
from convwright.experiments.designs.search_design import FOUND, Question, Searched
from convwright.experiments.papers import EXPERIMENTS
from convwright.experiments.papers.baselines import rows as rivals
from convwright.experiments.papers.baselines.designs import Kept, LatencyStudy, Phases, Rest, TpeSearch
from convwright.experiments.papers.baselines.rows import clear, compute, conclude, verdict
from convwright.experiments.papers.baselines.torch_pruning import Pruned, narrowed, widths_of
from convwright.experiments.reproduce import reproduce
from convwright.methods import Evidence
from convwright.training.data.resized import resized_data

OPTIONS = {"widths": [5, 7, 11], "depths": [1, 2, 2], "in_channels": 1, "num_classes": 3}
SHAPE = (1, 8, 8)
TRAINED = ("baseline", "baseline-long", "auto", "uniform", "torch-pruning-group-norm")


@pytest.fixture
def small(monkeypatch, pictures):
    """Make the quick size of the experiment one tiny network on a few pictures."""
    base = rivals.Base("zoo:resnet20", {"quick": OPTIONS}, {"quick": pictures}, {"quick": SHAPE}, "fp32")
    monkeypatch.setattr(rivals, "BASES", {"tiny": base})
    monkeypatch.setitem(rivals.COURSES, "quick", dataclasses.replace(rivals.COURSES["quick"], seconds=0.02))
    return base


def run(*only, **options):
    content = reproduce(
        "rivals", Path("a"), size="quick", only=only, threads=1, **{"say": lambda text: None, **options}
    )
    return content, {row["name"].partition("-")[2]: row for row in content["rows"] if row["seeds"]}


@pytest.mark.breadth
def test_every_row_keeps_the_budget_and_the_compute(small):
    content, rows = run(*(f"tiny50-{kind}" for kind in TRAINED))
    assert set(rows) == set(TRAINED)
    untouched = rows["baseline"]["macs"]
    total = rivals.COURSES["quick"].total(50)
    for kind, row in rows.items():
        spent = compute(row)
        own = row["macs"] / untouched
        if kind == "baseline":
            assert spent["total"] == rivals.COURSES["quick"].first
            continue
        assert spent["total"] <= total + 1e-9 or row["form"]["epochs"] == 1, kind
        assert spent["total"] > total - own - 1e-9, kind  # not one more epoch would fit
        assert (spent["search"] > 0) == (kind not in ("baseline-long",)), kind
        if kind != "baseline-long":
            assert 0.25 < own <= 0.5, kind
        assert row["studies"][0]["ratio"] > 0
    kept = {kind for kind, row in rows.items() if "weights" in row["form"]}
    assert kept == {"auto", "uniform", "torch-pruning-group-norm"}
    assert len(rows["torch-pruning-group-norm"]["searches"]) == 2  # the first training is uniform's
    assert rows["torch-pruning-group-norm"]["searches"][0] == rows["uniform"]["searches"][0]
    (table,) = content["conclusion"]["tables"]
    assert [len(row) for row in table["rows"]] == [len(table["columns"])] * len(TRAINED)
    assert content["conclusion"]["values"]["tiny50"]["auto_above_every_row"] is False  # one seed proves nothing
    xml.etree.ElementTree.fromstring(Path("a/rivals-tiny.svg").read_text())
    json.dumps(content, allow_nan=False)
    said = []
    again, _ = run("tiny50-baseline*", say=said.append)
    assert len(said) == 1  # that both are finished: nothing is done twice
    assert again["rows"] == content["rows"]


@pytest.mark.slow
def test_a_row_goes_on_from_the_weights_of_its_search(small, plain):
    fields = {**rivals.trial_recipe(small, rivals.COURSES["quick"]), "batch_size": 32}
    setting = DesignContext(SHAPE, NetworkSpec(OPTIONS), Path("searches"), small.data["quick"])
    phased = Kept(Phases(budget="macs<=50%", recipe=fields)).resolve(small.model, setting.start, setting)
    folder = phased.searches[-1]
    trials = json.loads((folder / "result.json").read_text())["trials"]
    assert phased.weights == folder / FOUND
    kept = load_file(phased.weights)
    files = [folder / "trials" / f"{n:04d}" / "model.safetensors" for n in range(len(trials))]
    assert any(same(kept, load_file(file)) for file in files[1:])  # the result itself, as it was trained
    assert all(trial["images"] for trial in trials)  # the trainings beside the phases were left out


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("total", "removed"), [(2.5, 0), (7, 1)])
def test_the_rest_is_spent_to_less_than_an_epoch(small, total, removed):
    edits = (RemoveBlock("layer2.1"), RemoveBlock("layer3.1"))[:removed]
    setting = DesignContext(SHAPE, NetworkSpec(OPTIONS), Path("searches"), small.data["quick"])
    form = Rest(total).resolve(small.model, NetworkSpec(OPTIONS, edits), setting)
    share = (
        opened(small.model, form, SHAPE).profile().macs
        / opened(small.model, NetworkSpec(OPTIONS), SHAPE).profile().macs
    )
    assert form.epochs * share <= total + 1e-9 < (form.epochs + 1) * share


# ------------------------------------------------------------------ rivals


@pytest.mark.parametrize("importance", [pytest.param("magnitude", marks=pytest.mark.breadth), "group-norm"])
def test_torch_pruning_ends_in_a_network_of_ours(importance):
    pytest.importorskip("torch_pruning")
    model, options = "zoo:resnet20", {**OPTIONS, "widths": [11, 17, 23]}
    form, setting = NetworkSpec(options), DesignContext(SHAPE, NetworkSpec(options))
    network, image = made(model, form, SHAPE, 3), torch.zeros(1, *SHAPE)
    before = count_by_torch(network, image)
    narrowed(network, image, before, importance)
    assert count_by_torch(network, image) == before  # it is within the target as it is
    narrowed(network, image, 0.4 * before, importance)
    assert 0.25 * before < count_by_torch(network, image) <= 0.4 * before
    edits = widths_of(network, Question(Searched(), model, form, setting))
    built = made(model, form.joined(edits), SHAPE, 0)
    built.load_state_dict(network.state_dict())
    x = torch.randn(2, *SHAPE)
    torch.testing.assert_close(built.eval()(x), network.eval()(x))
    assert built(x).shape == (2, 3)


def test_without_torch_pruning_its_rows_say_so_and_the_others_run(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    said = []
    with pytest.raises(ConvwrightError, match="pip install torch-pruning"):
        run("tiny50-torch-pruning-magnitude", "tiny50-baseline", say=said.append)
    (line,) = [line for line in said if "pruning" in line]
    assert line.endswith("this row needs it: pip install torch-pruning")
    _, rows = run("tiny50-baseline")
    assert rows["baseline"]["seeds"] == [0]


@pytest.mark.breadth
def test_tpe_tries_networks_on_the_budget():
    arch = read("zoo:resnet20", (1, *SHAPE), **OPTIONS)
    limits = parse_budget("macs<=50%").resolve(arch.profile())

    def course(better, trials=5):
        search = TpeSearch(arch, limits, seed=1, trials=trials)
        depths, plans = [], []
        for number in range(trials):
            (candidate,) = search.ask()
            assert candidate.weights == "fresh"
            assert candidate.parent is None
            network = opened("zoo:resnet20", NetworkSpec(OPTIONS, candidate.plan.edits), SHAPE)
            macs = network.profile().macs
            assert 0.85 * limits.limits["macs"] < macs <= limits.limits["macs"]
            depths.append(sum(isinstance(edit, RemoveBlock) for edit in candidate.plan.edits))
            plans.append(candidate.plan)
            search.tell(Evidence(candidate, number, better(depths[-1]), 0.01, {"macs": macs}))
        final, baseline = search.ask()
        assert baseline.role == "baseline"
        scores = [better(depth) for depth in depths]
        assert final.plan == plans[scores.index(max(scores))]
        return plans

    one, two = course(lambda n: 0.1 * n), course(lambda n: 0.1 * n, trials=2)
    assert one[:2] == two  # so a search that was killed goes on
    assert len(set(one)) == 5


def test_baselines_are_left_out_of_the_phases():
    layers = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 2)]
    arch = read(nn.Sequential(*layers), (1, 1, 8, 8))
    limits = parse_budget("macs<=50%").resolve(arch.profile())
    method = Phases(options={"tune_epochs": 2}).method_for(arch, limits)
    asked = []
    for _ in range(2):  # the untouched network, and a phase
        for candidate in method.ask():
            costs = {"macs": limits.limits["macs"] if asked else 2 * limits.limits["macs"], "params": 1}
            asked.append(candidate)
            method.tell(Evidence(candidate, len(asked) - 1, 0.5, 0.01, costs))
    assert [c.role for c in asked] == ["base"] + ["candidate"] * (len(asked) - 1)
    best = method.best()
    assert (method.found.plan, method.found.parent) == (best.candidate.plan, best.trial)
    assert asked[best.trial] is best.candidate


def test_a_latency_is_taken_at_each_networks_own_resolution(monkeypatch, small):
    from convwright.experiments.papers.baselines import designs as rivals_designs
    from convwright.training import load_data

    seen = {}

    def compared(models, seconds):
        seen.update({name: tuple(image.shape) for name, (_, image) in models.items()})
        return real(models, seconds=0.01)

    real = rivals_designs.compare_latency
    monkeypatch.setattr(rivals_designs, "compare_latency", compared)
    data = resized_data(load_data(small.data["quick"], val_fraction=0.0), (5, 5))
    network = made(small.model, NetworkSpec(OPTIONS), SHAPE, 0)
    found = LatencyStudy(small.model, OPTIONS, SHAPE).carry_out(network, data, None, {})
    assert seen == {"untouched": (1, 1, 8, 8), "own": (1, 1, 5, 5)}
    assert found["macs"] == opened(small.model, NetworkSpec(OPTIONS), SHAPE).profile().macs
    assert found["images"] == len(data.train)


# ------------------------------------------------------------------ what follows


def row(name, accuracies, macs=50, searched=0.0, ratio=0.5):
    mean = sum(accuracies) / len(accuracies)
    spread = (sum((a - mean) ** 2 for a in accuracies) / (len(accuracies) - 1)) ** 0.5 if len(accuracies) > 1 else None
    return {
        "name": name, "mean": mean, "deviation": spread, "seeds": list(range(len(accuracies))), "macs": macs,
        "params": 7, "accuracies": accuracies, "form": {"epochs": 3}, "searches": [{"image_macs": searched}],
        "studies": [{"ratio": ratio, "images": 10, "macs": 100}],
    }  # fmt: skip


def test_a_lead_counts_beyond_its_deviation():
    rows = [row("a50-auto", [0.8, 0.82, 0.84]), row("a50-uniform", [0.70, 0.72, 0.74]), row("a50-tpe", [0.6, 0.6, 0.9])]
    found = verdict(rows)
    assert found["first"] == "auto"
    assert clear(found["auto_ahead"]["uniform"])
    assert not clear(found["auto_ahead"]["tpe"])
    assert found["auto_above_every_row"] is False
    assert verdict(rows[:2])["auto_above_every_row"] is True
    long = row("a50-baseline-long", [0.81, 0.82, 0.83], macs=100, ratio=1.0)
    assert verdict([*rows[:2], long])["as_accurate"] == {"auto": 0.5}
    single = [row("a50-auto", [0.9]), row("a50-uniform", [0.1])]
    assert verdict(single)["auto_above_every_row"] is False


def test_tables_are_sorted_and_count_the_compute():
    rows = [row("a50-uniform", [0.7, 0.71]), row("a50-auto", [0.8, 0.82], searched=2500.0), row("a25-auto", [0.6, 0.6])]
    none = {"name": "a25-tpe", "mean": None}
    concluded = conclude({"rows": [*rows, none]})
    first, second = concluded.tables
    assert [cells[0] for cells in first.rows] == ["auto", "uniform"]
    assert first.rows[0][6:9] == ("2.50", "1.50", "4.00")
    assert "a at 25 %" in second.title
    assert second.notes[-1] == "Not trained, so not compared: tpe."
    assert not any("Not trained" in note for note in first.notes)
    assert set(concluded.values) == {"a50", "a25"}
    assert list(concluded.pictures) == ["rivals-a"]
    assert conclude({"rows": []}).tables == ()


def test_rows_are_data():
    for size, tables, timed in (("quick", 1, 0), ("standard", 6, 2), ("full", 6, 3)):
        rows = EXPERIMENTS["rivals"].rows(size)
        assert len(rows) == 14 * tables + 3 * timed
        for name in {row.name.partition("-")[0] for row in rows}:
            own = {r.name.partition("-")[2]: r for r in rows if r.name.startswith(f"{name}-")}
            assert len({json.dumps(r.recipe.model_dump(mode="json")) for r in own.values()}) == 1
            totals = {kind: r.design[-1].total for kind, r in own.items()}
            assert totals.pop("baseline") < min(totals.values())
            assert len(set(totals.values())) == 1
            percent = int(re.sub(r"\D", "", name))
            given = [budget(design) for r in own.values() for design in r.design]
            macs = {f"macs<={percent}%", f"macs<={percent / 2:g}%"}
            assert {b for b in given if b} <= ({f"latency<={percent}%"} if name.endswith("ms") else macs)
            assert all(len(r.seeds) == (1 if size == "quick" else 3) for r in own.values())


def budget(design):
    return design.search.budget if isinstance(design, Kept) else getattr(design, "budget", "")


def test_pruning_wants_a_limit_on_macs(small):
    pytest.importorskip("torch_pruning")
    fields = rivals.trial_recipe(small, rivals.COURSES["quick"])
    setting = DesignContext(SHAPE, NetworkSpec(OPTIONS), Path("searches"), small.data["quick"])
    pruned = Pruned(first=Searched("uniform", {"epochs": 0}, "macs<=50%", fields), budget="params<=50%", recipe=fields)
    with pytest.raises(ConvwrightError, match="a limit on MACs"):
        pruned.resolve(small.model, setting.start, setting)
