"""Budgets: what a network may cost, written as text and judged on numbers.

``macs<=50%, params<=1.5M`` is a budget of two terms. A term's limit is absolute or relative to the present network.
``latency[openvino,int8]<=4ms`` names the runtime that a latency is measured on.
All limits are upper ones, so ``<``, ``<=`` and ``=`` mean the same: at most. FLOPs are taken as twice the MACs.
Latency is held in whole nanoseconds, so that all costs are integers. A limit on activations is one on what eager
PyTorch holds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction

from convwright.architecture import Architecture
from convwright.cost.cost_model import CostModel
from convwright.cost.counts import METRICS, Profile
from convwright.cost.runtimes import Target
from convwright.errors import BudgetError, did_you_mean

MEASURED = ("latency",)
NetworkEstimate = Callable[[Architecture], int]  # a network -> a cost that is measured, not counted
Estimate = Callable[[Mapping[str, int]], int]  # widths of free groups by name -> a cost that is measured, not counted
Widths = Mapping[str, int]  # of free groups by name
Choice = Callable[["Limits"], tuple[Architecture, Widths]]  # limits with estimates -> the network chosen, its widths
Fitting = Callable[["Limits", Architecture, Choice], "Limits"]

_ALIASES = {
    "macs": "macs mac mac_count madds mult-adds multiply-accumulates multadds",
    "params": "params param parameters parameter",
    "activations": "activations activation activation_bytes memory peak_memory",
    "weights": "weights weight weight_bytes size model_size",
    "latency": "latency time",
}
_FLOPS = {"flops": 1, "flop": 1, "mflops": 10**6, "gflops": 10**9}  # 1 MAC = 2 FLOPs
_METRIC = {alias: metric for metric, text in _ALIASES.items() for alias in text.split()}

_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}
_BYTES = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}
_TIMES = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9}
_UNITS = {"activations": _BYTES, "weights": _BYTES, "latency": _TIMES}  # the rest are counts
_WORDS = {**dict.fromkeys(("activations", "weights"), "KB, MB, GB, KiB, MiB, GiB"), "latency": "ns, us, ms, s"}
_EXAMPLE = (
    'Write it like "macs<=50%", "macs<=600M, params<=1500", "activations<=2MB", "latency<=3ms" or '
    '"latency[onnxruntime]<=50%".'
)
_SEPARATOR = re.compile(r"(?:[,;&]|\band\b)(?![^[]*\])")  # not within brackets
_TERM = re.compile(
    r"(?P<metric>[a-z][a-z _-]*?)\s*(?:\[(?P<target>[^][]*)\]\s*)?(?P<relation><=|=<|==|=|<|≤|>=|>|≥)\s*"
    r"(?P<number>[+-]?(?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?|[+-]?(?:nan|inf|infinity))\s*(?P<unit>%|[a-zµμ]*)"
)


@dataclass(frozen=True)
class Term:
    """One limit.

    Attributes:
        metric: macs, params, activations, weights or latency.
        limit: the most it may be: a number (of nanoseconds for latency), or, when ``relative``, a share of the
            present cost.
        relative: whether the limit is a share.
        target: what a latency is measured on; None: the fastest runtime that is installed.
    """

    metric: str
    limit: float
    relative: bool = False
    target: Target | None = None

    def __str__(self) -> str:
        exact, name = Decimal(repr(self.limit)), self.metric + (f"[{self.target}]" if self.target is not None else "")
        if self.relative:
            return f"{name}<={(exact * 100).normalize():f}%"
        unit, size = ("ms", 10**6) if self.metric == "latency" else ("", 1)
        return f"{name}<={(exact / size).normalize():f}{unit}"

    def resolve(self, present: int) -> int:
        """Return the limit as a whole number, given the present cost."""
        exact = Fraction(repr(self.limit))
        return math.floor(exact * present if self.relative else exact)


@dataclass(frozen=True)
class Budget:
    """Limits on several metrics, all to be met."""

    terms: tuple[Term, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.terms))

    @property
    def measures(self) -> tuple[str, ...]:
        """The limited metrics that must be measured: ``("latency",)`` or nothing."""
        return tuple(t.metric for t in self.terms if t.metric in MEASURED)

    @property
    def target(self) -> Target | None:
        """What the latency is measured on, where the budget names it."""
        return next((t.target for t in self.terms if t.metric in MEASURED), None)

    def resolve(self, profile: Profile, latency: int | None = None) -> Limits:
        """Turn shares of the present network into numbers.

        Args:
            profile: the costs of the network that shares refer to.
            latency: its measured latency in nanoseconds; needed where a share of it is the limit.

        Returns:
            One whole number per metric.

        Raises:
            BudgetError: if a share of the latency is the limit, and the latency is not given.
        """
        present = costs_of(profile) | dict.fromkeys(MEASURED, latency or 0)
        if latency is None and any(t.relative for t in self.terms if t.metric in MEASURED):
            raise BudgetError(f"{self} limits a share of the latency: measure the network, and give its latency.")
        return Limits({t.metric: t.resolve(present[t.metric]) for t in self.terms})


@dataclass(frozen=True)
class Limits:
    """What each metric may be at most, in counts, bytes or nanoseconds.

    Attributes:
        limits: metric -> limit.
        estimates: for metrics that no cost model counts: what they are expected to be, as a function of the widths.
        networks: for the same metrics: what they are expected to be of another network, such as one with fewer blocks.
        fitting: makes limits with estimates for another network; see `fitted`. None: there are none.
    """

    limits: dict[str, int]
    estimates: Mapping[str, Estimate] = field(default_factory=dict, repr=False, compare=False)
    networks: Mapping[str, NetworkEstimate] = field(default_factory=dict, repr=False, compare=False)
    fitting: Fitting | None = field(default=None, repr=False, compare=False)

    @property
    def measures(self) -> bool:
        """Whether a limit is on what is measured, not counted."""
        return any(metric in MEASURED for metric in self.limits)

    @property
    def counted(self) -> Limits:
        """The limits on what is counted, alone."""
        return Limits({metric: limit for metric, limit in self.limits.items() if metric not in MEASURED})

    def fitted(self, network: Architecture, choose: Choice) -> Limits:
        """Return limits whose estimates are for another network, corrected by measuring what is chosen by them.

        Args:
            network: such as one with fewer blocks.
            choose: chooses widths for it within limits, and returns the network with these and the widths; called until
                its choice meets the limits when it is measured.

        Returns:
            Limits by which the same choice takes a network that was measured. These limits, if all are counted.

        Raises:
            BudgetError: nothing that was chosen meets the limits, or nothing can estimate another network.
        """
        if not self.measures:
            return self
        if self.fitting is None:
            raise BudgetError("latency is estimated for the present layers and inputs only.")
        return self.fitting(self, network, choose)

    def costs(self, model: CostModel, widths: Mapping[str, int]) -> dict[str, int]:
        """Return the limited metrics of one set of widths: counted, or estimated where they are measured.

        Raises:
            BudgetError: if a width is wrong, or nothing estimates a limited metric.
        """
        self._check_known(self.estimates)
        counted = model.costs(widths, [m for m in self.limits if m not in MEASURED])
        return {m: self.estimates[m](widths) if m in MEASURED else int(counted[m]) for m in self.limits}

    def costs_of(self, network: Architecture) -> dict[str, int]:
        """Return the limited metrics of a network: counted, or estimated where they are measured.

        Raises:
            BudgetError: if nothing estimates a limited metric of whole networks.
        """
        self._check_known(self.networks)
        counted = costs_of(network.profile())
        return {m: self.networks[m](network) if m in MEASURED else counted[m] for m in self.limits}

    def _check_known(self, known: Collection[str]) -> None:
        unknown = [m for m in self.limits if m in MEASURED and m not in known]
        if unknown:
            raise BudgetError(f"a limit on {unknown[0]} needs an estimate of it: make a LatencyModel.")

    def met(self, costs: Mapping[str, int]) -> bool:
        """Return whether all limits hold."""
        return not self.excess(costs)

    def excess(self, costs: Mapping[str, int]) -> dict[str, int]:
        """Return by how much each broken limit is exceeded; empty when all hold."""
        over = {m: int(costs[m]) - limit for m, limit in self.limits.items()}
        return {metric: by for metric, by in over.items() if by > 0}

    def describe(self) -> str:
        """Return the limits for a person: ``macs <= 20.4M, weights <= 1MB``."""
        return ", ".join(f"{m} <= {human(limit, m)}" for m, limit in self.limits.items())


def costs_of(profile: Profile) -> dict[str, int]:
    """Return the costs of a network by metric name."""
    return {
        "macs": profile.macs,
        "params": profile.params,
        "activations": profile.eager_activation_bytes,
        "weights": profile.weight_bytes,
    }


def human(amount: int, metric: str = "macs") -> str:
    """Write a cost with three digits and a unit: ``40.8M``, ``1.05MB``, ``2.31ms``."""
    prefixes = ("n", "u", "m", "") if metric == "latency" else ("", "K", "M", "G", "T")
    unit = "s" if metric == "latency" else "B" if metric in ("activations", "weights") else ""
    written = [_three_digits(amount / 1000**power) for power in range(len(prefixes))]
    power = next((i for i, text in enumerate(written) if float(text) < 1000), len(prefixes) - 1)
    return written[power] + prefixes[power] + unit


def _three_digits(number: float) -> str:
    """Write 0 or more decimals, so that there are three digits, without zeros at the end."""
    text = f"{number:.{max(0, 3 - len(str(int(number))))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


# ------------------------------------------------------------------ parsing


def parse_budget(text: str | Iterable[str]) -> Budget:
    """Read a budget.

    Args:
        text: terms joined by commas, semicolons or ``and``; or several such texts. Limits are numbers with K, M, G
            (or B, billions); for memory KB, MB, GB (1000) or KiB, MiB, GiB (1024); for latency ns, us, ms, s; or
            shares: ``50%``, ``0.5x``. Behind latency stands in brackets what runs the network:
            ``latency[openvino,int8,threads=2]<=4ms``.

    Returns:
        The budget.

    Raises:
        BudgetError: if it does not parse, a limit is not positive, or a metric comes twice.
    """
    parts = [text] if isinstance(text, str) else list(text)
    pieces = [p.strip() for part in parts for p in _SEPARATOR.split(part.lower())]
    terms = tuple(_term(piece) for piece in pieces if piece)
    if not terms:
        raise BudgetError(f"the budget is empty. {_EXAMPLE}")
    metrics = [t.metric for t in terms]
    for metric in metrics:
        if metrics.count(metric) > 1:
            raise BudgetError(f"the budget limits {metric} twice; give one limit. {_EXAMPLE}")
    return Budget(terms)


def _term(text: str) -> Term:
    match = _TERM.fullmatch(text)
    if match is None:
        raise BudgetError(f"the budget {text!r} does not parse. {_EXAMPLE}")
    metric = _metric(match["metric"].strip())
    if match["relation"] in (">=", ">", "≥"):
        raise BudgetError(f"{text!r} is a lower limit; a budget says at most. {_EXAMPLE}")
    number = Decimal(match["number"].replace("_", ""))
    if (unit := _FLOPS.get(match["metric"].strip())) is not None and match["unit"] not in ("%", "x"):
        number = number * unit / 2
    if not (number.is_finite() and number > 0):
        raise BudgetError(f"the limit in {text!r} must be a positive number. {_EXAMPLE}")
    term = _limited(metric, number, match["unit"], text)
    if match["target"] is None:
        return term
    if metric not in MEASURED:
        raise BudgetError(f"{metric} in {text!r} is the same wherever it runs: leave the brackets out. {_EXAMPLE}")
    try:
        return replace(term, target=Target.of(match["target"]))
    except BudgetError as error:
        raise BudgetError(f"{error} {_EXAMPLE}") from None


def _metric(name: str) -> str:
    metric = "macs" if name in _FLOPS else _METRIC.get(name.replace(" ", "_"))
    if metric is None:
        hint = did_you_mean(name, _METRIC)
        raise BudgetError(f"{name!r} is no metric; there are {', '.join(METRICS + MEASURED)}.{hint} {_EXAMPLE}")
    return metric


def _limited(metric: str, number: Decimal, unit: str, text: str) -> Term:
    if unit in ("%", "x"):
        limit = float(number / 100 if unit == "%" else number)
        if not 0 < limit < math.inf:
            raise BudgetError(f"the limit in {text!r} must be a positive number. {_EXAMPLE}")
        return Term(metric, limit, relative=True)
    units, known = _UNITS.get(metric, _COUNTS), _WORDS.get(metric, "K, M, G, B, T")
    if unit not in units:
        said = f"is not measured in {unit!r}" if unit else "needs a unit"
        raise BudgetError(f"{metric} {said} in {text!r}; use {known}, % or x. {_EXAMPLE}")
    whole = math.floor(number * units[unit]) if number.adjusted() < 30 else 2**63
    if not 0 < whole < 2**63:
        raise BudgetError(f"the limit in {text!r} is below 1 or too large (a share is written 30% or 0.3x). {_EXAMPLE}")
    return Term(metric, whole)


# ------------------------------------------------------------------ feasibility


def feasible_range(arch: Architecture, estimates: Mapping[str, Estimate] | None = None) -> dict[str, tuple[int, int]]:
    """Return what each metric can be by width alone, without growing.

    Args:
        arch: the network.
        estimates: of measured metrics, as in `Limits`; left out of the answer where they cannot tell.

    Returns:
        Metric -> (every free group as small as it can be, present size). Tied groups shrink in proportion.
    """
    model, widths = CostModel.of(arch), smallest_widths(arch)
    smallest, present = model.costs(widths), model.costs(model.sizes)
    ranges = {metric: (int(smallest[metric]), int(present[metric])) for metric in METRICS}
    for metric, estimate in (estimates or {}).items():
        with suppress(BudgetError):  # the smallest widths do not fit together: nothing is known
            least: Estimate = getattr(estimate, "least", estimate)  # odd widths may take longer than round ones
            ranges[metric] = (least(widths), estimate({}))
    return ranges


def smallest_widths(arch: Architecture) -> dict[str, int]:
    """Return the smallest width of each free group: one channel unit, or tied groups in proportion.

    Groups that the user's constraints bound are as small as these allow.
    """
    found = {}
    for group in arch.free_groups:
        tied = [arch.channels.group(name) for name in group.tied]
        # The largest factor by which a group and all those tied to it can be divided.
        factor = math.gcd(group.units, *(1 if other.frozen else other.units for other in tied))
        least = group.bounds.least if group.bounds is not None and not tied else 1
        bound = min(group.size, -(-least // group.step) * group.step)
        found[group.name] = max(group.step * (group.units // factor), bound)
    return found


def check_feasible(limits: Limits, arch: Architecture) -> None:
    """Check that a network can be made to meet limits by making it narrower.

    Counted costs fall with every width, so the smallest widths are the smallest in all metrics at once. For latency
    that is an estimate.

    Raises:
        BudgetError: naming what cannot be met, and the range.
    """
    ranges = feasible_range(arch, limits.estimates)
    for metric, limit in limits.limits.items():
        low, high = ranges.get(metric, (0, 0))
        if limit < low:
            raise BudgetError(
                f"{metric}<={human(limit, metric)} cannot be met: by width alone "
                f"{'and within the constraints ' if arch.constraints is not None else ''}{arch.source} goes "
                f"from {human(low, metric)} to {human(high, metric)}."
                + (f" Did you mean {metric}<={limit}%?" if metric not in MEASURED and limit <= 100 else "")
            )
