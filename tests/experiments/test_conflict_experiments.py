"""Experiments of the conflicting layers: choices rest on held-out images, and tables say what the records say."""

import dataclasses
import json
import math
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import convwright as cw
from convwright import zoo
from convwright.errors import ConvwrightError
from convwright.experiments.designs.search_design import UpToTheEnd
from convwright.experiments.features import LayerConflicts, at
from convwright.experiments.papers import (
    EXPERIMENTS,
    conflicts_boundary,
    conflicts_lesion,
    conflicts_tune,
)
from convwright.experiments.studies import block_removal as orders
from convwright.experiments.studies.block_removal import (
    WITH_FIRSTS,
    RemovalStudy,
    RemovalStudyOfAll,
    flags_of,
    most,
    parts,
)
from convwright.experiments.studies.lesion import Lesions
from convwright.methods import Candidate, Evidence, Method
from convwright.training import ArrayImages, ImageData, Metrics, Recipe
from convwright.training.techniques.stochastic_depth import StochasticDepth

RECIPE = Recipe(epochs=1, batch_size=16, precision="fp32", memory_format="channels_last", lr=0.1)


def images(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return ArrayImages(
        pixels.contiguous(memory_format=torch.channels_last), torch.arange(count) % 3, (0.5,) * 3, (0.3,) * 3
    )


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = zoo.create("resnet120", num_classes=3, width=0.0625, depths=(2, 3, 2, 1)).eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 2)
        nn.init.zeros_(network.layer2[1].bn2.weight)  # it changes nothing: the first to go
    return network


# ------------------------------------------------------------------ networks


@pytest.mark.parametrize(
    ("name", "depths", "params"),
    [
        ("vgg120", (1, 1, 1, 1), 4_739_082),
        ("vgg120", (2, 2, 3, 2), 12_192_906),
        ("vgg120", (3, 12, 41, 3), 64_830_474),
        ("resnet120", (1, 1, 1, 1), 4_913_802),
        ("resnet120", (3, 6, 12, 3), 28_976_778),
        ("resnet120", (3, 12, 41, 3), 65_005_194),
    ],
)
def test_parameters_are_those_of_the_published_networks(name, depths, params):
    with torch.device("meta"):
        network = zoo.create(name, depths=depths)
    assert sum(p.numel() for p in network.parameters()) == params


@pytest.mark.parametrize(
    ("width", "depth", "params"), [(10, 50, 13_350), (25, 50, 51_735), (50, 50, 164_710), (10, 150, 24_350)]
)
def test_parameters_of_perceptrons(width, depth, params):
    with torch.device("meta"):
        network = zoo.create("perceptron", width=width, depth=depth)
    assert sum(p.numel() for p in network.parameters()) == params


def test_branches_that_begin_as_zero():
    network = zoo.create("resnet120", width=0.0625, depths=(1, 1, 1, 1), zero_last=True).eval()
    assert all(not network.get_submodule(f"layer{n}")[0].bn2.weight.any() for n in range(1, 5))


def test_one_rate_for_all_blocks(model):
    arch = cw.read(model, (3, 16, 16))
    linear, uniform = (StochasticDepth(rate=0.4, profile=each).rates(arch) for each in ("linear", "uniform"))
    assert list(linear) == list(uniform)
    assert set(uniform.values()) == {0.4}
    assert sorted(linear.values()) == list(linear.values()) == pytest.approx([0.05 * n for n in range(1, 9)])


# ------------------------------------------------------------------ orders


def world(costs, pairs=()):
    """A network whose blocks cost something alone, and more in certain pairs."""
    asked = []

    def measure(removed):
        asked.append(removed)
        loss = sum(costs[name] for name in removed) + sum(cost for pair, cost in pairs if pair <= removed)
        return Metrics(max(0.0, 1 - loss), loss, 100)

    return measure, asked


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 0.05), min_size=1, max_size=7))
def test_without_interaction_greedy_is_the_order_by_own_loss(values):
    costs = {f"b{n}": value for n, value in enumerate(values)}
    measure, _ = world(costs)
    found = orders.greedily(tuple(costs), measure, fall=2.0)
    assert sorted(found) == sorted(costs)
    # Sums of floats can tie where their parts do not.
    assert [costs[name] for name in found] == pytest.approx(sorted(values), abs=1e-12)


def test_greedy_sees_what_blocks_cost_together():
    measure, _ = world({"a": 0.01, "b": 0.02, "c": 0.03}, [({"a", "b"}, 0.5)])
    assert orders.by_value(("a", "b", "c"), {n: -measure(frozenset({n})).loss for n in "abc"}) == ("a", "b", "c")
    assert orders.greedily(("a", "b", "c"), measure) == ("a", "c", "b")


