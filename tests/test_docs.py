"""The documentation is code: its Python runs, its commands parse, its tables are those of the result files.

A Python block runs in its page's own namespace, after the blocks above it, in an empty folder. ``value  # -> repr``
is checked. A block below ``<!-- not run: REASON -->`` is only compiled: it trains for minutes.
"""

from __future__ import annotations

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import draw_pictures
import make_tables
import pytest
import source_map

import convwright
from convwright.architecture import read
from convwright.plots import plotted

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "convwright"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md")] + sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(
    r"^(?P<skip><!-- not run: .+ -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
EXPECTED = re.compile(r"^(?P<expression>\S.*?)\s*# -> (?P<value>.+)$")


def blocks(page: Path, *languages: str) -> Iterator[tuple[int, bool, str]]:
    """Yield line number, whether to skip, and code."""
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        if match["language"] in languages:
            yield text.count("\n", 0, match.start("code")) + 1, bool(match["skip"]), match["code"]


def checked(code: str) -> str:
    """Turn ``expression  # -> value`` at the left margin into a check."""
    lines = []
    for line in code.splitlines():
        match = EXPECTED.match(line)
        lines.append(f"_check(({match['expression']}), {match['value']!r})" if match else line)
    return "\n".join(lines)


def same(value: object, expected: str) -> None:
    assert repr(value) == expected


@pytest.fixture
def registries() -> Iterator[None]:
    """Put the registries back: CONTRIBUTING registers examples."""
    from convwright.architecture.rules import RULES
    from convwright.cost.work import WORK
    from convwright.edits import EDITS, IMPORTANCE
    from convwright.edits.operators import OPERATORS
    from convwright.methods import METHODS
    from convwright.training.data.named import DATA_SETS
    from convwright.training.recipe.schedules import SCHEDULES
    from convwright.zoo.registry import _ENTRIES

    known: list[dict[str, Any]] = [RULES, WORK, EDITS, IMPORTANCE, OPERATORS, METHODS, DATA_SETS, SCHEDULES, _ENTRIES]
    copies = [dict(registry) for registry in known]
    yield
    for registry, copy in zip(known, copies, strict=True):
        registry.clear()
        registry.update(copy)


READ: dict[str, convwright.Architecture] = {}


def once(model: Any, *of: Any, **options: Any) -> convwright.Architecture:
    """Read a named network once for all pages: what is read never changes."""
    if not isinstance(model, str) or ".py:" in model:
        return read(model, *of, **options)
    key = str((model, of, options))
    if key not in READ:
        READ[key] = read(model, *of, **options)
    return READ[key]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
