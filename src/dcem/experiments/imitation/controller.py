"""The expert and the learners: planners whose parameters are learned, and how they are judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import dcem
from dcem.control import MPC, closed_loop
from dcem.control.systems import System
from dcem.embedding import SplineDecoder
from dcem.experiments.harness.processes import shard
from dcem.experiments.imitation.task import Task, true_plant

HORIZON, KNOTS = 12, 4


class Search(NamedTuple):
    """How a plan is searched for."""

    num_samples: int
    num_elites: int
    num_iterations: int
    selection: Callable[[Tensor, float], Tensor]
    gradient: dcem.gradients.GradientMode


EXPERT = Search(128, 16, 10, dcem.HardTopK(), dcem.Detach())
"""The expert's search, and that of every learner when it is judged."""


class Controller(nn.Module):
    """A planner whose parameters are learned: dynamics and weights by their logarithms, the goal as it is.

    Several runs of an experiment are one batch: parameters are `(*runs, n)`, for states `(*runs, batch, *s)`, where
    `*runs` is one axis or none.
    """

    def __init__(self, task: Task, dynamics: Tensor, weights: Tensor, goal: Tensor) -> None:
        super().__init__()
        self.task = task
        self.dynamics, self.weights, self.goal = (nn.Parameter(of.clone()) for of in (dynamics, weights, goal))

    @classmethod
    def true(cls, task: Task) -> Controller:
        """The expert's."""
        dynamics, weights, goal = (torch.tensor([*of.values()]) for of in (task.dynamics, task.weights, task.goal))
        return cls(task, dynamics.log(), weights.log(), goal)

    @classmethod
    def wrong(cls, task: Task, by: float, seeds: Sequence[int]) -> Controller:
        """A run a seed, its logarithms off by `by` (root mean square) in a random direction, its goal by half of it."""
        truth = cls.true(task)

        def off(values: Tensor, by: float) -> Tensor:
            direction = torch.stack([torch.randn(len(values), generator=generator) for generator in generators])
            return values.detach() + by * direction / direction.square().mean(-1, keepdim=True).sqrt()

        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return cls(task, off(truth.dynamics, by), off(truth.weights, by), off(truth.goal, by / 2))

    def system(self) -> System:
        """The learner's model; gradients reach `dynamics` through it."""
        return self.task.system(*_spread(self.dynamics.exp()))

    def cost(self, state: Tensor, action: Tensor) -> Tensor:
        """The learner's cost, of any leading axes."""
        terms = self.task.terms(state, action, _spread(self.goal))
        costs = [weight * term for weight, term in zip(_spread(self.weights.exp()), terms, strict=True)]
        return torch.stack(torch.broadcast_tensors(*costs)).sum(0)  # type: ignore[no-untyped-call]

    def planner(self, search: Search, system: System | None = None) -> MPC:
        """The controller as its parameters are now; `system` is a model to plan with instead of its own."""
        system = self.system() if system is None else system
        return MPC(
            system,
            self.cost,
            HORIZON,
            1,
            system.bounds,
            dcem.CEM(search.num_samples, search.num_elites, search.selection),
            num_iterations=search.num_iterations,
            gradient=search.gradient,
            decoder=SplineDecoder(KNOTS, (HORIZON, 1)),
            latent_bounds=system.bounds,
            init_std=system.bounds[1] / 2,
            noise=common_noise,
            shard=shard(),
        )

    def policy(self, system: System | None = None) -> Callable[[Tensor], Tensor]:
        """State to planned actions `(*batch, H, *a)`, the same for the same state at all times."""
        planner = self.planner(EXPERT, system)
        return lambda state: planner(state, generator=torch.Generator().manual_seed(0)).actions


def _spread(parameters: Tensor) -> tuple[Tensor, ...]:
    """Parameters `(*runs, n)`, each with axes for a batch of states and for candidates."""
    return tuple(of[..., None, None] if of.dim() else of for of in parameters.unbind(-1))


def common_noise(shape: tuple[int, ...], *, generator: torch.Generator | None, **kind: Any) -> Tensor:
    """The same draws for all states of a batch, so that an action depends on nothing but its state."""
    return torch.randn(shape[-3:], generator=generator, **kind).expand(shape)


class Demonstrations(NamedTuple):
    """What a policy did: `states` `(*runs, num, steps + 1, *s)`, and its `plans` `(*runs, num, steps, H, *a)`.

    The first action of each plan was applied.
    """

    states: Tensor
    plans: Tensor

    @property
    def actions(self) -> Tensor:
        """The applied actions, `(*runs, num, steps, *a)`."""
        return self.plans[..., 0, :]

    def pairs(self) -> tuple[Tensor, Tensor]:
        """States and what was planned in them, `(*runs, num · steps, ...)`."""
        return self.states[..., :-1, :].flatten(-3, -2), self.plans.flatten(-4, -3)

    def first(self, num: int) -> Demonstrations:
        """The first trajectories alone."""
        return Demonstrations(self.states[:num], self.plans[:num])


@torch.no_grad()
def drive(policy: Callable[[Tensor], Tensor], plant: System, states: Tensor, steps: int) -> Demonstrations:
    """Apply the first actions of a policy's plans to the plant, from `states` `(*runs, num, *s)`."""
    plans: list[Tensor] = []

    def first(state: Tensor) -> Tensor:
        plans.append(policy(state))
        return plans[-1][..., :1, :]

    visited, _ = closed_loop(first, plant, states, steps)
    return Demonstrations(visited, torch.stack(plans, -3))


def demonstrate(task: Task, matched: bool, num: int, steps: int, seed: int) -> Demonstrations:
    """Trajectories of the expert, which plans with the plant itself, from initial states of the task."""
    plant = true_plant(task, matched)
    states = task.starts(num, torch.Generator().manual_seed(seed))
    return drive(Controller.true(task).policy(plant), plant, states, steps)


@torch.no_grad()
def parameter_errors(controller: Controller) -> dict[str, Tensor]:
    """Root mean square errors `(*runs,)`: of dynamics and weights (up to their scale) relative, those of logarithms."""
    truth = Controller.true(controller.task)
    weights = controller.weights - truth.weights
    errors = {
        "dynamics_error": (controller.dynamics - truth.dynamics) @ controller.task.identifiable.T,
        "cost_error": weights - weights.mean(-1, keepdim=True),
        "goal_error": controller.goal - truth.goal,
    }
    return {name: error.square().mean(-1).sqrt() for name, error in errors.items()}


def residuals(model: System, demonstrations: Demonstrations) -> Tensor:
    """Errors of the next state, each coordinate in units of the standard deviation of its change."""
    before, after = demonstrations.states[..., :-1, :], demonstrations.states[..., 1:, :]
    scale = (after - before).flatten(0, -2).std(0)
    return (model(before, demonstrations.actions) - after) / scale


def running_cost(task: Task, demonstrations: Demonstrations) -> Tensor:
    """The expert's cost of what was done, a step on average over time and initial states, `(*runs,)`."""
    with torch.no_grad():
        return Controller.true(task).cost(demonstrations.states[..., :-1, :], demonstrations.actions).mean((-2, -1))