def test_greedy_ends_where_nobody_would_go_on():
    measure, asked = world({f"b{n}": 0.2 for n in range(9)})
    found = orders.greedily(tuple(f"b{n}" for n in range(9)), measure, fall=0.3)
    assert len(set(found)) == 9
    assert max(map(len, asked)) == 2


def test_random_orders_depend_on_the_seed_alone():
    names = tuple("abcdefg")
    assert orders.at_random(names, 3, 5) == orders.at_random(names, 4, 5)[:3]
    assert len(set(orders.at_random(names, 5, 5))) > 1
    assert orders.at_random(names, 3, 5) != orders.at_random(names, 3, 6)


@pytest.mark.parametrize(
    ("values", "least", "count"), [((0.9, 0.8, 0.85, 0.2), 0.85, 3), ((0.9, 0.8), 0.95, 0), ((), 0.1, 0)]
)
def test_the_most_blocks_within_a_tolerance(values, least, count):
    assert most(values, least) == count


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 60), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**40))
def test_parts_share_no_image(count, one, two, seed):
    whole = ArrayImages(torch.arange(count).view(-1, 1, 1, 1), torch.arange(count), (0.0,), (1.0,))
    first, second = parts(whole, one, two, seed)
    assert not set(first.labels.tolist()) & set(second.labels.tolist())
    assert 1 <= len(first) <= one
    assert 1 <= len(second) <= two


# ------------------------------------------------------------------ blocks left out


