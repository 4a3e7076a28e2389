"""Results by task and method, as a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from dcem.control import tasks
from dcem.experiments.harness.report import interval, markdown, plus_minus
from dcem.experiments.mpc.benchmark import Benchmark, Job
from dcem.experiments.mpc.methods import LABELS

Results = dict[str, dict[str, dict[str, Any]]]
"""By task and method: `returns`, `scores`, `milliseconds`, `replaced`."""
MOST_A_SECOND = {"pendulum": 0.0, "reacher": 50.0, "point-mass": 50.0, "walker": 40.0}
"""What no episode can exceed, a second: a reward of at most 1 in each of dm_control's steps, by default 100."""

NOTE = """
Returns are means over the starts. Score: 0 is what doing nothing returns from the same starts, 1 the most that an
episode can return. ± is half a 95 % interval over the starts.
"""


def collect(benchmark: Benchmark, jobs: Sequence[Job], records: Sequence[Mapping[str, float]]) -> Results:
    """What the jobs logged, by task and method. Scores: 0 is what doing nothing returns on average, 1 the most that an
    episode can return.
    """
    config = benchmark.config
    results: Results = {task: {} for task in config.tasks}
    times: dict[str, Mapping[str, float]] = {}
    idle = dict[str, float]()
    for record in records:
        job = jobs[int(record["step"]) - 1]
        if job.kind == "time":
            times[job.task] = record
        if job.kind not in ("idle", "episodes"):
            continue
        returns = [record[f"return_{i}"] for i in range(config.num_seeds)]
        if job.kind == "idle":
            idle[job.task] = statistics.fmean(returns)
            continue
        most = config.length * tasks.SECONDS[job.task] * MOST_A_SECOND.get(job.task, 100.0)
        results[job.task][job.method] = {
            "returns": returns,
            "scores": [(of - idle[job.task]) / (most - idle[job.task]) for of in returns],
            "milliseconds": times[job.task][job.method],
            "replaced": int(record["replaced"]),
        }
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
            score = plus_minus(interval(of_method["scores"]), ".2f")
            returns = f"{statistics.fmean(of_method['returns']):.1f}"
            cells = [tasks.LABELS[task], LABELS[method], returns, score, difference]
            rows.append([*cells, f"{ms:.1f}", f"{ms / reference:.2f}" if reference else ""])
    head = ["task", "method", "return", "score", "difference to CEM's", "CPU ms a decision", "times DCEM's"]
    return markdown(head, rows, text_columns=2)
