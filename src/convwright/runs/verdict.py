"""Whether a result is as good as it looks: warnings and classes from what ``result.json`` records, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

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
    whole = {**content, "classes": classes}
    return {"classes": classes, "warnings": [asdict(each) for each in _warnings(whole)]}


def warnings_in(content: Json) -> tuple[ResultWarning, ...]:
    """Return the warnings that a ``result.json`` or ``training.json`` records; an old one has none."""
    # Those of a training have a name of their own: its `warnings` are texts about the recipe.
    recorded = content.get("result_warnings", ()) if "history" in content else content.get("warnings", ())
    return tuple(ResultWarning(**each) for each in recorded)


def judged_part(content: Json) -> str:
    """Return what baseline and result are compared on: the test part, or validation where there is none."""
    return "test" if content["baseline"].get("test") and content["result"].get("test") else "validation"


def points_lost(content: Json) -> float:
    """Return by how many points of accuracy the result is below the baseline; negative where it is above."""
    part = judged_part(content)
    return _points(content["baseline"][part]["accuracy"] - content["result"][part]["accuracy"])


# ------------------------------------------------------------------ classes


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


# ------------------------------------------------------------------ warnings


def _warnings(content: Json) -> Iterator[ResultWarning]:
    collapse = _collapse(content)
    if collapse is not None:
        yield collapse
    yield from _spoilt_weights(content)
    gap, theirs = (_gap(content[side]) for side in ("result", "baseline"))
    if gap > max(MOST_BELOW_TRAINING, theirs):
        yield gap_warning(content["result"], int(_trial(content)["epochs"]), int(content["trained_with"]["batch_size"]))
    yield from _lost_classes(content, collapse)


def _collapse(content: Json) -> ResultWarning | None:
    """Return a warning of a result far below its baseline or near chance."""
    part, lost, chance = judged_part(content), points_lost(content), _chance(content)
    before, after = content["baseline"][part], content["result"][part]
    one, two = before["accuracy"], after["accuracy"]
    noise = 200 * (before["stderr"] ** 2 + after["stderr"] ** 2) ** 0.5  # half of little is soon lost by chance
    half = chance is not None and lost > max(noise, _points(one - chance) / 2)
    near = chance is not None and lost > 0 and _near(two, chance)
    if not (lost > MOST_LOST or half or near):
        return None
    chances = f", {'near' if near else 'where'} chance {'' if near else 'is '}{chance:.1%}" if near or half else ""
    what = f"{part} accuracy is {two:.1%}, {lost:.1f} points below the baseline's {one:.1%}{chances}"
    if chance is not None and _near(one, chance):
        return ResultWarning(
            what,
            "the untouched network is near chance, too: the training has taught it little",
            "more epochs, another learning rate, and a look at the labels",
        )
    return ResultWarning(what, *_cause(content))


def _cause(content: Json) -> tuple[str, str]:
    """Return why a result probably lost accuracy, and what to do."""
    epochs = _epochs(content)
    share = content["result"]["costs"]["macs"] / max(1, content["baseline"]["costs"]["macs"])
    longer = f"--tune-epochs {max(2 * int(content['tune_epochs']), _FEW_EPOCHS)}"
    if any(_spoilt_weights(content)):
        return "the training spoils trained weights, see the next warning", "a smaller learning rate first"
    if epochs < _FEW_EPOCHS:
        trained = f"only {epochs} epoch{'s' * (epochs != 1)} of training"
        what = f"a cut to {share:.0%} of the MACs" if share < 1 else "the change"
        return f"{trained} after {what}", f"train longer ({longer})" + " or cut less (a looser budget)" * (share < 1)
    if share < 0.5:
        return f"a strong cut, to {share:.0%} of the MACs", f"cut less (a looser budget), or train longer ({longer})"
    return "no single one in the record", f"compare the training curves in the report, then train longer ({longer})"


def _spoilt_weights(content: Json) -> Iterator[ResultWarning]:
    """Yield a warning where even the untouched network lost accuracy by the training: a comparison hides that."""
    given = [t for t in content["trials"] if t["role"] == "base" and not t["epochs"] and t["score"] is not None]
    if not given:
        return
    one, two = given[0]["score"], content["baseline"]["validation"]["accuracy"]
    if _points(one - two) > MOST_LOST:
        rate = float(content["baseline_trained_with"]["lr"])
        yield ResultWarning(
            f"the training lowers the untouched network, too: validation accuracy {one:.1%} before it, {two:.1%} after",
            f"a learning rate (lr {rate:g}) too high for trained weights",
            f"a recipe with lr {rate / 10:g}",
        )


def gap_warning(side: Json, epochs: int, batch: int) -> ResultWarning:
    """Return the warning of a network whose validation accuracy is far below its training accuracy.

    Args:
        side: With ``train`` (accuracy, samples) and ``validation``.
        epochs: Of the training.
        batch: Images per step.
    """
    train, val = side["train"], side["validation"]
    steps = epochs * -(-train["samples"] // batch)
    what = (
        f"validation accuracy {val['accuracy']:.1%} is {_gap(side):.1f} points below the training accuracy "
        f"{train['accuracy']:.1%}"
    )
    if steps < _FEW_STEPS and epochs < _FEW_EPOCHS:
        cause = f"a training of {steps} steps: the running statistics of batch norm lag behind the weights"
        return ResultWarning(what, cause, "train longer, or in smaller batches")
    cause = f"over-fitting on {train['samples']:,} training images"
    return ResultWarning(what, cause, "more images, stronger augmentation or weight decay, or fewer epochs")


def training_warnings(content: Json) -> tuple[ResultWarning, ...]:
    """Return the warnings of one training.

    Args:
        content: With ``train``, ``validation``, ``history`` and ``recipe``.
    """
    if _gap(content) <= MOST_BELOW_TRAINING:
        return ()
    return (gap_warning(content, len(content["history"]), int(content["recipe"]["batch_size"])),)


def _gap(side: Json) -> float:
    """Return by how many points validation is below training; 0 where one is not known."""
    if not side.get("train") or not side.get("validation"):
        return 0.0
    return _points(side["train"]["accuracy"] - side["validation"]["accuracy"])


def _lost_classes(content: Json, collapse: ResultWarning | None) -> Iterator[ResultWarning]:
    classes = content["classes"] or {"accuracies": ()}
    rows = [row for row in classes["accuracies"] if row["images"] >= LEAST_IMAGES]
    lost = [(row["class"], _points(row["baseline"] - row["result"])) for row in rows]
    lost = [(name, points) for name, points in lost if points > MOST_LOST_OF_A_CLASS]
    if not lost:
        return
    named = ", ".join(f"{name} ({points:.1f} points)" for name, points in lost[:_NAMED])
    more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
    what = f"{len(lost)} class{'es lose' if len(lost) > 1 else ' loses'} more than 25 points: {named}{more}"
    if collapse is not None:
        yield ResultWarning(what, "that of the loss as a whole", collapse.remedy)
        return
    cause = (
        f"the changed network tells other classes instead; all together change by {-points_lost(content):+.1f} points"
    )
    longer = f"--tune-epochs {2 * int(content['tune_epochs'])}"
    yield ResultWarning(what, cause, f"train longer ({longer}), or with more images of these classes")


# ------------------------------------------------------------------ facts


def _points(share: float) -> float:
    return round(100 * share, 6)


def _near(accuracy: float, chance: float) -> bool:
    """Return whether an accuracy is at most twice chance, and at most a tenth of the way from it to 1."""
    return accuracy <= chance + min(chance, 0.1 * (1 - chance))


def _chance(content: Json) -> float | None:
    """Return the accuracy of always telling the most frequent class; None where the classes are not recorded."""
    counts = [row["images"] for row in (content["classes"] or {"accuracies": ()})["accuracies"]]
    return max(counts) / sum(counts) if len(counts) > 1 else None


def _trial(content: Json) -> Json:
    number = content["result"]["trial"]
    found: Json = next(t for t in content["trials"] if t["trial"] == number)
    return found


def _epochs(content: Json) -> int:
    """Return the epochs that the result was trained for since it was first changed."""
    trials = {t["trial"]: t for t in content["trials"]}
    at: Json | None = _trial(content)
    epochs = 0
    while at is not None and at["role"] == "candidate":
        epochs += at["epochs"]
        at = trials.get(at["parent"]) if at["weights"] != "fresh" else None
    return epochs
