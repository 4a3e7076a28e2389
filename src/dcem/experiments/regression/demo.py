"""The talk's point in a minute: the same energy, learned through light DCEM and through unrolled gradient descent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import OmegaConf

from dcem import plotting
from dcem.energy import EnergyModel
from dcem.experiments.harness.run import Run
from dcem.experiments.harness.settings import Settings, count
from dcem.experiments.regression import figures, task, training
from dcem.experiments.regression import settings as regression


@dataclass
class Config(Settings):
    """Settings of `dcem demo`."""

    num_updates: int = count(400)
    """Updates of each energy."""
    dcem: dict[str, Any] = field(default_factory=dict)
    """More settings of the DCEM regression, such as `+dcem.batch_size=16`."""
    gd: dict[str, Any] = field(default_factory=dict)
    """More settings of the gradient descent regression."""
    num_seeds: int = count(1)

    def check(self) -> None:
        super().check()
        for name in SOLVERS:
            regression_settings(self, name, self.seed)


SOLVERS: dict[str, Any] = {"dcem": regression.Light, "gd": regression.GD}
COMMON = {"batch_size": 32, "lr": 5e-3, "eval_every": 100}


def main(config: Config, run: Run) -> dict[str, Any]:
    """Train both for every seed, compare, draw; returns the errors by test-time iterations."""
    errors: dict[str, list[dict[int, float]]] = {}
    records: dict[str, list[Any]] = {}
    shown: dict[str, tuple[EnergyModel, regression.Config]] = {}
    for name in SOLVERS:
        label = regression.LABELS[name]
        for seed in range(config.seed, config.seed + config.num_seeds):
            settings = regression_settings(config, name, seed)
            run.say(f"{label}: {settings.num_updates} updates, seed {seed}")
            with run.part(f"{name}-{seed}", seed) as part:
                model = training.train(settings, part)
                found = task.errors(model, settings)
                part.finish(**{f"mse_{t}": error for t, error in found.items()})
                lines = [{**line, "mse": line[f"mse_{settings.num_iterations}"]} for line in part.records()]
            errors.setdefault(label, []).append(found)
            records.setdefault(label, []).append(lines)
            shown.setdefault(label, (model, settings))
    trained_at = {label: settings.num_iterations for label, (_, settings) in shown.items()}
    x, y = task.data(regression.Config())
    curves = {label: figures.curves(*of) for label, of in shown.items()}
    paths = [
        run.figure("energy", plotting.energy_surfaces([figures.surface(*of, label) for label, of in shown.items()])),
        run.figure("iterations", plotting.error_by_iterations(errors, trained_at)),
        run.figure("predictions", plotting.predictions_by_iterations(x[:, 0], y[:, 0], curves, trained_at)),
        run.figure("loss", plotting.loss_curves(records, "mse", "training mean squared error")),
    ]
    points = verdict(*errors.values())
    _print_table(errors, trained_at, points, [str(path) for path in paths], run.elapsed)
    results = {label: [{str(t): e for t, e in one.items()} for one in seeds] for label, seeds in errors.items()}
    run.finish(mse=results, points=points)
    return results


def verdict(dcem: list[dict[int, float]], gd: list[dict[int, float]]) -> dict[str, bool]:
    """What the paper claims, and whether it holds in every one of these runs."""
    return {
        "both fit: error at 10 iterations at most 1e-2": all(e[10] <= 1e-2 for e in [*dcem, *gd]),
        "DCEM at 20 iterations is within twice its error at 10": all(e[20] <= 2 * e[10] for e in dcem),
        "gradient descent at 20 is at least 10 times worse than at 10": all(e[20] >= 10 * e[10] for e in gd),
    }


def regression_settings(config: Config, name: str, seed: int) -> regression.Config:
    """Of one of the two regressions."""
    solver = SOLVERS[name]()
    iterations = {"num_iterations": 5} if name == "dcem" else {}
    common = {**COMMON, **iterations, "num_updates": config.num_updates, "seed": seed, "device": config.device}
    schema = OmegaConf.structured(regression.Config(solver=solver))
    merged: Any = OmegaConf.to_object(OmegaConf.merge(schema, common, getattr(config, name)))
    merged.check()
    return merged


def _print_table(
    errors: dict[str, list[dict[int, float]]],
    trained_at: dict[str, int],
    points: dict[str, bool],
    figures: list[str],
    seconds: float,
) -> None:
    from rich.console import Console
    from rich.table import Table

    note = "Mean squared error by inner iterations at test time (in brackets: in training)"
    table = Table(title=note, title_justify="left")
    table.add_column("learned through", no_wrap=True)
    iterations = sorted(set.intersection(*(set(of) for seeds in errors.values() for of in seeds)))
    for t in iterations:
        table.add_column(str(t), justify="right", no_wrap=True)
    for label, seeds in errors.items():
        table.add_row(
            f"{label} ({trained_at[label]})",
            *(f"{sum(e[t] for e in seeds) / len(seeds):.1e}" for t in iterations),
        )
    console = Console(soft_wrap=True, width=max(112, Console().width))
    console.print(table)
    for point, holds in points.items():
        console.print(f"{'yes' if holds else 'NO '}  {point}")
    console.print(f"{seconds:.0f} s; figures: " + "  ".join(figures))
