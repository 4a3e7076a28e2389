"""Learn a decoder through the search."""

from __future__ import annotations

import torch
from torch import nn

from dcem.experiments.cartpole_embed.figures import convergence
from dcem.experiments.cartpole_embed.settings import SELECTIONS, Config
from dcem.experiments.cartpole_embed.task import (
    COMPILED,
    EXPERT,
    SYSTEM,
    build,
    costs,
    embedded,
    evaluate,
    full,
    validation_states,
)
from dcem.experiments.harness.run import Run
from dcem.experiments.harness.settings import choose_device
from dcem.experiments.harness.training import Best, Schedule, descend, training_loop


def main(config: Config, run: Run) -> dict[str, float]:
    """Train, evaluate, draw; returns the final metrics."""
    decoder = train(config, run)
    states = validation_states().to(run.device)
    expert = float(costs(full(EXPERT), states).mean())
    metrics = {**evaluate(decoder, config, states), "cost_expert": expert}
    metrics |= {f"factor_{name}": metrics[f"cost_{name}"] / expert for name in SELECTIONS}
    draw(config, run, expert)
    run.finish(**metrics)
    return metrics


def train(config: Config, run: Run) -> nn.Module:
    """The training alone: checkpoints and metrics go to the run; the decoder of the best evaluation comes back."""
    device = choose_device(config.device)
    decoder = build(config).to(device)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=config.lr)
    schedule = Schedule(optimizer, config.num_updates)
    generator = torch.Generator(device).manual_seed(config.seed)
    best = Best()
    run.track(decoder=decoder, optimizer=optimizer, schedule=schedule, generator=generator, best=best)
    dynamics = COMPILED if config.compile else SYSTEM
    controller = embedded(decoder, config.search, dynamics=dynamics).to(device)
    states = validation_states().to(device)

    def update(step: int) -> float:
        initial = SYSTEM.sample_states(config.batch_size, generator=generator, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            loss = controller(initial, generator=generator).cost.mean()
        return descend(optimizer, loss, config.grad_clip)

    def evaluation(step: int, **values: float) -> None:
        costs = evaluate(decoder, config, states)
        best.see(costs["cost_hard"], decoder)
        run.log(step, **values, **costs, seconds=run.elapsed if step else 0.0)

    training_loop(
        run, config.num_updates, update, evaluation, schedule,
        eval_every=config.eval_every, checkpoint_every=config.checkpoint_every,
    )  # fmt: skip
    best.restore(decoder)
    return decoder


def draw(config: Config, run: Run, expert: float) -> None:
    """The run's figure."""
    records = run.records()
    of = {f"{name} selection": [[(r["step"], r[f"cost_{name}"]) for r in records]] for name in SELECTIONS}
    title = f"latent {config.latent}, τ = {config.temperature:g}"
    run.figure("convergence", convergence({title: of}, expert, config.trajectories_an_update))
