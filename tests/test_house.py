"""Laws of the source: how large folders, argument lists and the whole may be, and which way imports go."""

import ast
import re
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in sorted(SOURCE.rglob("*.py"))}
MODULES = {".".join(f.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): f for f in TREES}


def imported(tree):
    """Yield the modules of the package that a file imports when it runs, those inside functions included."""
    if isinstance(tree, ast.Import):
        yield from (alias.name for alias in tree.names if alias.name in MODULES)
    elif isinstance(tree, ast.ImportFrom):
        names = [f"{tree.module}.{alias.name}" for alias in tree.names]
        yield from (name if name in MODULES else tree.module for name in names)
    only_types = isinstance(tree, ast.If) and ast.unparse(tree.test) == "TYPE_CHECKING"
    for child in tree.orelse if only_types else ast.iter_child_nodes(tree):
        yield from imported(child)


def arguments(function):
    """Return the named parameters of a function that can be given by position, and those that cannot."""
    return [*function.args.posonlyargs, *function.args.args], function.args.kwonlyargs


def definitions(kind):
    """Yield every file with every definition of a kind in it."""
    for file, tree in TREES.items():
        yield from ((file, node) for node in ast.walk(tree) if isinstance(node, kind))


def test_no_folder_has_more_than_25_files():
    files = Counter(str(file.parent.relative_to(ROOT)) for file in TREES)
    assert not {folder: count for folder, count in files.items() if count > 25}


def test_imports_have_no_circles():
    """Of any length, imports inside functions included; but for the calls upwards that the import contract names."""
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    upwards = set(re.findall(r'"([\w.]+) -> ([\w.]+)"', contract))
    edges = {name: {other for other in imported(TREES[file]) if other in MODULES} for name, file in MODULES.items()}
    kept = {name: {o for o in others if o != name and (name, o) not in upwards} for name, others in edges.items()}
    TopologicalSorter(kept).prepare()  # a CycleError names the files


def test_the_whole_stays_small():
    """62,000 lines are the aim, passed by 4,100 since runtimes came in: further features come with more deletions."""
    assert sum(len(file.read_text(encoding="utf-8").splitlines()) for file in TREES) <= 66_100


def test_optimize_names_at_most_8_parameters():
    (function,) = [
        node
        for file, node in definitions(ast.FunctionDef)
        if node.name == "optimize" and file.match("runs/optimize.py")
    ]
    positional, keywords = arguments(function)
    assert len(positional) + len(keywords) <= 8


def test_constructors_of_methods_take_at_most_3_arguments_by_position():
    """The network, the limits, and the terms that all methods share; options of its own have names."""
    for file, node in definitions(ast.ClassDef):
        if any(ast.unparse(decorator).startswith("register(") for decorator in node.decorator_list):
            made = [f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"]
            assert all(len(arguments(function)[0]) <= 1 + 3 for function in made), f"{file}: {node.name}"


def test_at_most_12_names_of_classes_are_used_twice():
    names = Counter(node.name for tree in TREES.values() for node in tree.body if isinstance(node, ast.ClassDef))
    assert len(twice := sorted(name for name, count in names.items() if count > 1)) <= 12, twice


def test_no_attribute_of_a_method_is_read_by_getattr():
    """What a search method offers beside `ask`, `tell` and `best` is declared by the base class `Method`."""
    found = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file, node in definitions(ast.Call)
        if ast.unparse(node.func) == "getattr" and re.match(r"(self\.)?method", ast.unparse(node.args[0]))
    ]
    assert not found
