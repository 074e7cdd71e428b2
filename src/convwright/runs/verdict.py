"""Whether a result is as good as it looks: warnings and classes from what ``result.json`` records, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from convwright.ranking import Metric, metric_of
from convwright.training import Metrics

Json = Mapping[str, Any]

MOST_LOST = 10.0  # points below the baseline
MOST_LOST_OF_A_CLASS = 25.0  # points
LEAST_IMAGES = 20  # of a class, for a judgement of it
MOST_BELOW_TRAINING = 20.0  # points of validation accuracy
UNEVEN = 3  # times as many images of one class as of another: then balanced accuracy is told, too
_FEW_EPOCHS, _FEW_STEPS = 10, 100
_NAMED = 3  # classes


@dataclass(frozen=True)
class ResultWarning:
    """What is wrong with a result, why probably, and what to do next."""

    what: str
    cause: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}. Likely cause: {self.cause}. Next: {self.remedy}"


def verdict(content: Json, classes: Json | None) -> dict[str, Any]:
    """Return what ``result.json`` says of its own numbers.

    Args:
        content: The rest of ``result.json``.
        classes: As of `by_class`.
    """
    content = {**content, "classes": classes}
    trials = {trial["trial"]: trial for trial in content["trials"]}
    last = trials[content["result"]["trial"]]
    spoilt = tuple(_spoilt_weights(content))
    cause = _cause(content, _epochs(content, trials), bool(spoilt))
    batch, most = content["trained_with"]["batch_size"], max(MOST_BELOW_TRAINING, _gap(content["baseline"]))
    gap = _gap_warnings(content["result"], last["epochs"], batch, most)
    found = (*_collapse(content, cause), *spoilt, *gap, *_lost_classes(content, cause), *_odd_widths(content))
    return {"classes": classes, "warnings": [asdict(each) for each in found]}


def warnings_in(content: Json) -> tuple[ResultWarning, ...]:
    """Return the warnings that a ``result.json`` or ``training.json`` records; an old one has none."""
    # Those of a training have a name of their own: its `warnings` are texts about the recipe.
    recorded = content.get("result_warnings", ()) if "history" in content else content.get("warnings", ())
    return tuple(ResultWarning(**each) for each in recorded)


def judged_part(content: Json) -> str:
    """Return what baseline and result are compared on: the test part, or validation where there is none."""
    return "test" if content["baseline"].get("test") and content["result"].get("test") else "validation"


def lost(content: Json) -> float:
    """Return by how much the result is worse than the baseline, in points or in the metric's unit; negative: better.

    Where the budget is on int8, the result in int8 is held against the baseline as it is.
    """
    part, result = judged_part(content), content["result"]
    after = result.get("int8") or result[part]
    return _lost(metric_of(content), content["baseline"][part]["accuracy"], after["accuracy"])


def behind(metric: Metric, amount: float, digits: int = 1) -> str:
    """Say by how much a value is worse than another: ``1.2 points below``."""
    said = f"{amount:.{digits}f} points" if metric.unit == "%" else metric.difference(amount)
    return f"{said} {'below' if metric.higher_is_better else 'above'}"


def judged_as_it_came(content: Json) -> Json | None:
    """Return the trial that only judged the untouched network; None: there is none, it was trained first."""
    bases = (trial for trial in content.get("trials", ()) if trial.get("role") == "base")
    return next((trial for trial in bases if not trial["epochs"] and trial["score"] is not None), None)


def as_given(content: Json) -> Json | None:
    """Return the trial of the untouched network as it came, where the baseline was trained further; else None."""
    came = judged_as_it_came(content) if content.get("baseline_trained", True) else None
    return came if came is not None and came["trial"] != content["baseline"]["trial"] else None


def by_class(part: str, names: Sequence[str], before: Metrics, after: Metrics) -> dict[str, Any]:
    """Return the accuracy of each class, the largest loss first.

    Returns:
        ``part``; ``accuracies`` with ``class``, ``images``, ``baseline``, ``result`` of each class that has images;
        ``balanced``, their means, where the classes are uneven by more than 3 to 1, else None.
    """
    rows: list[dict[str, Any]] = [
        {"class": name, "images": images, "baseline": one / images, "result": two / images}
        for name, (images, one), (_, two) in zip(names, before.by_class, after.by_class, strict=False)
        if images
    ]
    rows.sort(key=lambda row: row["result"] - row["baseline"])
    counts = [row["images"] for row in rows]
    balanced = None
    if rows and max(counts) > UNEVEN * min(counts):
        balanced = {side: sum(row[side] for row in rows) / len(rows) for side in ("baseline", "result")}
    return {"part": part, "balanced": balanced, "accuracies": rows}


def training_warnings(content: Json) -> tuple[ResultWarning, ...]:
    """Return the warnings of a ``training.json``."""
    return tuple(_gap_warnings(content, len(content["history"]), content["recipe"]["batch_size"]))


def _collapse(content: Json, cause: tuple[str, str]) -> Iterator[ResultWarning]:
    """Yield a warning of a result far below its baseline or near chance."""
    part, worse, metric = judged_part(content), lost(content), metric_of(content)
    counts = [row["images"] for row in _rows(content)]
    chance = max(counts) / sum(counts) if len(counts) > 1 else -math.inf  # of the most frequent class, where recorded
    before, after = content["baseline"][part], content["result"][part]
    one, two = before["accuracy"], after["accuracy"]
    noise = 200 * (before["stderr"] ** 2 + after["stderr"] ** 2) ** 0.5  # half of little is soon lost by chance
    half, near = worse > max(noise, _points(one - chance) / 2), worse > 0 and _near(two, chance)
    if _spoilt(metric, one, two) or half or near:
        words = f", {'near' if near else 'where'} chance {'' if near else 'is '}{chance:.1%}" if near or half else ""
        values = f"{metric.brief(two)}, {behind(metric, worse)} the baseline's {metric.brief(one)}"
        what = f"{part} {metric.name} is {values}{words}"
        if _near(one, chance):
            untaught = "the untouched network is near chance, too: the training has taught it little"
            cause = untaught, "more epochs, another learning rate, and a look at the labels"
        yield ResultWarning(what, *cause)


def _cause(content: Json, epochs: int, spoilt: bool) -> tuple[str, str]:
    """Return why a result probably lost accuracy, and what to do."""
    share = content["result"]["costs"]["macs"] / max(1, content["baseline"]["costs"]["macs"])
    longer = f"train longer (--tune-epochs {max(2 * content['tune_epochs'], _FEW_EPOCHS)})"
    if spoilt:
        return (
            "the training spoils trained weights: it lowers the untouched network, too",
            "a smaller learning rate first",
        )
    if epochs < _FEW_EPOCHS:
        what = f"a cut to {share:.0%} of the MACs" if share < 1 else "the change"
        said = f"only {epochs} epoch{'s' * (epochs != 1)} of training after {what}"
        if content.get("reestimate") is False:
            said, longer = f"{said}, and batch norm is not re-estimated", f"leave --no-reestimate out; {longer}"
        return said, longer + ", or cut less (a looser budget)" * (share < 1)
    if share < 0.5:
        return f"a strong cut, to {share:.0%} of the MACs", f"cut less (a looser budget), or {longer}"
    return "no single one in the record", f"compare the training curves in the report, then {longer}"


def _spoilt_weights(content: Json) -> Iterator[ResultWarning]:
    """Yield a warning where even the untouched network lost accuracy by the training: a comparison hides that."""
    given = as_given(content)
    metric, two = metric_of(content), content["baseline"]["validation"]["accuracy"]
    one = given["score"] if given else two
    if _spoilt(metric, one, two):
        rate = float(content["baseline_trained_with"]["lr"])
        values = f"validation {metric.name} {metric.brief(one)} before it, {metric.brief(two)} after"
        what = f"the training lowers the untouched network, too: {values}"
        yield ResultWarning(what, f"a learning rate (lr {rate:g}) too high for trained weights", f"lr {rate / 10:g}")


def _gap_warnings(side: Json, epochs: int, batch: int, most: float = MOST_BELOW_TRAINING) -> Iterator[ResultWarning]:
    """Yield a warning where validation is so many points below training; `side` has ``train`` and ``validation``."""
    gap = _gap(side)
    if gap <= most:
        return
    train, val = side["train"], side["validation"]
    steps = epochs * -(-train["samples"] // batch)
    one, two = f"{val['accuracy']:.1%}", f"{train['accuracy']:.1%}"
    what = f"validation accuracy {one} is {gap:.1f} points below the training accuracy {two}"
    if steps < _FEW_STEPS and epochs < _FEW_EPOCHS:
        cause = f"a training of {steps} steps, in which running statistics lag, or validation images of another kind"
        yield ResultWarning(what, cause, "train longer, and compare the images of both parts")
    else:
        cause = f"over-fitting on {train['samples']:,} training images"
        yield ResultWarning(what, cause, "more images, stronger augmentation or weight decay, or fewer epochs")


def _odd_widths(content: Json) -> Iterator[ResultWarning]:
    """Yield a warning of widths that kernels of many runtimes are slow with."""
    odd = content.get("odd_widths", {})
    if odd:
        shown = ", ".join(f"{name} {width}" for name, width in list(odd.items())[:_NAMED])
        has = "layer has a width that is no multiple" if len(odd) == 1 else "layers have widths that are no multiples"
        what = f"{len(odd)} {has} of 8 ({shown}{', ...' * (len(odd) > _NAMED)})"
        cause = "coarser widths could not use the budget" if content["divisor"] == "auto" else "the divisor"
        yield ResultWarning(
            f"{what}: runtimes such as ONNX Runtime may be slower",
            f"{cause} (--divisor {content['divisor']})",
            "measure the latency, or give another --divisor or budget",
        )


def _lost_classes(content: Json, cause: tuple[str, str]) -> Iterator[ResultWarning]:
    rows = [
        (row["class"], _points(row["baseline"] - row["result"]))
        for row in _rows(content)
        if row["images"] >= LEAST_IMAGES
    ]
    found = [f"{name} ({points:.1f} points)" for name, points in rows if points > MOST_LOST_OF_A_CLASS]
    if found:
        named = ", ".join(found[:_NAMED]) + f" and {len(found) - _NAMED} more" * (len(found) > _NAMED)
        what = f"{len(found)} class{'es lose' if len(found) > 1 else ' loses'} more than 25 points: {named}"
        yield ResultWarning(f"{what}; all together {-lost(content):+.1f} points", *cause)


def _points(share: float) -> float:
    return round(100 * share, 6)


def _lost(metric: Metric, one: float, two: float) -> float:
    return _points(one - two) if metric.unit == "%" else one - two


def _spoilt(metric: Metric, one: float, two: float) -> bool:
    """Return whether a score is far below another: by 10 points, or, in another unit, half of it."""
    return _points(one - two) > MOST_LOST if metric.unit == "%" else metric.halved(one, two)


def _gap(side: Json) -> float:
    """Return by how many points validation is below training; 0 where one is not known."""
    known = side.get("train") and side.get("validation")
    return _points(side["train"]["accuracy"] - side["validation"]["accuracy"]) if known else 0.0


def _near(accuracy: float, chance: float) -> bool:
    """Return whether an accuracy is at most twice chance, and at most a tenth of the way from it to 1."""
    return accuracy <= chance + min(chance, 0.1 * (1 - chance))


def _rows(content: Json) -> Sequence[Json]:
    rows: Sequence[Json] = content["classes"]["accuracies"] if content["classes"] else ()
    return rows


def _epochs(content: Json, trials: Mapping[int, Json]) -> int:
    """Return the epochs that the result was trained for since it was first changed."""
    at: Json | None = trials[content["result"]["trial"]]
    epochs = 0
    while at is not None and at["role"] == "candidate":
        epochs += at["epochs"]
        at = trials.get(at["parent"]) if at["weights"] != "fresh" else None
    return epochs
