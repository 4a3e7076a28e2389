"""Tables of results: Markdown, and means with what they vary by."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Sequence

from dcem.experiments.harness.run import Run
from dcem.plotting.intervals import interval

__all__ = ["deviation", "interval", "markdown", "plus_minus", "write_table"]


def deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation; NaN for the deviation of a single value, or of some that are not finite."""
    varies = len(values) > 1 and all(map(math.isfinite, values))
    return statistics.fmean(values), statistics.stdev(values) if varies else math.nan


def plus_minus(of: tuple[float, float], form: str) -> str:
    """A mean and, where there is one, what is on either side of it."""
    mean, half = of
    return f"{mean:{form}}" + (f" ± {half:{form}}" if half > 0 else "")


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1) -> str:
    """A table in Markdown: so many columns of text, the others of numbers, which stand to the right."""
    align = ["---"] * text_columns + ["---:"] * (len(head) - text_columns)
    said = ([*row[:text_columns], *map(_finite, row[text_columns:])] for row in rows)
    return "".join("| " + " | ".join(row) + " |\n" for row in (head, align, *said))


def _finite(cell: str) -> str:
    """A cell of numbers, in words where it is none."""
    return re.sub(r"[+-]?\b(nan|inf)\b", "not finite", cell)


def write_table(run: Run, text: str) -> None:
    """Leave `table.md` in the run's folder, under the command that made it, and show it."""
    (run.folder / "table.md").write_text(f"`{run.command}`\n\n{text}", encoding="utf-8")
    run.say("\n" + text)
