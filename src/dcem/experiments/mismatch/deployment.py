"""Controllers that plan with a model, and what they return."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import dcem
from dcem.control import MPC, Plan, closed_loop
from dcem.experiments.harness.processes import shard
from dcem.experiments.mismatch.settings import TEST_SEED, Config
from dcem.experiments.mismatch.task import TASK_DIMS, Plant, Task
from dcem.world import DynamicsNet

Policy = Callable[[Tensor], Tensor]
"""From states `(n, num_states)` to the actions of some steps ahead, `(n, any, 1)`."""


def controller(model: nn.Module, plant: Plant, config: Config, *, soft: bool) -> MPC:
    """The planner of all models, with DCEM's selection or CEM's."""
    selection = dcem.LML(config.temperature) if soft else dcem.HardTopK()
    solver = dcem.CEM(config.num_samples, config.num_elites, selection, init_std=plant.bounds[1] / 2)
    options = {"num_iterations": config.num_iterations, "shard": shard()}
    return MPC(model, plant.cost, config.horizon, 1, plant.bounds, solver, **options)


def planning(model: nn.Module, plant: Plant, config: Config, *, soft: bool, num_executed: int) -> Policy:
    """Plan, and hand out the first actions of the plan. With one alone, each plan starts from the one before."""
    mpc = controller(model, plant, config, soft=soft)
    plan: Plan | None = None
    generator = torch.Generator(plant.turn.device).manual_seed(TEST_SEED)

    def act(states: Tensor) -> Tensor:
        nonlocal plan
        before = plan if num_executed == 1 else None
        plan = mpc(states, warm_start=before, generator=generator, gradient=dcem.Detach())
        return plan.actions[:, :num_executed]

    return act


@torch.no_grad()
def returns(policy: Policy, plant: Plant, states: Tensor, num_steps: int) -> float:
    """Minus the true cost of an episode of closed loop, on average."""
    visited, actions = closed_loop(policy, plant, states, num_steps)
    return -plant.cost(visited[:, :-1], actions).sum(-1).mean().item()


@torch.no_grad()
def evaluation(model: DynamicsNet, task: Task, config: Config) -> dict[str, float]:
    """On validation data, during training. The model is chosen by the return with the selection of deployment."""
    policy = planning(model, task.plant, config, soft=False, num_executed=config.num_executed)
    mean = returns(policy, task.plant, task.valid_states, config.num_steps)
    return {"mse": model.squared_errors(task.valid).mean().item(), "return": mean}


@torch.no_grad()
def report(model: DynamicsNet, task: Task, config: Config) -> dict[str, float]:
    """On test data and test states: as deployed, with the soft selection of training, and with a plan at every step."""
    errors = model.squared_errors(task.test)
    metrics = {"mse": errors.mean().item(), "task_mse": errors[:TASK_DIMS].mean().item()}
    return metrics | deployed(model, task, config)


def deployed(model: nn.Module, task: Task, config: Config) -> dict[str, float]:
    """Returns of planning with a model, for the three ways to deploy it."""
    ways = {"return": (False, config.num_executed), "return_soft": (True, config.num_executed)}
    ways |= {"return_every_step": (False, 1)}
    metrics = {}
    for key, (soft, num_executed) in ways.items():
        policy = planning(model, task.plant, config, soft=soft, num_executed=num_executed)
        metrics[key] = returns(policy, task.plant, task.test_states, config.num_steps)
    return metrics


def references(task: Task, config: Config) -> dict[str, dict[str, float]]:
    """What planning with the true model returns, and what no plan returns."""
    generator = torch.Generator(task.test_states.device).manual_seed(TEST_SEED)
    low, high = task.plant.bounds
    policies: dict[str, Policy] = {
        "random": lambda states: (
            low + (high - low) * torch.rand(len(states), 1, 1, generator=generator, device=states.device)
        ),
        "zero": lambda states: states.new_zeros(len(states), 1, 1),
    }
    metrics = {"true-model": deployed(task.plant, task, config)}
    for name, policy in policies.items():
        metrics[name] = {"return": returns(policy, task.plant, task.test_states, config.num_steps)}
    return metrics
