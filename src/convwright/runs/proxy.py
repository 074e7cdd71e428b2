"""Candidates ranked on a part of the data, drawn once and kept in the run directory; never what a result is made of.

``proxy.json`` in a run directory holds the classes and the positions of all images of the proxy. Its digest is among
the settings of the run, so that a resumed run goes on with the same list or is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from convwright.errors import ConvwrightError, DataError
from convwright.methods import METHODS, Candidate, Evidence, Method, method_named
from convwright.methods.base import RewritingMethod
from convwright.runs.directory.files import read_json, write_json
from convwright.runs.loop import Say
from convwright.runs.time_budget import baseline_of
from convwright.training import ImageData
from convwright.training.data.proxy import Proxy, draw_proxy
from convwright.training.tasks.base import BaseTask

FILE = "proxy.json"
FORMAT = "convwright proxy"


@dataclass(frozen=True)
class ProxyConfig:
    """What was asked for.

    Attributes:
        classes: How many classes; None: all.
        samples: How many training images; None: all of these classes.
        seed: Of the draw.
    """

    classes: int | None
    samples: int | None
    seed: int

    @classmethod
    def of(cls, classes: int | None, samples: int | None, seed: int) -> ProxyConfig | None:
        """Return what was asked for; None: nothing."""
        return None if classes is None and samples is None else cls(classes, samples, seed)

    def drawn(self, data: ImageData, folder: Path) -> Proxy:
        """Return the list of a run that is resumed, or a new one.

        Args:
            data: From which.
            folder: The run directory.

        Raises:
            DataError: The data do not have so much, or a recorded list is damaged.
            RunError: The file with the list is damaged.
        """
        if (folder / FILE).is_file():
            content = read_json(folder / FILE, FORMAT)
            if content.get("asked") == asdict(self):
                return Proxy.from_dict(content)
        return draw_proxy(data, self.classes, self.samples, self.seed)

    def settings(self, proxy: Proxy) -> dict[str, Any]:
        """Return what a resumed run must have, too."""
        return {**asdict(self), "digest": proxy.digest}

    def keep(self, proxy: Proxy, folder: Path) -> None:
        """Write the list into the run directory, once."""
        if not (folder / FILE).is_file():
            write_json(folder / FILE, {"format": FORMAT, "version": 1, "asked": asdict(self), **proxy.to_dict()})


def proxied(
    method: Method, asked: ProxyConfig | None, data: BaseTask, run: tuple[str, Path, int], say: Say
) -> tuple[Method, Proxy | None]:
    """Return the method that a run asks, and what its candidates are ranked on, as drawn when the run was started.

    Args:
        method: What decides.
        asked: What the proxy is to be; None: there is none.
        data: What it is drawn from.
        run: Name of the method, run directory, and images per step.
        say: Called with lines for a person.

    Raises:
        ConvwrightError: The method has nothing to judge on a proxy: all its trainings are final ones, or it compares
            them with those of the untouched network.
        DataError: The data do not have so much, the proxy has not enough for one step, or a recorded list is damaged.
        RunError: The file with the list is damaged.
    """
    if asked is None:
        return method, None
    if not isinstance(data, ImageData):
        raise ConvwrightError(
            f"{data.name}: a proxy is a part of labelled images; leave --proxy-classes and --proxy-samples out"
        )
    name, folder, batch = run
    if not method.ranks:
        others = ", ".join(sorted(n for n in METHODS if method_named(n).ranks))
        raise ConvwrightError(
            f"method {name} has no trainings that only rank candidates, so there is nothing to judge on a proxy of the "
            f"data; leave --proxy-classes and --proxy-samples out, or use one of {others}"
        )
    proxy = asked.drawn(data, folder)
    if len(proxy.train) < batch:
        raise DataError(
            f"the proxy has {len(proxy.train)} training images, and the recipe takes batch_size={batch} in one step; "
            "give more --proxy-classes or --proxy-samples, or a smaller batch_size"
        )
    say(
        f"candidates are ranked on a proxy: {proxy.words(data)}; labels and outputs stay as they are, and the result "
        "and the untouched network are trained on all data"
    )
    return Proxied(method), proxy


class Proxied(RewritingMethod):
    """A method whose candidates are judged on a proxy of the data, but for the final ones."""

    def rewritten(self, candidate: Candidate, final: bool) -> Candidate:
        """Return the candidate with what it is judged on."""
        return candidate if final or candidate.role != "candidate" else replace(candidate, images="proxy")


def whole_trainings(best: Evidence, found: Sequence[Evidence], epochs: int) -> tuple[Candidate, ...]:
    """Return the trainings on all data that a search lacks whose best trial was judged on a proxy.

    Args:
        best: The trial that the search ended with.
        found: All trials, in the order of asking.
        epochs: Of the result's training.

    Returns:
        The result, then, if there is none, the baseline; nothing where the best trial was judged on all data.
    """
    if best.candidate.images == "all":
        return ()
    last = replace(best.candidate, images="all", short=False, epochs=epochs, stop=None, probes=(), recipe={})
    if last.weights != "fresh":  # it goes on from the trial that was judged on the proxy
        last = replace(last, parent=best.trial, weights="inherit")
    baseline = baseline_of(replace(best, candidate=last), found)
    return (last,) if baseline is None else (last, baseline)
