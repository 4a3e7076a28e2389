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
            # Runs that differ in their seed alone are given once, by seed 0.
            command = re.sub(r"seed=\d+ ", "seed=0 ", json.loads(summary.read_text("utf-8"))["command"])
            command = re.sub(r"(seed=0 .*-)\d('?)$", r"\g<1>0\g<2>", command)
            seen += 1
            if not re.search(re.escape(command) + r"(?=[`\s])", text):
                missing.append(f"{summary.relative_to(RESULTS)}: {command}")
    assert not missing
    assert seen > 20
