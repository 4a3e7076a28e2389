"""What the site shows otherwise than the sources: examples without prompts, and code that the search leaves out."""

import doctest
import re
from typing import Any

import griffe

FENCE = re.compile(r"^```pycon\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def without_prompts(text: str) -> str:
    """Doctests as blocks of code, which can be copied and run, each followed by a block of what it prints."""
    shown, code = "", ""
    for part in doctest.DocTestParser().parse(text):
        if isinstance(part, str):
            if part.strip():
                shown, code = shown + _block("python", code) + part, ""
            elif code:
                code += part
            continue
        code += part.source
        if part.want:
            printed = part.want.replace("<BLANKLINE>", "")
            shown, code = shown + _block("python", code) + _block("{.text .no-copy}", printed), ""
    return shown + _block("python", code)


def _block(kind: str, body: str) -> str:
    body = body.strip("\n")
    return f"\n```{kind}\n{body}\n```\n" if body else ""


class Examples(griffe.Extension):
    """The examples of docstrings, in the same form."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Called for everything that has a docstring."""
        if obj.docstring is not None and ">>> " in obj.docstring.value:
            obj.docstring.value = without_prompts(obj.docstring.value)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Pages keep their examples as doctests, which the suite runs; the list of experiments is the command's own."""
    from dcem.experiments import EXPERIMENTS

    rows = [f"| `dcem {name}` | {experiment.summary} |" for name, experiment in EXPERIMENTS.items()]
    markdown = markdown.replace("<!-- experiments -->", "\n".join(["| | |", "| --- | --- |", *rows]))
    return FENCE.sub(lambda fence: without_prompts(fence[1]).strip("\n"), markdown)


def on_page_content(html: str, **_: object) -> str:
    """The source of each function unfolds below it; the search finds what is said of it."""
    return html.replace(
        '<details class="mkdocstrings-source">', '<details class="mkdocstrings-source" data-search-exclude>'
    )
