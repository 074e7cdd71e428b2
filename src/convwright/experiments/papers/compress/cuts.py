"""The ways in which ``compress`` makes a trained network smaller, before it is tuned: ours and those of others.

A new way is one more function under ``@cut``. What it leaves is judged with its own batch-norm statistics, after every
step of a repair, and tuned by the row.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convwright.architecture import read
from convwright.cost import count_by_torch
from convwright.cost.budget import Limits, parse_budget
from convwright.cost.runtimes import Target
from convwright.edits import Edit, Resolution
from convwright.edits.constraints import DivisorLike
from convwright.edits.importance import saliency
from convwright.errors import BudgetError, RecipeError, look_up
from convwright.experiments.designs.design import SEARCH_FORMAT, DesignContext, NetworkSpec, limits_of, made
from convwright.experiments.designs.search_design import FOUND, Question, Searched, UpToTheEnd, edits_of_record, record
from convwright.experiments.papers.baselines.torch_pruning import narrowed, widths_of
from convwright.experiments.papers.compress.baseline import Baseline
from convwright.experiments.papers.compress.runtimes import beside
from convwright.methods import Saliency
from convwright.methods.saliency import SaliencyOptions
from convwright.methods.shared.uniform_widths import uniform_widths
from convwright.repair import merge, refit
from convwright.runs.candidate_recipe import settled_recipe
from convwright.runs.directory.files import digest, load_weights, read_json, save_weights
from convwright.runs.directory.study import Study
from convwright.runs.evaluate import Evaluator, precision_and_layout
from convwright.runs.executors import InProcess
from convwright.runs.latency import MARGIN, measured_latency
from convwright.runs.loop import carried_out
from convwright.runs.loop import search as search_by
from convwright.runs.repairing import Repairs
from convwright.training import Recipe, evaluate
from convwright.training.data.loader import Loader
from convwright.training.data.normalisation import normalised
from convwright.training.data.resized import resized_data
from convwright.training.statistics import reestimate

if TYPE_CHECKING:
    from convwright.training import ImageData

_BATCH = 64  # calibration images at a time
LIMITED = "ONNX Runtime"  # the runtime whose latency is limited
BY_LATENCY = "ours-by-latency"
REPAIRED = "batch norm"  # the last stage before the tuning
_SECONDS = 2.0  # of measuring one network while the latency is searched


@dataclass(frozen=True)
class Cut(Searched):
    """A trained network is made smaller in one of `CUTS`; the row's training goes on from what is left.

    Attributes:
        method: A name in `CUTS`.
        options: Of that way.
        baseline: What is cut.
        start: Digest of its weights; filled in.
    """

    kind: ClassVar[str] = "cut"
    seeded: ClassVar[bool] = True

    method: str = "untouched"
    baseline: Baseline = field(default_factory=lambda: Baseline("", ""))
    start: str = ""

    def resolve(self, model: str, form: NetworkSpec, setting: DesignContext) -> NetworkSpec:
        """Return the form with the edits and the weights that are left.

        Raises:
            RecipeError: The budget cannot be reached, or a package is missing.
        """
        begun = self.baseline.weights(model, setting)
        question = Question(replace(self, seed=setting.seed, start=digest(begun)), model, form, setting)
        folder = question.once(partial(_carry_out, question, begun))
        edits = edits_of_record(read_json(folder / "result.json", SEARCH_FORMAT)["edits"])
        return replace(form.joined(edits, folder), weights=folder / FOUND, teacher=begun)


@dataclass
class Case:
    """One network to be cut.

    Attributes:
        question: What is asked, and where.
        model: The trained network; a way may change it.
        data: Normalised as the network wants them.
        limits: The budget in numbers; none where nothing is cut.
        stages: What was seen so far: accuracy after each step, and the seconds that the step took.
        judged: Whether accuracies are of interest.
    """

    question: Question
    model: nn.Module
    data: ImageData
    limits: Limits
    stages: list[dict[str, Any]] = field(default_factory=list)
    judged: bool = True
    _since: float = field(default_factory=time.perf_counter)

    @property
    def image(self) -> Tensor:
        """An example input, (1, c, h, w)."""
        return torch.zeros(1, *self.data.shape)

    @property
    def macs(self) -> int:
        """The limit on MACs.

        Raises:
            RecipeError: The budget limits something else.
        """
        if set(self.limits.limits) != {"macs"}:
            asked = self.question.search
            raise RecipeError(f"{asked.method} is brought to a limit on MACs, not to {asked.budget!r}")
        return self.limits.limits["macs"]

    def aims(self, steps: int) -> Iterator[int]:
        """Yield limits on MACs, each the same share of the one before, down to the budget."""
        begun = count_by_torch(self.model, self.image)
        yield from (int(begun * (self.macs / begun) ** (step / steps)) for step in range(1, steps))
        yield self.macs

    def calibration(self, count: int = 512) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of training images, as they are, with their labels; which ones depends on the seed."""
        order = torch.randperm(len(self.data.train), generator=torch.Generator().manual_seed(self.question.search.seed))
        yield from Loader(self.data.train.subset(order[:count]), _BATCH, shuffle=False)

    def saw(self, stage: str, model: nn.Module, side: tuple[int, int] | None = None) -> None:
        """Judge what there is after a step; the time for that is not counted."""
        if not self.judged:
            return
        spent, data = time.perf_counter() - self._since, self._sized(side)
        parts = {"validation": data.val, "test": data.test}
        seen = {name: evaluate(model, part).accuracy for name, part in parts.items() if part is not None}
        self.stages.append({"stage": stage, **seen, "seconds": spent})
        self._since = time.perf_counter()

    def reestimated(self, model: nn.Module, side: tuple[int, int] | None = None) -> None:
        """Re-estimate batch norm on training images, and judge the network."""
        reestimate(model, self._sized(side).train)
        self.saw(REPAIRED, model, side)

    def _sized(self, side: tuple[int, int] | None) -> ImageData:
        return self.data if side is None else resized_data(self.data, side)


