"""`dcem planet-study`: learning curves of `dcem planet`, and what fresh episodes of its controllers return."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure

from dcem.experiments import ConfigError
from dcem.experiments.harness.reading import METRICS, SUMMARY, records_of, require_run_of, settings_of, summary_of
from dcem.experiments.harness.report import interval, markdown, plus_minus, write_table
from dcem.experiments.harness.run import Run
from dcem.experiments.harness.settings import Settings, require, setting
from dcem.plotting import COLOURS

LINES = ("-", "--", ":", "-.")
PHASES = {"model": "full space", "embed": "embedded", "tune": "embedded, fine-tuned"}
KINDS = (*PHASES, "rssm")
"""What has a colour of its own."""


@dataclass
class Config(Settings):
    """Settings of `dcem planet-study`."""

    runs: list[str] = setting([], distinct=True, may_be_empty=True)
    """Folders of `dcem planet`, finished or not."""
    evaluations: list[str] = setting([], distinct=True, may_be_empty=True)
    """Folders of `dcem planet-evaluate`; that of a tuned controller after that of the embedded one that it started
    from, of the same number of episodes from the same seeds."""

    def check(self) -> None:
        super().check()
        require(bool(self.runs or self.evaluations), "runs", "folders of dcem planet", self.runs)
        for key, folders, wanted in (("runs", self.runs, METRICS), ("evaluations", self.evaluations, SUMMARY)):
            for folder in folders:
                require((Path(folder) / wanted).is_file(), key, f"folders with a {wanted}", folder)
        for folder in self.runs:
            require_run_of("planet", Path(folder), "runs")
            load_curve(Path(folder))
        for folder in self.evaluations:
            require_run_of("planet-evaluate", Path(folder), "evaluations")
            load_evaluation(Path(folder))


class Evaluation(NamedTuple):
    """Fresh episodes of one controller."""

    name: str
    task: str
    phase: str
    env_steps: int
    trajectories: int
    returns: list[float]

    @property
    def label(self) -> str:
        """A line under a box."""
        budget = f"{self.trajectories} trajectories\n{self.env_steps // 1000}k steps"
        return f"{self.name}\n{PHASES[self.phase]}\n{budget}\n{len(self.returns)} episodes"


def main(config: Config, run: Run) -> dict[str, Any]:
    """Draw, and write the table; returns the medians."""
    curves: dict[str, list[Curve]] = {}
    for folder in map(Path, config.runs):
        curve = load_curve(folder)
        curves.setdefault(curve.task, []).append(curve)
    evaluations: dict[str, list[Evaluation]] = {}
    for folder in map(Path, config.evaluations):
        evaluation = load_evaluation(folder)
        evaluations.setdefault(evaluation.task, []).append(evaluation)
    for task, of_task in curves.items():
        run.figure(f"learning-{task}", draw_curves(task, of_task))
    for task, evaluated in evaluations.items():
        run.figure(f"returns-{task}", draw_returns(task, evaluated))
    text = table([evaluation for of_task in evaluations.values() for evaluation in of_task])
    write_table(run, text)
    metrics = {
        task: {evaluation.label.replace("\n", ", "): quartiles(evaluation.returns)[1] for evaluation in evaluated}
        for task, evaluated in evaluations.items()
    }
    run.finish(**metrics)
    return metrics


class Curve(NamedTuple):
    """The records of one run."""

    task: str
    phase: str
    model: str
    name: str
    records: list[dict[str, float]]


def load_curve(folder: Path) -> Curve:
    """What a run has logged so far."""
    settings = settings_of(folder)
    require({"task", "phase"} <= settings.keys(), "runs", "folders of dcem planet", folder)
    return Curve(settings["task"], settings["phase"], settings.get("model", ""), folder.name, records_of(folder))


def load_evaluation(folder: Path) -> Evaluation:
    """What fresh episodes returned."""
    metrics = summary_of(folder)["metrics"]
    try:
        return Evaluation(folder.name, *(metrics[key] for key in Evaluation._fields[1:]))
    except (KeyError, TypeError) as error:
        raise ConfigError(f"evaluations: expected folders of dcem planet-evaluate; {folder} lacks {error}") from None


def draw_curves(task: str, curves: Sequence[Curve]) -> Figure:
    """Returns against environment steps: while learning (thin), and without exploration (points).

    Fine-tuning takes many times the steps of what is before it, and has a panel of its own. A phase has a colour, and
    so has the `RSSM`; each of its runs has a line of its own.
    """
    panels = [[c for c in curves if (c.phase == "tune") == tuned] for tuned in (False, True)]
    shown = [panel for panel in panels if panel]
    figure = Figure(figsize=(1.6 + 4.4 * len(shown), 4.4), layout="constrained", dpi=150)
    num_drawn: Counter[str] = Counter()
    for axis, panel in zip(figure.subplots(1, len(shown), sharey=True, squeeze=False)[0], shown, strict=True):
        for curve in panel:
            kind = curve.model if curve.model in KINDS else curve.phase
            colour, line = COLOURS[KINDS.index(kind)], LINES[num_drawn[kind] % len(LINES)]
            num_drawn[kind] += 1
            played = [(r["env_steps"], r["return"]) for r in curve.records if "return" in r]
            evaluated = [(r["env_steps"], r["return_eval"]) for r in curve.records if "return_eval" in r]
            if played:
                axis.plot(*zip(*played, strict=True), color=colour, linestyle=line, linewidth=0.8, alpha=0.6)
            if evaluated:
                label = f"{PHASES[curve.phase]}: {curve.name}"
                axis.plot(*zip(*evaluated, strict=True), "o", linestyle=line, color=colour, markersize=4, label=label)
        axis.set(xlabel="environment steps", ylim=(0, 1000))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("return of an episode")
    figure.suptitle(task, fontsize="medium")
    title = "points: without exploration; thin: while learning"
    figure.legend(loc="outside lower center", ncols=2, fontsize="small", title=title, title_fontsize="small")
    return figure


def draw_returns(task: str, evaluations: Sequence[Evaluation]) -> Figure:
    """A box a controller: quartiles, whiskers to 1.5 times their distance, every other episode a point."""
    figure = Figure(figsize=(1.6 + 1.5 * len(evaluations), 4.2), layout="constrained", dpi=150)
    axis = figure.subplots()
    axis.boxplot([e.returns for e in evaluations], tick_labels=[e.label for e in evaluations], widths=0.5)
    axis.set(ylabel="return of an episode", title=task)
    axis.tick_params(axis="x", labelsize="small")
    axis.grid(axis="y", alpha=0.3)
    return figure


def quartiles(returns: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    low, median, high = torch.tensor(returns).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    return low, median, high


def table(evaluations: Sequence[Evaluation]) -> str:
    """In Markdown."""
    head = ["task", "controller", "trajectories a decision", "environment steps", "median", "quartiles", "mean"]
    rows = []
    for of in evaluations:
        low, median, high = quartiles(of.returns)
        cells = [of.task, PHASES[of.phase], str(of.trajectories), f"{of.env_steps:,}", f"{median:.0f}"]
        cells += [f"{low:.0f} to {high:.0f}", f"{sum(of.returns) / len(of.returns):.0f}", str(len(of.returns))]
        rows.append(cells)
    return "\n".join([markdown([*head, "episodes"], rows, text_columns=2), *_paired(evaluations)])


def _paired(evaluations: Sequence[Evaluation]) -> list[str]:
    """What tuning gained on the same episodes, with a 95 % interval: over the embedded controller listed before it."""
    lines: list[str] = []
    before: dict[str, Evaluation] = {}
    for of in evaluations:
        if of.phase == "embed":
            before[of.task] = of
        if of.phase != "tune" or of.task not in before:
            continue
        start = before[of.task]
        pairs = zip(of.returns, start.returns, strict=True)
        gained = plus_minus(interval([after - earlier for after, earlier in pairs]), ".1f")
        steps = f"from {start.env_steps:,} to {of.env_steps:,} steps"
        lines.append(f"{of.task}: fine-tuning {steps} gained {gained} on the same episodes.\n")
    return lines
