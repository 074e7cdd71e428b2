"""Run those tests of `make test-all` that `make test` leaves out and that a change concerns.

    python tools/ci_extra.py [--base origin/main] [--minutes 8]

A test file is concerned if the change touches it, a module that it imports or is named after, a neighbour of such a
module in its folder of the package, or a helper in the test's own folder. What the change is: everything since the base
where that is known, and else the last commit. Files that were changed themselves come first; when the time is up, those
left are named and not run.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTHING = 5  # pytest's exit code where no test was selected


def changed(base: str) -> list[Path]:
    """Return the files that differ from the base or, in a clone that does not know it, from the last commit but one."""
    for since in (f"{base}...HEAD", "HEAD~1"):
        command = ["git", "diff", "--name-only", "--diff-filter=d", since]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip():
            return [Path(line) for line in done.stdout.splitlines()]
    return []


def imported(file: Path) -> set[str]:
    """Return the modules that a file names in its imports, with what it takes from them."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def concerned(files: Sequence[Path], tests: Sequence[Path]) -> list[Path]:
    """Return the test files that a change of files concerns, those first that were changed themselves."""
    own = [test for test in tests if test in files]
    modules = {".".join(f.with_suffix("").parts[1:]).removesuffix(".__init__") for f in files if f.parts[0] == "src"}
    names = {f"test_{module.rpartition('.')[2]}" for module in modules}
    modules |= {folder for module in modules if (folder := module.rpartition(".")[0]).count(".") > 1}
    helpers = {f.parent for f in files if f.parts[0] == "tests" and f.suffix == ".py" and f not in tests}

    def touched(test: Path) -> bool:
        return test.stem in names or test.parent in helpers or bool(modules & imported(ROOT / test))

    return own + [test for test in tests if test not in own and touched(test)]


def main() -> int:
    """Run them one file after the other; the first failure ends it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--base", default="origin/main", help="what the change is compared with")
    parser.add_argument("--minutes", type=float, default=8, help="no further file is begun after these")
    given = parser.parse_args()
    tests = sorted(file.relative_to(ROOT) for file in (ROOT / "tests").rglob("test_*.py"))
    files = concerned(changed(given.base), tests)
    end = time.monotonic() + 60 * given.minutes
    for number, file in enumerate(files):
        left = end - time.monotonic()
        command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "-m", "slow or breadth", str(file)]
        try:
            code = subprocess.run(command, cwd=ROOT, check=False, timeout=max(left, 0)).returncode
        except subprocess.TimeoutExpired:
            print(f"time is up; left to make test-all: {' '.join(map(str, files[number:]))}")
            return 0
        if code not in (0, NOTHING):
            return code
    print(f"further tests of {len(files)} files passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
