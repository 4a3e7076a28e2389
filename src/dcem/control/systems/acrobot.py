"""Two links, of which only the joint between them is driven."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dcem.bounds import clip
from dcem.control.systems.base import System, columns, joined, uniform
from dcem.control.systems.drawing import Circle, Line, Shape, View


class Acrobot(System):
    """A double pendulum, to be swung up by a motor in the joint between its links.

    State `(cos θ₁, sin θ₁, cos θ₂, sin θ₂, θ̇₁, θ̇₂)`: `θ₁` is the first link's angle from hanging straight down,
    `θ₂` the second link's angle from the first's direction; speeds in rad/s, limited to ±4π and ±9π. Action: the
    torque on the second link, N·m. The task's cost is the tip's depth below its highest point, in m, plus
    `0.01 (θ̇₁² + θ̇₂²) + 0.001 u²`.

    Args:
        gravity: m/s².
        mass1: of the first link, kg.
        mass2: of the second link, kg.
        length1: of the first link, m.
        length2: of the second link, m.
        centre1: how far along the first link its centre of mass is, m.
        centre2: how far along the second link its centre of mass is, m.
        inertia1: of the first link about its centre of mass, kg·m².
        inertia2: of the second link about its centre of mass, kg·m².
        max_torque: the most that the motor gives, N·m.
        dt: seconds a step.

    Raises:
        TypeError: a parameter is neither a number nor a Tensor.
        ValueError: `dt` or the limit of the action is not above 0; in a call, state or action has another shape.

    Example:
        >>> import torch
        >>> from dcem.control.systems import Acrobot
        >>> hanging = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 0.0])
        >>> Acrobot()(hanging, torch.tensor([1.0]))[-2:].round(decimals=2)  # the second link swings out
        tensor([-0.1300,  0.3300])

    Source: Sutton & Barto, "Reinforcement Learning", in Gymnasium's `Acrobot-v1`, whose step by the classical
    Runge-Kutta method this is, with any torque in place of three.
    """

    state_shape = (6,)
    action_shape = (1,)
    max_speeds = (4 * math.pi, 9 * math.pi)
    view = View(-2.3, 2.3, -2.3, 2.3)
    gravity: Tensor | float
    mass1: Tensor | float
    mass2: Tensor | float
    length1: Tensor | float
    length2: Tensor | float
    centre1: Tensor | float
    centre2: Tensor | float
    inertia1: Tensor | float
    inertia2: Tensor | float

    def __init__(
        self,
        gravity: Tensor | float = 9.8,
        mass1: Tensor | float = 1.0,
        mass2: Tensor | float = 1.0,
        length1: Tensor | float = 1.0,
        length2: Tensor | float = 1.0,
        centre1: Tensor | float = 0.5,
        centre2: Tensor | float = 0.5,
        inertia1: Tensor | float = 1.0,
        inertia2: Tensor | float = 1.0,
        *,
        max_torque: float = 1.0,
        dt: float = 0.2,
    ):
        super().__init__(
            dt=dt,
            bounds=(-max_torque, max_torque),
            gravity=gravity,
            mass1=mass1,
            mass2=mass2,
            length1=length1,
            length2=length2,
            centre1=centre1,
            centre2=centre2,
            inertia1=inertia1,
            inertia2=inertia2,
        )

    def _step(self, state: Tensor, action: Tensor) -> Tensor:
        cos1, sin1, cos2, sin2, speed1, speed2 = columns(state)
        angles = torch.atan2(torch.stack((sin1, sin2)), torch.stack((cos1, cos2)))
        start = torch.cat((angles, torch.stack((speed1, speed2))))
        torque, derivative = action[..., 0], self._equations()
        k1 = derivative(start, torque)
        k2 = derivative(start.add(k1, alpha=self.dt / 2), torque)
        k3 = derivative(start.add(k2, alpha=self.dt / 2), torque)
        k4 = derivative(start.add(k3, alpha=self.dt), torque)
        end = start.add((k1 + k4).add(k2 + k3, alpha=2), alpha=self.dt / 6)
        cos1, cos2 = end[:2].cos()
        sin1, sin2 = end[:2].sin()
        limit1, limit2 = self.max_speeds
        return joined(cos1, sin1, cos2, sin2, clip(end[2], -limit1, limit1), clip(end[3], -limit2, limit2))

    def _equations(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The time derivative of `(θ₁, θ₂, θ̇₁, θ̇₂)`, all on the first axis, under a torque."""
        # The mass matrix is [[a + 2b cos θ₂, c + b cos θ₂], [c + b cos θ₂, c]].
        b = self.mass2 * self.length1 * self.centre2
        c = self.mass2 * self.centre2**2 + self.inertia2
        a = self.mass1 * self.centre1**2 + self.mass2 * self.length1**2 + self.inertia1 + c
        weight1 = (self.mass1 * self.centre1 + self.mass2 * self.length1) * self.gravity
        weight2 = self.mass2 * self.centre2 * self.gravity

        def derivative(at: Tensor, torque: Tensor) -> Tensor:
            angle1, angle2, speed1, speed2 = at.unbind()
            cos, sin = b * angle2.cos(), b * angle2.sin()
            m11, m12 = a + 2 * cos, c + cos
            bend = weight2 * (angle1 + angle2).sin()
            force1 = weight1 * angle1.sin() + bend - sin * (speed2 * (speed2 + 2 * speed1))
            force2 = torque - bend - sin * speed1.square()
            ratio = m12 / m11
            acceleration2 = (force2 + ratio * force1) / (c - ratio * m12)
            acceleration1 = -ratio * acceleration2 - force1 / m11
            return torch.stack((speed1, speed2, acceleration1, acceleration2))

        return derivative

    def _cost(self, state: Tensor, action: Tensor) -> Tensor:
        cos1, sin1, cos2, sin2, speed1, speed2 = columns(state)
        depth = self.length1 * (1 + cos1) + self.length2 * (1 + cos1 * cos2 - sin1 * sin2)
        effort = 0.01 * (speed1.square() + speed2.square()) + 0.001 * action[..., 0].square()
        return depth + effort

    def sample_states(
        self,
        num: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """As Gymnasium resets: nearly hanging still, all four within ±0.1. `(num, 6)`."""
        angle1, angle2, speed1, speed2 = uniform(num, (0.1, 0.1, 0.1, 0.1), generator, dtype, device)
        return torch.stack((angle1.cos(), angle1.sin(), angle2.cos(), angle2.sin(), speed1, speed2), -1)

    def shapes(self, state: Tensor) -> list[Shape]:
        """Two links and their joints."""
        cos1, sin1, cos2, sin2, *_ = state.tolist()
        first, second = float(self.length1), float(self.length2)
        elbow = (first * sin1, -first * cos1)
        tip = (elbow[0] + second * (sin1 * cos2 + cos1 * sin2), elbow[1] - second * (cos1 * cos2 - sin1 * sin2))
        return [
            Circle("goal", (0.0, first + second), 0.12),
            Line("body", ((0.0, 0.0), elbow), 0.16),
            Line("link", (elbow, tip), 0.12),
            Circle("joint", (0.0, 0.0), 0.06),
            Circle("joint", elbow, 0.06),
        ]
