"""Results by task and method, as a table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from dcem.control import tasks
from dcem.experiments.mpc.benchmark import Benchmark, Job
from dcem.experiments.mpc.methods import LABELS
from dcem.plotting.figures import _student

Results = dict[str, dict[str, dict[str, Any]]]
"""By task and method: `returns`, `milliseconds`, `replaced`."""


def collect(benchmark: Benchmark, jobs: Sequence[Job], records: Sequence[Mapping[str, float]]) -> Results:
    """What the jobs logged, by task and method."""
    results: Results = {
        task: {method: {"returns": [], "replaced": 0} for method in benchmark.methods(task)}
        for task in benchmark.config.tasks
    }
    for record in records:
        job = jobs[int(record["step"]) - 1]
        of_task = results.get(job.task, {})
        if job.kind == "time":
            for method, of_method in of_task.items():
                of_method["milliseconds"] = record[method]
        elif job.kind == "episode":
            of_task[job.method]["returns"].append(record["return"])
            of_task[job.method]["replaced"] += int(record["replaced"])
    return results


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % confidence interval; NaN of one value."""
    if len(values) < 2:
        return statistics.mean(values), math.nan
    return statistics.mean(values), _student(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def table(results: Results) -> str:
    """Markdown; a difference to CEM is taken start by start, since starts differ more than methods do."""
    lines = ["| task | method | return | difference to CEM's | CPU ms a decision | times DCEM's |"]
    lines.append("|---|---|---:|---:|---:|---:|")
    for task, methods in results.items():
        reference = methods.get("dcem", {}).get("milliseconds", math.nan)
        for method, of_method in methods.items():
            cells = [tasks.LABELS[task], LABELS[method], _plus_minus(of_method["returns"])]
            cem = methods.get("cem", of_method)["returns"]
            difference = _plus_minus([one - other for one, other in zip(of_method["returns"], cem, strict=True)])
            cells.append("" if cem is of_method["returns"] else difference)
            ms = of_method["milliseconds"]
            lines.append("| " + " | ".join([*cells, f"{ms:.1f}", f"{ms / reference:.2f}"]) + " |")
    return "\n".join(lines) + "\n"


def _plus_minus(values: Sequence[float]) -> str:
    mean, half = interval(values)
    return f"{mean:.1f}" + ("" if math.isnan(half) else f" ± {half:.1f}")
