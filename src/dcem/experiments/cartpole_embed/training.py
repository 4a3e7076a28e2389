"""Learn a decoder through the search."""

from __future__ import annotations

import torch
from torch import nn

from dcem.embedding import MLPDecoder
from dcem.experiments.cartpole_embed.settings import SELECTIONS, Config, trained_search, trajectories_an_update
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
from dcem.experiments.harness.training import Schedule, choose_device


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


def train(config: Config, run: Run) -> MLPDecoder:
    """The training alone: checkpoints and metrics go to the run, the decoder comes back."""
    device = choose_device(config.device)
    decoder = build(config).to(device)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=config.lr)
    schedule = Schedule(optimizer, "cosine", config.num_updates, patience=1)
    generator = torch.Generator(device).manual_seed(config.seed)
    run.track(decoder=decoder, optimizer=optimizer, schedule=schedule, generator=generator)
    dynamics = COMPILED if config.compile else SYSTEM
    controller = embedded(decoder, trained_search(config), dynamics=dynamics).to(device)
    states = validation_states().to(device)
    if run.step == 0:
        run.log(0, **evaluate(decoder, config, states), seconds=0.0)
    for step in run.steps(config.num_updates, config.checkpoint_every):
        initial = SYSTEM.sample_states(config.batch_size, generator=generator, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            loss = controller(initial, generator=generator).cost.mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), config.grad_clip)
        optimizer.step()
        schedule.step()
        if step % config.eval_every == 0 or step == config.num_updates:
            run.log(step, loss=loss.item(), **evaluate(decoder, config, states), seconds=run.elapsed, lr=schedule.lr)
    return decoder


def draw(config: Config, run: Run, expert: float) -> None:
    """The run's figure."""
    from dcem.experiments.cartpole_embed.figures import convergence

    records = run.records()
    of = {f"{name} selection": [[(r["step"], r[f"cost_{name}"]) for r in records]] for name in SELECTIONS}
    title = f"latent {config.latent}, τ = {config.temperature:g}"
    run.figure("convergence", convergence({title: of}, expert, trajectories_an_update(config)))
