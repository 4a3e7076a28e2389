"""The comparison of models over seeds: table, summary, figure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dcem import plotting
from dcem.experiments.harness.run import Run
from dcem.experiments.structured.training import Trained


def table(
    results: Mapping[str, list[Trained]], labels: Mapping[str, str], columns: Mapping[str, tuple[str, str]]
) -> str:
    """A markdown table: mean ± standard deviation over seeds of the metrics that `columns` names and formats."""
    lines = ["| model | " + " | ".join(title for title, _ in columns.values()) + " |"]
    lines.append("|---|" + "---:|" * len(columns))
    for name, seeds in results.items():
        cells = []
        for key, (_, form) in columns.items():
            values = [float(trained.metrics[key]) for trained in seeds if trained.metrics.get(key) is not None]
            if not values:
                cells.append("")
                continue
            mean = sum(values) / len(values)
            spread = math.sqrt(sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1))
            cells.append(f"{mean:{form}}" + (f" ± {spread:{form}}" if len(values) > 1 and spread > 0 else ""))
        lines.append(f"| {labels[name]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def finish(run: Run, results: Mapping[str, list[Trained]], text: str, note: str) -> dict[str, Any]:
    """Write the table and the summary; returns the metrics."""
    (run.folder / "table.md").write_text(f"`{run.command}`\n\n{note}\n\n{text}", encoding="utf-8")
    run.say("\n" + text)
    metrics = {name: [trained.metrics for trained in seeds] for name, seeds in results.items()}
    run.finish(**metrics)
    return metrics


def draw_iterations(
    run: Run,
    results: Mapping[str, list[Trained]],
    labels: Mapping[str, str],
    key: str,
    ylabel: str,
    config: Any,
    name: str = "iterations",
) -> None:
    """A figure of a metric by the number of inner iterations at test time, where models have such."""
    by_model = {}
    for model, seeds in results.items():
        errors = [trained.metrics[key] for trained in seeds]
        trained_at = getattr(seeds[0].model, "num_iterations", config.num_iterations)
        label = labels[model] + (f" (trained with {trained_at})" if trained_at != config.num_iterations else "")
        if all(errors):
            by_model[label] = [{t: of_seed[str(t)] for t in config.test_iterations} for of_seed in errors]
    if by_model:
        run.figure(name, plotting.error_by_iterations(by_model, config.num_iterations, ylabel))
