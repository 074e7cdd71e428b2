"""The report of a run: one HTML page that works offline, Markdown or JSON."""

from convwright.report.gather import report_of
from convwright.report.report import Report

__all__ = ["Report", "report_of"]
