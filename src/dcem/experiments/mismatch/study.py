"""Finished runs of `dcem mismatch` compared over seeds: likelihood against control, in tables and figures.

`runs` is a folder of run folders, one a seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dcem.experiments import ConfigError
from dcem.experiments.harness import reading
from dcem.experiments.harness.reading import finished_runs, records_of
from dcem.experiments.harness.report import interval, markdown, write_table
from dcem.experiments.harness.run import Run
from dcem.experiments.harness.settings import Settings
from dcem.plotting import COLOURS

LABELS = {"likelihood": "maximum likelihood", "end-to-end": "end to end through DCEM"}
DEPLOYED = {
    "return": "return",
    "return_soft": "with the soft selection",
    "return_every_step": "with a plan at every step",
}
GAINS = {"return": "gain", "return_every_step": "gain with a plan at every step"}
REFERENCES = {"true-model": "planning with the true model", "random": "random actions", "zero": "no action"}


@dataclass
class Config(Settings):
    """Settings of `dcem mismatch-study`."""

    runs: str = "runs/mismatch"

    def check(self) -> None:
        super().check()
        load_all(self.runs)


class Finished(NamedTuple):
    """A finished run."""

    config: dict[str, Any]
    metrics: dict[str, dict[str, float]]
    records: dict[str, list[dict[str, Any]]]
    """Of the adversary and the recovery, an entry an evaluation."""


class Estimate(NamedTuple):
    """A mean over seeds and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def main(config: Config, run: Run) -> dict[str, Any]:
    """Compare, draw, write the tables; returns the metrics of all seeds."""
    finished = load_all(config.runs)
    settings = finished[0].config
    write_table(run, tables(finished))
    run.figure("capacity", draw_capacity(finished))
    if settings["adversary_references"]:
        run.figure("adversary", draw_adversary(finished))
    if settings["distractors"]:
        run.figure("distractors", draw_distractors(finished))
    metrics = {name: [of.metrics[name] for of in finished] for name in finished[0].metrics}
    run.finish(runs=settings, **metrics)
    return metrics


def load_all(runs: str) -> list[Finished]:
    """The runs in a folder."""
    finished = [load(found) for found in finished_runs(runs, "mismatch")]
    settings = [{key: value for key, value in of.config.items() if key != "seed"} for of in finished]
    if any(other != settings[0] for other in settings):
        raise ConfigError(f"runs: expected runs that differ in their seed alone; got others in {runs}")
    return finished


def load(found: reading.Finished) -> Finished:
    """What a run left."""
    parts = sorted((*found.folder.glob("adversary-*"), *found.folder.glob("recovered-*")))
    return Finished(found.settings, found.metrics, {part.name: records_of(part) for part in parts})


def estimate(values: Sequence[float], *, logarithmic: bool = False) -> Estimate:
    """By Student's t; in logarithms for what is only positive."""
    values = [math.log(value) for value in values] if logarithmic else values
    mean, half = interval(values)
    half = 0.0 if math.isnan(half) else half
    numbers = (mean, mean - half, mean + half)
    return Estimate(*(map(math.exp, numbers) if logarithmic else numbers))


def over_seeds(finished: Sequence[Finished], name: str, key: str) -> Estimate:
    """A metric of one model."""
    return estimate([of.metrics[name][key] for of in finished], logarithmic=key.endswith("mse"))


def gains(finished: Sequence[Finished], suffix: str, deployment: str) -> list[float]:
    """By how much the model that learned end to end returns more than the fitted one, a number a seed."""
    pairs = ((of.metrics[f"{kind}-{suffix}"][deployment] for kind in ("end-to-end", "likelihood")) for of in finished)
    return [learned - fitted for learned, fitted in pairs]


def phases(config: Mapping[str, Any]) -> dict[str, str]:
    """What becomes of a model at the errors of each of the references."""
    width, rows = config["adversary_width"], dict[str, str]()
    for reference in config["adversary_references"]:
        rows[f"likelihood-width-{reference}"] = f"width {reference}, fitted"
        rows[f"adversary-{reference}"] = f"width {width}, degraded with the errors of width {reference}"
        rows[f"recovered-{reference}"] = "then learned end to end"
    return rows


