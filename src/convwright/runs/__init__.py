"""`optimize`: train the candidates of a method, keep all in a run directory, prove the result."""

from convwright.runs.directory.result import Result
from convwright.runs.directory.study import Study
from convwright.runs.evaluate import Evaluator
from convwright.runs.loop import search
from convwright.runs.optimize import compress, optimize
from convwright.runs.own_loop import Search, Trial
from convwright.runs.prove import BrokenBudgetError

__all__ = ["BrokenBudgetError", "Evaluator", "Result", "Search", "Study", "Trial", "compress", "optimize", "search"]
