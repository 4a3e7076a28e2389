"""The talk's point in a few minutes: the same energy, learned through DCEM and through unrolled gradient descent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import OmegaConf

from dcem import plotting
from dcem.energy import EnergyModel
from dcem.experiments.harness.run import Run
from dcem.experiments.harness.training import require
from dcem.experiments.regression import figures, task, training
from dcem.experiments.regression import settings as regression

GROUPS: dict[str, dict[str, Any]] = {}


@dataclass
class Config:
    """Settings of `dcem demo`."""

    num_updates: int = 1200
    """Updates of each energy."""
    dcem: dict[str, Any] = field(default_factory=dict)
    """More settings of the DCEM regression, such as `+dcem.batch_size=32`."""
    gd: dict[str, Any] = field(default_factory=dict)
    """More settings of the gradient descent regression."""
    num_seeds: int = 1
    seed: int = 0
    device: str = "cpu"
    threads: int = 1


def check(config: Config) -> None:
    """Refuse settings that cannot be run."""
    for key in ("num_updates", "num_seeds", "threads"):
        require(getattr(config, key) >= 1, key, "at least 1", getattr(config, key))


def main(config: Config, run: Run) -> dict[str, Any]:
    """Train both for every seed, compare, draw; returns the errors by test-time iterations."""
    errors: dict[str, list[dict[int, float]]] = {}
    records: dict[str, list[Any]] = {}
    shown: dict[str, tuple[EnergyModel, regression.Config]] = {}
    for name in ("dcem", "gd"):
        label = regression.LABELS[name]
        for seed in range(config.seed, config.seed + config.num_seeds):
            settings = _settings(config, name, seed)
            model, part = _train(settings, run, f"{name}-{seed}", label)
            errors.setdefault(label, []).append(task.errors(model, settings))
            records.setdefault(label, []).append(part)
            shown.setdefault(label, (model, settings))
    trained_at = regression.Config().num_iterations
    x, y = task.data(regression.Config())
    paths = [
        run.figure("energy", plotting.energy_surfaces([figures.surface(*of, label) for label, of in shown.items()])),
        run.figure("iterations", plotting.error_by_iterations(errors, trained_at)),
        run.figure(
            "predictions",
            plotting.predictions_by_iterations(
                x[:, 0], y[:, 0], {label: figures.curves(*of) for label, of in shown.items()}, trained_at
            ),
        ),
        run.figure("loss", plotting.loss_curves(records, f"mse_{trained_at}", "training mean squared error")),
    ]
    points = verdict(*errors.values())
    _print_table(errors, trained_at, points, [str(path) for path in paths], run.elapsed)
    results = {label: [{str(t): e for t, e in one.items()} for one in seeds] for label, seeds in errors.items()}
    run.finish(mse=results, points=points)
    return results


def verdict(dcem: list[dict[int, float]], gd: list[dict[int, float]]) -> dict[str, bool]:
    """What the talk claims, and whether it holds in every one of these runs."""
    return {
        "both fit: error at 10 iterations at most 1e-2": all(e[10] <= 1e-2 for e in [*dcem, *gd]),
        "DCEM at 20 iterations is within twice its error at 10": all(e[20] <= 2 * e[10] for e in dcem),
        "gradient descent at 20 is at least 10 times worse than at 10": all(e[20] >= 10 * e[10] for e in gd),
    }


def _settings(config: Config, name: str, seed: int) -> regression.Config:
    solver = regression.DCEM() if name == "dcem" else regression.GD()
    common = {"num_updates": config.num_updates, "eval_every": 100, "seed": seed, "device": config.device}
    schema = OmegaConf.structured(regression.Config(solver=solver))
    merged: Any = OmegaConf.to_object(OmegaConf.merge(schema, common, getattr(config, name)))
    regression.check(merged)
    return merged


def _train(settings: regression.Config, run: Run, name: str, label: str) -> tuple[EnergyModel, Any]:
    plain: Any = OmegaConf.to_container(OmegaConf.structured(settings))
    run.say(f"{label}: {settings.num_updates} updates, seed {settings.seed}")
    with Run(
        run.folder / name, plain, seed=settings.seed, device=run.device, command=run.command, resume=run.resume
    ) as part:
        part.verbose = False
        model = training.train(settings, part)
        part.finish(**{f"mse_{t}": error for t, error in task.errors(model, settings).items()})
        return model, part.records()


def _print_table(
    errors: dict[str, list[dict[int, float]]],
    trained_at: int,
    points: dict[str, bool],
    figures: list[str],
    seconds: float,
) -> None:
    from rich.console import Console
    from rich.table import Table

    note = f"Mean squared error by inner iterations at test time (trained with {trained_at})"
    table = Table(title=note, title_justify="left")
    table.add_column("learned through", no_wrap=True)
    iterations = sorted(next(iter(errors.values()))[0])
    for t in iterations:
        table.add_column(str(t), justify="right", no_wrap=True)
    for label, seeds in errors.items():
        table.add_row(label, *(f"{sum(e[t] for e in seeds) / len(seeds):.1e}" for t in iterations))
    console = Console(soft_wrap=True, width=max(100, Console().width))
    console.print(table)
    for point, holds in points.items():
        console.print(f"{'yes' if holds else 'NO '}  {point}")
    console.print(f"{seconds:.0f} s; figures: " + "  ".join(figures))
