"""The loop between a method and its evidence: ask, evaluate, record, tell."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from convwright.methods import Candidate, Evidence, Method

if TYPE_CHECKING:
    from convwright.runs.study import Study

Evaluate = Callable[[int, Candidate, Mapping[int, Candidate]], Evidence]
Say = Callable[[str], object]


def search(method: Method, study: Study, evaluate: Evaluate, say: Say = lambda text: None) -> tuple[Evidence, ...]:
    """Run a method to its end; what the study holds already is told again instead of done again.

    Returns:
        All evidence, in the order of asking.

    Raises:
        RunError: The study holds other candidates than the method asks for.
    """
    found: list[Evidence] = []
    asked: dict[int, Candidate] = {}
    said = 0
    while batch := method.ask():
        said = _decided(method, said, say)
        numbers = range(len(asked), len(asked) + len(batch))
        asked.update(zip(numbers, batch, strict=True))
        for number in numbers:
            study.enter(number, asked[number])
        told = [_evidence(number, asked, study, evaluate, say) for number in numbers]
        # In the order of the batch, whatever order they were finished in.
        for evidence in told:
            method.tell(evidence)
        found += told
    _decided(method, said, say)
    return tuple(found)


def _decided(method: Method, said: int, say: Say) -> int:
    """Say what the method has decided since; only methods that keep a `log` tell it."""
    log: Sequence[str] = getattr(method, "log", ())
    for line in log[said:]:
        say(line)
    return len(log)


def _evidence(number: int, asked: Mapping[int, Candidate], study: Study, evaluate: Evaluate, say: Say) -> Evidence:
    candidate = asked[number]
    old = study.finished(number, candidate)
    if old is not None:
        say(f"trial {number} ({_words(candidate)}): done earlier, {_outcome(old)}")
        return old
    say(f"trial {number}: {_words(candidate)}")
    new = evaluate(number, candidate, asked)
    study.finish(new)
    say(f"trial {number}: {_outcome(new)}")
    return new


def _words(candidate: Candidate) -> str:
    """Say in words what is tried."""
    what = {
        "base": "the untouched network",
        "baseline": "baseline, the untouched network trained further",
        "candidate": f"{len(candidate.plan.edits)} edits",
    }[candidate.role]
    epochs = f"{candidate.epochs} epoch{'s' * (candidate.epochs != 1)}" if candidate.epochs else "only judged"
    origin = f", from trial {candidate.parent}" if candidate.parent is not None else ""
    carried = f" ({candidate.weights} weights)" if candidate.weights != "inherit" else ""
    recipe = f", with {json.dumps(dict(candidate.recipe))}" if candidate.recipe else ""
    return f"{what}{origin}{carried}, {epochs}{recipe}"


def _outcome(evidence: Evidence) -> str:
    if not evidence.usable:
        return f"failed: {evidence.message}"
    return f"validation accuracy {evidence.score:.2%} in {evidence.seconds:.1f} s"