def tables(finished: Sequence[Finished]) -> str:
    """Three tables in Markdown."""
    config, seeds = finished[0].config, len(finished)
    every_step = config["num_executed"] == 1  # one way to deploy less
    ways = (DEPLOYED, GAINS)
    deployed, gained = ({k: of[k] for k in of if not (every_step and k == "return_every_step")} for of in ways)

    def cell(name: str, key: str) -> str:
        value = over_seeds(finished, name, key)
        if key.endswith("mse"):
            return f"{value.mean:.3g}"
        return shown(value)

    def shown(value: Estimate) -> str:
        return f"{round(value.mean)}" + (f" ± {round(value.high - value.mean)}" if seeds > 1 else "")

    def table(first: str, rows: Mapping[str, str], mse: str) -> str:
        """A row a pair of models, whose names end in a value of `rows`: fitted / end to end."""
        cells = []
        for label, suffix in rows.items():
            pairs = [" / ".join(cell(f"{kind}-{suffix}", key) for kind in LABELS) for key in (mse, *deployed)]
            cells.append([label, *pairs, *(shown(estimate(gains(finished, suffix, key))) for key in gained)])
        return markdown([first, "MSE", *deployed.values(), *gained.values()], cells, text_columns=0)

    references = "; ".join(f"{label} {cell(name, 'return')}" for name, label in REFERENCES.items())
    at_every_step = "a plan at every step that starts from the one before"
    plans = at_every_step if every_step else f"a plan every {config['num_executed']} steps"
    beside = "" if every_step else f", and with {at_every_step}"
    both = "" if every_step else ", with these plans and with one at every step"
    lines = [
        f"{seeds} seeds; means, of errors geometric ones; ± is half the 95 % interval. MSE: one step, on unseen data, "
        f"in variances of the change. Return: minus the cost of {config['num_steps']} steps of closed loop from "
        f"{config['num_test']} unseen states, planned with {config['num_samples']} samples, {config['num_elites']} "
        f"elites, {config['num_iterations']} iterations, horizon {config['horizon']}, the hard selection, {plans}; "
        f"beside it with the soft selection of training{beside}. Gain: what learning end to end adds to the return, "
        f"seed by seed{both}.",
        "",
        f"For comparison, returns: {references}.",
        "",
        "## Capacity: maximum likelihood / end to end",
        "",
        table("hidden width", {str(width): f"width-{width}" for width in config["widths"]}, "mse"),
    ]
    if config["adversary_references"]:
        rows = [[label, *(cell(name, key) for key in ("mse", *deployed))] for name, label in phases(config).items()]
        lines += ["## Adversary", "", markdown(["model", "MSE", *deployed.values()], rows)]
    if config["distractors"]:
        named = {str(num): f"distractors-{num}" for num in config["distractors"]}
        if config["distractor_width"] in config["widths"]:
            named = {"0": f"width-{config['distractor_width']}", **named}
        title = f"## Distractors: maximum likelihood / end to end, hidden width {config['distractor_width']}"
        lines += [title, "", "MSE of the numbers that matter.", ""]
        lines += [table("distractors", named, "task_mse")]
    return "\n".join(lines)


