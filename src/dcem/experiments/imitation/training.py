"""Train every method, all runs of it in one batch."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from dcem.experiments.harness.run import SUMMARY, Run
from dcem.experiments.harness.training import Schedule
from dcem.experiments.imitation import figures
from dcem.experiments.imitation.controller import Controller, parameter_errors
from dcem.experiments.imitation.settings import METHODS, Config, _methods, search
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
        for method in _methods(config, plant):
            folder = run.folder / f"{plant}-{method}"
            if not (run.resume and (folder / SUMMARY).exists()):
                study = study or Study(config, plant)
                with Run(
                    folder, run.config, seed=config.seed, device=run.device, command=run.command, resume=run.resume
                ) as part:
                    part.verbose = False
                    part.finish(**train(study, method, part))
            summary = json.loads((folder / SUMMARY).read_text("utf-8"))
            metrics.setdefault(plant, {})[method] = summary["metrics"]
            lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
            records.setdefault(plant, {})[method] = [json.loads(line) for line in lines]
            run.say(f"{plant} {method}: " + _shown(summary["metrics"]))
    text = figures.table(metrics, METHODS, config)
    (run.folder / "table.md").write_text(f"`{run.command}`\n\n{text}", "utf-8")
    run.say(text)
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
    controller, plan_with = study.initial(method), search(config)
    learned = {"cost": [controller.weights, controller.goal], "dynamics": [controller.dynamics]}
    optimizer = torch.optim.Adam(learned.get(method, [*controller.parameters()]), lr=config.lr)
    schedule = Schedule(optimizer, "cosine", config.num_updates, 0)
    generator = torch.Generator().manual_seed(config.seed)
    run.track(controller=controller, optimizer=optimizer, schedule=schedule, generator=generator)
    if run.step == 0:
        _log(study, controller, run, 0)
    for step in run.steps(config.num_updates, config.eval_every, method):
        states, plans = study.batch(generator, config.batch_size)
        planned = controller.planner(plan_with)(states, generator=generator).actions
        error = ((planned - plans) / study.task.max_action)[..., : config.matched_steps, :].square().mean((-2, -1))
        # Where the plan is on another branch (it swings the other way) the derivative of the plan knows no way back.
        loss = (error / (1 + error / config.cutoff**2)).mean(-1).sum()  # runs share no parameter
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % config.eval_every == 0 or step == config.num_updates:
            _log(study, controller, run, step)
    return study.report(controller.policy(), controller)


def _clone(study: Study, run: Run) -> dict[str, list[float]]:
    """Behaviour cloning: a network a run, fitted to the first actions."""
    config = study.config
    networks = Networks(study.task, [seed for _, seed in study.runs])
    optimizer = torch.optim.Adam(networks.parameters(), lr=3e-3)
    schedule = Schedule(optimizer, "cosine", config.network_updates, 0)
    generator = torch.Generator().manual_seed(config.seed)
    run.track(networks=networks, optimizer=optimizer, schedule=schedule, generator=generator)
    every = max(1, config.network_updates // 5)
    for _ in run.steps(config.network_updates, every, "network"):
        states, plans = study.batch(generator, 64)
        error = networks(states)[..., 0, :] - plans[..., 0, :]
        loss = (error / study.task.max_action).square().mean((-2, -1)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
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