def test_statistics_anew_are_those_of_the_network_that_is_left(model):
    arch = cw.read(model, (3, 16, 16))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    momenta = [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    judged, again = images(11), images(13, 1)
    surgery = Lesions(arch)
    with surgery.measuring(judged, anew=again) as measure:
        shown = measure(frozenset({"layer2.1", "layer3.1"}))
        plain = measure(frozenset())
    assert all(torch.equal(value, before[name]) for name, value in arch.model.state_dict().items())
    assert [m.momentum for m in arch.model.modules() if isinstance(m, nn.BatchNorm2d)] == momenta
    smaller = arch.apply(cw.RemoveBlock("layer2.1"), cw.RemoveBlock("layer3.1"), verify=False).model
    for module in smaller.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    pixels = (again.images.float() / 255 - 0.5) / 0.3
    with torch.no_grad():
        smaller.train()(pixels)
        scores = smaller.eval()((judged.images.float() / 255 - 0.5) / 0.3)
    assert shown.loss == pytest.approx(float(nn.functional.cross_entropy(scores, judged.labels)), rel=1e-4)
    assert plain.loss != pytest.approx(shown.loss, rel=1e-4)


def test_layouts_and_inplace_activations_agree():
    for spec in ("zoo:resnet20", "torchvision:resnet18"):
        arch = cw.read(spec, (3, 16, 16), num_classes=3) if spec.startswith("zoo") else cw.read(spec, (3, 32, 32))
        block = arch.blocks[1].name
        some = torch.randn(2, *arch.example_input.shape[1:])
        arch.model.eval()
        with torch.no_grad():
            wanted = arch.apply(cw.RemoveBlock(block), verify=False).model.eval()(some)
            with Lesions(arch).without({block}) as run:
                assert torch.equal(run(some), wanted)
                fast = run(some.contiguous(memory_format=torch.channels_last))
        assert torch.allclose(fast, wanted, atol=1e-4)


# ------------------------------------------------------------------ the study


@pytest.fixture(scope="module")
def studied(model):
    data = ImageData("noise", images(48), images(24, 5), ("a", "b", "c"), lambda: images(30, 7))
    asked = RemovalStudy(8, 16, 10, 12, 16, draws=2, tolerances=(0.005, 0.01, 1.0), tune_steps=1, every=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = asked.carry_out(model, data, RECIPE, {})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return found


def test_a_study_holds_what_its_words_say(studied):
    json.dumps(studied, allow_nan=False)
    assert studied["images"] == {"deciding": 8, "counting": 16, "test": 30}
    assert studied["removable"] == ["layer1.0", "layer1.1", "layer2.1", "layer2.2", "layer3.1"]
    assert studied["residual_blocks"] == 8
    for name, tried in studied["sequences"].items():
        assert all(sorted(each) == sorted(studied["removable"]) for each in tried), name
    assert {key: len(value) for key, value in studied["sequences"].items()} == {
        "conflict": 1, "graded conflict": 1, "own loss": 1, "greedy": 1, "random": 2
    }  # fmt: skip
    # A branch that gives one number for all conflicts, and costs nothing: its shift is 0.
    assert {name: tried[0][0] for name, tried in studied["sequences"].items() if "conflict" in name} == dict.fromkeys(
        ("conflict", "graded conflict"), "layer2.1"
    )
    assert studied["held"]["conflict"][0] == pytest.approx(studied["held_whole"])
    for name, chosen in studied["chosen"].items():
        for tolerance, one in chosen.items():
            assert one["blocks"] == most(studied["held"][name], studied["held_whole"] - float(tolerance))
            if not one["blocks"] and "anew" not in name:
                assert one["test"] == studied["test"]


@pytest.fixture(scope="module")
def studied_of_all(model):
    data = ImageData("noise", images(48), images(24, 5), ("a", "b", "c"), lambda: images(30, 7))
    return RemovalStudyOfAll(
        8, 16, 10, 12, 16, draws=2, tolerances=(0.005, 0.01, 1.0), tune_steps=1, every=3
    ).carry_out(model, data, RECIPE, {})


def test_first_blocks_are_one_more_order_and_change_no_other(studied, studied_of_all):
    def timeless(found):
        kept = {key: value for key, value in found.items() if key not in ("processor_seconds", "removed")}
        for key in ("sequences", "held", "curves", "chosen"):
            kept[key] = {order: value for order, value in kept[key].items() if order != WITH_FIRSTS}
        return kept

    firsts = studied_of_all["firsts"]
    assert firsts == ["layer2.0", "layer3.0", "layer4.0"]
    assert timeless(studied) == {key: value for key, value in timeless(studied_of_all).items() if key != "firsts"}
    assert WITH_FIRSTS not in studied["sequences"]
    (order,) = studied_of_all["sequences"][WITH_FIRSTS]
    assert sorted(order) == sorted([*firsts, *studied["removable"]])
    # With nothing but projections left it still gives scores.
    assert studied_of_all["chosen"][WITH_FIRSTS]["1.0"]["blocks"] == 8
    assert set(studied_of_all["removed"]["blocks"]) <= set(studied["removable"])


def test_studies_that_were_recorded_stay_the_same_question():
    """Their fields are a part of what a row asks; the first blocks are told by the kind."""
    assert [f.name for f in dataclasses.fields(RemovalStudy)] == [f.name for f in dataclasses.fields(RemovalStudyOfAll)]
    assert RemovalStudy.kind != RemovalStudyOfAll.kind


def test_what_is_removed_for_good_is_what_was_left_out(studied):
    done = studied["removed"]
    count = studied["chosen"]["greedy"]["1.0"]["blocks"]
    assert done["blocks"] == studied["sequences"]["greedy"][0][:count]
    assert done["before"]["layers"] - done["after"]["layers"] == 2 * count > 0
    assert done["before"]["macs"] > done["after"]["macs"]
    # One image may be on an edge: the study multiplies zeros where the removed network has nothing.
    assert done["after"]["test"] == pytest.approx(studied["chosen"]["greedy"]["1.0"]["test"], abs=1 / 30 + 1e-9)
    assert done["before"]["test"] == pytest.approx(studied["test"])


def test_nothing_is_decided_on_test_images(model):
    def unread():
        raise AssertionError("the test images were read")

    data = ImageData("noise", images(48), images(24, 5), ("a", "b", "c"), unread)
    plain = zoo.create("vgg120", num_classes=3, width=0.0625, depths=(1, 2, 1, 1))
    assert RemovalStudy().carry_out(plain, data, RECIPE, {}) == {"flags": None}
    with pytest.raises(AssertionError, match="were read"):
        RemovalStudy(8, 16, 10, 12, 16).carry_out(model, data, RECIPE, {})
    unheld = ImageData("noise", images(48), None, ("a", "b", "c"), unread)
    with pytest.raises(ConvwrightError, match="held out"):
        RemovalStudy().carry_out(model, unheld, RECIPE, {})


# ------------------------------------------------------------------ conclusions


def test_conclusion_of_a_study(studied):
    flags = {"steps": [0, 5, 5], "blocks": ["x", "y"], "excess": [[0.0, 0.5], [0.25, 0.0], [0.1, 0.0]], "samples": 16}
    row = {"name": "residual", "seeds": [0, 1], "studies": [{**studied, "flags": flags}] * 2}
    found = conflicts_lesion.conclude({"rows": [row, {"name": "later", "seeds": [], "studies": []}]})
    assert [table.title for table in found.tables] == [
        "What can go without fine-tuning", "Removed for good", "How early conflicts show"
    ]  # fmt: skip
    shares = found.values["removable"]["residual"]["greedy"]["0.01"]
    assert shares["layers"] == [2 * n / studied["layers"] for n in shares["blocks"]]
    assert found.values["settled"]["residual"][0] == {
        "start": 1, "end": 1, "most": 1, "blocks": 2, "alike": 0.0, "nearly": 5, "step": 5, "steps": 5
    }  # fmt: skip
    assert {"reached" in found.tables[0].notes[1]} == {True}
    for text in found.pictures.values():
        ElementTree.fromstring(text)
    assert set(found.pictures) == {"conflicts-lesion-residual", "conflicts-flags-residual"}
    assert conflicts_lesion.conclude({"rows": []}).tables == ()


def good_row(name, control, accuracies, blocks, tests):
    studies = [
        {"layers": 10, "test": accuracy, "removable": ["x"] * 4, "firsts": ["y"], "flags": None,
         "curves": {"greedy": [[0, 0.9], [2, 0.8]]},
         "chosen": {order: {str(t): {"blocks": blocks, "test": test} for t in (0.005, 0.01)}
                    for order in ("greedy", WITH_FIRSTS)}}
        for accuracy, test in zip(accuracies, tests, strict=True)
    ]  # fmt: skip
    seeds = list(range(len(accuracies)))
    return {"name": name, "control": control, "accuracies": accuracies, "seeds": seeds, "studies": studies}


@pytest.mark.parametrize(
    ("accuracies", "blocks", "tests", "reached"),
    [
        ([0.895], 3, [0.89], True),
        ([0.895, 0.9], 3, [0.89, 0.889], True),
        ([0.88], 3, [0.88], False),  # 2 points behind the control of the same seed
        ([0.895], 2, [0.895], False),  # 40 % of the layers
        ([0.895], 3, [0.88], False),  # 1.5 points lost on test
    ],
)
def test_the_claim_asks_for_all_three(accuracies, blocks, tests, reached):
    plain = good_row("plain", "", [0.9, 0.91, 0.95], 0, [0.9, 0.91, 0.95])
    found = conflicts_lesion.conclude_good({"rows": [plain, good_row("way", "plain", accuracies, blocks, tests)]})
    claim = found.values["claim"]
    assert claim["way, greedy"]["reached"] is reached
    assert claim["way, greedy"]["layers"] == pytest.approx(blocks / 5)
    assert not claim["plain, greedy"]["reached"]
    assert found.tables[0].title == "The claim"
    assert len(found.tables[1].notes) == 1
    assert (f"way ({WITH_FIRSTS})" in found.tables[0].notes[1]) is reached


def test_the_claim_is_not_reached_without_a_control():
    found = conflicts_lesion.conclude_good({"rows": [good_row("way", "plain", [0.9], 4, [0.9])]})
    assert found.values["claim"]["way, greedy"] == {"layers": 0.8, "lost": 0.0, "behind": None, "reached": False}
    assert conflicts_lesion.conclude_good({"rows": []}).tables == ()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.sampled_from([0.0, 0.3, None]), min_size=2, max_size=2), min_size=1, max_size=7))
