"""Run the tutorials: the Python of each page in one namespace, what it prints into the page, its figures beside it.

``python tools/tutorials.py [page ...]`` writes ``docs/tutorials/*.md`` and ``docs/assets/tutorials/``.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = sorted((DOCS / "tutorials").glob("*.md"))
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<printed>.*?)^```\n)?", re.MULTILINE | re.DOTALL)


def with_settings(text: str, settings: dict[str, str]) -> str:
    """The page with other values for names that it sets at the top level, each exactly once."""
    for name, value in settings.items():
        text, count = re.subn(rf"^{name} = [^\n]*$", f"{name} = {value}", text, flags=re.MULTILINE)
        if count != 1:
            raise ValueError(f"{name}: expected to be set once at the top level, found {count} times")
    return text


def execute(text: str, name: str) -> Iterator[tuple[re.Match[str], str]]:
    """Run all blocks in the present folder; each with what it has printed."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in BLOCK.finditer(text):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * text.count("\n", 0, block.start("code")) + block["code"], name, "exec"), namespace)
        yield block, printed.getvalue()


def refresh(page: Path) -> None:
    text = page.read_text("utf-8")
    shown, end = "", 0
    for block, printed in execute(text, str(page)):
        printed = f"\n```text\n{printed.rstrip()}\n```\n" if printed.strip() else ""
        shown, end = shown + text[end : block.start()] + f"```python\n{block['code']}```\n" + printed, block.end()
    page.write_text(shown + text[end:], "utf-8")


if __name__ == "__main__":
    folder = DOCS / "assets" / "tutorials"
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)  # where the figures go
    for page in [path for path in PAGES if not sys.argv[1:] or path.stem in sys.argv[1:]]:
        refresh(page)
        print(f"{page.name}: done")
