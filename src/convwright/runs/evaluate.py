"""From a candidate to evidence: build the network, give it its parent's weights, train, judge."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from convwright.architecture import Architecture, read
from convwright.cost import profile
from convwright.cost.budget import costs_of
from convwright.devices import device_of, let_go, out_of_memory
from convwright.edits.edit import Options
from convwright.edits.plan import Plan, passages
from convwright.edits.reinitialize import draw_anew
from convwright.edits.transfer import check_widths_only, fill_convolutions, widened
from convwright.errors import EditError, RecipeError, RunError
from convwright.methods import Candidate, Evidence, Status
from convwright.runs import memory
from convwright.runs.candidate_recipe import RATE, changed_recipe
from convwright.runs.directory.files import load_weights, save_weights, write_json
from convwright.runs.history import HISTORY, plain_epoch
from convwright.runs.repairing import Repairs, traceable
from convwright.runs.weights_note import usage
from convwright.training import Metrics, Recipe, evaluate, train
from convwright.training.checkpoint import FILE as CHECKPOINT
from convwright.training.checkpoint import read_checkpoint
from convwright.training.data.data import ImageData
from convwright.training.data.images import Images
from convwright.training.data.proxy import Proxy
from convwright.training.data.resized import image_size, resized_data
from convwright.training.preflight import make_fabric, resolve
from convwright.training.probes.base import Moment, Probes, Watched, check_observed
from convwright.training.settings import narrow_strided, to_layout
from convwright.training.statistics import IMAGES, reestimate
from convwright.training.tasks.base import BaseTask, TaskPart
from convwright.training.techniques import Teacher
from convwright.training.techniques.distill import ORIGINAL, Distill, teacher_for

if TYPE_CHECKING:
    from convwright.runs.executors.executor import Store


_Found = TypeVar("_Found")
_ANY = 1e-3  # a rate where none is asked for
_BETWEEN_CUTS = 256  # training images that batch norm is re-estimated on before channels are scored again


@dataclass(frozen=True, eq=False)
class _Start:
    """What a candidate begins with: its accuracy, images that batch norm was re-estimated on, accuracy by repair."""

    accuracy: float | None = None
    images: int = 0
    repaired: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Outcome:
    """What training a candidate, or only judging it, gave."""

    judged: Metrics
    probes: Mapping[str, Any]
    status: Status = "done"
    start: _Start = _Start()


@dataclass(frozen=True, eq=False)
class Evaluator:
    """Evaluates the candidates of one run.

    Attributes:
        arch: The network as it was read, with the weights that the run starts from.
        data: Training and validation images.
        recipe: Precision and layout are settled in it, so that all trials are trained alike.
        study: Where weights and checkpoints lie: the study, or what a worker knows of it.
        progress: Whether training shows how far it is.
        workers: Processes that read a streamed data set.
        proxy: The part of the data for candidates that are judged on a proxy.
        repairs: What is repaired where an edit changed the function.
        say: Called with lines for a person while a candidate is worked on.
        trained: Whether the weights that the run starts from were given as trained ones.
    """

    arch: Architecture
    data: BaseTask
    recipe: Recipe
    study: Store
    progress: bool = True
    workers: int | None = None
    proxy: Proxy | None = None
    repairs: Repairs = Repairs()  # noqa: RUF009 - frozen
    say: Callable[[str], object] = lambda text: None
    trained: bool = False

    def __call__(self, number: int, candidate: Candidate, parents: Mapping[int, Candidate]) -> Evidence:
        """Return evidence on trial `number`; its weights are in the run directory afterwards.

        Args:
            number: The trial.
            candidate: What to try.
            parents: The candidates of earlier trials by number.

        Raises:
            RunError: The candidate asks for something that cannot be observed here.
        """
        try:
            check_observed(candidate.probes, candidate.stop)
        except RecipeError as error:  # the method's mistake, not the candidate's
            raise RunError(f"trial {number}: {error}") from error
        start = time.perf_counter()
        try:
            recipe = changed_recipe(self.recipe, candidate.recipe)
            network, outcome, parts = self._within_memory(number, candidate, parents, recipe)
        except (RecipeError, EditError) as error:  # a recipe or a plan that does not work here: the search goes on
            return Evidence(
                candidate, number, float("nan"), 0.0, {}, status="failed", seconds=_since(start), message=str(error)
            )
        save_weights(network.model, self.study.weights(number), usage(self.data))
        if not candidate.epochs and candidate.role == "candidate":  # a training may leave more behind than weights
            self._last.clear()
            self._last[number] = network
        return Evidence(
            candidate,
            number,
            outcome.judged.accuracy,
            outcome.judged.stderr,
            costs_of(profile(network)),
            outcome.probes if parts == 1 else {**outcome.probes, memory.PROBE: parts},
            outcome.status,
            seconds=_since(start),
            message="" if parts == 1 else f"out of memory at first; trained with batches in {parts} parts",
            before_training=outcome.start.accuracy,
            reestimated=outcome.start.images,
            repaired=outcome.start.repaired,
            metric=self.data.metric,
        )

    def _within_memory(
        self, number: int, candidate: Candidate, parents: Mapping[int, Candidate], recipe: Recipe
    ) -> tuple[Architecture, _Outcome, int]:
        """Train a candidate, in smaller parts of its batches where memory runs out; return into how many."""
        folder = self.study.trial_folder(number)
        parts = memory.parts_so_far(folder)
        while True:
            try:
                network = self.build(candidate, parents)
                seen = self._part if candidate.images == "proxy" else self.data
                data = resized_data(seen, image_size(network))  # what a candidate at another resolution sees
                start = self.started(network, data, number, candidate, parents)
                tried, teacher = self._taught(network, candidate, parents, memory.in_parts(recipe, parts))
                return network, self._trained(network.model, data, number, candidate, tried, start, teacher), parts
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                if not candidate.epochs:
                    raise RecipeError(f"out of memory without any training: {error}") from None
                parts = memory.smaller(folder, recipe, parts, error)
            network = None  # type: ignore[assignment]  # before the next one is built
            let_go()

    @cached_property
    def _last(self) -> dict[int, Architecture]:
        """The last network that was cut and only judged, by its number: its children need not replay its plan."""
        return {}

    @property
    def _channels_last(self) -> bool:
        return self.recipe.memory_format == "channels_last"

    @cached_property
    def _untouched(self) -> Architecture:
        return reshaped(self.arch, Plan.empty(self.arch))

    @cached_property
    def _part(self) -> BaseTask:
        if self.proxy is None:
            raise RunError("a candidate is to be judged on a proxy of the data, and this run has none")
        assert isinstance(self.data, ImageData)
        return self.proxy.of(self.data)

    def build(self, candidate: Candidate, parents: Mapping[int, Candidate]) -> Architecture:
        """Build a candidate with the weights that it asks for; the network of the run stays as it is.

        Raises:
            RunError: It inherits, and its plan does not begin with its parent's; or its weights are to be carried,
                and the two plans differ in more than widths.
            EditError: Its weights cannot be carried or drawn anew.
        """
        if candidate.weights == "fresh":
            network = reshaped(self.arch, candidate.plan)
            draw_anew(network.model, candidate.seed)
            return network
        if candidate.weights != "inherit":
            return self._carried(candidate, parents)
        if candidate.parent is None:
            return reshaped(self.arch, candidate.plan)
        inherited = parents[candidate.parent].plan
        given = len(inherited.edits)
        if candidate.plan.edits[:given] != inherited.edits:
            raise RunError(f"the plan of a child of trial {candidate.parent} does not begin with its parent's plan")
        # Which channels stay is decided below, on the trained weights; here only the shapes matter.
        return self._parent(candidate, parents).apply(*candidate.plan.edits[given:])

    def _parent(self, candidate: Candidate, parents: Mapping[int, Candidate]) -> Architecture:
        if candidate.parent is None:
            return reshaped(self.arch, Plan.empty(self.arch))
        parent = self._last.get(candidate.parent) or reshaped(self.arch, parents[candidate.parent].plan)
        load_weights(parent.model, self.study.weights(candidate.parent))
        return parent

    def _carried(self, candidate: Candidate, parents: Mapping[int, Candidate]) -> Architecture:
        before = Plan.empty(self.arch) if candidate.parent is None else parents[candidate.parent].plan
        try:
            check_widths_only(before, candidate.plan)
        except EditError as error:
            origin = "the run's network" if candidate.parent is None else f"trial {candidate.parent}"
            raise RunError(
                f"a candidate with weights={candidate.weights!r} may differ from {origin} in widths only: {error}"
            ) from error
        network = reshaped(self.arch, candidate.plan)
        parent = self._parent(candidate, parents)
        if candidate.weights == "net2wider":
            network.model.load_state_dict(widened(parent, network, seed=candidate.seed).model.state_dict())
            return network
        draw_anew(network.model, candidate.seed)
        fill_convolutions(parent.model, network.model)
        return network

    def started(
        self,
        network: Architecture,
        data: BaseTask,
        number: int,
        candidate: Candidate,
        parents: Mapping[int, Candidate],
    ) -> _Start:
        """Repair a network whose weights come from another function, and judge what is to be trained."""
        network.model.to(make_fabric("auto", "32-true").device)
        given = len(parents[candidate.parent].plan.edits) if candidate.parent is not None else 0
        kept = all(change.keeps_function for change in network.changes[given:])
        edited, inherits = len(network.changes) > given or candidate.weights != "inherit", candidate.weights != "fresh"
        disturbed = (not kept or candidate.weights != "inherit") if inherits else not candidate.epochs
        watched = bool(candidate.epochs) and edited and inherits and data.val is not None
        steps = self._repairs(network, data, candidate, parents) if disturbed else {}
        # After a single repair what was before it is not told.
        found = {"cut": self._accuracy(network.model, data)} if watched and len(steps) != 1 else {}
        images = 0
        for name, step in steps.items():
            images = step()
            if watched:
                found[name] = self._accuracy(network.model, data)
        before, repaired = next(reversed(found.values()), None), found if len(found) > 1 else {}
        if before is not None:
            shown = self.data.metric.shown
            told = f" ({', '.join(f'{name} {shown(value)}' for name, value in repaired.items())})" if repaired else ""
            self.say(f"trial {number}: {shown(before)} right after the edits{told}")
        return _Start(before, images, repaired)

    def _repairs(
        self, network: Architecture, data: BaseTask, candidate: Candidate, parents: Mapping[int, Candidate]
    ) -> Mapping[str, Callable[[], int]]:
        """Return what is repaired of a network, in order."""
        # Most of the time goes into refit and batch norm; what is scored to be cut again gets more after the last cut.
        again = not candidate.epochs and any(probe.startswith("saliency") for probe in candidate.probes)
        repairs = replace(self.repairs, refit=self.repairs.refit and not again)
        norms = partial(reestimate, images=data.train, count=_BETWEEN_CUTS if again else IMAGES)
        original = self._original(candidate, parents)
        last = self._channels_last
        return repairs.steps(
            original, network, data.train, lambda model: self._in_layout(norms, model), channels_last=last
        )

    def _accuracy(self, model: nn.Module, data: BaseTask) -> float:
        assert data.val is not None
        return self.judge(model, data.val).accuracy

    def _original(self, candidate: Candidate, parents: Mapping[int, Candidate]) -> Architecture | None:
        """Return the untouched network with its trained weights, where a cut one can be repaired by it."""
        repairs, parent = self.repairs, parents.get(candidate.parent if candidate.parent is not None else -1)
        trained_since = parent is not None and parent.role != "base" and parent.epochs
        if not (repairs.merge or repairs.refit) or candidate.weights != "inherit" or trained_since:
            return None
        if parent is not None and not traceable(parent.plan):
            return None
        return self._base(parents)

    def _base(self, parents: Mapping[int, Candidate]) -> Architecture:
        """Return the untouched network with the weights of trial 0, where that trained it."""
        original = self._untouched
        if _trained_first(parents):
            load_weights(original.model, self.study.weights(0))
        original.model.to(make_fabric("auto", "32-true").device)
        return original

    def _taught(
        self, network: Architecture, candidate: Candidate, parents: Mapping[int, Candidate], recipe: Recipe
    ) -> tuple[Recipe, Teacher | None]:
        """Return recipe and teacher of a training: the untouched network, which learns its own weights without one."""
        asked = recipe.techniques.get(Distill.name)
        if not isinstance(asked, Distill) or not candidate.epochs:
            return recipe, None
        original = self.arch.model
        if asked.teacher == ORIGINAL:
            if candidate.role == "base":
                others = {name: each for name, each in recipe.model_dump()["techniques"].items() if name != asked.name}
                return recipe.updated(techniques=others), None
            if _trained_first(parents):
                original = self._base(parents).model
            elif not self.trained:
                return recipe, None  # its check says so
        if not asked.features:
            return recipe, Teacher(original, image_size(self.arch))
        parent = parents.get(candidate.parent) if candidate.parent is not None else None
        if candidate.weights != "inherit" or (parent is not None and not traceable(parent.plan)):
            raise RecipeError(
                "techniques.distill.features: it is not recorded which channels of the original this candidate has; "
                "set features: 0"
            )
        return recipe, replace(teacher_for(network, self.arch), model=original)

    def _trained(
        self,
        model: nn.Module,
        data: BaseTask,
        number: int,
        candidate: Candidate,
        recipe: Recipe,
        start: _Start,
        teacher: Teacher | None,
    ) -> _Outcome:
        assert data.val is not None
        remove_damaged(self.study.trial_folder(number))
        if not candidate.epochs:
            found = self.judge(model, data.val), self.looked(model, data, candidate, recipe)
            return _Outcome(*found, start=start)
        result = train(
            model,
            data,
            recipe.updated(epochs=candidate.epochs, seed=candidate.seed),
            out=self.study.trial_folder(number),
            resume=True,
            progress=self.progress,
            test=False,
            workers=self.workers,
            probes=candidate.probes,
            stop=candidate.stop,
            reestimate=self.repairs.reestimate,
            teacher=teacher,
            calibration=self.repairs.images,
        )
        assert result.val is not None
        rate = result.settings.lr
        if rate is not None:
            self.say(f"trial {number}: the rate test found lr={rate:g}")
        write_json(self.study.trial_folder(number) / HISTORY, [plain_epoch(record) for record in result.history])
        status: Status = "stopped" if result.stopped else "done"
        probes = result.probes if rate is None else {**result.probes, RATE: rate}
        return _Outcome(result.val, probes, status, replace(start, images=max(start.images, result.reestimated)))

    def looked(self, model: nn.Module, data: BaseTask, candidate: Candidate, recipe: Recipe) -> dict[str, Any]:
        """Observe a network that is not trained once, as it is."""
        device = device_of(model)
        recipe = recipe.updated(seed=candidate.seed)
        last = self._channels_last and not (device.type == "cpu" and narrow_strided(model))
        watched = Watched(model, data, recipe, device, last, self.workers, self.repairs.images)
        with Probes(candidate.probes, watched) as probes:
            probes.observe(Moment("epoch", 0, 0, 0.0))
            return probes.found()

    def judge(self, model: nn.Module, images: Images | TaskPart) -> Metrics:
        """Judge a network in the precision and layout of the training."""
        return self._in_layout(partial(evaluate, images=images), model)

    def _in_layout(self, function: Callable[..., _Found], model: nn.Module) -> _Found:
        last = self._channels_last
        to_layout(model, torch.channels_last if last else torch.contiguous_format)
        found = function(model, precision=self.recipe.precision, channels_last=last, workers=self.workers)
        to_layout(model, torch.contiguous_format)
        return found


def _trained_first(parents: Mapping[int, Candidate]) -> bool:
    """Whether trial 0 trained the untouched network, so that its weights are the original's."""
    base = parents.get(0)
    return base is not None and base.role == "base" and bool(base.epochs)


