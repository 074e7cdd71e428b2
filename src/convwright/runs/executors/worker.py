"""What a worker is sent and what it answers: plain data, so that any process on any machine can do the work.

A worker keeps nothing that a result depends on: the network that it has read is kept only to save the time of reading.
"""

from __future__ import annotations

import pickle
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

from torch import nn

from convwright.architecture import Architecture, create, read
from convwright.architecture.capture.pytrees import Inputs
from convwright.edits import check_execution
from convwright.errors import ConvwrightError, RunError
from convwright.methods import Candidate, Evidence
from convwright.runs.directory.files import load_weights
from convwright.runs.directory.study import WEIGHTS
from convwright.runs.evaluate import Evaluator
from convwright.runs.executors.executor import ATTEMPTS, Store, Task, lost, threads_of
from convwright.runs.executors.pool import Lost, Pool
from convwright.runs.repairing import Repairs
from convwright.training import ImageData, Recipe
from convwright.training.data.proxy import Proxy
from convwright.training.tasks.base import BaseTask


@dataclass(frozen=True, eq=False)
class Setup:
    """Everything that is the same for all candidates of a run.

    Attributes:
        model: The network's name, or the network.
        source: What it is called.
        shape: Of its example input, or all inputs where it has several.
        options: What a named network is created with.
        weights: Content of the .safetensors file that the run started from.
        data: Training and validation images.
        recipe: Precision and layout are settled in it.
        threads: Of each training.
        workers: Processes that read a streamed data set.
        proxy: The part of the data for candidates that are judged on a proxy.
        repairs: As of the evaluator.
        trained: As of the evaluator.
    """

    model: str | nn.Module
    source: str
    shape: tuple[int, ...] | Inputs
    options: Mapping[str, Any]
    weights: bytes
    data: BaseTask
    recipe: Recipe
    threads: int
    workers: int | None = None
    proxy: Proxy | None = None
    repairs: Repairs = Repairs()  # noqa: RUF009 - frozen
    trained: bool = False

    @classmethod
    def of(cls, evaluator: Evaluator, model: str | nn.Module, weights: Path, threads: int) -> Setup:
        """Return the setup of what an evaluator does in this process.

        Args:
            evaluator: Does it here.
            model: As the run was given it.
            weights: The file that the run started from.
            threads: Of each training.
        """
        arch = evaluator.arch
        if isinstance(model, str) and ".py:" in model:  # a name that is understood in any working directory
            file, _, name = model.rpartition(":")
            model = f"{Path(file).resolve()}:{name}"
        shape = tuple(arch.example_input.shape) if arch.given is None else arch.inputs
        network = model, arch.source, shape, dict(arch.options), weights.read_bytes()
        data = evaluator.data
        data = replace(data, read_test=None) if isinstance(data, ImageData) else data  # no trial sees the test part
        how = evaluator.workers, evaluator.proxy, evaluator.repairs, evaluator.trained
        return cls(*network, data, evaluator.recipe, threads, *how)

    def packed(self, dumps: Callable[[Any], bytes] = pickle.dumps) -> bytes:
        """Return the setup as bytes.

        Raises:
            RunError: Network or data cannot be sent to another process.
        """
        parts = {name: getattr(self, name) for name in self.__dataclass_fields__}
        packed = {}
        for name, part in (parts | {"recipe": self.recipe.model_dump(mode="json")}).items():
            try:
                packed[name] = dumps(part)
            except Exception as error:  # a class inside a function, a lambda, an open file, ...
                what = {"model": "the network (give it as FILE.py:CLASS)", "data": "the data (give them by name)"}
                raise RunError(
                    f"{what.get(name, name)} cannot be sent to another process ({error}); or work in one process, "
                    "without --jobs and --ray"
                ) from error
        return pickle.dumps(packed)

    @classmethod
    def unpacked(cls, packed: bytes) -> Setup:
        """Read what `packed` gave."""
        parts = {name: pickle.loads(part) for name, part in pickle.loads(packed).items()}
        return cls(**{**parts, "recipe": Recipe(**parts["recipe"])})

    def architecture(self) -> Architecture:
        """Read the network as the run did, with the weights that the run started from."""
        model = create(self.model, **self.options)[0] if isinstance(self.model, str) else self.model
        arch = read(model, self.shape).evolved(source=self.source, options=dict(self.options))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / WEIGHTS
            file.write_bytes(self.weights)
            load_weights(arch.model, file)
        return check_execution(arch).architecture


