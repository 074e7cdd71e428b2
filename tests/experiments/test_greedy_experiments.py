"""Enlarged networks as rows: searches, rules and chance at equal MACs, trained at the resolution that they end with."""

import dataclasses
import json
import xml.etree.ElementTree

import pytest
import torch

from convwright.architecture import read
from convwright.cost.budget import Limits
from convwright.edits import AddBlock, Resolution, Width
from convwright.errors import ConvwrightError
from convwright.experiments.designs.design import NetworkSpec, made, opened
from convwright.experiments.designs.search_design import At, Searched, Tried
from convwright.experiments.papers import EXPERIMENTS, Experiment, Row, greedy
from convwright.experiments.reproduce import listed, reproduce
from convwright.methods import Evidence, Scaling
from convwright.methods.shared.stage_knobs import Stages

OPTIONS = {"widths": [4, 6, 8], "depths": [1, 2, 2], "in_channels": 1, "num_classes": 3}
FIELDS = {
    "batch_size": 32, "lr": 0.05, "schedule": "constant", "warmup": 0.0, "crop_padding": 1, "precision": "fp32",
    "memory_format": "contiguous", "val_fraction": 0.2, "max_steps": 2,
}  # fmt: skip
BUDGET = "macs<=400K"  # four times what the network has at 11 pixels
SIDE = 11


def search(**options):
    common = {"steps": 2, "tolerance": 0.3, "resolution_step": 3, "trial_steps": 1}
    return Searched("greedy", {**common, **options}, BUDGET, FIELDS)


def chance(**options):
    common = {"rule": "random", "samples": 3, "trial_epochs": 1, "trial_steps": 1}
    return Searched("scaling", {**common, **options}, BUDGET, FIELDS)


@pytest.fixture
def run(monkeypatch, pictures, plain, tmp_path):
    """File an experiment with a row per design, behind 11 pixels, and carry it out."""

    def carried_out(conclude=None, **designs):
        recipe = plain.updated(val_fraction=0.0, epochs=1, max_steps=2)
        rows = tuple(
            Row(name, "zoo:resnet20", pictures, recipe, (0,), OPTIONS, (At(SIDE), *design), fresh=True)
            for name, design in designs.items()
        )
        monkeypatch.setitem(EXPERIMENTS, "small", Experiment("small", "t", "s", lambda size: rows, conclude))
        return {row["name"]: row for row in reproduce("small", tmp_path / "a", say=lambda text: None)["rows"]}

    return carried_out


@pytest.mark.slow
def test_searches_rules_and_chance_end_at_the_budget(run, tmp_path):
    found = run(
        greedy.conclude,
        **{
            "resnet-before": (),
            "resnet-greedy": (search(rescore=1, contenders=2, ties="score"),),
            "resnet-greedy-inherit": (search(weights="inherit"),),
            "resnet-resolution": (Searched("scaling", {"rule": "resolution"}, BUDGET, FIELDS),),
            "resnet-random": (chance(),),
        },
    )
    sizes = dict.fromkeys(found, 0)
    for name, row in found.items():
        assert row["seeds"] == [0]
        if name == "resnet-before":
            assert row["macs"] < 110_000
            continue
        assert 360_000 <= row["macs"] <= 400_000, name
        (record,) = row["searches"]
        end = record["history"][-1]
        assert end["cost"] == row["macs"], name  # what was recorded of the search is what was built
        sizes[name] = end["resolution"]
        asked = {trial["images"] for trial in record["trials"] if trial["edits"]}
        assert asked <= {32}  # one step
    assert sizes["resnet-resolution"] > SIDE
    inherited = found["resnet-greedy-inherit"]["searches"][0]
    assert inherited["trials"][0]["images"] > 32  # the untouched network has its epochs
    assert inherited["history"][0]["level"] == 0
    text = (tmp_path / "a" / "table.md").read_text()
    assert "Where the MACs went" in text
    assert "Decisions of the two searches" in text
    assert "OUTSIDE" in text  # of the budget that the experiment itself has
    for name in ("greedy-resnet-macs", "resnet-greedy-course", "resnet-greedy-inherit-course"):
        xml.etree.ElementTree.fromstring((tmp_path / "a" / f"{name}.svg").read_text())
    json.dumps(found, allow_nan=False)


def test_a_row_is_trained_at_the_resolution_of_its_edits(run, monkeypatch):
    seen = set()
    forward = torch.nn.Conv2d.forward

    def noted(self, x):
        seen.add(x.shape[-1])
        return forward(self, x)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", noted)
    row = run(one=(At(13),))["one"]
    assert max(seen) == 13
    arch = opened("zoo:resnet20", NetworkSpec(OPTIONS, (Resolution(13),)), (1, 8, 8))
    assert row["macs"] == arch.profile().macs


@pytest.mark.parametrize(
    ("edits", "side"),
    [
        ((), None),
        ((Width("conv1", 8),), None),
        ((Resolution(9), Resolution((7, 5))), (7, 5)),
        ((Resolution(9),), (9, 9)),
    ],
)
def test_the_last_resolution_counts(edits, side):
    assert NetworkSpec({}, edits).resolution == side