def remove_damaged(folder: Path) -> None:
    """Remove a checkpoint that cannot be read: the training then begins anew and comes to the same end."""
    try:
        read_checkpoint(folder)
    except RunError:
        (folder / CHECKPOINT).unlink(missing_ok=True)


def precision_and_layout(arch: Architecture, data: BaseTask, recipe: Recipe) -> dict[str, Any]:
    """Choose precision and layout once: all trainings of a network are alike.

    So is a rate that is to be found, unless the recipe fine-tunes: what was cut further bears a higher one, and each
    training makes the test.
    """
    device = make_fabric("auto", "32-true").device
    known = recipe.updated(lr=_ANY) if recipe.lr == "auto" and recipe.fine_tunes else recipe
    chosen = resolve(arch.model.to(device), data, known, device, None)
    rate = {} if chosen.lr is None else {"lr": chosen.lr}
    return {"precision": chosen.precision, "memory_format": chosen.memory_format, **rate}


def reshaped(arch: Architecture, plan: Plan) -> Architecture:
    """Return a copy of the network in the plan's shape; which weights it keeps does not matter."""
    if plan.edits:
        # Numbered, as a saved plan is replayed: what names a target again was meant to come later.
        done = list(passages(arch, plan.edits, Options(importance="first", verify=False), numbered=True))
        return done[-1].after
    how: Any = {"capture": arch.captured, "free_outputs": arch.free_outputs}
    return read(copy.deepcopy(arch.model), arch.inputs, **how).evolved(source=arch.source)


def _since(start: float) -> float:
    return time.perf_counter() - start
