"""RECORD: run candidates, keep everything in a run directory, prove the result."""

from convwright.runs.evaluate import Evaluator
from convwright.runs.optimizing import optimize
from convwright.runs.prove import BrokenBudgetError
from convwright.runs.result import Result
from convwright.runs.search import search
from convwright.runs.study import Study

__all__ = ["BrokenBudgetError", "Evaluator", "Result", "Study", "optimize", "search"]