def draw_capacity(finished: Sequence[Finished]) -> Figure:
    """Return against error: an arrow from each fitted model to the one that it becomes end to end."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained", dpi=150)
    axis = figure.subplots()
    places: dict[str, list[tuple[float, float]]] = {}
    all_seen: list[tuple[float, float]] = []
    for i, (kind, label) in enumerate(LABELS.items()):
        for width in finished[0].config["widths"]:
            name = f"{kind}-width-{width}"
            x, y = over_seeds(finished, name, "mse"), over_seeds(finished, name, "return")
            style: Any = {"color": COLOURS[i], "label": label if width == finished[0].config["widths"][0] else None}
            seen = [(of.metrics[name]["mse"], of.metrics[name]["return"]) for of in finished]
            for one in seen:
                axis.plot(*zip((x.mean, y.mean), one, strict=True), color=COLOURS[i], linewidth=0.6, alpha=0.6)
            axis.plot(*zip(*seen, strict=True), "os"[i], color=COLOURS[i], markersize=3, alpha=0.5)
            axis.plot(x.mean, y.mean, "os"[i], **style)
            all_seen += seen
            axis.annotate(
                str(width), (x.mean, y.mean), ((-10, -12), (5, 5))[i], textcoords="offset points", color=COLOURS[i]
            )
            places.setdefault(kind, []).append((x.mean, y.mean))
    for start, end in zip(places["likelihood"], places["end-to-end"], strict=True):
        axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "0.6", "shrinkA": 5, "shrinkB": 5})
    axis.set(xlabel="one-step error on unseen data, variances of the change", xscale="log", ylabel=_RETURN)
    errors, returns = zip(*all_seen, strict=True)
    axis.set_xlim(min(errors) / 2, max(errors) * 2)
    _finish(axis, figure, finished, "numbers: hidden width; large: means, small: seeds", returns)
    return figure


def draw_adversary(finished: Sequence[Finished]) -> Figure:
    """Return and error while the model is degraded and while it learns end to end."""
    figure = Figure(figsize=(6.4, 5.4), layout="constrained", dpi=150)
    above, below = figure.subplots(2, 1, sharex=True)
    start = 0.0
    for i, reference in enumerate(finished[0].config["adversary_references"]):
        start = 0.0
        for j, name in enumerate(("adversary", "recovered")):
            of_seeds = [of.records[f"{name}-{reference}"] for of in finished]
            steps = [record["step"] for record in of_seeds[0]]
            label = f"degraded with the errors of width {reference}, then end to end" if j == 0 else None
            for axis, key in ((above, "return"), (below, "mse")):
                rows = zip(*([record[key] for record in records] for records in of_seeds), strict=True)
                values = [estimate(row, logarithmic=key == "mse") for row in rows]
                x, style = [start + step for step in steps], {"color": COLOURS[i]}
                axis.plot(x, [v.mean for v in values], "-" + "os"[i], markersize=4, label=label, **style)
                for records in of_seeds:
                    axis.plot(x, [record[key] for record in records], linewidth=0.7, alpha=0.7, **style)
            start += steps[-1]
            for axis in (above, below) if j == 0 else ():
                axis.axvline(start, color="0.6", linewidth=0.8)
    above.set_ylabel("return:\nminus an episode's cost")
    below.set(xlabel="update", ylabel="one-step error,\nvariances of the change", yscale="log")
    below.grid(which="both", alpha=0.25)
    every = [record for of in finished for records in of.records.values() for record in records]
    errors = [record["mse"] for record in every]
    below.set_ylim(min(errors) / 2, max(errors) * 2)
    title = "on validation data and states; thick: means, thin: seeds"
    _finish(above, figure, finished, title, [record["return"] for record in every], of=", test states")
    return figure


def draw_distractors(finished: Sequence[Finished]) -> Figure:
    """Return against the number of distractors."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained", dpi=150)
    axis = figure.subplots()
    config = finished[0].config
    names = {num: f"distractors-{num}" for num in config["distractors"]}
    if config["distractor_width"] in config["widths"]:
        names = {0: f"width-{config['distractor_width']}", **names}
    for i, (kind, label) in enumerate(LABELS.items()):
        values = [over_seeds(finished, f"{kind}-{suffix}", "return") for suffix in names.values()]
        x = [place + (-0.05, 0.05)[i] for place in range(len(names))]
        axis.plot(x, [v.mean for v in values], "-" + "os"[i], color=COLOURS[i], label=label)
        for of in finished:
            returns = [of.metrics[f"{kind}-{suffix}"]["return"] for suffix in names.values()]
            axis.plot(x, returns, "os"[i], color=COLOURS[i], markersize=3, alpha=0.6)
    axis.set_xticks(range(len(names)), [str(num) for num in names])
    axis.set(xlabel="numbers in the state that do not matter", ylabel=_RETURN)
    seen = [of.metrics[f"{kind}-{name}"]["return"] for of in finished for kind in LABELS for name in names.values()]
    _finish(axis, figure, finished, f"hidden width {config['distractor_width']}; large: means, small: seeds", seen)
    return figure


_RETURN = "return: minus an episode's cost"


def _finish(
    axis: Axes, figure: Figure, finished: Sequence[Finished], title: str, returns: Sequence[float], of: str = ""
) -> None:
    """Lines of reference, a grid, and a legend above the panels; room for the returns of all seeds."""
    lines = {"true-model": (":", "black"), "random": ("--", "0.5")}
    best = over_seeds(finished, "true-model", "return").mean
    margin = 0.12 * (max(best, *returns) - min(returns))
    axis.set_ylim(min(returns) - margin, max(best, *returns) + margin)
    for name, (style, colour) in lines.items():
        mean = over_seeds(finished, name, "return").mean
        axis.axhline(mean, linestyle=style, color=colour, linewidth=1, label=REFERENCES[name] + of)
    axis.grid(alpha=0.25)
    handles, names = axis.get_legend_handles_labels()
    title += f" ({len(finished)})"
    figure.legend(handles, names, loc="outside upper center", ncols=2, title=title, fontsize="small")
