"""The comparison of models over seeds: table, summary, figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dcem import plotting
from dcem.experiments.harness.report import deviation, markdown, plus_minus, write_table
from dcem.experiments.harness.run import Run
from dcem.experiments.structured.training import Trained


def table(
    results: Mapping[str, list[Trained]], labels: Mapping[str, str], columns: Mapping[str, tuple[str, str]]
) -> str:
    """A markdown table: mean ± standard deviation over seeds of the metrics that `columns` names and formats."""
    rows = []
    for name, seeds in results.items():
        cells = []
        for key, (_, form) in columns.items():
            values = [float(trained.metrics[key]) for trained in seeds if trained.metrics.get(key) is not None]
            cells.append(plus_minus(deviation(values), form) if values else "")
        rows.append([labels[name], *cells])
    return markdown(["model", *(title for title, _ in columns.values())], rows)


def finish(run: Run, results: Mapping[str, list[Trained]], text: str, note: str) -> dict[str, Any]:
    """Write the table and the summary; returns the metrics."""
    write_table(run, note + "\n\n" + text)
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
