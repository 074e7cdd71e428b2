"""Warnings of a result: each side of each threshold, and causes that the record shows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convwright.errors import ConvwrightError, RunError
from convwright.ranking import Metric
from convwright.runs import optimize
from convwright.runs.outcome import trained
from convwright.runs.train import judged
from convwright.runs.verdict import by_class, lost, training_warnings, verdict, warnings_in
from convwright.training import Metrics

NAMES = ("cat", "dog", "eel", "fox")


def metrics(*right, images=100):
    return Metrics(sum(right) / (images * len(right)), 1.0, images * len(right), tuple((images, n) for n in right))


def content(before, after, *, train=None, baseline_train=None, epochs=20, macs=50, base=None, part="test"):
    """A result.json with what a verdict needs: test metrics of both sides, training accuracies of both."""

    def side(trial, found, accuracy, cost):
        seen = {"accuracy": accuracy, "samples": 5000} if accuracy is not None else None
        validation = {"accuracy": found.accuracy, "stderr": found.stderr}
        test = judged(found) if part == "test" else None
        return {"trial": trial, "validation": validation, "test": test, "train": seen, "costs": {"macs": cost}}

    def trial(number, role, epochs, score, parent=0):
        return {"trial": number, "role": role, "epochs": epochs, "score": score, "parent": parent, "weights": "inherit"}

    first = (0, "base", 10, 0.5) if base is None else (0, "base", 0, base)
    return {
        "baseline": side(1, before, baseline_train, 100),
        "result": side(2, after, train, macs),
        "trials": [trial(*first), trial(1, "baseline", epochs, 0.5), trial(2, "candidate", epochs, 0.5)],
        "tune_epochs": epochs,
        "trained_with": {"batch_size": 50, "lr": 0.1},
        "baseline_trained_with": {"batch_size": 50, "lr": 0.1},
    }


def warned(before, after, classes=True, **facts):
    found = verdict(content(before, after, **facts), by_class("test", NAMES, before, after) if classes else None)
    return [each["what"] for each in found["warnings"]]


# ------------------------------------------------------------------ thresholds


@given(st.lists(st.integers(0, 100), min_size=2, max_size=4), st.floats(0, 1), st.integers(1, 30))
def test_a_result_equal_to_its_baseline_has_no_warning(right, train, epochs):
    same = metrics(*right)
    assert warned(same, same, train=train, baseline_train=train, epochs=epochs) == []


def test_far_below_the_baseline():
    assert warned(metrics(90, 90, 90, 90), metrics(80, 80, 80, 80)) == []
    (what,) = warned(metrics(90, 90, 90, 90), metrics(80, 80, 80, 79))
    assert what == "test accuracy is 79.8%, 10.2 points below the baseline's 90.0%"
    assert len(warned(metrics(90, 90), metrics(79, 79), classes=False)) == 1  # of a network without record of classes
    assert warned(metrics(90, 90, 90, 90), metrics(100, 100, 100, 100)) == []


def test_half_of_what_the_baseline_is_above_chance():
    before = metrics(410, 410, 410, 410, images=1000)  # 16 points above 25 %
    assert warned(before, metrics(331, 331, 331, 331, images=1000)) == []  # 7.9 of 8
    (what,) = warned(before, metrics(329, 329, 329, 329, images=1000))
    assert what == "test accuracy is 32.9%, 8.1 points below the baseline's 41.0%, where chance is 25.0%"
    # Of few images, half of little is within what two draws of them differ by.
    assert warned(metrics(35, 35, 35, 35, images=80), metrics(32, 32, 32, 32, images=80)) == []
    assert len(warned(metrics(3500, 3500, images=6000), metrics(3200, 3200, images=6000))) == 1


def test_near_chance():
    assert warned(metrics(400, 400, 400, 400, images=1000), metrics(326, 326, 326, 326, images=1000)) == []
    (what,) = warned(metrics(390, 390, 390, 390, images=1000), metrics(324, 324, 324, 324, images=1000))
    assert what.endswith("near chance 25.0%")
    both = content(metrics(26, 26, 26, 26), metrics(25, 25, 25, 25))
    (warning,) = verdict(both, by_class("test", NAMES, metrics(26, 26, 26, 26), metrics(25, 25, 25, 25)))["warnings"]
    assert "the untouched network is near chance, too" in warning["cause"]


def test_validation_far_below_training():
    good = metrics(70, 70, 70, 70)
    assert warned(good, good, train=0.90) == []
    (what,) = warned(good, good, train=0.91)
    assert what == "validation accuracy 70.0% is 21.0 points below the training accuracy 91.0%"
    assert warned(good, good, train=0.91, baseline_train=0.95) == []  # the untouched network does so, too
    assert warned(good, good, train=None) == []


def test_a_class_that_is_lost():
    before, after = metrics(80, 80, 80, 80), metrics(80, 80, 80, 55)
    assert warned(before, after) == []
    (what,) = warned(before, metrics(88, 88, 80, 54))
    assert what == "1 class loses more than 25 points: fox (26.0 points); all together -2.5 points"
    few = [Metrics(0.5, 1.0, 119, ((100, 80), (19, n))) for n in (19, 0)]
    enough = [Metrics(0.5, 1.0, 120, ((100, 80), (20, n))) for n in (20, 0)]
    assert [len(warned(*each)) for each in (few, enough)] == [0, 1]


@pytest.mark.parametrize(
    ("metric", "before", "fine", "bad", "what"),
    [
        (Metric("mIoU"), 0.7, 0.61, 0.59, "test mIoU is 59.0%, 11.0 points below the baseline's 70.0%"),
        (Metric("mae", False, "px"), -0.5, -0.9, -1.1, "test mae is 1.1 px, 0.6 px above the baseline's 0.5 px"),
        (Metric("PSNR", unit="dB"), 28.0, 23.0, 21.0, "test PSNR is 21 dB, 7 dB below the baseline's 28 dB"),
    ],
)
def test_another_metric_is_told_in_its_unit(metric, before, fine, bad, what):
    sides = [Metrics(score, None, 100, (), {metric.name: metric.score(score)}) for score in (before, fine, bad)]
    told = [content(sides[0], side) | {"base": 0, "metric": vars(metric)} for side in sides[1:]]
    found = [verdict({**each, "trials": each["trials"][1:]}, None)["warnings"] for each in told]
    assert [[each["what"] for each in warnings] for warnings in found] == [[], [what]]
    assert lost(told[1]) == pytest.approx(metric.amount(before - bad))


# ------------------------------------------------------------------ causes


@pytest.mark.parametrize(
    ("facts", "cause", "remedy"),
    [
        ({"epochs": 9}, "only 9 epochs of training after a cut to 50% of the MACs", "--tune-epochs 18"),
        ({"epochs": 1, "macs": 200}, "only 1 epoch of training after the change", "train longer (--tune-epochs 10)"),
        ({"epochs": 10, "macs": 49}, "a strong cut, to 49% of the MACs", "--tune-epochs 20"),
        ({"epochs": 10, "macs": 50}, "no single one in the record", "training curves"),
        ({"epochs": 1, "base": 0.96}, "the training spoils trained weights", "a smaller learning rate"),
    ],
)
def test_the_cause_is_what_the_record_shows(facts, cause, remedy):
    before, after = metrics(85, 85, 85, 85), metrics(40, 40, 40, 40)
    first = warnings_in(verdict(content(before, after, **facts), None))[0]
    assert cause in first.cause
    assert remedy in first.remedy
    assert str(first).count("Likely cause: ") == 1


def test_statistics_that_are_left_stale_are_named():
    record = content(metrics(85, 85, 85, 85), metrics(40, 40, 40, 40), epochs=1) | {"reestimate": False}
    first = warnings_in(verdict(record, None))[0]
    assert "only 1 epoch of training" in first.cause
    assert "batch norm is not re-estimated" in first.cause
    assert first.remedy.startswith("leave --no-reestimate out; train longer")


def test_a_training_that_lowers_the_untouched_network_is_told_though_both_sides_agree():
    same = metrics(80, 80, 80, 80)
    assert warned(same, same, base=0.90) == []
    (what,) = warned(same, same, base=0.91)
    assert what == "the training lowers the untouched network, too: validation accuracy 91.0% before it, 80.0% after"


def test_a_short_training_lags_and_a_long_one_over_fits():
    def causes(history, batch):
        found = {
            "train": {"accuracy": 0.45, "samples": 1000},
            "validation": {"accuracy": 0.17},
            "history": [{}] * history,
            "recipe": {"batch_size": batch},
        }
        return [each.cause for each in training_warnings(found)]

    assert causes(3, 100) == [
        "a training of 30 steps, in which running statistics lag, or validation images of another kind"
    ]
    assert causes(30, 100) == ["over-fitting on 1,000 training images"]


# ------------------------------------------------------------------ classes


def test_classes_are_listed_worst_first_and_uneven_ones_are_balanced():
    before = Metrics(0.9, 1.0, 160, ((120, 108), (40, 40), (0, 0)))
    after = Metrics(0.75, 1.0, 160, ((120, 108), (40, 12), (0, 0)))
    found = by_class("test", NAMES, before, after)
    assert found["balanced"] is None  # 3 to 1
    assert [(row["class"], row["baseline"], row["result"]) for row in found["accuracies"]] == [
        ("dog", 1.0, 0.3),
        ("cat", 0.9, 0.9),
    ]
    uneven = by_class("test", NAMES, *(Metrics(0.9, 1.0, 161, ((121, 121), (40, n))) for n in (40, 20)))
    assert uneven["balanced"] == {"baseline": 1.0, "result": 0.75}


def test_counts_of_classes_come_out_of_the_judgement():
    from convwright.training import ArrayImages, evaluate

    images = ArrayImages(
        torch.eye(3)[[0, 1, 1, 2, 2, 2]].view(6, 3, 1, 1), torch.tensor([0, 1, 1, 2, 2, 0]), (0.0,), (1.0,)
    )
    found = evaluate(torch.nn.Flatten(), images)
    assert found.by_class == ((2, 1), (2, 2), (2, 2))
    assert found == Metrics(5 / 6, found.loss, 6)


@pytest.mark.parametrize("drop", [-1.0, 101.0, float("nan")])
def test_an_impossible_drop_is_refused(drop):
    with pytest.raises(ConvwrightError, match=r"max-drop=.* must be points of accuracy"):
        optimize("net.py:Tiny", "npz:set.npz", "macs<=50%", max_drop=drop)


@pytest.mark.parametrize("content", ["[{}]", '[{"train_acc": "much"}]', "{", "[1]"])
def test_a_damaged_history_of_a_trial_is_named(tmp_path, content):
    assert trained(tmp_path, 5) is None
    (tmp_path / "history.json").write_text(content)
    with pytest.raises(RunError, match=r"history.json: damaged, it holds no epochs"):
        trained(tmp_path, 5)
