"""Write the generated parts of README.md, CONTRIBUTING.md and docs/: results, the zoo, commands, where things are.

    python tools/make_tables.py [--check]

A table stands between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``; what lies between is replaced. Results come
from ``benchmarks/results/*.json`` and from nowhere else; where a file is missing, the table says so. What describes the
source comes from the source. ``--check`` changes nothing and ends with code 1 if a table is out of date.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import benchmark_tables  # noqa: F401  (these register their tables)
import reference_tables  # noqa: F401
import results_page  # noqa: F401
import run_tables  # noqa: F401
import source_map  # noqa: F401
from table_kit import ROOT, TABLES


def pages() -> list[Path]:
    """Return the files that may hold generated tables."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def updated(text: str) -> str:
    """Return a page with all of its tables made anew."""
    for name in re.findall(r"<!-- ([a-z0-9-]+):begin -->", text):
        if name not in TABLES:
            raise SystemExit(f"no table is called {name!r}; known are {', '.join(TABLES)}")
        between = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        body = TABLES[name]()
        text = between.sub(lambda match, body=body: f"{match[1]}\n{body}\n\n{match[2]}", text)
    return text


def out_of_date() -> list[tuple[Path, str]]:
    """Return the pages that the generator would change, with their new text."""
    pairs = [(page, page.read_text(encoding="utf-8")) for page in pages()]
    return [(page, new) for page, old in pairs if (new := updated(old)) != old]


def main() -> None:
    """Bring all pages up to date."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if something is out of date")
    check = parser.parse_args().check
    changed = out_of_date()
    for page, text in changed:
        print(("out of date: " if check else "updated ") + str(page.relative_to(ROOT)))
        if not check:
            page.write_text(text, encoding="utf-8")
    sys.exit(int(check and bool(changed)))


if __name__ == "__main__":
    main()
