"""The table and the figures of the imitation experiment."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from dcem import plotting
from dcem.experiments.harness.report import markdown

Metrics = Mapping[str, Mapping[str, Mapping[str, list[float]]]]
COLUMNS = {
    "imitation_loss": ("imitation loss", ".1e"),
    "relative_cost": ("closed-loop cost / expert's", ".3f"),
    "dynamics_error": ("dynamics error", ".3f"),
    "cost_error": ("cost weights error", ".3f"),
    "goal_error": ("goal error", ".3f"),
    "prediction_error": ("one-step error", ".3f"),
}
TITLES = {"matched": "the model class holds the plant", "mismatched": "the plant has damping and a force it lacks"}


def by_number(values: list[float], config: Any) -> dict[int, list[float]]:
    """The values over seeds of each number of demonstrations."""
    n = config.num_seeds
    return {num: values[i * n : (i + 1) * n] for i, num in enumerate(config.num_demonstrations)}


def table(metrics: Metrics, labels: Mapping[str, str], config: Any) -> str:
    """Medians over seeds, and the worst seed of the closed-loop cost, in Markdown."""
    note = (
        f"{config.system}, {config.num_seeds} seeds, medians over seeds (in brackets the worst). Imitation loss: mean "
        "squared error of the first action on held-out states, in units of the bound. Closed-loop cost: the expert's "
        f"cost over {config.closed_loop_steps} steps in the plant from held-out states, relative to the expert's own. "
        "Errors of parameters: root mean square, relative (of logarithms); the cost's weights up to their common "
        "scale; the goal in rad and m. One-step error: root mean square error of the next state, in units of the "
        "standard deviation of its change.\n"
    )
    for plant, methods in metrics.items():
        rows = []
        for method, of_method in methods.items():
            for num in config.num_demonstrations:
                cells = []
                for key, (_, form) in COLUMNS.items():
                    values = by_number(of_method[key], config)[num] if key in of_method else []
                    cell = f"{statistics.median(values):{form}}" if values else ""
                    worst = key == "relative_cost" and len(values) > 1
                    cells.append(cell + (f" ({max(values):{form}})" if worst else ""))
                rows.append([labels[method], str(num), *cells])
        head = ["learned", "demonstrations", *(title for title, _ in COLUMNS.values())]
        note += f"\n**{TITLES[plant]}**\n\n" + markdown(head, rows)
    return note


def draw(metrics: Metrics, records: Mapping[str, Any], labels: Mapping[str, str], config: Any) -> dict[str, Figure]:
    """Courses of the loss and of the parameters' errors, and the closed-loop costs."""
    drawn = {"closed-loop": closed_loop(metrics, labels, config)}
    for plant, methods in records.items():
        trained = {method: lines for method, lines in methods.items() if lines}
        if not trained:
            continue
        most = max(config.num_demonstrations)
        loss = {labels[m]: seeds(lines, "imitation_loss", most, config) for m, lines in trained.items()}
        steps = [line["step"] for line in next(iter(trained.values()))]
        for m in (m for m in methods if m not in trained):  # the rivals, which have only an end
            ends = by_number(metrics[plant][m]["imitation_loss"], config)[most]
            loss[labels[m]] = [[{"step": step, "value": end} for step in (steps[0], steps[-1])] for end in ends]
        drawn[f"loss-{plant}"] = plotting.loss_curves(loss, "value", "imitation loss on held-out states")
        if plant == "mismatched":  # where no parameters are the true ones
            continue
        errors = {}
        for m, lines in trained.items():
            if m != "cost":
                errors[f"dynamics, {m} learned"] = seeds(lines, "dynamics_error", most, config)
            if m != "dynamics":
                errors[f"cost weights, {m} learned"] = seeds(lines, "cost_error", most, config)
        drawn["parameters"] = plotting.loss_curves(errors, "value", "relative error of the parameters (rms)")
    return drawn


def seeds(lines: list[dict[str, Any]], key: str, num: int, config: Any) -> list[list[dict[str, Any]]]:
    """The records of a number of demonstrations, a list a seed."""
    names = [f"{key}_{num}_{seed}" for seed in range(config.seed, config.seed + config.num_seeds)]
    return [[{"step": line["step"], "value": line[name]} for line in lines] for name in names]


def closed_loop(metrics: Metrics, labels: Mapping[str, str], config: Any) -> Figure:
    """Bars from the expert's cost in closed loop, a group a method, a bar a number of demonstrations, a dot a seed."""
    figure = Figure(figsize=(5 * len(metrics) + 0.6, 4.4), layout="constrained", dpi=150)
    axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    numbers = config.num_demonstrations
    width = 0.8 / len(numbers)
    for axis, (plant, methods) in zip(axes, metrics.items(), strict=True):
        for i, num in enumerate(numbers):
            values = [by_number(of["relative_cost"], config)[num] for of in methods.values()]
            x = [group + (i - (len(numbers) - 1) / 2) * width for group in range(len(methods))]
            above = [statistics.median(of_method) - 1 for of_method in values]
            colour = plotting.COLOURS[i % len(plotting.COLOURS)]
            axis.bar(x, above, width, bottom=1, color=colour, alpha=0.75, label=f"{num} demonstrations")
            for at, of_method in zip(x, values, strict=True):
                axis.plot([at] * len(of_method), of_method, "o", color="black", markersize=2.5)
        axis.axhline(1, color="0.2", linestyle="--", linewidth=1)
        names = [textwrap.fill(labels[method], 13) for method in methods]
        axis.set_xticks(range(len(methods)), names, fontsize="x-small")
        axis.set(title=TITLES[plant])
        axis.title.set_fontsize("medium")
        axis.grid(axis="y", alpha=0.25)
        axis.set_axisbelow(True)
    axes[0].set_ylabel("closed-loop cost / expert's")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(numbers), fontsize="small"
    )
    return figure
