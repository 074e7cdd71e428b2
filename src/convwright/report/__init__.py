"""SHOW: the report of a run, as one page that needs no network, as Markdown and as JSON."""

from convwright.report.content import Report
from convwright.report.gather import report_of

__all__ = ["Report", "report_of"]
