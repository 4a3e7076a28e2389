"""Results by task and method, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dcem.control import tasks
from dcem.experiments.harness.report import interval, markdown, plus_minus
from dcem.experiments.mpc.benchmark import Benchmark, Job
from dcem.experiments.mpc.methods import LABELS

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


def table(results: Results) -> str:
    """Markdown; a difference to CEM is taken start by start, since starts differ more than methods do."""
    rows = []
    for task, methods in results.items():
        reference = methods.get("dcem", {}).get("milliseconds")
        for method, of_method in methods.items():
            cem, ms = methods.get("cem", of_method)["returns"], of_method["milliseconds"]
            differences = [one - other for one, other in zip(of_method["returns"], cem, strict=True)]
            difference = "" if cem is of_method["returns"] else plus_minus(interval(differences), ".1f")
            cells = [tasks.LABELS[task], LABELS[method], plus_minus(interval(of_method["returns"]), ".1f"), difference]
            rows.append([*cells, f"{ms:.1f}", "" if reference is None else f"{ms / reference:.2f}"])
    head = ["task", "method", "return", "difference to CEM's", "CPU ms a decision", "times DCEM's"]
    return markdown(head, rows, text_columns=2)
