"""What a search method is: it asks for candidates and is told evidence, and does nothing else.

A method never trains, never sees weights and never reads a clock. So it can be tested with a made-up
evaluator, a search is resumed by telling a new method the old evidence, and the candidates of one batch
can be worked on side by side.

A new method is one new file here: a class with ``ask``, ``tell`` and ``best`` under ``@register("name")``.
`Method` declares what else the floors above use of one, each with a default.
"""

from __future__ import annotations

import dataclasses
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args

from pydantic_core import to_jsonable_python

from convwright.edits import Plan
from convwright.errors import ConvwrightError, RunError, look_up
from convwright.ranking import ACCURACY, Metric, Ranked, metric_of

if TYPE_CHECKING:
    from convwright.methods.phased.techniques import Trying

Role = Literal["base", "baseline", "candidate"]
Status = Literal["done", "stopped", "failed"]
Weights = Literal["inherit", "net2wider", "svd", "fresh"]
JudgedOn = Literal["all", "proxy"]


@dataclass(frozen=True)
class Stop:
    """End a training early: when `probe` passes `threshold` after `epoch` epochs or later.

    Attributes:
        probe: ``train_loss``, ``train_acc``, ``val_loss`` or ``val_acc``, or one of the candidate's probes, or a
            number that it tells: ``channel-quality.rank`` (the mean over the network).
        threshold: What it must pass.
        above: Whether it passes upwards.
        epoch: Not before so many epochs.
    """

    probe: str
    threshold: float
    above: bool = True
    epoch: int = 1


