"""Systems with unknown parameters, and the costs of their experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dcem.control.systems import Cartpole, Pendulum, System


class SlopedCartpole(Cartpole):
    """A cart on a slope: a constant force pushes it, N."""

    def __init__(self, *parameters: Tensor | float, push: float, **settings: Any) -> None:
        super().__init__(*parameters, **settings)
        self.push = push

    def _step(self, state: Tensor, action: Tensor) -> Tensor:
        return super()._step(state, action + self.push)


@dataclass(frozen=True)
class Task:
    """A system and the cost of its expert, `Σ_i weights_i terms_i`.

    Attributes:
        system: From the learnable parameters in order, and `settings`, to a system.
        dynamics: The true parameters by name; all are positive.
        weights: The true weights of the cost's terms by name; all are positive.
        goal: Where the expert wants the system, by name.
        terms: `(state, action, goal)` to the terms of the cost, each `(...,)`.
        identifiable: Rows are the combinations of the logarithms of `dynamics` that the motion depends on.
        plant: From the true parameters to a plant that has what the learner's model lacks.
        starts: A number and a generator to initial states.
        max_action: The bound of the action, on which its errors are measured.
    """

    system: Callable[..., System]
    dynamics: dict[str, float]
    weights: dict[str, float]
    goal: dict[str, float]
    terms: Callable[[Tensor, Tensor, Sequence[Tensor]], tuple[Tensor, ...]]
    identifiable: Tensor
    plant: Callable[..., System]
    starts: Callable[[int, torch.Generator], Tensor]
    max_action: float


def _upright(cos: Tensor, sin: Tensor, goal: Tensor) -> Tensor:
    """`1 - cos(θ - goal)`."""
    return 1 - cos * goal.cos() - sin * goal.sin()


def _pendulum_starts(num: int, generator: torch.Generator) -> Tensor:
    """Up to 1 rad from upright: from farther below two ways lead up, and plans jump from one to the other."""
    angle, speed = ((2 * torch.rand(num, 2, generator=generator) - 1) * torch.tensor([1.0, 1.0])).unbind(-1)
    return torch.stack((angle.cos(), angle.sin(), speed), -1)


def _pendulum_terms(state: Tensor, action: Tensor, goal: Sequence[Tensor]) -> tuple[Tensor, ...]:
    cos, sin, speed = state.unbind(-1)
    return _upright(cos, sin, goal[0]), speed.square(), (action[..., 0] / 5.0).square()


def _cartpole_terms(state: Tensor, action: Tensor, goal: Sequence[Tensor]) -> tuple[Tensor, ...]:
    position, velocity, cos, sin, speed = state.unbind(-1)
    at, effort = (position - goal[1]).square(), (action[..., 0] / 20.0).square()
    return _upright(cos, sin, goal[0]), speed.square(), at, velocity.square(), effort


TASKS = {
    "pendulum": Task(
        system=lambda *parameters: Pendulum(*parameters, max_torque=5.0, dt=0.05),
        dynamics={"gravity": 10.0, "mass": 1.0, "length": 1.0},
        weights={"angle": 1.0, "speed": 0.05, "torque": 0.1},
        goal={"angle": 0.0},
        terms=_pendulum_terms,
        identifiable=torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 2.0]]),  # gravity / length, mass · length²
        plant=lambda *parameters: Pendulum(*parameters, damping=0.2, constant_torque=0.5, max_torque=5.0, dt=0.05),
        starts=_pendulum_starts,
        max_action=5.0,
    ),
    "cartpole": Task(
        system=lambda *parameters: Cartpole(*parameters, max_force=20.0, dt=0.05),
        dynamics={"gravity": 9.8, "cart_mass": 1.0, "pole_mass": 0.3, "half_length": 0.5},
        weights={"angle": 1.0, "pole_speed": 0.01, "position": 0.1, "velocity": 0.02, "force": 0.3},
        goal={"angle": 0.0, "position": 0.0},
        terms=_cartpole_terms,
        identifiable=torch.eye(4),
        plant=lambda *parameters: SlopedCartpole(*parameters, push=4.0, damping=0.1, max_force=20.0, dt=0.05),
        starts=lambda num, generator: Cartpole().sample_states(num, generator=generator),
        max_action=20.0,
    ),
}


def true_plant(task: Task, matched: bool) -> System:
    """The plant: of the learner's model class, or with damping and a constant force that the class lacks."""
    return (task.system if matched else task.plant)(*task.dynamics.values())
