"""SHOW: the report of a run, as one page that needs no network, as Markdown and as JSON."""

from convwright.report.gather import report_of
from convwright.report.report import Report

__all__ = ["Report", "report_of"]
