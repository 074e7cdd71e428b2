"""The report of a run: one HTML page that works offline, Markdown or JSON."""

from convwright.report.gather import Report, report_of

__all__ = ["Report", "report_of"]
