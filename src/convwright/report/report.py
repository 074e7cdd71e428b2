"""A report and the forms that it takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from convwright.report.content import Content
from convwright.report.html import as_html
from convwright.report.markdown import as_markdown
from convwright.runs.directory.files import write_text


@dataclass(frozen=True)
class Report(Content):
    """The report of a run: its content, as a page, as Markdown or as plain values."""

    def html(self) -> str:
        """Return the page: one file that needs no network."""
        return as_html(self)

    def markdown(self) -> str:
        """Return the same as Markdown."""
        return as_markdown(self)

    def save(self, path: str | Path | None = None) -> Path:
        """Write the page.

        Args:
            path: The file; None: ``report.html`` in the run directory.

        Returns:
            The file.

        Raises:
            RunError: It cannot be written.
        """
        to = Path(path) if path is not None else self.folder / "report.html"
        write_text(to, self.html())
        return to
