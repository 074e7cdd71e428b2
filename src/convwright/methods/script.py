"""Methods that are written as a script: a generator that yields batches and is sent their evidence.

A search reads as what it does, step after step, and is a state machine all the same: told the same evidence, the script
is at the same place. So a new method resumes an old run.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping

from convwright.methods.base import Candidate, Decision, Evidence
from convwright.methods.options import ConfigurableMethod

Batch = tuple[Candidate, ...]
Script = Generator[Batch, tuple[Evidence, ...], None]


class Scripted(ConfigurableMethod):
    """The ask and tell of a method whose course is `_run`, which begins when all is set up."""

    decisions: tuple[Decision, ...] = ()
    _final: int | None = None  # the trial that the script ended with
    _offset = 0  # number of the batch's first candidate
    _batch: Batch = ()

    def _begin(self) -> None:
        self._script = self._run()
        self._batch = next(self._script, ())

    def _run(self) -> Script:
        """Yield batches; each is answered by its evidence, in order."""
        raise NotImplementedError

    def ask(self) -> Batch:
        """Return the candidates of the present step that are not told yet."""
        while self._batch and all(self._offset + i in self.results for i in range(len(self._batch))):
            evidence = tuple(self.results[self._offset + i] for i in range(len(self._batch)))
            self._offset += len(self._batch)
            try:
                self._batch = self._script.send(evidence)
            except StopIteration:
                self._batch = ()
        return tuple(c for n, c in enumerate(self._batch, start=self._offset) if n not in self.results)

    def best(self) -> Evidence | None:
        """Return the trial that the script ended with; before or without it, the most accurate one in the limits."""
        self.ask()  # decides what can be decided
        fit = [e for _, e in sorted(self.results.items()) if e.candidate.role == "candidate" and self._meets(e)]
        final = [e for e in fit if e.trial == self._final]
        return final[0] if final else max(fit, key=lambda e: e.score, default=None)

    def _note(self, phase: str, reason: str, trials: Mapping[int, str] | None = None, kept: int | None = None) -> None:
        self.decisions = (*self.decisions, Decision(phase, dict(trials or {}), kept, reason))

    @property
    def log(self) -> tuple[str, ...]:
        """One sentence per decision so far."""
        return tuple(f"{decision.phase}: {decision.reason}" for decision in self.decisions)