@dataclass(frozen=True)
class WorkerTask:
    """One candidate, as a worker gets it.

    Attributes:
        number: The trial.
        candidate: What to try.
        parents: The candidate whose weights it gets, and trial 0, where it trained the original, by number.
        folders: Folder of the trial and of each of these, by number.
    """

    number: int
    candidate: Candidate
    parents: Mapping[int, Candidate]
    folders: Mapping[int, str]

    @classmethod
    def of(cls, task: Task, folder: Callable[[int], Path]) -> WorkerTask:
        """Return the errand of a task.

        Args:
            task: Number, candidate and parents.
            folder: Returns the folder of a trial.
        """
        origin, first = task.candidate.parent, task.parents.get(0) if task.number else None
        trained = first is not None and first.role == "base" and first.epochs
        parents = {n: task.parents[n] for n in ((0,) if trained else ()) + (() if origin is None else (origin,))}
        # Resolved, since a worker may be in another directory.
        folders = {n: str(folder(n).resolve()) for n in sorted({task.number, *parents})}
        return cls(task.number, task.candidate, parents, folders)

    # As a store: a worker knows no other trials than these.

    def trial_folder(self, number: int) -> Path:
        """Return the folder of the trial or of its parent."""
        return Path(self.folders[number])

    def weights(self, number: int) -> Path:
        """Return the file of the trial's or its parent's weights."""
        return self.trial_folder(number) / WEIGHTS


@dataclass(frozen=True)
class WorkerResult:
    """What came of an errand.

    Attributes:
        kind: ``found``: `content` is the evidence; ``refused``: an error of ours, which every worker would meet;
            ``broken``: a fault of the program, as a traceback.
        content: See `kind`.
        files: What is left in the trial's folder, by name, where that is not the run's.
    """

    kind: Literal["found", "refused", "broken"]
    content: Any
    files: Mapping[str, bytes] = field(default_factory=dict)

    def evidence(self, task: Task) -> Evidence:
        """Return the evidence.

        Raises:
            ConvwrightError: The worker refused.
            RuntimeError: It broke.
        """
        if self.kind == "refused":
            raise self.content
        if self.kind == "broken":
            raise RuntimeError(f"trial {task.number}: its worker broke\n{self.content}")
        return Evidence.from_dict(self.content, task.candidate)


def answered(packed: bytes, errand: WorkerTask) -> WorkerResult:
    """Do an errand; whatever happens is told."""
    try:
        setup, arch = _opened(packed)
        how = False, setup.workers, setup.proxy, setup.repairs
        evaluator = Evaluator(arch, setup.data, setup.recipe, errand, *how, trained=setup.trained)
        with threads_of(setup.threads):
            found = evaluator(errand.number, errand.candidate, errand.parents)
        return WorkerResult("found", found.to_dict())
    except ConvwrightError as error:
        return WorkerResult("refused", error.with_traceback(None))
    except Exception:
        return WorkerResult("broken", traceback.format_exc())


@lru_cache(maxsize=1)
def _opened(packed: bytes) -> tuple[Setup, Architecture]:
    """Return setup and network; kept for the next errand, since reading a network can take longer than a trial."""
    setup = Setup.unpacked(packed)
    with threads_of(setup.threads):
        return setup, setup.architecture()


class Processes:
    """Works on `jobs` candidates at a time, each in a process of its own.

    The candidate of a process that was killed goes on in another one from its last checkpoint, at most `ATTEMPTS`
    times; after that it has failed and the search goes on.

    Args:
        jobs: Processes.
        setup: What is the same for all candidates.
        store: Where their weights lie.
        say: Called with lines for a person.

    Raises:
        RunError: Network or data cannot be sent to another process.
    """

    def __init__(self, jobs: int, setup: Setup, store: Store, say: Callable[[str], object] = lambda text: None) -> None:
        def again(task: Task, how: str) -> None:
            say(f"trial {task.number}: its process ended {how}; begun again from its last checkpoint")

        function = partial(answered, setup.packed())
        self.pool = Pool(function, jobs, lambda task: WorkerTask.of(task, store.trial_folder), ATTEMPTS, again)

    def carry_out(self, tasks: Iterable[Task]) -> Iterator[Evidence]:
        """Yield evidence as it comes."""
        for task, answer in self.pool.results(tasks):
            if isinstance(answer, Lost):
                yield lost(task, f"its process ended {answer.how}; memory may be short: give fewer --jobs")
            else:
                yield answer.evidence(task)

    def close(self) -> None:
        """End all processes."""
        self.pool.close()
