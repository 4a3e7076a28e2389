"""Learn the energy through its solver."""

from __future__ import annotations

import torch
from torch import Tensor

from dcem.energy import EnergyModel
from dcem.experiments.harness.run import Run
from dcem.experiments.harness.settings import choose_device
from dcem.experiments.harness.training import Clock, Schedule, descend, training_loop
from dcem.experiments.regression.figures import draw
from dcem.experiments.regression.settings import Config
from dcem.experiments.regression.task import build, data, deployed, errors, minima


def main(config: Config, run: Run) -> dict[str, float]:
    """Train, evaluate, draw; returns the final metrics."""
    model = train(config, run)
    draw(model, config, run)
    metrics = {f"mse_{t}": error for t, error in errors(model, config).items()}
    metrics |= deployed_error(model, config)
    run.finish(**metrics)
    return metrics


def train(config: Config, run: Run) -> EnergyModel:
    """The training alone: checkpoints and metrics go to the run, the trained model comes back."""
    device = choose_device(config.device)
    clock = Clock()
    with clock:
        x, y = data(config, device)
        model = build(config).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    schedule = Schedule(optimizer, config.num_updates, config.decay)
    generator = torch.Generator(device).manual_seed(config.seed)
    run.track(model=model, optimizer=optimizer, schedule=schedule, generator=generator, clock=clock)

    def evaluation(step: int, **values: float) -> None:
        evaluate(model, config, run, step, **values, seconds=clock.seconds)

    def next_update(step: int) -> float:
        chosen = batch(config, step, device)
        return update(model, optimizer, x[chosen], y[chosen], config.grad_clip, generator)

    training_loop(
        run, config.num_updates, next_update, evaluation, schedule,
        eval_every=config.eval_every, checkpoint_every=config.checkpoint_every, clock=clock,
    )  # fmt: skip
    return model


def update(
    model: EnergyModel, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, clip: float, generator: torch.Generator
) -> float:
    """One update; returns the loss before it."""
    return descend(optimizer, (model(x, generator=generator) - y).square().mean(), clip)


def batch(config: Config, step: int, device: torch.device) -> Tensor:
    """The points of an update: the same for `repeats` in a row, and a function of the step alone."""
    seed = (config.seed * 1_000_003 + (step - 1) // config.repeats) % 2**63
    return torch.randperm(config.num_points, generator=torch.Generator().manual_seed(seed))[: config.batch_size].to(
        device
    )


def evaluate(model: EnergyModel, config: Config, run: Run, step: int = 0, **more: float) -> None:
    """Log the error as trained, and as deployed where that is another search; twenty times a run where the energy has
    its minima; and at either end of the run the errors after the other numbers of iterations.
    """
    metrics = {f"mse_{t}": e for t, e in errors(model, config, trained_only=0 < step < config.num_updates).items()}
    metrics |= deployed_error(model, config)
    if step % max(1, config.num_updates // 20) < config.eval_every or step == config.num_updates:
        valley, distance = minima(*deployed(model, config), num=401)
        metrics |= {"valley_to_target": float(valley.median()), "prediction_to_minimum": float(distance.median())}
    run.log(step, **more, **metrics)


def deployed_error(model: EnergyModel, config: Config) -> dict[str, float]:
    """The error of the search that the energy is compared by, as `mse_deployed`; nothing if that is the one trained."""
    searched, settings = deployed(model, config)
    if settings == config:
        return {}
    return {"mse_deployed": errors(searched, settings, trained_only=True)[settings.num_iterations]}