@pytest.mark.slow
def test_what_a_search_tried_is_a_row_of_its_own(run):
    beside = chance(trial_weights="inherit")
    found = run(**{f"n{i}": (Tried(chance(), i, (beside,)),) for i in range(2)})
    for i, row in enumerate(found.values()):
        fresh, inherited = row["searches"]
        assert row["form"]["edits"][1:] == fresh["trials"][i]["edits"] == inherited["trials"][i + 1]["edits"]
        assert row["macs"] == fresh["trials"][i]["macs"]
        assert inherited["trials"][i + 1]["weights"] == "inherit"
        assert inherited["trials"][i + 1]["parent"] == 0
    with pytest.raises(ConvwrightError, match="candidate 9 was asked for, but the search tried 3"):
        run(n9=(Tried(chance(), 9),))


@pytest.mark.breadth
def test_edits_that_grew_step_by_step_are_built_like_one_jump():
    """An inherited course repeats a block in one edit after the other."""
    parts = (AddBlock("layer2.1", copies=1), AddBlock("layer2.1", copies=2), Resolution(9), Resolution(13))
    whole = (AddBlock("layer2.1", copies=3), Resolution(13))
    one, two = (opened("zoo:resnet20", NetworkSpec(OPTIONS, edits), (1, 8, 8)).profile() for edits in (parts, whole))
    assert (one.macs, one.params) == (two.macs, two.params)
    assert made("zoo:resnet20", NetworkSpec(OPTIONS, parts), (1, 8, 8), 1, fresh=True)(
        torch.zeros(2, 1, 13, 13)
    ).shape == (
        2,
        3,
    )


def test_the_best_of_random_allocations_is_taken():
    arch = read("zoo:resnet20", (1, 1, 11, 11), **OPTIONS)
    limits = Limits({"macs": 3 * arch.profile().macs})
    method = Scaling(arch, limits, rule="random", samples=5, trial_epochs=2, trial_steps=7, seed=3, epochs=9)
    batch = method.ask()
    assert [(c.epochs, c.seed, c.weights, dict(c.recipe)) for c in batch] == [(2, 3, "fresh", {"max_steps": 7})] * 5
    scores = [0.3, 0.5, float("nan"), 0.4, 0.1]
    for number, (candidate, score) in enumerate(zip(batch, scores, strict=True)):
        status = "done" if score == score else "failed"
        method.tell(Evidence(candidate, number, score, 0.01, {"macs": 1}, status=status))
    final, baseline = method.ask()
    assert (final.plan, final.epochs, baseline.role) == (batch[1].plan, 9, "baseline")
    assert method.history[-1]["cost"] <= limits.limits["macs"]
    assert method.history[-1]["stage_widths"] == list(method.settings[1].widths)
    for wrong in ({"rule": "width"}, {"trial_steps": 0}, {"trial_weights": "svd"}):
        with pytest.raises(ConvwrightError, match="trial_"):
            Scaling(arch, limits, **{"rule": "random", "trial_epochs": 1, **wrong})


def test_experiments_are_data():
    found = {each["name"]: each for each in listed()}
    assert found["greedy"]["trainings"] == {"quick": 16, "standard": 48, "full": 48}
    rows = {row.name: row for row in EXPERIMENTS["greedy"].rows("standard")}
    for name in greedy.BASES:
        own = [row for key, row in rows.items() if key.startswith(f"{name}-")]
        assert len({row.recipe for row in map(_hashable, own)}) == 1
        assert all(row.fresh and row.design[0] == At(greedy.BASES[name].side) for row in own)
        assert {row.control for row in own} == {"", f"{name}-before", f"{name}-compound"}
        budgets = {design.budget for row in own for design in row.design[1:]}
        assert budgets == {greedy.BASES[name].budget}


def _hashable(row):
    return dataclasses.replace(row, recipe=json.dumps(row.recipe.model_dump(mode="json")))


def test_the_ghost_base_fits_small_images():
    base = greedy.BASES["ghostnet"]
    arch = read(base.model, (1, 3, base.side, base.side), **base.options)
    limit = float(base.budget.partition("<=")[2].rstrip("M")) * 1e6
    assert 1.8e6 <= arch.profile().macs <= 2.2e6
    assert 3.98 <= limit / arch.profile().macs <= 4
    sides = [
        layer.output_shape[-1]
        for layer in arch.layers
        if layer.name.startswith("stage6") and "squeeze" not in layer.name
    ]
    assert min(sides) == 4
    stages = Stages.of(arch, quantum=base.knobs["quantum"])
    wide, depths = tuple(2 * w for w in stages.widths), stages.depths
    options = {**base.options, "widths": wide}
    built = read(base.model, (1, 3, base.side, base.side), **options).profile()
    assert stages.costs(wide, depths, base.side) == {"macs": built.macs, "params": built.params}  # head included
