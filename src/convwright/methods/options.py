"""The constructor that the methods here share: what every search is told, and the method's own options, checked."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from convwright.edits.constraints import DivisorLike
from convwright.errors import BudgetError, ConvwrightError, did_you_mean
from convwright.methods.base import Evidence, Method, method_named

if TYPE_CHECKING:
    from convwright.architecture import Architecture
    from convwright.cost.budget import Limits


class MethodOptions(BaseModel):
    """Options of a method: derive, one field per option. Values are not converted, so ``"3"`` is no number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)


@dataclass(frozen=True)
class Terms:
    """What every search is told beside the network and its budget.

    Attributes:
        epochs: Epochs of the first training of the untouched network; 0 if it comes trained.
        tune_epochs: Epochs of each training after that.
        seed: Of all choices and trainings.
        divisor: Widths are rounded to multiples of this; ``auto``: 16 for groups of 64 channels or more, 8 for smaller
            ones, 1 below 16, and finer ones where the budget could not be used with these.
    """

    epochs: int = 1
    tune_epochs: int = 1
    seed: int = 0
    divisor: DivisorLike = "auto"


_TERMS = tuple(each.name for each in fields(Terms))
_Kind = TypeVar("_Kind", bound=MethodOptions)


class ConfigurableMethod(Method):
    """A method that is made from a network, a budget, terms and options: derive, and set up in `set_up`.

    Args:
        arch: The network. Methods read its structure, never its weights.
        limits: The budget in numbers; None where there is none.
        terms: What every search is told; None: the method's `default_terms`.
        given: Fields of `Terms` and of the method's options, by name.

    Attributes:
        Options: The class of its options.
        default_terms: What holds where it is not told.
        needs_budget: What it does with a budget, and which one to give, in words; empty: it also works without one.
        arch: The network.
        limits: The budget.
        terms: What it was told.
        options: Its options.
        results: The evidence so far, by trial.

    Raises:
        BudgetError: It needs a budget, and there is none.
        ConvwrightError: An option is unknown or its value is wrong.
    """

    Options: ClassVar[type[MethodOptions]] = MethodOptions
    default_terms: ClassVar[Terms] = Terms()
    needs_budget: ClassVar[str] = ""
    options: Any

    def __init__(
        self, arch: Architecture, limits: Limits | None = None, terms: Terms | None = None, **given: Any
    ) -> None:
        told = {name: given.pop(name) for name in _TERMS if name in given}
        name = self.name or type(self).__name__
        self.terms = replace(terms or self.default_terms, **told)
        self.options = _made(self.Options, name, given)
        if self.needs_budget and (limits is None or not limits.limits):
            raise BudgetError(f"method {name} {self.needs_budget}")
        self.arch = arch
        self.limits = limits if limits is not None else self.default_limits()
        self.results: dict[int, Evidence] = {}
        self.set_up()
        self._begin()

    def default_limits(self) -> Limits | None:
        """Return the limits where none are given."""
        return None

    def set_up(self) -> None:
        """Prepare the search; refuse here what no training could help."""

    def _begin(self) -> None:
        """Begin when all is set up."""

    def tell(self, evidence: Evidence) -> None:
        """Note the evidence."""
        self.results[evidence.trial] = evidence

    @property
    def told(self) -> Mapping[int, Evidence]:
        """The old name of `results`."""
        return self.results

    def _meets(self, evidence: Evidence) -> bool:
        return evidence.usable and (self.limits is None or self.limits.met(evidence.costs))


def options_of(method: str) -> type[MethodOptions]:
    """Return the class of a method's options; where it has none it is made from its keyword-only arguments.

    Raises:
        ConvwrightError: There is no such method.
    """
    maker = method_named(method)
    if issubclass(maker, ConfigurableMethod):
        return maker.Options
    try:
        kinds = get_type_hints(maker.__init__, include_extras=True)
    except (NameError, TypeError):  # names that are there for a type checker only
        kinds = {}
    named = [p for p in inspect.signature(maker.__init__).parameters.values() if p.kind is p.KEYWORD_ONLY]
    own: dict[str, Any] = {
        p.name: (kinds.get(p.name, Any), ... if p.default is p.empty else p.default)
        for p in named
        if p.name not in _TERMS
    }
    return create_model("Options", __base__=MethodOptions, **own)


def checked_options(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as a method takes them.

    Args:
        method: Its name.
        given: Values by the names of its options.

    Raises:
        ConvwrightError: The method is unknown, has no such option, or a value is wrong.
    """
    kind = options_of(method)
    for name in given:
        if name in _TERMS:
            raise ConvwrightError(f"{name} is no option of a method; give {name} itself (--{name.replace('_', '-')})")
    options = _made(kind, method, given)
    return {name: getattr(options, name) for name in given}


def _made(kind: type[_Kind], method: str, given: Mapping[str, Any]) -> _Kind:
    known = kind.model_fields
    for name in given:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ConvwrightError(f"method {method} has no option {name!r}; {has}.{did_you_mean(name, known)}")
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        option = str(error.errors()[0]["loc"][0])
        reason = "; ".join(dict.fromkeys(part["msg"] for part in error.errors() if part["loc"][0] == option))
        value = f"={given[option]!r}" if option in given else ""
        raise ConvwrightError(f"option {option}{value} of method {method}: {reason}") from error
