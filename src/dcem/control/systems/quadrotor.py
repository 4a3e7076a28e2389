"""A quadrotor in a vertical plane."""

from __future__ import annotations

import torch
from torch import Tensor

from dcem.control.systems.base import System, columns, joined, rotated, uniform
from dcem.control.systems.drawing import Circle, Line, Shape, View


class Quadrotor(System):
    """A bar with a rotor at each end, in a vertical plane, to hover at the origin.

    State `(x, z, cos θ, sin θ, ẋ, ż, θ̇)`: the centre in m and m/s, `z` up; the bar's tilt `θ` counter-clockwise,
    rad/s. Action: the thrusts of the left and the right rotor, N, which cannot pull. The task's cost is
    `x² + z² + 1 - cos θ + 0.1 (ẋ² + ż² + θ̇²) + 0.01 |u - u₀|²`, where `u₀` holds the bar in the air.

    Args:
        gravity: m/s².
        mass: kg.
        arm: from the centre to a rotor, m.
        inertia: about the centre, kg·m².
        max_thrust: the most of one rotor, N.
        dt: seconds a step. Accelerations are held over it, so that free fall and turning on the spot are exact.

    Raises:
        TypeError: a parameter is neither a number nor a Tensor.
        ValueError: `dt` or the limit of the action is not above 0; in a call, state or action has another shape.

    Example:
        >>> import torch
        >>> from dcem.control.systems import Quadrotor
        >>> level = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
        >>> Quadrotor()(level, torch.tensor([4.9, 4.9])).equal(level)
        True
    """

    state_shape = (7,)
    action_shape = (2,)
    view = View(-2.4, 2.4, -1.8, 1.8)
    gravity: Tensor | float
    mass: Tensor | float
    arm: Tensor | float
    inertia: Tensor | float

    def __init__(
        self,
        gravity: Tensor | float = 9.8,
        mass: Tensor | float = 1.0,
        arm: Tensor | float = 0.3,
        inertia: Tensor | float = 0.06,
        *,
        max_thrust: float = 10.0,
        dt: float = 0.05,
    ):
        super().__init__(dt=dt, bounds=(0.0, max_thrust), gravity=gravity, mass=mass, arm=arm, inertia=inertia)

    def _step(self, state: Tensor, action: Tensor) -> Tensor:
        x, z, cos, sin, velocity_x, velocity_z, turn = columns(state)
        left, right = columns(action)
        lift = (left + right) / self.mass
        acceleration_x, acceleration_z = -lift * sin, lift * cos - self.gravity
        acceleration_turn = (right - left) * (self.arm / self.inertia)
        held = self.dt / 2  # x' = x + dt (ẋ + dt/2 ẍ)
        return joined(
            x.add(velocity_x.add(acceleration_x, alpha=held), alpha=self.dt),
            z.add(velocity_z.add(acceleration_z, alpha=held), alpha=self.dt),
            *rotated(cos, sin, self.dt * turn.add(acceleration_turn, alpha=held)),
            velocity_x.add(acceleration_x, alpha=self.dt),
            velocity_z.add(acceleration_z, alpha=self.dt),
            turn.add(acceleration_turn, alpha=self.dt),
        )

    def _cost(self, state: Tensor, action: Tensor) -> Tensor:
        x, z, cos, _, velocity_x, velocity_z, turn = columns(state)
        left, right = columns(action)
        hover = self.mass * self.gravity / 2
        away = x.square() + z.square() + (1 - cos)
        moving = velocity_x.square() + velocity_z.square() + turn.square()
        return away + 0.1 * moving + 0.01 * ((left - hover).square() + (right - hover).square())

    def sample_states(
        self,
        num: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Within 1.5 m across and 1 m in height, tilted by up to 1 rad, all speeds within ±1. `(num, 7)`."""
        x, z, angle, *speeds = uniform(num, (1.5, 1.0, 1.0, 1.0, 1.0, 1.0), generator, dtype, device)
        return torch.stack((x, z, angle.cos(), angle.sin(), *speeds), -1)

    def shapes(self, state: Tensor) -> list[Shape]:
        """The bar with its rotors, and the origin to hover at."""
        x, z, cos, sin, *_ = state.tolist()
        arm = float(self.arm)

        def at(along: float, above: float) -> tuple[float, float]:
            return x + along * cos - above * sin, z + along * sin + above * cos

        shapes: list[Shape] = [Circle("goal", (0.0, 0.0), 0.08), Line("body", (at(-arm, 0.0), at(arm, 0.0)), 0.07)]
        for end in (-arm, arm):
            shapes.append(Line("joint", (at(end, 0.0), at(end, 0.12)), 0.03))
            shapes.append(Line("link", (at(end - 0.55 * arm, 0.12), at(end + 0.55 * arm, 0.12)), 0.035))
        return shapes