@dataclass(frozen=True)
class Candidate:
    """A network to be tried, as data.

    Attributes:
        plan: Edits from the user's network to this one.
        parent: Number of the trial whose weights it gets. None: the weights that the run started with.
        epochs: Passes over the training images; 0 only judges.
        seed: Of the training.
        stop: When to end the training early.
        role: ``base`` is what others start from, ``baseline`` is the untouched network trained as
            long as the candidates, ``candidate`` is a proposal.
        probes: What to observe during the training, by name.
        recipe: Changes to the run's recipe as JSON values, such as ``{"label_smoothing": 0.1}``; techniques are
            added to those of the run: ``{"techniques": {"mixup": {"alpha": 0.2}}}``.
        weights: How it gets them. ``inherit``: its plan begins with its parent's, and the edits after that are
            applied to the parent's trained network. ``net2wider`` and ``svd``: both plans are whole plans that differ
            in widths only; ``net2wider`` keeps the function where it widens, the norms and the classifier, ``svd``
            carries the convolutions alone, as the published channel search does, and draws the rest anew.
            ``fresh``: all parameters are drawn anew from `seed`; the parent does not matter.
        images: What it is trained and judged on: ``all`` images, or the ``proxy`` of the data that the run was given.
            Set by the run, not by methods.
        short: Whether it is only the first part of a training that the best of its batch get whole: recorded as pruned.
    """

    plan: Plan
    parent: int | None
    epochs: int
    seed: int
    stop: Stop | None = None
    role: Role = "candidate"
    probes: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict, hash=False)
    weights: Weights = "inherit"
    images: JudgedOn = "all"
    short: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; the plan as its own text, the recipe where it changes something."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        stop = dataclasses.asdict(self.stop) if self.stop is not None else None
        plain = {"plan": self.plan.to_json(), "stop": stop, "probes": list(self.probes), "recipe": dict(self.recipe)}
        # Left out when they say nothing, so that runs recorded before there were such fields are resumed.
        unsaid = {"recipe": {}, "weights": "inherit", "images": "all", "short": False}
        return {k: v for k, v in {**values, **plain}.items() if k not in unsaid or v != unsaid[k]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Candidate:
        """Read what `to_dict` wrote.

        Raises:
            RunError: It is damaged.
        """
        try:
            _check_kinds(values, _OF_CANDIDATE)
            _check_words(values, weights=Weights, images=JudgedOn, role=Role)
            stop = Stop(**values["stop"]) if values["stop"] is not None else None
            plan, recipe = Plan.from_json(values["plan"]), dict(values.get("recipe", {}))
            return cls(**{**values, "plan": plan, "stop": stop, "probes": tuple(values["probes"]), "recipe": recipe})
        except (KeyError, TypeError, ValueError, ConvwrightError) as error:
            raise RunError(f"a recorded candidate is damaged ({error})") from error


@dataclass(frozen=True)
class Evidence(Ranked):
    """What was found out about a candidate.

    Attributes:
        candidate: What was tried.
        trial: Its number, from 0 in the order of asking.
        score: Validation accuracy, 0..1, or another metric so that more is better; NaN where the trial failed.
        stderr: Standard error of the score (of the accuracy, the binomial one); 0 where it is not known.
        costs: ``macs``, ``params``, ``activations``, ... per sample, counted on the built network.
        probes: What was asked to be observed: small arrays by name.
        status: ``done``, ``stopped`` (early, as asked) or ``failed`` (then `message` says why).
        seconds: Wall time.
        message: Why it failed, one line.
        before_training: The score right after the edits, before any training; None where there were none.
        reestimated: Training images on which batch norm was re-estimated before it was judged; 0: it was not.
        repaired: The score after the cut and after each repair, by name and in order; empty where nothing is trained
            after them.
        metric: What the score is of.
    """

    candidate: Candidate
    trial: int
    score: float
    stderr: float
    costs: Mapping[str, int]
    probes: Mapping[str, Any] = field(default_factory=dict)
    status: Status = "done"
    seconds: float = 0.0
    message: str = ""
    before_training: float | None = None
    reestimated: int = 0
    repaired: Mapping[str, float] = field(default_factory=dict)
    metric: Metric = ACCURACY

    @property
    def usable(self) -> bool:
        """Whether there is a trained network behind it."""
        return self.status != "failed"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without the candidate."""
        left_out = "candidate", "metric"
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in left_out}
        score = self.score if self.usable else None  # NaN is not JSON
        for name, unsaid in (("before_training", None), ("reestimated", 0), ("repaired", {})):  # as before these fields
            if values[name] == unsaid:
                del values[name]
        plain = {"score": score, "costs": dict(self.costs), "probes": dict(self.probes)}
        return {**values, **plain, **self.metric.settings()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], candidate: Candidate) -> Evidence:
        """Read what `to_dict` wrote.

        Raises:
            RunError: It is damaged.
        """
        try:
            _check_kinds(values, _OF_EVIDENCE)
            _check_kinds(values["costs"], dict.fromkeys(values["costs"], _NUMBER))
            _check_words(values, status=Status)
            score = float("nan") if values["score"] is None else float(values["score"])
            return cls(**{**values, "score": score, "metric": metric_of(values)}, candidate=candidate)
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"a recorded result is damaged ({error})") from error


_NUMBER, _NONE = (int, float), type(None)
_OF_CANDIDATE: dict[str, tuple[type, ...]] = {
    "plan": (str,), "parent": (int, _NONE), "epochs": (int,), "seed": (int,), "stop": (dict, _NONE), "probes": (list,),
    "recipe": (dict,),
}  # fmt: skip
_OF_EVIDENCE: dict[str, tuple[type, ...]] = {
    "trial": (int,), "score": (*_NUMBER, _NONE), "stderr": _NUMBER, "costs": (dict,), "probes": (dict,),
    "status": (str,), "seconds": _NUMBER, "message": (str,),
}  # fmt: skip


def _check_kinds(values: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]]) -> None:
    for name, known in kinds.items():
        if name in values and (not isinstance(values[name], known) or isinstance(values[name], bool)):
            raise TypeError(f"{name} is {type(values[name]).__name__}")


def _check_words(values: Mapping[str, Any], **kinds: Any) -> None:
    for name, known in kinds.items():
        if name in values and values[name] not in get_args(known):
            raise ValueError(f"{name} {values[name]!r}")


@dataclass(frozen=True)
class Decision:
    """What a method decided in one phase of its search.

    Attributes:
        phase: The phase.
        trials: What each trial of the phase was, by number; the untouched network's beside them is left out.
        kept: The trial that is gone on from; None: the network stays as it was.
        reason: Why, one sentence with the numbers.
    """

    phase: str
    trials: Mapping[int, str]
    kept: int | None
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values: dict[str, Any] = to_jsonable_python(self)
        return values


class Method(ABC):
    """A search method: a state machine that depends on what it is told and on nothing else.

    Attributes:
        name: What it is registered as.
        ranks: Whether a batch without the untouched network only ranks candidates, and the result is trained by itself
            beside it at the end: then those batches may be judged on a part of the data.
        beyond_widths: Whether it may keep a limit on latency that no widths keep, as blocks or images may change.
        techniques: What it will try of the training recipe.
        decisions: What was decided so far, in order.
        log: One sentence per decision so far.
        finals: Trials of candidates that were trained to the end, where a method seeks several networks.
        history: What each step of the search was, as plain values, where a method records that.
    """

    name: ClassVar[str] = ""
    ranks: ClassVar[bool] = False
    beyond_widths: ClassVar[bool] = False
    techniques: tuple[Trying, ...] = ()

    if TYPE_CHECKING:  # read-only to whoever has a method; the method may assign them, or compute them

        @property
        def decisions(self) -> Sequence[Decision]: ...  # noqa: D102
        @property
        def log(self) -> Sequence[str]: ...  # noqa: D102
        @property
        def finals(self) -> Sequence[int]: ...  # noqa: D102
        @property
        def history(self) -> Sequence[Mapping[str, Any]]: ...  # noqa: D102
    else:
        decisions = log = finals = history = ()

    @abstractmethod
    def ask(self) -> tuple[Candidate, ...]:
        """Return the next batch of independent candidates; an empty one means finished.

        What was asked for and not told yet is asked for again. Candidates are numbered from 0 in the
        order of asking; `Candidate.parent` and `Evidence.trial` are such numbers.
        """

    @abstractmethod
    def tell(self, evidence: Evidence) -> None:
        """Take in what was found out. A batch is told in the order in which it was asked for."""

    @abstractmethod
    def best(self) -> Evidence | None:
        """Return the best trial so far that meets the limits; None if there is none."""

    def without_techniques(self, known: Callable[[Mapping[str, Any]], bool]) -> None:
        """Take techniques that change nothing out of what is tried: they would repeat the training with none.

        Args:
            known: Whether the run's recipe stays what it is with changes, given as in `Candidate.recipe`.
        """
        self.techniques = tuple(each for each in self.techniques if each.operator or not known(each.recipe))


class WrappedMethod(Method):
    """A method around another one, which answers everything until a subclass does.

    Args:
        method: The one inside.
    """

    def __init__(self, method: Method) -> None:
        self.method = method

    def ask(self) -> tuple[Candidate, ...]:
        """Return the next batch."""
        return self.method.ask()

    def tell(self, evidence: Evidence) -> None:
        """Pass it on."""
        self.method.tell(evidence)

    def best(self) -> Evidence | None:
        """Return the method's own answer."""
        return self.method.best()

    def without_techniques(self, known: Callable[[Mapping[str, Any]], bool]) -> None:
        """Pass it on."""
        self.method.without_techniques(known)

    if not TYPE_CHECKING:  # what it says of itself is what the method says
        decisions, log, finals, history = (
            property(attrgetter(f"method.{name}")) for name in ("decisions", "log", "finals", "history")
        )


class RewritingMethod(WrappedMethod):
    """A method whose candidates are carried out in another way than it asks for; the method itself does not know.

    Final are all candidates of a batch with a baseline: no other candidate goes on from them.

    Args:
        method: The one inside.
    """

    def __init__(self, method: Method) -> None:
        super().__init__(method)
        self._told: list[Evidence] = []  # as the run has it
        self._final: set[int] = set()
        self._rewritten: dict[int, tuple[Candidate, Candidate]] = {}  # as it is asked for, and as it is carried out

    def rewritten(self, candidate: Candidate, final: bool) -> Candidate:
        """Return what is carried out for a candidate; called once for each."""
        raise NotImplementedError

    def ask(self) -> tuple[Candidate, ...]:
        """Return the method's next batch, rewritten."""
        batch, first = self.method.ask(), len(self._told)
        if any(candidate.role == "baseline" for candidate in batch):
            # By number, since the rest of a batch that was cut by the time is asked for again by itself.
            self._final.update(range(first, first + len(batch)))
        for number, candidate in enumerate(batch, start=first):
            if number not in self._rewritten:
                self._rewritten[number] = candidate, self.rewritten(candidate, number in self._final)
        return tuple(self._rewritten[number][1] for number in range(first, first + len(batch)))

    def tell(self, evidence: Evidence) -> None:
        """Pass it on as the answer to what the method asked for."""
        self._told.append(evidence)
        self.method.tell(replace(evidence, candidate=self._rewritten[evidence.trial][0]))

    def best(self) -> Evidence | None:
        """Return the method's best trial, as it was carried out."""
        best = self.method.best()
        return None if best is None else self._told[best.trial]


Maker = type[Any]  # a class with the constructor `(arch, limits, *, epochs, tune_epochs, seed=0, divisor=1, **options)`
METHODS: dict[str, Maker] = {}
_Made = TypeVar("_Made", bound=Maker)


def register(name: str) -> Callable[[_Made], _Made]:
    """Return a decorator that files a method's class under a name."""

    def file(maker: _Made) -> _Made:
        METHODS[name] = maker
        if issubclass(maker, Method):
            maker.name = name
        return maker

    return file


def method_named(name: str) -> Maker:
    """Return a method's class, with every hook of `Method` where it derives from nothing.

    Raises:
        ConvwrightError: There is none of that name; the nearest ones are listed.
    """
    maker = look_up(name, METHODS, "method", ConvwrightError)
    if issubclass(maker, Method):
        return maker
    module = {"__module__": maker.__module__, "__doc__": maker.__doc__}
    return types.new_class(maker.__name__, (maker, Method), exec_body=lambda names: names.update(module))
