"""Fit by likelihood, learn end to end, degrade."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dcem.control import MPC, rollout
from dcem.experiments.harness.run import Run
from dcem.experiments.harness.settings import choose_device
from dcem.experiments.harness.training import Best, Schedule, descend, training_loop
from dcem.experiments.mismatch.deployment import controller, evaluation, references, report
from dcem.experiments.mismatch.settings import Config
from dcem.experiments.mismatch.task import Plant, Task, make_task
from dcem.world import DynamicsNet, Transitions

FAR = 1e9
"""Worse than any return: what the errors that are too large are multiplied with."""


class Systems:
    """Systems under control, and what draws for them; part of a checkpoint."""

    def __init__(self, plant: Plant, config: Config) -> None:
        self.plant, self.config = plant, config
        self.generator = torch.Generator(choose_device(config.device)).manual_seed(config.seed)
        self.states = plant.sample_states(config.batch_size, self.generator)

    def cost(self, mpc: MPC) -> Tensor:
        """Execute a few plans, a few steps each: the true cost a step, differentiable through plant and plans."""
        config, states, costs = self.config, self.states, list[Tensor]()
        for _ in range(config.num_replans):
            actions = mpc(states, generator=self.generator).actions[:, : config.num_executed]
            visited = rollout(self.plant, states, actions)
            costs.append(self.plant.cost(visited[:, :-1], actions).mean())
            states = visited[:, -1]
        fresh = self.plant.sample_states(config.batch_size, self.generator)
        draws = torch.rand(config.batch_size, 1, generator=self.generator, device=fresh.device)
        self.states = torch.where(draws < config.restart, fresh, states.detach())
        return torch.stack(costs).mean()

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"states": self.states, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.states = state["states"]
        self.generator.set_state(state["generator"].cpu())


def train(
    run: Run,
    model: DynamicsNet,
    update: Callable[[torch.optim.Optimizer], float],
    evaluate: Callable[[], tuple[dict[str, float], float]],
    num_updates: int,
    lr: float,
    eval_every: int,
    **state: Any,
) -> None:
    """Updates with evaluations, each of some metrics and a value; the weights of the lowest value stay. `state` is
    what else a checkpoint holds.
    """
    optimizer, best = torch.optim.Adam(model.parameters(), lr=lr), Best()
    schedule = Schedule(optimizer, num_updates)
    run.track(model=model, optimizer=optimizer, schedule=schedule, best=best, **state)

    def evaluation(step: int, lr: float = 0.0, **loss: float) -> None:
        metrics, value = evaluate()
        run.log(step, **loss, **metrics)
        best.see(value, model)

    training_loop(
        run, num_updates, lambda step: update(optimizer), evaluation, schedule, eval_every=eval_every,
        description=run.folder.name,
    )  # fmt: skip
    best.restore(model)


def fit(run: Run, task: Task, config: Config, width: int) -> DynamicsNet:
    """Maximum likelihood: what the data say of one step, the weights chosen by other data."""
    torch.manual_seed(config.seed)
    model = DynamicsNet(width, task.train).to(task.train.state.device)
    generator = torch.Generator(task.train.state.device).manual_seed(config.seed)

    def update(optimizer: torch.optim.Optimizer) -> float:
        size = (config.fit_batch_size,)
        chosen = torch.randint(len(task.train.state), size, generator=generator, device=generator.device)
        return descend(optimizer, model.squared_errors(Transitions(*(t[chosen] for t in task.train))).mean())

    @torch.no_grad()
    def evaluate() -> tuple[dict[str, float], float]:
        error = model.squared_errors(task.valid).mean().item()
        return {"mse": error}, error

    every = max(1, config.fit_updates // 10)
    train(run, model, update, evaluate, config.fit_updates, config.fit_lr, every, generator=generator)
    return model


def learn(run: Run, task: Task, config: Config, model: DynamicsNet) -> DynamicsNet:
    """End to end: lower the true cost of what the model plans, from the weights that it has."""
    mpc, systems = controller(model, task.plant, config, soft=True), Systems(task.plant, config)

    def update(optimizer: torch.optim.Optimizer) -> float:
        return descend(optimizer, systems.cost(mpc), config.grad_clip)

    def evaluate() -> tuple[dict[str, float], float]:
        metrics = evaluation(model, task, config)
        return metrics, -metrics["return"]

    train(run, model, update, evaluate, config.num_updates, config.lr, config.eval_every, systems=systems)
    return model


def degrade(run: Run, task: Task, config: Config, model: DynamicsNet, allowed: DynamicsNet) -> DynamicsNet:
    """The adversary: raise the true cost of what the model plans, at errors no larger than those of another model.

    After each step up the cost, steps down the errors (of the training or of the validation data, whichever have grown
    more) as long as they are larger. Of a model that is too small for such errors the weights nearest to them stay.
    """
    mpc, systems = controller(model, task.plant, config, soft=True), Systems(task.plant, config)
    sets = (task.train, task.valid)
    with torch.no_grad():
        limits = torch.stack([allowed.squared_errors(data).mean() for data in sets])

    def excess() -> Tensor:
        return (torch.stack([model.squared_errors(data).mean() for data in sets]) / limits).max() - 1

    def update(optimizer: torch.optim.Optimizer) -> float:
        loss = descend(optimizer, -systems.cost(mpc), config.grad_clip)
        parameters = list(model.parameters())
        for _ in range(50):
            over = excess()
            if over <= 0:
                break
            gradients = torch.autograd.grad(over, parameters)
            norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(over / norm * gradient)  # Polyak's step, to where they would be as large
        return -loss

    def evaluate() -> tuple[dict[str, float], float]:
        metrics = evaluation(model, task, config)
        with torch.no_grad():
            over = float(excess())
        return metrics, metrics["return"] if over <= 0.001 else FAR * (1 + over)

    train(run, model, update, evaluate, config.num_updates, config.lr, config.eval_every, systems=systems)
    return model


def main(config: Config, run: Run) -> dict[str, dict[str, float]]:
    """All models of one seed, each a run in its own folder; returns what they reach."""
    task, metrics = make_task(config), dict[str, dict[str, float]]()
    metrics |= references(task, config)

    def part(name: str, task: Task, training: Callable[..., DynamicsNet], *arguments: Any) -> DynamicsNet:
        with run.part(name) as inner:
            model = training(inner, task, config, *arguments)
            metrics[name] = report(model, task, config)
            inner.finish(**metrics[name])
        run.say(f"{name}: " + "  ".join(f"{key} {value:.4g}" for key, value in metrics[name].items()))
        return model

    def both(task: Task, width: int, suffix: str) -> DynamicsNet:
        model = part(f"likelihood-{suffix}", task, fit, width)
        part(f"end-to-end-{suffix}", task, learn, copy.deepcopy(model))
        return model

    fitted = {width: both(task, width, f"width-{width}") for width in config.widths}
    for reference in config.adversary_references:
        model = copy.deepcopy(fitted[config.adversary_width])
        model = part(f"adversary-{reference}", task, degrade, model, fitted[reference])
        part(f"recovered-{reference}", task, learn, model)
    for num in config.distractors:
        both(make_task(config, num), config.distractor_width, f"distractors-{num}")
    run.finish(**metrics)
    return metrics