def test_flags_are_settled_from_the_first_of_the_equal_ones_at_the_end(excess):
    steps = list(range(0, 3 * len(excess), 3))
    found = conflicts_lesion.settled({"steps": steps, "blocks": ["x", "y"], "excess": excess})
    marks = [[value != 0.0 for value in row] for row in excess]
    first = steps.index(found["step"])
    assert all(row == marks[-1] for row in marks[first:])
    assert not first or marks[first - 1] != marks[-1]
    assert found["alike"] == sum(a == b for a, b in zip(marks[0], marks[-1], strict=True)) / 2
    assert found["nearly"] == found["step"]  # of two blocks, nine in ten are both


def bundles(excess, entropy):
    return {
        "own": {"a": 1, "b": 2}, "times": [{"step": n} for n in range(len(excess))], "samples": 9,
        "excess": excess, "entropy": entropy,
    }  # fmt: skip


def test_where_layers_conflict():
    found = bundles(
        [[9.0, 0.0, 0.5], [9.0, 0.0, 0.0], [0.0, math.nan, 0.0]], [[9.0, 0.0, 0.7]] * 2 + [[0, 0, math.nan]]
    )
    assert at(found, 0) == {"first": 2, "layers": 1, "of": 2, "entropy": 0.7, "excess": 0.5}
    assert at(found, 1)["first"] is None
    assert at(found, -1) == {"first": 1, "layers": 1, "of": 2, "entropy": None, "excess": 0.0}
    assert flags_of(found)["excess"][2] == [None, 0.0]
    with pytest.raises(ConvwrightError, match="probe 'bundles'"):
        LayerConflicts().carry_out(None, None, None, {})


