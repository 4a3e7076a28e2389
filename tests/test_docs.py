"""The documentation as a whole: every page and name has its place, and the site shows what can be copied and run."""

import ast
import doctest
import importlib.util
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
SOURCES = DOCS.parent / "src"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
ROOMS = [
    "dcem", "dcem.implicit", "dcem.embedding", "dcem.energy", "dcem.control", "dcem.control.systems", "dcem.world",
    "dcem.rl", "dcem.distributed", "dcem.plotting",
]  # fmt: skip
PLAIN = {"Belief", "ConditionedEnergy", "Method", "DENSE_LIMIT", "COLOURS", "MARKERS"}
"""Types and constants without a page."""


def read(page: str) -> str:
    return (DOCS / page).read_text("utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_every_page_is_in_the_menu_and_in_an_index(page: str) -> None:
    menu = (DOCS.parent / "mkdocs.yml").read_text("utf-8")
    assert re.search(rf"\b{re.escape(page)}$", menu, re.MULTILINE)
    folder, _, name = page.rpartition("/")
    if folder == "reference" and name != "index.md":
        assert f"]({name})" in read("reference/index.md")
    elif page != "index.md":
        assert f"]({page})" in read("index.md")


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_in_the_reference(room: str) -> None:
    source = (SOURCES / room.replace(".", "/") / "__init__.py").read_text("utf-8")
    names = next(
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    reference = "\n".join(read(page) for page in PAGES if page.startswith("reference/"))
    listed = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", reference, re.MULTILINE)}
    rooms = {other.rpartition(".")[2] for other in ROOMS}
    assert set(names) - rooms - PLAIN <= listed


def test_links_of_the_readme_lead_somewhere() -> None:
    root = DOCS.parent
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)#\s]+)[)#]", (root / page).read_text("utf-8")):
            assert "://" in target or (root / target).exists(), (page, target)


@pytest.fixture(scope="module")
def hooks():
    pytest.importorskip("griffe", reason="needs what builds the site: mkdocstrings")
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES)
def test_what_the_site_shows_is_what_the_doctests_run(page: str, hooks) -> None:
    shown = hooks.on_page_markdown(read(page))
    assert ">>> " not in shown
    blocks = re.findall(r"^```python\n(.*?)^```$", shown, re.MULTILINE | re.DOTALL)
    plain = re.findall(r"^```python\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL)
    examples = [example.source for example in doctest.DocTestParser().get_examples(read(page))]
    code = "".join(block for block in blocks if block not in plain)
    assert re.sub(r"\n+", "\n", code) == re.sub(r"\n+", "\n", "".join(examples))
    for block in blocks:
        compile(block, page, "exec")


def test_examples_of_docstrings_become_code_and_what_it_prints(hooks) -> None:
    text = "Does.\n\nExample:\n    >>> for i in range(2):\n    ...     print(i)\n    0\n    1\n    >>> x = 1\n\nSource: a book."
    assert hooks.without_prompts(text) == (
        "Does.\n\nExample:\n\n```python\nfor i in range(2):\n    print(i)\n```\n\n```{.text .no-copy}\n0\n1\n```\n"
        "\n```python\nx = 1\n```\n\nSource: a book."
    )


def test_the_command_has_all_its_experiments_on_its_page(hooks) -> None:
    from dcem.experiments import EXPERIMENTS

    shown = hooks.on_page_markdown(read("reference/command.md"))
    assert all(f"`dcem {name}`" in shown for name in EXPERIMENTS)
