"""Finished regressions compared: errors and where the energies have their minima, over seeds.

`runs` is a folder of run folders that `dcem regression` has left. Runs that differ only in their seed make one row of
the table, which is written as `table.md` beside the figures.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from torch import Tensor

from dcem import plotting
from dcem.energy import EnergyModel
from dcem.experiments import ConfigError, regression
from dcem.experiments.run import CHECKPOINT, Run
from dcem.experiments.training import require

GROUPS: dict[str, dict[str, Any]] = {}


@dataclass
class Config:
    """Settings of `dcem regression-study`."""

    runs: str = "runs/regression"
    seed: int = 0
    device: str = "cpu"
    threads: int = 1


class Trained(NamedTuple):
    """A finished run."""

    config: regression.Config
    model: EnergyModel
    records: list[dict[str, Any]]
    seconds: float


def check(config: Config) -> None:
    """Refuse settings that cannot be run."""
    require(Path(config.runs).is_dir(), "runs", "a folder of run folders", config.runs)


def main(config: Config, run: Run) -> dict[str, Any]:
    """Compare, draw, write the table; returns its rows."""
    groups: dict[str, list[Trained]] = {}
    for folder in sorted(path.parent for path in Path(config.runs).glob(f"*/{CHECKPOINT}")):
        trained = load(folder)
        groups.setdefault(_label(trained.config), []).append(trained)
    if not groups:
        raise ConfigError(f"runs: expected run folders with a {CHECKPOINT}, got none in {config.runs}")
    rows = {label: _row(group) for label, group in groups.items()}
    text = table(rows, f"dcem regression-study runs={config.runs}")
    (run.folder / "table.md").write_text(text, "utf-8")
    run.say(text)
    draw(groups, run)
    run.finish(**rows)
    return rows


def load(folder: Path) -> Trained:
    """The trained model of a run folder."""
    plain = OmegaConf.load(folder / "config.yaml")
    solver = regression.GROUPS["solver"][plain.solver.name]
    settings = OmegaConf.to_container(plain)
    assert isinstance(settings, dict)
    known = {key: value for key, value in settings.items() if key in regression.Config.__dataclass_fields__}
    config = regression.Config(**{**known, "solver": solver(**settings["solver"])})
    state = torch.load(folder / CHECKPOINT, weights_only=True)
    model = regression.build(config)
    model.load_state_dict(state["tracked"]["model"])
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return Trained(config, model, [json.loads(line) for line in lines], state["elapsed"])


def _label(config: regression.Config) -> str:
    setting = "single points" if config.batch_size == 1 else f"batches of {config.batch_size}"
    return f"{regression.LABELS[config.solver.name]}, {setting}"


@torch.no_grad()
def minima(model: EnergyModel, config: regression.Config, num: int = 4001) -> tuple[Tensor, Tensor]:
    """How far, at each point of the grid, the lowest energy lies from the target, and the prediction from the nearest
    local minimum of the energy; `(num_points,)` each. Minima are those of a grid of `num` values of y; where the
    energy falls to the grid's edge there is a minimum there.
    """
    x, target = regression.data(config)
    y = torch.linspace(float(target.min()) - 8, float(target.max()) + 8, num)
    energy = model.energy(x, y.view(1, -1, 1).expand(len(x), -1, 1))
    prediction = regression.predictions(model, config, x)[config.num_iterations]
    padded = torch.nn.functional.pad(energy, (1, 1), value=torch.inf)
    lowest = (energy <= padded[:, :-2]) & (energy <= padded[:, 2:])
    distance = (prediction - y).abs().masked_fill(~lowest, torch.inf).amin(-1)
    valley = (y[energy.argmin(-1)] - target[:, 0]).abs()
    return valley, distance


def _row(group: Sequence[Trained]) -> dict[str, Any]:
    errors = [regression.errors(trained.model, trained.config) for trained in group]
    apart = [minima(trained.model, trained.config) for trained in group]
    return {
        "seeds": len(group),
        "updates": group[0].config.num_updates,
        "seconds": statistics.median(trained.seconds for trained in group),
        "mse": {str(t): [error[t] for error in errors] for t in errors[0]},
        "valley_offset": [float(valley.median()) for valley, _ in apart],
        "prediction_to_minimum": [float(distance.median()) for _, distance in apart],
    }


def table(rows: dict[str, dict[str, Any]], command: str) -> str:
    """The rows as Markdown: medians over the seeds, and the range of the error as trained."""
    iterations = list(next(iter(rows.values()))["mse"])
    head = ["energy learned through", "seeds", "updates", "seconds", *(f"MSE at {t}" for t in iterations)]
    head += ["valley to target", "prediction to minimum"]
    lines = [
        "Medians over seeds. Valley to target: distance of the energy's lowest point from the target, median over x.",
        "Prediction to minimum: distance of the prediction from the nearest local minimum of the energy, likewise.",
        f"Made by `{command}`.",
        "",
        "| " + " | ".join(head) + " |",
        "| " + " | ".join("---" for _ in head) + " |",
    ]
    for label, row in rows.items():
        cells = [label, str(row["seeds"]), str(row["updates"]), f"{row['seconds']:.0f}"]
        cells += [f"{statistics.median(row['mse'][t]):.1e}" for t in iterations]
        cells += [f"{statistics.median(row[key]):.3f}" for key in ("valley_offset", "prediction_to_minimum")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(groups: dict[str, list[Trained]], run: Run) -> None:
    """Figures with bands over the seeds; surfaces and predictions of the first seed."""
    first = {label: group[0] for label, group in groups.items()}
    trained_at = next(iter(first.values())).config.num_iterations
    x, y = regression.data(next(iter(first.values())).config)
    records = {label: [trained.records for trained in group] for label, group in groups.items()}
    errors = {label: [regression.errors(t.model, t.config) for t in group] for label, group in groups.items()}
    surfaces = [regression.surface(t.model, t.config, label) for label, t in first.items()]
    curves = {label: regression.curves(t.model, t.config) for label, t in first.items()}
    run.figure("loss", plotting.loss_curves(records, f"mse_{trained_at}", "training mean squared error"))
    run.figure("iterations", plotting.error_by_iterations(errors, trained_at))
    run.figure("energy", plotting.energy_surfaces(surfaces))
    run.figure("predictions", plotting.predictions_by_iterations(x[:, 0], y[:, 0], curves, trained_at))