def test_the_boundary():
    clean, bad = ({"first": first, "entropy": 0.0 if first is None else None} for first in (None, 3))
    rows = [
        {"name": "x", "options": {"depth": depth, "width": width}, "mean": mean, "studies": [{"start": s, "end": e}]}
        for depth, width, mean, s, e in ((5, 7, 0.9, clean, clean), (50, 7, 0.1, bad, bad), (50, 9, 0.3, bad, clean))
    ]
    found = conflicts_boundary.conclude({"rows": [*rows, {**rows[0], "mean": None}]})
    assert found.values["start"]["conflicting"] == {
        "networks": 2,
        "mean": pytest.approx(0.2),
        "most": 0.3,
        "least": 0.1,
    }
    assert found.values["end"]["clean"]["networks"] == 2
    assert found.tables[0].rows == (
        ("5", "90.0; 0.00 → 0.00; - → -", ""),
        ("50", "10.0; ! → !; 3 → 3", "30.0; ! → 0.00; 3 → -"),
    )
    ElementTree.fromstring(found.pictures["conflicts-boundary"])
    assert conflicts_boundary.conclude({"rows": []}).tables == ()


def test_conclusion_of_tuning():
    costs = {"layers": 50, "params": 10, "macs": 100, "activations": 5, "weights": 1, "latency": 7, "ratio": 1.0}
    start = {
        "name": "start", "mean": 0.5, "accuracies": [0.4, 0.6], "studies": [costs, costs], "macs": 100,
        "options": {"depths": [2, 5, 3, 1]},
    }  # fmt: skip
    edits = [{"edit": "remove_block", "target": f"layer{n}.1"} for n in (2, 3, 3)]
    search = {"trials": [0, 0, 0], "seconds": 4.0, "log": ["trial: something"]}
    tuned = [
        {**start, "name": f"tuned-{n}", "accuracies": [0.7], "studies": [{**costs, "params": 5}],
         "form": {"edits": edits}, "searches": [search]}
        for n in range(3)
    ]  # fmt: skip
    found = conflicts_tune.conclude({"rows": [start, *tuned, {**start, "name": "hand-1-1-1-1", "mean": None}]})
    assert list(found.values) == ["start", "tuned"]
    assert found.values["tuned"]["groups"] == [[2, 4, 1, 1]] * 3
    assert found.values["tuned"]["params"] == 5
    assert found.tables[0].notes[1:] == ("tuned-0, tuned-1, tuned-2: trial: something.",)
    ElementTree.fromstring(found.pictures["conflicts-tune"])
    assert conflicts_tune.conclude({"rows": []}).tables == ()


def test_a_search_that_has_trained_its_result_already():
    empty = cw.Plan.empty(cw.read("zoo:mnist-a"))

    class Removal(Method):
        def __init__(self):
            self.results = []

        def ask(self):
            steps = [Candidate(empty, None, 2, 5), Candidate(empty, None, 0, 6)]
            last = Candidate(empty, None, 2, 5, role="baseline")
            return (steps[len(self.results)],) if len(self.results) < 2 else (last,)

        def tell(self, evidence):
            self.results.append(evidence)

        def best(self):
            return None

    method = UpToTheEnd(Removal())
    while batch := method.ask():
        method.tell(Evidence(batch[0], len(method.method.results), 0.5, 0.1, {}))
    assert method.found.seed == 5  # what was only looked at is no result


def test_experiments_are_data():
    for name in ("conflicts-lesion", "conflicts-good", "conflicts-tune", "conflicts-boundary"):
        for size in ("quick", "standard", "full"):
            rows = EXPERIMENTS[name].rows(size)
            assert len({row.name for row in rows}) == len(rows)
            assert all(not row.control or row.control in {r.name for r in rows} for row in rows)
    lesion = {row.name: row for row in EXPERIMENTS["conflicts-lesion"].rows("standard")}
    assert sum(2 * n for n in lesion["residual"].options["depths"]) + 2 == 50
    assert lesion["residual-dropped"].recipe.techniques["stochastic_depth"].profile == "uniform"
    good = EXPERIMENTS["conflicts-good"].rows("standard")
    assert {sum(2 * n for n in row.options["depths"]) + 2 for row in good} == {76}
    assert len({str((row.options, row.data, row.held, row.study)) for row in good}) == 1
    assert good[0].name == "plain"  # it is the teacher of a later one
    for row in good:
        control = next((other for other in good if other.name == row.control), row)
        assert row.recipe.updated(techniques={}) == control.recipe
    assert sum(row.trainings for row in EXPERIMENTS["conflicts-boundary"].rows("full")) >= 176
