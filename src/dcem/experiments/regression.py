"""Energy-based regression in one dimension: learn `y = x sin x` as `argmin_y E_θ(x, y)` (Amos & Yarats 2020, 5.1).

Unrolled gradient descent learns an energy that is right only after the number of steps it was trained with; an energy
learned through DCEM has its minimum where the target is, so more inner iterations do no harm.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import MISSING
from torch import Tensor

import dcem
from dcem import plotting
from dcem.energy import EnergyModel, MLPEnergy
from dcem.experiments import ConfigError
from dcem.experiments.run import Run
from dcem.experiments.training import Schedule, choose_device, require

EVALUATION_SEED = 0
"""Evaluations of all runs draw the same candidates."""


@dataclass
class DCEM:
    """Settings of `solver=dcem`."""

    name: str = "dcem"
    num_samples: int = 100
    num_elites: int = 10
    temperature: float = 1.0
    init_std: float = 7.0


@dataclass
class Light(DCEM):
    """Settings of `solver=light`: DCEM with few samples, at a temperature at which they settle in five iterations."""

    name: str = "light"
    num_samples: int = 30
    num_elites: int = 5
    temperature: float = 0.3


@dataclass
class GD:
    """Settings of `solver=gd`: unrolled gradient descent from 0."""

    name: str = "gd"
    lr: float = 0.1
    momentum: float = 0.0


@dataclass
class Config:
    """Settings of `dcem regression`."""

    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"setting": "fast"}, {"solver": "dcem"}])
    solver: Any = MISSING
    hidden: list[int] = field(default_factory=lambda: [128, 128, 128])
    num_points: int = 100
    num_iterations: int = 10
    """Inner iterations in training."""
    test_iterations: list[int] = field(default_factory=lambda: [1, 5, 8, 10, 12, 20, 30])
    num_updates: int = 2000
    batch_size: int = 16
    repeats: int = 1
    """Updates in a row on one batch."""
    lr: float = 3e-3
    schedule: str = "cosine"
    """`cosine` (with a warm-up of a tenth) or `plateau` (halved after `patience` evaluations without progress)."""
    patience: int = 20
    grad_clip: float = 1.0
    eval_every: int = 100
    checkpoint_every: int = 200
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    """More than one only slows a model of this size down, badly so on a busy machine."""


GROUPS: dict[str, dict[str, Any]] = {
    "solver": {"dcem": DCEM, "light": Light, "gd": GD},
    "setting": {
        # random minibatches and one cosine cycle: two to three minutes instead of an hour on two cores
        "fast": {"num_updates": 2000, "batch_size": 16, "repeats": 1, "lr": 3e-3, "schedule": "cosine"},
        # with solver=light: a better energy a second than the paper's, see results/regression
        "light": {
            "num_updates": 2000,
            "batch_size": 32,
            "repeats": 1,
            "lr": 5e-3,
            "schedule": "cosine",
            "num_iterations": 5,
        },
        # single points, three updates in a row each, as in the paper
        "paper": {
            "num_updates": 60_000,
            "batch_size": 1,
            "repeats": 3,
            "lr": 1e-3,
            "schedule": "plateau",
            "checkpoint_every": 1000,
        },
    },
}
LABELS = {"dcem": "DCEM", "light": "light DCEM", "gd": "unrolled gradient descent"}


def check(config: Config) -> None:
    """Refuse settings that cannot be run."""
    counts = (
        "num_iterations",
        "num_updates",
        "batch_size",
        "repeats",
        "eval_every",
        "checkpoint_every",
        "patience",
        "threads",
    )
    for key in counts:
        require(getattr(config, key) >= 1, key, "at least 1", getattr(config, key))
    require(config.num_points >= 2, "num_points", "at least 2", config.num_points)
    require(config.batch_size <= config.num_points, "batch_size", "at most num_points", config.batch_size)
    require(config.lr > 0, "lr", "a positive number", config.lr)
    require(config.schedule in ("cosine", "plateau"), "schedule", "cosine or plateau", config.schedule)
    require(bool(config.hidden) and min(config.hidden) >= 1, "hidden", "positive widths", config.hidden)
    iterations = config.test_iterations
    require(bool(iterations) and min(iterations) >= 1, "test_iterations", "numbers of at least 1", iterations)
    expected = type(config.solver)().name
    require(config.solver.name == expected, "solver.name", f"{expected} (solver=... chooses)", config.solver.name)
    try:
        build(config)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"solver.{error}") from None


def build(config: Config) -> EnergyModel:
    """The model that the config describes."""
    energy = MLPEnergy(1, 1, config.hidden)
    solver: dcem.Solver
    if isinstance(config.solver, GD):
        solver, std = dcem.GradientDescent(config.solver.lr, config.solver.momentum), None
    else:
        settings = config.solver
        selection = dcem.LML(settings.temperature) if settings.temperature > 0 else dcem.HardTopK()
        solver, std = dcem.CEM(settings.num_samples, settings.num_elites, selection), settings.init_std
    return EnergyModel(energy, 1, solver, num_iterations=config.num_iterations, init_std=std)


def deployed(model: EnergyModel, config: Config) -> tuple[EnergyModel, Config]:
    """The model as it is compared with others, and its settings: whichever DCEM has learned the energy, the paper's
    searches it. Gradient descent has learned for itself alone.
    """
    if isinstance(config.solver, GD):
        return model, config
    config = dataclasses.replace(config, solver=DCEM(), num_iterations=Config.num_iterations)
    searched = build(config).to(next(model.parameters()).device)
    searched.energy = model.energy
    return searched, config


def data(config: Config, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """The training points: `x` on a grid over `[0, 2π]` and `y = x sin x`, both `(num_points, 1)`."""
    x = torch.linspace(0, 2 * math.pi, config.num_points, device=device).unsqueeze(-1)
    return x, x * x.sin()


def main(config: Config, run: Run) -> dict[str, float]:
    """Train, evaluate, draw; returns the final metrics."""
    model = train(config, run)
    draw(model, config, run)
    metrics = {f"mse_{t}": error for t, error in errors(model, config).items()}
    run.finish(**metrics)
    return metrics


def train(config: Config, run: Run) -> EnergyModel:
    """The training alone: checkpoints and metrics go to the run, the trained model comes back."""
    device = choose_device(config.device)
    x, y = data(config, device)
    model = build(config).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    schedule = Schedule(optimizer, config.schedule, config.num_updates, config.patience)
    generator = torch.Generator(device).manual_seed(config.seed)
    run.track(model=model, optimizer=optimizer, schedule=schedule, generator=generator)
    if run.step == 0:
        evaluate(model, config, run)
    for step in run.steps(config.num_updates, config.checkpoint_every):
        chosen = batch(config, step, device)
        loss = update(model, optimizer, x[chosen], y[chosen], config.grad_clip, generator)
        schedule.step()
        if step % config.eval_every == 0 or step == config.num_updates:
            metrics = evaluate(model, config, run, step, loss=loss.item(), lr=schedule.lr)
            schedule.evaluated(metrics[f"mse_{config.num_iterations}"])
    return model


def update(
    model: EnergyModel, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, clip: float, generator: torch.Generator
) -> Tensor:
    """One update; returns the loss before it."""
    loss = (model(x, generator=generator) - y).square().mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss


def batch(config: Config, step: int, device: torch.device) -> Tensor:
    """The points of an update: the same for `repeats` in a row, and a function of the step alone."""
    seed = config.seed * 1_000_003 + (step - 1) // config.repeats
    return torch.randperm(config.num_points, generator=torch.Generator().manual_seed(seed))[: config.batch_size].to(
        device
    )


@torch.no_grad()
def predictions(model: EnergyModel, config: Config, x: Tensor, *, trained_only: bool = False) -> dict[int, Tensor]:
    """`ŷ` after each of the numbers of iterations, or as trained only: one solve passes through all of them."""
    wanted = sorted({config.num_iterations, *(() if trained_only else config.test_iterations)})
    generator = torch.Generator(x.device).manual_seed(EVALUATION_SEED)
    solution = model.solve(x, num_iterations=wanted[-1], generator=generator, record=True, gradient=dcem.Detach())
    return {t: solution.history[t - 1].distribution.mean for t in wanted}


def errors(model: EnergyModel, config: Config, *, trained_only: bool = False) -> dict[int, float]:
    """Mean squared error on the grid after each of the numbers of iterations, or as trained only."""
    x, y = data(config, next(model.parameters()).device)
    by_iterations = predictions(model, config, x, trained_only=trained_only)
    return {t: float((y_hat - y).square().mean()) for t, y_hat in by_iterations.items()}


@torch.no_grad()
def minima(model: EnergyModel, config: Config, num: int = 801) -> tuple[Tensor, Tensor]:
    """How far, at each point of the grid, the lowest energy lies from the target, and the prediction from the nearest
    local minimum of the energy; `(num_points,)` each. Minima are those of a grid of `num` values of y, each refined by
    the parabola through its neighbours; where the energy falls to the grid's edge there is a minimum there.
    """
    x, target = data(config, next(model.parameters()).device)
    y = torch.linspace(float(target.min()) - 8, float(target.max()) + 8, num, device=x.device)
    energy = model.energy(x, y.view(1, -1, 1).expand(len(x), -1, 1))
    prediction = predictions(model, config, x, trained_only=True)[config.num_iterations]
    below, here, above = energy[:, :-2], energy[:, 1:-1], energy[:, 2:]
    inside = (here <= below) & (here <= above)
    curvature = (below + above - 2 * here).clamp_min(torch.finfo(energy.dtype).tiny)
    shift = ((below - above) / (2 * curvature)).clamp(-1, 1) * inside
    refined = y + (y[1] - y[0]) * torch.nn.functional.pad(shift, (1, 1))
    edges = [energy[:, :1] <= energy[:, 1:2], energy[:, -1:] <= energy[:, -2:-1]]
    lowest = torch.cat([edges[0], inside, edges[1]], -1)
    distance = (prediction - refined).abs().masked_fill(~lowest, torch.inf).amin(-1)
    valley = refined.take_along_dim(energy.argmin(-1, keepdim=True), -1) - target
    return valley[:, 0].abs(), distance


def evaluate(model: EnergyModel, config: Config, run: Run, step: int = 0, **more: float) -> dict[str, float]:
    """Log the error as trained, and as deployed where that is another search; twenty times a run where the energy has
    its minima; and at either end of the run the errors after the other numbers of iterations.
    """
    metrics = {f"mse_{t}": e for t, e in errors(model, config, trained_only=0 < step < config.num_updates).items()}
    searched, settings = deployed(model, config)
    if settings != config:
        metrics["mse_deployed"] = errors(searched, settings, trained_only=True)[settings.num_iterations]
    if step % max(1, config.num_updates // 20) < config.eval_every or step == config.num_updates:
        valley, distance = minima(searched, settings, num=401)
        metrics |= {"valley_to_target": float(valley.median()), "prediction_to_minimum": float(distance.median())}
    run.log(step, **more, **metrics)
    return metrics


@torch.no_grad()
def surface(model: EnergyModel, config: Config, title: str) -> plotting.Surface:
    """The model's energy around the target curve."""
    x, target = data(config, next(model.parameters()).device)
    low, high = float(target.min()) - 3, float(target.max()) + 3
    y = torch.linspace(low, high, 160, device=x.device)
    energy = model.energy(x, y.view(1, -1, 1).expand(len(x), -1, 1))
    prediction = predictions(model, config, x)[config.num_iterations]
    tensors = (x[:, 0], y, energy, target[:, 0], prediction[:, 0])
    return plotting.Surface(title, *(t.cpu() for t in tensors))


def curves(model: EnergyModel, config: Config) -> dict[int, Tensor]:
    """Predicted curves for a few numbers of iterations."""
    x, _ = data(config, next(model.parameters()).device)
    return {
        t: y_hat[:, 0].cpu() for t, y_hat in predictions(model, config, x).items() if t >= config.num_iterations / 2
    }


def draw(model: EnergyModel, config: Config, run: Run) -> None:
    """The run's figures."""
    label = LABELS[config.solver.name]
    key = f"mse_{config.num_iterations}"
    x, y = data(config)
    run.figure("loss", plotting.loss_curves({label: [run.records()]}, key, "training mean squared error"))
    run.figure("energy", plotting.energy_surfaces([surface(model, config, label)]))
    run.figure("iterations", plotting.error_by_iterations({label: [errors(model, config)]}, config.num_iterations))
    by_iterations = {label: curves(model, config)}
    run.figure(
        "predictions", plotting.predictions_by_iterations(x[:, 0], y[:, 0], by_iterations, config.num_iterations)
    )
