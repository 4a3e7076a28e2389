"""The tutorials, with settings that take a second: every block runs, and leaves the figures that its page shows."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SMALL = {
    "differentiate": {"num_updates": "2"},
    "energy": {"num_updates": "2"},
    "plan": {"num_steps": "3", "num_updates": "2"},
    "reinforce": {"num_rounds": "1", "num_envs": "2", "num_steps": "10", "num_judged": "2"},
}
NEEDS = {"differentiate": ["matplotlib"], "energy": ["matplotlib", "sklearn"], "plan": ["matplotlib"]} | {
    "reinforce": ["matplotlib", "torchrl"]
}
SPEC = importlib.util.spec_from_file_location("tutorials", ROOT / "tools/tutorials.py")
tutorials = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tutorials)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_there_are_small_settings_for_each() -> None:
    assert {page.stem for page in tutorials.PAGES} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_runs_and_leaves_its_figures(name: str, tmp_path, monkeypatch) -> None:
    for module in NEEDS[name]:
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/tutorials" / f"{name}.md").read_text("utf-8")
    count = 0
    for block, printed in tutorials.execute(tutorials.with_settings(page, SMALL[name]), name):
        assert bool(printed.strip()) == bool(block["printed"]), block["code"]
        count += 1
    assert count == page.count("```python\n") > 3
    figures = re.findall(r"\]\(../assets/tutorials/(\S+?)\)", page)
    assert figures
    for figure in figures:
        assert (tmp_path / figure).stat().st_size > 10_000
        assert (ROOT / "docs/assets/tutorials" / figure).exists()


def test_what_is_printed_goes_into_the_page(tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "a\n\n```python\nx = 2\nn = 3\n```\n\nb\n\n```python\nprint(x * n)\n```\n\n```text\n5\n```\n\nc\n", "utf-8"
    )
    for _ in range(2):
        tutorials.refresh(page)
        assert page.read_text("utf-8").endswith("b\n\n```python\nprint(x * n)\n```\n\n```text\n6\n```\n\nc\n")
    assert "n = 4" in tutorials.with_settings(page.read_text("utf-8"), {"n": "4"})
    with pytest.raises(ValueError, match="y: expected to be set once at the top level, found 0 times"):
        tutorials.with_settings(page.read_text("utf-8"), {"y": "4"})
