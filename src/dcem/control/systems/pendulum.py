"""A pendulum that a weak motor swings up."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dcem.bounds import clip
from dcem.control.systems.base import System, columns, is_present, joined, rotated, uniform
from dcem.control.systems.drawing import Circle, Line, Shape, View


class Pendulum(System):
    """A rod hinged at one end, to be swung up and balanced by a motor too weak to lift it at once.

    State `(cos θ, sin θ, θ̇)` with `θ = 0` upright and `θ̇` in rad/s, limited to ±8; action: the motor's torque,
    N·m. The task's cost is `θ² + 0.1 θ̇² + 0.001 u²`, `θ` in ±π.

    Args:
        gravity: m/s².
        mass: of the rod, kg.
        length: of the rod, m.
        damping: viscous friction in the hinge, N·m·s/rad.
        constant_torque: that acts at all times, N·m, such as a spring's or a bias of the motor.
        max_torque: the most that the motor gives, N·m.
        dt: seconds a step.

    Raises:
        TypeError: a parameter is neither a number nor a Tensor.
        ValueError: `dt` or the limit of the action is not above 0; in a call, state or action has another shape.

    Example:
        >>> import torch
        >>> from dcem.control.systems import Pendulum
        >>> hanging = torch.tensor([-1.0, 0.0, 0.0])
        >>> Pendulum()(hanging, torch.tensor([2.0]))[-1:].round(decimals=2)  # the speed
        tensor([0.3000])

    Source: Gymnasium's `Pendulum-v1`, whose steps and costs these are: Euler, with the new speed for the angle.
    """

    state_shape = (3,)
    action_shape = (1,)
    max_speed = 8.0
    view = View(-1.3, 1.3, -1.3, 1.3)
    gravity: Tensor | float
    mass: Tensor | float
    length: Tensor | float
    damping: Tensor | float
    constant_torque: Tensor | float

    def __init__(
        self,
        gravity: Tensor | float = 10.0,
        mass: Tensor | float = 1.0,
        length: Tensor | float = 1.0,
        *,
        damping: Tensor | float = 0.0,
        constant_torque: Tensor | float = 0.0,
        max_torque: float = 2.0,
        dt: float = 0.05,
    ):
        super().__init__(
            dt=dt,
            bounds=(-max_torque, max_torque),
            gravity=gravity,
            mass=mass,
            length=length,
            damping=damping,
            constant_torque=constant_torque,
        )

    def _step(self, state: Tensor, action: Tensor) -> Tensor:
        cos, sin, speed = columns(state)
        torque = action[..., 0]
        if is_present(self.damping):
            torque = torque - self.damping * speed
        if is_present(self.constant_torque):
            torque = torque + self.constant_torque
        fall, drive = 1.5 * self.gravity / self.length, 3 / (self.mass * self.length**2)
        speed = speed + self.dt * fall * sin + self.dt * drive * torque
        speed = clip(speed, -self.max_speed, self.max_speed)
        return joined(*rotated(cos, sin, self.dt * speed), speed)

    def _cost(self, state: Tensor, action: Tensor) -> Tensor:
        cos, sin, speed = columns(state)
        angle = torch.atan2(sin.contiguous(), cos.contiguous())  # a tenth of the time of strided ones
        return angle.square() + 0.1 * speed.square() + 0.001 * action[..., 0].square()

    def sample_states(
        self,
        num: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """As Gymnasium resets: any angle, `θ̇` in ±1. `(num, 3)`."""
        angle, speed = uniform(num, (math.pi, 1.0), generator, dtype, device)
        return torch.stack((angle.cos(), angle.sin(), speed), -1)

    def shapes(self, state: Tensor) -> list[Shape]:
        """The rod, its hinge, and where its end should be."""
        cos, sin, _ = state.tolist()
        length = float(self.length)
        return [
            Circle("goal", (0.0, length), 0.09),
            Line("link", ((0.0, 0.0), (-length * sin, length * cos)), 0.14),
            Circle("joint", (0.0, 0.0), 0.05),
        ]
