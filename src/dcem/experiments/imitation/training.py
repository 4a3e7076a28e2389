"""Train every method, all runs of it in one batch."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from dcem.experiments.harness.report import write_table
from dcem.experiments.harness.run import Run
from dcem.experiments.harness.training import Schedule, descend, training_loop
from dcem.experiments.imitation import figures
from dcem.experiments.imitation.controller import Controller, parameter_errors
from dcem.experiments.imitation.settings import METHODS, Config
from dcem.experiments.imitation.study import Study
from dcem.experiments.imitation.task import Task


class Networks(nn.Module):
    """A tanh network a run, from states `(runs, batch, *s)` to actions within the bound, as plans of one step."""

    def __init__(self, task: Task, seeds: list[int], hidden: int = 64) -> None:
        super().__init__()
        sizes = [*task.system(*task.dynamics.values()).state_shape, hidden, hidden, 1]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.max_action = task.max_action
        self.weights = nn.ParameterList(
            torch.stack([torch.randn(m, n, generator=generator) / m**0.5 for generator in generators])
            for m, n in pairwise(sizes)
        )
        self.biases = nn.ParameterList(torch.zeros(len(seeds), 1, n) for n in sizes[1:])

    def forward(self, state: Tensor) -> Tensor:
        for weight, bias in zip(self.weights, self.biases, strict=True):
            state = torch.tanh(torch.baddbmm(bias, state, weight))
        return self.max_action * state.unsqueeze(-2)


def main(config: Config, run: Run) -> dict[str, Any]:
    """Train all methods on each plant, compare, draw; returns the metrics."""
    metrics: dict[str, dict[str, Any]] = {}
    records: dict[str, dict[str, Any]] = {}
    for plant in config.plants:
        study: Study | None = None
        for method in config.methods_on(plant):
            with run.part(f"{plant}-{method}") as part:
                if not part.finished:
                    study = study or Study(config, plant)
                    part.finish(**train(study, method, part))
                metrics.setdefault(plant, {})[method] = part.metrics
                records.setdefault(plant, {})[method] = part.records()
            run.say(f"{plant} {method}: " + _shown(part.metrics))
    write_table(run, figures.table(metrics, METHODS, config))
    for name, figure in figures.draw(metrics, records, METHODS, config).items():
        run.figure(name, figure)
    run.finish(**metrics)
    return metrics


def train(study: Study, method: str, run: Run) -> dict[str, list[float]]:
    """Train one method, all runs of it at once; checkpoints and metrics go to the run."""
    config = study.config
    if method == "likelihood":
        controller = study.initial(method)
        study.fit(controller)
        return study.report(controller.policy(), controller)
    if method == "network":
        return _clone(study, run)
    controller = study.initial(method)
    learned = {"cost": [controller.weights, controller.goal], "dynamics": [controller.dynamics]}
    optimizer = torch.optim.Adam(learned.get(method, [*controller.parameters()]), lr=config.lr)
    schedule = Schedule(optimizer, config.num_updates)
    generator = torch.Generator().manual_seed(config.seed)
    run.track(controller=controller, optimizer=optimizer, schedule=schedule, generator=generator)

    def update(step: int) -> float:
        states, plans = study.batch(generator, config.batch_size)
        planned = controller.planner(config.search)(states, generator=generator).actions
        error = ((planned - plans) / study.task.max_action)[..., : config.matched_steps, :].square().mean((-2, -1))
        # Where the plan is on another branch (it swings the other way) the derivative of the plan knows no way back.
        return descend(optimizer, (error / (1 + error / config.cutoff**2)).mean(-1).sum())  # runs share no parameter

    training_loop(
        run, config.num_updates, update, lambda step, **_: _log(study, controller, run, step), schedule,
        eval_every=config.eval_every, description=method,
    )  # fmt: skip
    return study.report(controller.policy(), controller)


def _clone(study: Study, run: Run) -> dict[str, list[float]]:
    """Behaviour cloning: a network a run, fitted to the first actions."""
    config = study.config
    networks = Networks(study.task, [seed for _, seed in study.runs])
    optimizer = torch.optim.Adam(networks.parameters(), lr=3e-3)
    schedule = Schedule(optimizer, config.network_updates)
    generator = torch.Generator().manual_seed(config.seed)
    run.track(networks=networks, optimizer=optimizer, schedule=schedule, generator=generator)

    def update(step: int) -> float:
        states, plans = study.batch(generator, 64)
        error = networks(states)[..., 0, :] - plans[..., 0, :]
        return descend(optimizer, (error / study.task.max_action).square().mean((-2, -1)).sum())

    every = max(1, config.network_updates // 5)
    nothing: Any = lambda step, **_: None  # noqa: E731
    training_loop(run, config.network_updates, update, nothing, schedule, eval_every=every, description="network")
    with torch.no_grad():
        return study.report(networks, networks)


def _log(study: Study, controller: Controller, run: Run, step: int) -> None:
    """The held-out loss and the errors of the parameters of each run."""
    values = {"imitation_loss": study.imitation_loss(controller.policy()), **parameter_errors(controller)}
    names = [f"{num}_{seed}" for num, seed in study.runs]
    run.log(
        step, **{f"{key}_{name}": float(v) for key, of in values.items() for name, v in zip(names, of, strict=True)}
    )


def _shown(metrics: dict[str, list[float]]) -> str:
    return "  ".join(f"{name} {sum(values) / len(values):.3g}" for name, values in metrics.items())
