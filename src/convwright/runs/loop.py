"""The loop between a method and its evidence: ask, evaluate, record, tell."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

from convwright.errors import counted
from convwright.methods import Candidate, Evidence, Method
from convwright.runs.directory.study import Study
from convwright.runs.executors import Executor, InProcess, Task
from convwright.runs.executors.executor import Evaluate
from convwright.training.progress import still

__all__ = ["Evaluate", "Fits", "Say", "search"]

Say = Callable[[str], object]
Complete = Callable[[Evidence], Evidence]
Fits = Callable[[Sequence[Evidence], Sequence[Candidate]], int]


def search(
    method: Method,
    study: Study,
    evaluate: Evaluate | Executor,
    say: Say = lambda text: None,
    fits: Fits = lambda found, batch: len(batch),
    complete: Complete | None = None,
) -> tuple[Evidence, ...]:
    """Run a method to its end; what the study holds already is told again instead of done again.

    Args:
        method: Asks and is told.
        study: Where everything is recorded.
        evaluate: A function for one candidate after the other, or an executor.
        say: Called with lines for a person.
        fits: Called with the evidence so far and the next batch; returns how many of it are begun now, the others being
            asked for again after those. 0 ends the search.
        complete: As for `carried_out`.

    Returns:
        All evidence, in the order of asking.

    Raises:
        RunError: The study holds other candidates than the method asks for.
    """
    executor = evaluate if isinstance(evaluate, Executor) else InProcess(evaluate)
    found: list[Evidence] = []
    asked: dict[int, Candidate] = {}
    said = 0
    while batch := _asked(method, say):
        said = say_decisions(method, said, study, say)
        batch = batch[: fits(found, batch)]
        if not batch:
            return tuple(found)
        # In the order of the batch, whatever order they were finished in.
        for evidence in carried_out(batch, asked, study, executor, say, complete):
            method.tell(evidence)
            found.append(evidence)
    say_decisions(method, said, study, say)
    return tuple(found)


def _asked(method: Method, say: Say) -> Sequence[Candidate]:
    with still("planning what to try next", say):
        return method.ask()


def carried_out(
    batch: Sequence[Candidate],
    asked: dict[int, Candidate],
    study: Study,
    executor: Executor,
    say: Say,
    complete: Complete | None = None,
) -> list[Evidence]:
    """Return the evidence on a batch, in its order.

    Args:
        batch: Independent candidates.
        asked: The candidates before them by number; these are added.
        study: Where everything is recorded, each as soon as it is finished.
        executor: Works on what is not recorded yet.
        say: Called with lines for a person.
        complete: Adds to the evidence, before it is recorded, what is known here, where the driver is.
    """
    numbers = range(len(asked), len(asked) + len(batch))
    asked.update(zip(numbers, batch, strict=True))
    for number in numbers:
        study.enter(number, asked[number])
    told: dict[int, Evidence] = {}
    for number in numbers:
        old = study.finished(number, asked[number])
        if old is not None:
            say(f"trial {number} ({words_of(asked[number])}): done earlier, {outcome_of(old)}")
            told[number] = old
    left = [Task(number, asked[number], asked) for number in numbers if number not in told]
    found = executor.carry_out(_begun(left, say))
    for evidence in found if complete is None else map(complete, found):
        study.finish(evidence)
        say(f"trial {evidence.trial}: {outcome_of(evidence)}")
        told[evidence.trial] = evidence
    return [told[number] for number in numbers]


def _begun(tasks: Sequence[Task], say: Say) -> Iterator[Task]:
    for task in tasks:
        say(f"trial {task.number}: {words_of(task.candidate)}")
        yield task


def say_decisions(method: Method, said: int, study: Study, say: Say) -> int:
    """Say and record what the method has decided since; only methods that keep a `log` tell it."""
    log = method.log
    for line in log[said:]:
        say(line)
    if len(log) > said:
        study.decided([decision.to_dict() for decision in method.decisions], log)
    return len(log)


def words_of(candidate: Candidate) -> str:
    what = {
        "base": "the untouched network",
        "baseline": "baseline, the untouched network " + ("trained further" if candidate.epochs else "as it is"),
        "candidate": counted(len(candidate.plan.edits), "edit"),
    }[candidate.role]
    epochs = counted(candidate.epochs, "epoch") if candidate.epochs else "only judged"
    origin = f", from trial {candidate.parent}" if candidate.parent is not None else ""
    carried = f" ({candidate.weights} weights)" if candidate.weights != "inherit" else ""
    recipe = f", with {json.dumps(dict(candidate.recipe))}" if candidate.recipe else ""
    images = " of the proxy" if candidate.images == "proxy" else ""
    short = " (first part)" if candidate.short else ""
    return f"{what}{origin}{carried}, {epochs}{images}{recipe}{short}"


def outcome_of(evidence: Evidence) -> str:
    if not evidence.usable:
        return f"failed: {evidence.message}"
    before = evidence.before_training
    notes = [] if before is None else [f"{evidence.metric.shown(before)} right after the edits"]
    notes += [evidence.message] if evidence.message else []
    noted = f" ({'; '.join(notes)})" if notes else ""
    return f"validation {evidence.metric.name} {evidence.shown} in {evidence.seconds:.1f} s{noted}"