@pytest.mark.usefixtures("registries")
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("convwright.read", once)
    namespace: dict[str, Any] = {"__name__": "__docs__", "_check": same}
    for number, (line, skip, code) in enumerate(blocks(page, "python")):
        compile(code, f"{page.name}:{line}", "exec")
        if skip:
            continue
        # The code keeps its line numbers, so that a failure points into the page, and lies in a file, so that
        # convwright can quote its lines.
        source = "\n" * (line - 1) + checked(code)
        script = tmp_path / f"{page.stem}_{number}.py"
        script.write_text(source, encoding="utf-8")
        exec(compile(source, str(script), "exec", dont_inherit=True), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_parse(page: Path) -> None:
    import typer.main

    from convwright.cli import app

    group: Any = typer.main.get_command(app)
    for _, _, code in blocks(page, "bash"):
        for words in (shlex.split(line, comments=True) for line in code.splitlines()):
            if words[:1] == ["convwright"] and "--help" not in words:
                name, *arguments = [word for word in words[1:] if word != "--debug"]
                command = group.commands[name]
                while hasattr(command, "commands"):
                    name, *arguments = arguments
                    command = command.commands[name]
                command.make_context(name, arguments)
            elif words[:1] == ["make"]:
                targets = [word for word in words[1:] if "=" not in word]
                makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
                assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
            elif words and words[0].endswith("python") and words[1].endswith(".py"):
                assert (ROOT / words[1]).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert "://" in target or (page.parent / target).exists(), target


COMPUTED = ("zoo", "stage-shares")  # tables of what the package says of many networks, not of a result file


@pytest.mark.parametrize("with_computed", [False, pytest.param(True, marks=pytest.mark.breadth)])
def test_tables_are_those_of_the_result_files(with_computed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not with_computed:
        text = "\n".join(page.read_text(encoding="utf-8") for page in make_tables.pages())
        for name in COMPUTED:
            ((committed,),) = [re.findall(rf"<!-- {name}:begin -->\n\n(.*?)\n\n<!-- {name}:end -->", text, re.DOTALL)]
            monkeypatch.setitem(make_tables.TABLES, name, lambda committed=committed: committed)
    stale = [str(page.relative_to(ROOT)) for page, _ in make_tables.out_of_date()]
    assert not stale, f"run: python tools/make_tables.py (out of date: {', '.join(stale)})"


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/design.md"])
def test_a_changed_contract_makes_a_page_stale(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert make_tables.updated(text) == text
    monkeypatch.setattr(source_map, "layers", lambda: [("zoo",), ("errors",)])
    assert make_tables.updated(text) != text


def test_every_package_is_in_the_contract() -> None:
    listed = {name for names in source_map.layers() for name in names}
    found = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert listed == found - {"__init__", "__main__"}


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/design.md"])
def test_the_files_that_a_page_names_exist(name: str) -> None:
    """Paths stand in backticks, from the root or from the package; a name alone is that of a file anywhere in it."""
    text = re.sub(r"```.*?```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    made = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    paths = [
        path for path in re.findall(r"`([\w./-]+)`", text) if path.endswith((".py", "/")) and f"/{path}" not in made
    ]
    assert paths
    missing = [path for path in paths if not any(SOURCE.rglob(path)) and not (ROOT / path).exists()]
    assert not missing


def test_tables_cope_with_missing_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("table_kit.RESULTS", tmp_path)
    assert make_tables.TABLES["results"]() == "No result files are in this checkout."
    experiments = (
        "mnist-1500", "cifar10-140k", "mnist-phases", "mnist-techniques", "cifar10-techniques", "3drf", "3drf-rank",
        "conetv2", "conetv2-rank", "conetv2-transfer", "conflicts-lesion", "conflicts-tune",
        "conflicts-boundary", "greedy", "greedy-rank", "rivals",
    )  # fmt: skip
    measured = ("demo", "widths", "reading", "cost-model", "receptive-field", "latency", "training", "pipeline")
    measured += ("workers", "kills", "report", "export")
    for name in (*measured, *(f"reproduce-{name}" for name in experiments)):
        assert "Not measured in this checkout" in make_tables.TABLES[name]()


def test_pictures_show_what_the_result_files_hold() -> None:
    committed = {path.stem: plotted(path.read_text(encoding="utf-8")) for path in (ROOT / "docs/images").glob("*.svg")}
    found = {name: plotted(text) for name, text in draw_pictures.drawn().items()}
    stale = sorted(name for name in committed | found if committed.get(name) != found.get(name))
    assert not stale, f"run: python tools/draw_pictures.py, then python tools/make_tables.py (out of date: {stale})"


def test_the_drawing_tool_draws_one_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["draw_pictures.py", "--only", "channel-groups", "--out", str(tmp_path)])
    draw_pictures.main()
    assert [path.name for path in tmp_path.iterdir()] == ["channel-groups.svg"]
    assert plotted((tmp_path / "channel-groups.svg").read_text(encoding="utf-8"))["layers"]["head"][0] == [0, 0]


def test_every_public_name_is_in_the_api_reference() -> None:

    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    missing = [name for name in convwright.__all__ if not name.startswith("_") and f"`cw.{name}`" not in text]
    assert not missing


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 100


def test_the_expression_checks_are_expressions() -> None:
    """A comment ``# ->`` behind a statement would silently check nothing."""
    for page in PAGES:
        for line, _, code in blocks(page, "python"):
            for text in code.splitlines():
                match = EXPECTED.match(text)
                if match:
                    ast.parse(match["expression"], f"{page.name}:{line}", mode="eval")
                else:
                    assert "# ->" not in text, f"{page.name}:{line}: {text}"