Found = tuple[tuple[Edit, ...], nn.Module]
Way = Callable[[Case], Found]
CUTS: dict[str, Way] = {}


def cut(name: str) -> Callable[[Way], Way]:
    """Return a decorator that files a way of cutting: from a case to the edits and the network with its weights."""

    def file(way: Way) -> Way:
        CUTS[name] = way
        return way

    return file


def _carry_out(question: Question, begun: Path, folder: Path) -> None:
    design, budget = question.search, question.search.budget
    assert isinstance(design, Cut)
    way = look_up(design.method, CUTS, "way of cutting", RecipeError)
    known = design.baseline.record(question.setting)
    before = {part: known[part]["accuracy"] for part in ("validation", "test") if known[part] is not None}
    stages = [{"stage": "baseline", **before, "seconds": known["seconds"]}]
    if design.method == BY_LATENCY:
        budget = ""  # it measures by itself
    elif (asked := re.fullmatch(r"latency<=([0-9.]+)%", budget)) is not None:
        stages.append(_share_of_macs(question, begun, way, float(asked[1]) / 100))
        budget = f"macs<={stages[-1]['percent']}%"
    edits, after = way(case := _case(question, begun, budget))
    save_weights(after, folder / FOUND)
    record(folder, question, design.method, edits, [], history=[*stages, *case.stages])


def _case(question: Question, begun: Path, budget: str, judged: bool = True) -> Case:
    """Return the trained network with all that a way of cutting needs."""
    recipe, data = question.trained_on()
    model = made(question.model, question.form, data.shape, 0)
    load_weights(model, begun)
    limits = limits_of(budget, question.model, replace(question.setting, shape=data.shape)) or Limits({})
    return Case(question, model, normalised(data, recipe.normalisation, model), limits, judged=judged)


def _share_of_macs(question: Question, begun: Path, way: Way, limit: float) -> dict[str, Any]:
    """Find by halving how many percent of the MACs a way may leave, to stay within a share of the measured latency.

    In `LIMITED`, in turns with the untouched network.
    """
    start, low, high = time.perf_counter(), 0, 100
    ratios: dict[int, float] = {}
    while high - low > 1:
        percent = (low + high) // 2
        case = _case(question, begun, f"macs<={percent}%", judged=False)
        untouched, shape = copy.deepcopy(case.model), case.data.shape
        try:
            edits, after = way(case)
        except BudgetError:  # no widths are as small as that
            low = percent
            continue
        resized = replace(question.form, edits=edits).resolution
        own = shape if resized is None else (shape[0], *resized)
        found = beside(untouched, shape, after, own, _SECONDS, (LIMITED,))
        ratios[percent] = found[LIMITED]["ratio"]["median"]
        low, high = (percent, high) if ratios[percent] <= limit else (low, percent)
    if low not in ratios:
        raise RecipeError(f"{question.search.method} does not reach {limit:.0%} of the latency in {LIMITED}")
    return {"stage": "latency", "percent": low, "ratios": ratios, "seconds": time.perf_counter() - start}


# ------------------------------------------------------------------ the ways


@cut("untouched")
def untouched(case: Case) -> Found:
    """Leave the network as it is: what tuning alone brings."""
    return (), case.model


@cut("resolution")
def resolution(case: Case) -> Found:
    """Give the whole network smaller images: the largest within the budget."""
    limit, (c, h, w) = case.macs, case.data.shape
    sizes = ((h - less, w - less) for less in range(1, min(h, w)))
    size = next(size for size in sizes if count_by_torch(case.model, torch.zeros(1, c, *size)) <= limit)
    case.saw("cut", case.model, size)
    case.reestimated(case.model, size)
    return (Resolution(size),), case.model


