"""A pole on a cart, to be swung up by pushing the cart."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dcem.control.systems.base import System, columns, is_present, joined, rotated, uniform
from dcem.control.systems.drawing import Circle, Line, Rectangle, Shape, View


class Cartpole(System):
    """A pole hinged on a cart, to be swung up and balanced near the origin by pushing the cart.

    State `(x, ẋ, cos θ, sin θ, θ̇)`: the cart in m and m/s, the pole in rad/s with `θ = 0` upright; action: the
    force on the cart, N. The task's cost is `-(cos θ - 0.1 x² - 1e-5 u²)`.

    Args:
        gravity: m/s².
        cart_mass: kg.
        pole_mass: kg.
        half_length: of the pole, m.
        damping: viscous friction in the pole's hinge, N·m·s/rad.
        max_force: the most that pushes the cart, N.
        dt: seconds a step.

    Raises:
        TypeError: a parameter is neither a number nor a Tensor.
        ValueError: `dt` or the limit of the action is not above 0; in a call, state or action has another shape.

    Example:
        >>> import torch
        >>> from dcem.control.systems import Cartpole
        >>> upright = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])
        >>> Cartpole()(upright, torch.tensor([10.0])).round(decimals=2)
        tensor([ 0.0000,  0.4900,  1.0000,  0.0000, -0.7300])

    Source: Barto, Sutton & Anderson, "Neuronlike adaptive elements that can solve difficult learning control
    problems", 1983, by explicit Euler; the swing-up of Amos & Yarats, "The Differentiable Cross-Entropy Method", 2020.
    """

    state_shape = (5,)
    action_shape = (1,)
    view = View(-3.0, 3.0, -1.4, 1.4)
    gravity: Tensor | float
    cart_mass: Tensor | float
    pole_mass: Tensor | float
    half_length: Tensor | float
    damping: Tensor | float

    def __init__(
        self,
        gravity: Tensor | float = 9.8,
        cart_mass: Tensor | float = 1.0,
        pole_mass: Tensor | float = 0.1,
        half_length: Tensor | float = 0.5,
        *,
        damping: Tensor | float = 0.0,
        max_force: float = 100.0,
        dt: float = 0.05,
    ):
        super().__init__(
            dt=dt,
            bounds=(-max_force, max_force),
            gravity=gravity,
            cart_mass=cart_mass,
            pole_mass=pole_mass,
            half_length=half_length,
            damping=damping,
        )

    def _step(self, state: Tensor, action: Tensor) -> Tensor:
        position, velocity, cos, sin, speed = columns(state)
        mass = self.cart_mass + self.pole_mass
        share = self.pole_mass * self.half_length / mass
        push = action[..., 0] / mass + share * (speed.square() * sin)
        turn = self.gravity * sin - cos * push
        if is_present(self.damping):
            turn = turn - self.damping / (self.pole_mass * self.half_length) * speed
        angular = turn / (self.half_length * 4 / 3 - share * cos.square())
        linear = push - share * (angular * cos)
        return joined(
            position.add(velocity, alpha=self.dt),
            velocity.add(linear, alpha=self.dt),
            *rotated(cos, sin, self.dt * speed),
            speed.add(angular, alpha=self.dt),
        )

    def _cost(self, state: Tensor, action: Tensor) -> Tensor:
        return 0.1 * state[..., 0].square() + 1e-5 * action[..., 0].square() - state[..., 2]

    def sample_states(
        self,
        num: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """As in the paper: any angle, `x` and `ẋ` in ±0.5, `θ̇` in ±1. `(num, 5)`."""
        position, velocity, angle, speed = uniform(num, (0.5, 0.5, math.pi, 1.0), generator, dtype, device)
        return torch.stack((position, velocity, angle.cos(), angle.sin(), speed), -1)

    def shapes(self, state: Tensor) -> list[Shape]:
        """The cart on its track, the pole, and the origin."""
        position, _, cos, sin, _ = state.tolist()
        length = 2 * float(self.half_length)
        return [
            Line("ground", ((-100.0, 0.0), (100.0, 0.0)), 0.03),
            Circle("goal", (0.0, length), 0.08),
            Rectangle("body", (position, 0.0), 0.5, 0.26),
            Line("link", ((position, 0.0), (position + length * sin, length * cos)), 0.1),
            Circle("joint", (position, 0.0), 0.04),
        ]
