"""What the fine-tuning experiment controls: plants as environments, and controllers that are wrong about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchrl.envs import StepCounter, Transform, TransformedEnv

import dcem
from dcem.control import MPC, rollout
from dcem.control.systems import Cartpole, Pendulum, System
from dcem.experiments.harness.processes import shard
from dcem.gradients import GradientMode
from dcem.rl import SystemEnv

WRONG = {"model": "wrong model", "cost": "wrong cost"}


@dataclass(frozen=True)
class Task:
    """A plant, its task, and what the controllers believe of both.

    Attributes:
        system: from physical parameters by name to a plant.
        physics: the true parameters.
        believed: the wrong ones, off by 30 to 50 %.
        terms: `(state, action)` to the terms of a controller's cost, each `(...,)`.
        weights: of the terms in the task's own cost.
        shaped: of the terms in a hand-made cost, which is not the task's.
        num_steps: of an episode.
        horizon: of the controllers.
        num_iterations: of their search.
        noise: of their search.
        init_std: how wide their search starts.
        std: of the exploration around their plans.
        reward_scale: by which rewards are multiplied before learning; returns are reported as they are.
        units: of the observation's entries, in which SAC's networks see it.
    """

    system: Callable[..., System]
    physics: dict[str, float]
    believed: dict[str, float]
    terms: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
    weights: tuple[float, ...]
    shaped: tuple[float, ...]
    num_steps: int
    horizon: int
    num_iterations: int
    noise: Callable[..., Tensor]
    init_std: float
    std: float
    reward_scale: float
    units: tuple[float, ...]

    def plant(self) -> System:
        """The true one."""
        return self.system(**self.physics)


def _pendulum_terms(state: Tensor, action: Tensor) -> tuple[Tensor, ...]:
    angle = torch.atan2(state[..., 1], state[..., 0])
    return angle.square(), state[..., 2].square(), action[..., 0].square()


def _cartpole_terms(state: Tensor, action: Tensor) -> tuple[Tensor, ...]:
    position, velocity, cos, _, speed = state.unbind(-1)
    return 1 - cos, position.square(), action[..., 0].square(), velocity.square(), speed.square()


TASKS = {
    "pendulum": Task(
        system=Pendulum,
        physics={"mass": 1.0, "length": 1.0},
        believed={"mass": 0.6, "length": 0.7},
        terms=_pendulum_terms,
        weights=(1.0, 0.1, 0.001),
        shaped=(1.0, 1.0, 0.1),
        num_steps=200,
        horizon=20,
        num_iterations=2,
        noise=dcem.ColoredNoise(1.0, dim=-2),
        init_std=1.5,
        std=1.0,
        reward_scale=0.1,
        units=(1.0, 1.0, 4.0),
    ),
    "cartpole": Task(
        system=lambda **physics: Cartpole(max_force=10.0, **physics),
        physics={"cart_mass": 1.0, "pole_mass": 0.1, "half_length": 0.5, "damping": 0.01},
        believed={"cart_mass": 0.6, "pole_mass": 0.06, "half_length": 0.35, "damping": 0.006},
        terms=_cartpole_terms,
        weights=(1.0, 0.1, 1e-5, 1e-4, 1e-4),
        shaped=(1.0, 0.5, 1e-3, 0.3, 0.1),
        num_steps=100,
        horizon=25,
        num_iterations=3,
        noise=dcem.WhiteNoise(),
        init_std=5.0,
        std=4.0,
        reward_scale=0.2,
        units=(1.0, 3.0, 1.0, 1.0, 6.0),
    ),
}


class LearnedSystem(nn.Module):
    """A plant whose positive physical parameters are learned, as logarithms."""

    def __init__(self, task: Task, physics: dict[str, float]) -> None:
        super().__init__()
        self.task, self.names = task, tuple(physics)
        self.log = nn.Parameter(torch.tensor([*physics.values()]).log())

    def system(self) -> System:
        """With the parameters as they are now."""
        return self.task.system(**dict(zip(self.names, self.log.exp().unbind(), strict=True)))

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        return self.system()(state, action)

    def rollout(self, state: Tensor, actions: Tensor) -> Tensor:
        """Whole sequences, of which each step is of one system."""
        states: Tensor = rollout(self.system(), state, actions)
        return states


class LearnedCost(nn.Module):
    """A sum of terms whose positive weights are learned, as logarithms."""

    def __init__(self, task: Task, weights: tuple[float, ...]) -> None:
        super().__init__()
        self.task = task
        self.log = nn.Parameter(torch.tensor(weights).log())

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        terms = self.task.terms(state, action)
        return sum((weight * term for weight, term in zip(self.log.exp(), terms, strict=True)), start=torch.zeros(()))


def controller(task: Task, wrong: str | None, gradient: GradientMode, num_samples: int, num_elites: int) -> MPC:
    """The controller that is wrong about the `model` or the `cost`, or about nothing; what is wrong can be learned."""
    model = LearnedSystem(task, task.believed if wrong == "model" else task.physics)
    cost = LearnedCost(task, task.shaped if wrong == "cost" else task.weights)
    return MPC(
        model.requires_grad_(wrong == "model"),
        cost.requires_grad_(wrong == "cost"),
        task.horizon,
        1,
        task.plant().bounds,
        dcem.CEM(num_samples, num_elites, dcem.LML(temperature=0.1)),
        num_iterations=task.num_iterations,
        gradient=gradient,
        noise=task.noise,
        init_std=task.init_std,
        shard=shard(),
    )


def make_env(task: Task, num_envs: int, seed: int, *transforms: Transform) -> TransformedEnv:
    """Episodes of the task, which end for all at once, by the clock."""
    env = TransformedEnv(SystemEnv(task.plant(), num_envs, seed), StepCounter(max_steps=task.num_steps))
    for transform in transforms:
        env.append_transform(transform)
    return env