@cut("uniform")
def uniform(case: Case) -> Found:
    """Give all widths one ratio; channels are kept by their L2 norm."""
    arch = read(case.model, case.image)
    edits = uniform_widths(arch, case.limits, "auto")
    after = arch.apply(*edits, verify=False).model
    case.saw("cut", after)
    case.reestimated(after)
    return edits, after


@cut("scratch")
def scratch(case: Case) -> Found:
    """Give all widths one ratio, and draw all weights anew."""
    edits, asked = uniform_widths(read(case.model, case.image), case.limits, "auto"), case.question
    return edits, made(asked.model, asked.form.joined(edits), case.data.shape, asked.search.seed, fresh=True)


@cut("torch-pruning")
def torch_pruning(case: Case) -> Found:
    """Let torch-pruning narrow the network. Options: those of `narrowed`, and ``steps`` between which it looks anew."""
    options = dict(case.question.search.options)
    for limit in case.aims(options.pop("steps", 1)):
        if options["importance"] == "taylor":
            case.model.eval().zero_grad()
            for images, labels in case.calibration():
                F.cross_entropy(case.model(images), labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
        narrowed(case.model, case.image, limit, **options)
    edits = widths_of(case.model, case.question)
    case.saw("cut", case.model)
    case.reestimated(case.model)
    return edits, case.model


OURS: Mapping[str, Any] = {
    **{name: field.default for name, field in SaliencyOptions.model_fields.items()},
    "divisor": "auto", "repairs": asdict(Repairs(merge=True, refit=True)),
}  # fmt: skip


@cut("ours")
def ours(case: Case) -> Found:
    """Cut and repair as method ``saliency`` does in a run, up to its last training.

    Options: those of the method, the ``divisor`` of the widths, and the ``repairs`` as in `Repairs`.
    """
    return _by_saliency(case)


def _by_saliency(case: Case, divisor: DivisorLike | None = None) -> Found:
    search = case.question.search
    options = {**OURS, **search.options} | ({} if divisor is None else {"divisor": divisor})
    repairs, arch = Repairs(**{**OURS["repairs"], **options.pop("repairs")}), read(case.model, case.image)
    # A run judges each step; here that decides nothing, so where nothing is held out a few training images do.
    data = replace(case.data, val=case.data.val or case.data.train.subset(torch.arange(min(256, len(case.data.train)))))
    length = 1 + options["epochs_between"] * options["rounds"]
    make: Any = Saliency
    method = UpToTheEnd(make(arch, case.limits, epochs=0, tune_epochs=length, seed=search.seed, **options))
    recipe = Recipe(**{"seed": search.seed, **search.recipe})
    with (
        TemporaryDirectory() as folder,
        Study(Path(folder), {}, lambda: precision_and_layout(arch, data, recipe)) as study,
    ):
        chosen = settled_recipe(recipe, study.settled)
        evaluator = Evaluator(arch, data, chosen, study, progress=False, repairs=repairs, trained=True)
        executor = InProcess(evaluator)
        known = {trial.trial: trial.candidate for trial in search_by(method, study, executor)}
        if method.found is None:
            raise RecipeError("method saliency ended without a result")
        (last,) = carried_out([replace(method.found, epochs=0)], known, study, executor, lambda text: None)
        model = evaluator.build(replace(last.candidate, parent=last.trial), known).model
    case.saw(REPAIRED, model)
    return last.candidate.plan.edits, model


@cut(BY_LATENCY)
def ours_by_latency(case: Case) -> Found:
    """Cut as ours, with widths chosen by the latency in ONNX Runtime; the search's margin is used up."""
    arch, text = read(case.model, case.image), case.question.search.budget
    known = measured_latency(arch, lambda text: None, Target("onnxruntime"))
    share = parse_budget(text).resolve(arch.profile(), known.present).limits["latency"]
    limits = Limits({"latency": round(share / (1 - MARGIN))})
    divisor = known.divisor("auto")
    known = known.ready(limits, divisor, beyond_widths=False)
    return _by_saliency(replace(case, limits=known.aimed(limits)), divisor)


@cut("one-ratio")
def one_ratio(case: Case) -> Found:
    """Give all widths one ratio; channels are kept by the saliency that ours begins with, and repaired as in ours."""
    original = read(case.model, case.image)
    batches = list(case.calibration())
    scores: Any = saliency(original, batches, F.cross_entropy)
    edits = uniform_widths(original, case.limits, "auto")
    arch = original.apply(*edits, importance=scores, verify=False)
    for repair in (merge, refit):
        repair(original, arch, [images for images, _ in batches])
    case.reestimated(arch.model)
    return edits, arch.model
