"""Scores of the planners, as a table and a figure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from dcem import plotting
from dcem.experiments.benchmark.planners import LABELS
from dcem.experiments.benchmark.settings import TASKS, Config
from dcem.experiments.harness.report import interval, markdown, plus_minus


class Job(NamedTuple):
    """A step of the run."""

    kind: str
    """`scale` measures what scores 0 and 1; `play` plays; `learn` learns the model through the planner, then plays."""
    task: str
    planner: str = ""


class Scores(NamedTuple):
    """What came out.

    Attributes:
        scores: by task, then by planner, a number a problem; 0 on average for doing nothing, 1 for the reference.
        milliseconds: of a decision for all problems of a task at once, by planner, in the order of the tasks.
        scales: by task what doing nothing and the reference cost on average.
    """

    scores: dict[str, dict[str, list[float]]]
    milliseconds: dict[str, dict[str, float]]
    scales: dict[str, dict[str, float]]

    @classmethod
    def of(cls, jobs: Sequence[Job], records: Sequence[Mapping[str, float]], num: int) -> Scores:
        """From what the jobs logged. A problem's score is 1 less what it cost more than the reference, in units of what
        doing nothing costs more on average: problems differ more than planners do.
        """
        found = cls({}, {}, {})
        one: list[float] = []
        for record in records:
            job = jobs[int(record["step"]) - 1]
            if job.kind == "scale":
                zero, one = ([record[f"{name}_{i}"] for i in range(num)] for name in ("zero", "one"))
                means = {"nothing": statistics.fmean(zero), "reference": statistics.fmean(one)}
                found.scales[job.task], found.scores[job.task], found.milliseconds[job.task] = means, {}, {}
            elif "milliseconds" in record:
                unit = found.scales[job.task]["nothing"] - found.scales[job.task]["reference"]
                name = job.planner + (" learned" if job.kind == "learn" else "")
                scores = [1 - (record[f"cost_{i}"] - one[i]) / unit for i in range(num)]
                found.scores[job.task][name] = scores
                found.milliseconds[job.task][name] = record["milliseconds"]
        return found

    @property
    def rows(self) -> list[str]:
        """Planners as they were listed, then yours; then what was learned through them."""
        names = [name for of_task in self.scores.values() for name in of_task]
        return sorted(dict.fromkeys(names), key=lambda name: (name.endswith(" learned"), ":" in name))

    def mean(self, name: str) -> list[float]:
        """Over the tasks: the first problems of all of them, the second ones, and so on. Nothing, if one is missing."""
        of_tasks = [of_task.get(name, []) for of_task in self.scores.values()]
        return [statistics.fmean(of) for of in zip(*of_tasks, strict=True)] if all(of_tasks) else []

    def plain(self) -> dict[str, Any]:
        """By task, for the summary."""
        return {
            task: {**self.scales[task], "scores": of_task, "milliseconds": self.milliseconds[task]}
            for task, of_task in self.scores.items()
        }


def label(name: str) -> str:
    """A planner's name for readers."""
    planner = name.removesuffix(" learned")
    return LABELS.get(planner, planner) + (", model learned through it" if planner != name else "")


def table(scores: Scores, config: Config) -> str:
    """One table in Markdown: a row a planner, a column a task."""
    note = (
        f"Scores: 0 is doing nothing, 1 the reference; means of {config.num_problems} problems, ± half their 95 % "
        f"interval; at most {config.budget} evaluations a decision. Difference: of the mean over the tasks to the "
        "first planner's, problem by problem. ms: processor time of a decision for all problems at once, mean over the "
        "tasks."
    )
    rows, first = [], scores.mean(scores.rows[0])
    for name in scores.rows:
        cells = [
            plus_minus(interval(of_task[name]), ".2f") if name in of_task else "" for of_task in scores.scores.values()
        ]
        mean, difference, times = scores.mean(name), "", [of.get(name) for of in scores.milliseconds.values()]
        if mean and first and name != scores.rows[0]:
            difference = plus_minus(interval([one - other for one, other in zip(mean, first, strict=True)]), ".3f")
        cells += [plus_minus(interval(mean), ".3f") if mean else "", difference]
        known = [time for time in times if time is not None]
        rows.append([label(name), *cells, f"{statistics.fmean(known):.1f}" if len(known) == len(times) else ""])
    head = ["planner", *(TASKS[task] for task in scores.scores), "mean", "difference", "ms"]
    return f"{note}\n\n{markdown(head, rows)}"


def draw(scores: Scores) -> Figure:
    """A panel a task: means with their intervals, and the problems as dots."""
    figure = Figure(
        figsize=(2.6 + 1.7 * len(scores.scores), 1.3 + 0.32 * len(scores.rows)), layout="constrained", dpi=150
    )
    axes = figure.subplots(1, len(scores.scores), sharey=True, squeeze=False)[0]
    for axis, (task, of_task) in zip(axes, scores.scores.items(), strict=True):
        for place, name in enumerate(scores.rows):
            if name not in of_task:
                continue
            mean, half = interval(of_task[name])
            colour = plotting.COLOURS[1 if name.endswith(" learned") else 0]
            axis.plot(of_task[name], [place] * len(of_task[name]), ".", color=colour, alpha=0.25, markersize=4)
            axis.errorbar(mean, place, xerr=half, fmt="o", color=colour, markersize=4, capsize=2)
        for mark in (0, 1):
            axis.axvline(mark, color="0.6", linewidth=0.8, linestyle=":")
        axis.set_title(TASKS[task], fontsize="medium")
    axes[0].set_yticks(range(len(scores.rows)), [label(name) for name in scores.rows])
    axes[0].invert_yaxis()
    figure.supxlabel("score: 0 doing nothing, 1 the reference", fontsize="medium")
    return figure
