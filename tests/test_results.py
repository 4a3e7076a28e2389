"""The committed results: their pages give the commands that made them."""

import json
import re
from pathlib import Path

import pytest

RESULTS = Path(__file__).parents[1] / "results"
PAGES = sorted(RESULTS.glob("*/README.md"))


def test_the_commands_of_a_page_are_those_that_were_recorded() -> None:
    if not PAGES:
        pytest.skip("the results are not here")
    missing, seen = [], 0
    for page in PAGES:
        text = page.read_text("utf-8")
        for summary in page.parent.rglob("summary*.json"):
            command = json.loads(summary.read_text("utf-8"))["command"]
            # Runs that differ in their seed alone may be given once, by seed 0.
            first = re.sub(r"seed=\d+ ", "seed=0 ", command)
            first = re.sub(r"(seed=0 .*-)\d('?)$", r"\g<1>0\g<2>", first)
            seen += 1
            if not any(re.search(re.escape(given) + r"(?=[`\s])", text) for given in (command, first)):
                missing.append(f"{summary.relative_to(RESULTS)}: {command}")
    assert not missing
    assert seen > 20
