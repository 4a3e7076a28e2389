"""Finished regressions compared: errors and where the energies have their minima, over seeds.

`runs` is a folder of run folders that `dcem regression` has left. Runs of one solver, batch size and decay of the rate
make one row of the table, which is written as `table.md` beside the figures; they may differ in their seed alone.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dcem import plotting
from dcem.energy import EnergyModel
from dcem.experiments import ConfigError
from dcem.experiments.harness.reading import Finished, checkpoint_of, finished_runs, require_records
from dcem.experiments.harness.report import markdown, write_table
from dcem.experiments.harness.run import Run
from dcem.experiments.harness.settings import Settings
from dcem.experiments.regression import figures, settings, task

GOOD = 1e-3
"""The training error whose cost in seconds the table names."""
CURVES = {
    "mse_deployed": "training mean squared error",
    "valley_to_target": "valley to target, median over x",
    "prediction_to_minimum": "prediction to minimum, median over x",
}
NOTES = (
    "Medians over seeds. Energies learned through any DCEM are tested with the paper's. CPU seconds are those of the",
    "building of the model and of all updates, the first ones included, as measured; evaluations do not count.",
    "Valley to target: distance of the energy's lowest point from the target, median over x.",
    "Prediction to minimum: distance of the prediction from the nearest local minimum of the energy, likewise.",
)


@dataclass
class Config(Settings):
    """Settings of `dcem regression-study`."""

    runs: str = "runs/regression"

    def check(self) -> None:
        super().check()
        load_all(self.runs)


class Trained(NamedTuple):
    """A finished run."""

    config: settings.Config
    model: EnergyModel
    records: list[dict[str, Any]]


def main(config: Config, run: Run) -> dict[str, Any]:
    """Compare, draw, write the table; returns its rows."""
    groups = load_all(config.runs)
    rows = {label: _row(group) for label, group in groups.items()}
    write_table(run, table(rows))
    draw(groups, run)
    run.finish(**rows)
    return rows


def load_all(runs: str) -> dict[str, list[Trained]]:
    """The runs in a folder, by what distinguishes the rows of the table; those of a row differ in their seed alone."""
    groups: dict[str, list[Trained]] = {}
    for found in finished_runs(runs, "regression"):
        require_records(found)
        trained = load(found)
        label = _label(trained.config)
        group = groups.setdefault(label, [])
        group.append(trained)
        if dataclasses.replace(trained.config, seed=group[0].config.seed) != group[0].config:
            raise ConfigError(f"runs: expected runs of {label} that differ in their seed alone; got {found.folder}")
    return groups


def load(found: Finished) -> Trained:
    """The trained model of a run."""
    plain = found.settings
    solver = settings.GROUPS["solver"][plain["solver"]["name"]](**plain["solver"])
    known = {key: value for key, value in plain.items() if key in settings.Config.__dataclass_fields__}
    config = settings.Config(**{**known, "solver": solver})
    model = task.build(config)
    model.load_state_dict(checkpoint_of(found.folder)["tracked"]["model"])
    for record in found.records:  # where the search is the same in training and after it, there is one error
        record.setdefault("mse_deployed", record[f"mse_{config.num_iterations}"])
    return Trained(config, model, found.records)


def _label(config: settings.Config) -> str:
    setting = "single points" if config.batch_size == 1 else f"batches of {config.batch_size}"
    return f"{settings.LABELS[config.solver.name]}, {setting}, {config.decay} decay"


def _row(group: Sequence[Trained]) -> dict[str, Any]:
    searched = [task.deployed(trained.model, trained.config) for trained in group]
    errors = [task.errors(*of) for of in searched]
    apart = [task.minima(*of) for of in searched]
    return {
        "seeds": len(group),
        "updates": group[0].config.num_updates,
        "seconds": [trained.records[-1]["seconds"] for trained in group],
        "seconds_to_reach": [
            next((r["seconds"] for r in trained.records if r["mse_deployed"] <= GOOD), None) for trained in group
        ],
        "mse_deployed": [e[settings.num_iterations] for e, (_, settings) in zip(errors, searched, strict=True)],
        "mse": {str(t): [error[t] for error in errors] for t in errors[0]},
        "valley_to_target": [float(valley.median()) for valley, _ in apart],
        "prediction_to_minimum": [float(distance.median()) for _, distance in apart],
    }


def _reached(seconds: Sequence[float | None]) -> str:
    """The median, or where half of the seeds did not get there, that."""
    median = statistics.median(math.inf if s is None else s for s in seconds)
    return f"{median:.0f}" if math.isfinite(median) else "not reached"


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as Markdown: medians over the seeds, and the range of the error as trained."""
    iterations = sorted({t for row in rows.values() for t in row["mse"]}, key=int)
    head = ["energy learned through", "seeds", "updates", "CPU s in all", f"CPU s to {GOOD:.0e}"]
    head += [f"MSE at {t}" for t in iterations]
    head += ["highest MSE of a seed", "valley to target", "prediction to minimum"]
    lines = []
    for label, row in rows.items():
        cells = [label, str(row["seeds"]), str(row["updates"]), f"{statistics.median(row['seconds']):.0f}"]
        cells += [_reached(row["seconds_to_reach"])]
        cells += [f"{statistics.median(row['mse'][t]):.1e}" if t in row["mse"] else "" for t in iterations]
        cells += [f"{max(row['mse_deployed']):.1e}"]
        cells += [f"{statistics.median(row[key]):.3f}" for key in ("valley_to_target", "prediction_to_minimum")]
        lines.append(cells)
    return "\n".join([*NOTES, "", markdown(head, lines)])


def draw(groups: dict[str, list[Trained]], run: Run) -> None:
    """Figures with bands over the seeds; surfaces and predictions of the first seed."""
    searched = {label: [task.deployed(t.model, t.config) for t in group] for label, group in groups.items()}
    trained_at = {label: group[0].config.num_iterations for label, group in groups.items()}
    x, y = task.data(next(iter(groups.values()))[0].config)
    records = {label: [trained.records for trained in group] for label, group in groups.items()}
    errors = {label: [task.errors(*of) for of in group] for label, group in searched.items()}
    surfaces = [figures.surface(*group[0], label) for label, group in searched.items()]
    curves = {label: figures.curves(*group[0]) for label, group in searched.items()}
    run.figure("seconds", plotting.by_seconds(records, CURVES))
    run.figure("iterations", plotting.error_by_iterations(errors, trained_at))
    run.figure("energy", plotting.energy_surfaces(surfaces))
    run.figure("predictions", plotting.predictions_by_iterations(x[:, 0], y[:, 0], curves, trained_at))
