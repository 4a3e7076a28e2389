"""Fit by likelihood, learn end to end, degrade."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from dcem.control import MPC, rollout
from dcem.experiments.harness.run import Run
from dcem.experiments.harness.training import Schedule, choose_device
from dcem.experiments.mismatch.deployment import controller, evaluation, references, report
from dcem.experiments.mismatch.settings import Config
from dcem.experiments.mismatch.states import Task, make_task
from dcem.experiments.mismatch.task import DynamicsNet, Plant, Transitions, squared_errors


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


class Best:
    """The weights that were best on validation; part of a checkpoint."""

    def __init__(self) -> None:
        self.score, self.weights = -math.inf, dict[str, Tensor]()

    def see(self, score: float, model: nn.Module) -> None:
        """Keep them if they are better."""
        if score > self.score:
            self.score, self.weights = score, {key: t.detach().clone() for key, t in model.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"score": self.score, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.score, self.weights = state["score"], state["weights"]


def train(
    run: Run,
    model: DynamicsNet,
    update: Callable[[torch.optim.Optimizer], float],
    evaluate: Callable[[], dict[str, float]],
    num_updates: int,
    lr: float,
    eval_every: int,
    **state: Any,
) -> None:
    """Updates with evaluations; the weights of the highest `score` stay. `state` is what else a checkpoint holds."""
    optimizer, best = torch.optim.Adam(model.parameters(), lr=lr), Best()
    schedule = Schedule(optimizer, "cosine", num_updates, 0)
    run.track(model=model, optimizer=optimizer, schedule=schedule, best=best, **state)
    if run.step == 0:
        metrics = evaluate()
        run.log(0, **metrics)
        best.see(metrics["score"], model)
    for step in run.steps(num_updates, eval_every, run.folder.name):
        loss = update(optimizer)
        schedule.step()
        if step % eval_every == 0 or step == num_updates:
            metrics = evaluate()
            run.log(step, loss=loss, **metrics)
            best.see(metrics["score"], model)
    model.load_state_dict(best.weights)


def fit(run: Run, task: Task, config: Config, width: int) -> DynamicsNet:
    """Maximum likelihood: what the data say of one step, the weights chosen by other data."""
    torch.manual_seed(config.seed)
    model = DynamicsNet(width, task.train).to(task.train.state.device)
    generator = torch.Generator(task.train.state.device).manual_seed(config.seed)

    def update(optimizer: torch.optim.Optimizer) -> float:
        size = (config.fit_batch_size,)
        chosen = torch.randint(len(task.train.state), size, generator=generator, device=generator.device)
        return descend(optimizer, squared_errors(model, Transitions(*(t[chosen] for t in task.train))).mean())

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        error = squared_errors(model, task.valid).mean().item()
        return {"mse": error, "score": -error}

    every = max(1, config.fit_updates // 10)
    train(run, model, update, evaluate, config.fit_updates, config.fit_lr, every, generator=generator)
    return model


def learn(run: Run, task: Task, config: Config, model: DynamicsNet) -> DynamicsNet:
    """End to end: lower the true cost of what the model plans, from the weights that it has."""
    mpc, systems = controller(model, task.plant, config, soft=True), Systems(task.plant, config)

    def update(optimizer: torch.optim.Optimizer) -> float:
        return descend(optimizer, systems.cost(mpc), config.grad_clip)

    def evaluate() -> dict[str, float]:
        return evaluation(model, task, config)

    train(run, model, update, evaluate, config.num_updates, config.lr, config.eval_every, systems=systems)
    return model


def degrade(run: Run, task: Task, config: Config, model: DynamicsNet, allowed: DynamicsNet) -> DynamicsNet:
    """The adversary: raise the true cost of what the model plans, at errors no larger than those of another model.

    After each step up the cost, steps down the errors (of the training or of the validation data, whichever have grown
    more) as long as they are larger.
    """
    mpc, systems = controller(model, task.plant, config, soft=True), Systems(task.plant, config)
    sets = (task.train, task.valid)
    with torch.no_grad():
        limits = torch.stack([squared_errors(allowed, data).mean() for data in sets])

    def excess() -> Tensor:
        return (torch.stack([squared_errors(model, data).mean() for data in sets]) / limits).max() - 1

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

    def evaluate() -> dict[str, float]:
        metrics = evaluation(model, task, config)
        with torch.no_grad():
            kept = float(excess()) <= 0.001
        return {**metrics, "score": -metrics["return"] if kept else -math.inf}

    train(run, model, update, evaluate, config.num_updates, config.lr, config.eval_every, systems=systems)
    return model


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, grad_clip: float = math.inf) -> float:
    """One step down a loss."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_((p for group in optimizer.param_groups for p in group["params"]), grad_clip)
    optimizer.step()
    return loss.item()


def main(config: Config, run: Run) -> dict[str, dict[str, float]]:
    """All models of one seed, each a run in its own folder; returns what they reach."""
    plain: Any = OmegaConf.to_container(OmegaConf.structured(config))
    task, metrics = make_task(config), dict[str, dict[str, float]]()
    metrics |= references(task, config)

    def part(name: str, task: Task, training: Callable[..., DynamicsNet], *arguments: Any) -> DynamicsNet:
        with Run(
            run.folder / name, plain, seed=config.seed, device=run.device, command=run.command, resume=run.resume
        ) as inner:
            inner.verbose, inner.quiet = False, run.quiet
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
