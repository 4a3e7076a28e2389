"""What tests and examples may not depend on: a clock, and a processor's last digits (see CONTRIBUTING.md)."""

import ast
import doctest
import re
from functools import cache
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[1]
TESTS = sorted(path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__))
EXAMPLES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "src").rglob("*.py"))]
CLOCKS = {"time", "timeit", "datetime", "sched", "torch.utils.benchmark"}
DIGITS = re.compile(r"\d\.\d{3}\d*[1-9]|\de[-+]?\d")  # beyond the third decimal, or in powers of ten


def clocks(code: str) -> set[str]:
    """What tells the time among the imports of some code and of the code in its strings, and deadlines."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.keyword) and node.arg == "deadline":
            found |= {"time"} if ast.unparse(node.value) != "None" else set()
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "import" in node.value:
            try:
                found |= clocks(dedent(node.value))
            except SyntaxError:  # prose
                continue
    return found & CLOCKS


@cache
def examples(path: Path) -> list[doctest.Example]:
    text = path.read_text("utf-8")
    if ">>>" not in text:
        return []
    if path.suffix == ".py":
        nodes = (
            node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        )
        text = "\n\n".join(ast.get_docstring(node) or "" for node in nodes)
    return doctest.DocTestParser().get_examples(text)


def test_no_test_reads_a_clock() -> None:
    found = {str(path.relative_to(ROOT)): clocks(path.read_text("utf-8")) for path in TESTS}
    assert not {path: of for path, of in found.items() if of}


def test_no_example_reads_a_clock_or_shows_last_digits() -> None:
    for path in EXAMPLES:
        for example in examples(path):
            assert not clocks(example.source), (path, example.source)
            assert not DIGITS.search(example.want), (path, example.want)


def test_whole_numbers_are_taken_as_what_their_check_returns() -> None:
    """NumPy's pass the check and fail later, as the size of a slice: a check whose result is left out says so here."""
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                name = ast.unparse(node.value.func)
                assert name not in ("check_count", "check_int", "check_dims", "check_widths"), (path, node.lineno)


def test_the_checks_find_what_they_look_for() -> None:
    for code in (
        "import time",
        "from time import sleep",
        "from torch.utils import benchmark",
        "run([python, '-c', 'import sys, time; print(1)'])",
        "settings(deadline=200)",
    ):
        assert clocks(code), code
    assert not clocks("import torch\nsettings(deadline=None)\n'''Import this in time.'''")
    assert [bool(DIGITS.search(text)) for text in ("-1.1176e-08", "0.12345", "tensor([0.0210, 0.2000])", "1e5")] == [
        True, True, False, True,
    ]  # fmt: skip
    assert sum(1 for path in EXAMPLES for _ in examples(path)) > 100


def test_docstrings_are_markdown() -> None:
    """One dialect: `code` in single backticks, [`dcem.minimize`][] for a link."""
    other = re.compile(r"``[^`\n]+``|:(?:class|func|meth|mod|attr):`")
    found = {str(path): other.findall(path.read_text("utf-8")) for path in sorted((ROOT / "src").rglob("*.py"))}
    assert not {path: of for path, of in found.items() if of}
