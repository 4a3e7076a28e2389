"""A point mass that has to find its way between obstacles."""

from __future__ import annotations

import torch
from torch import Tensor

from dcem.control.systems.base import System, columns, joined, uniform
from dcem.control.systems.drawing import Circle, Shape, View

OBSTACLES = ((-1.0, 0.0, 0.45), (-0.35, 0.95, 0.35), (-0.3, -0.8, 0.3))


class PointMass(System):
    """A mass in a plane, pushed to rest at the origin, with discs in its way.

    State `(x, y, ẋ, ẏ)`, m and m/s; action: the force `(u_x, u_y)`, N. The task's cost is
    `x² + y² + 0.1 (ẋ² + ẏ²) + 0.01 |u|²`; the obstacles are a `constraint`, not a part of cost or dynamics: what
    drives through one is not stopped.

    Args:
        mass: kg.
        obstacles: `(n, 3)`, a row `(x, y, radius)` a disc, m; None for three that lie between where
            `sample_states` starts and the origin.
        max_force: the most in each direction, N.
        dt: seconds a step. The force is held over it, so that a step is exact.

    Raises:
        ValueError: `obstacles` has another shape; and what `System` raises.

    Example:
        >>> import torch
        >>> from dcem.control.systems import PointMass
        >>> system = PointMass(obstacles=torch.tensor([[-1.0, 0.0, 0.5]]))
        >>> inside, outside = torch.tensor([-1.2, 0.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 0.0, 0.0])
        >>> system.constraint(torch.stack((inside, outside))).squeeze(-1)
        tensor([ 0.3000, -0.5000])
    """

    state_shape = (4,)
    action_shape = (2,)
    view = View(-2.6, 0.8, -1.5, 1.5)
    mass: Tensor | float
    obstacles: Tensor

    def __init__(
        self,
        mass: Tensor | float = 1.0,
        *,
        obstacles: Tensor | None = None,
        max_force: float = 2.0,
        dt: float = 0.1,
    ):
        obstacles = torch.tensor(OBSTACLES, dtype=torch.float64) if obstacles is None else obstacles
        if obstacles.ndim != 2 or obstacles.shape[-1] != 3:
            raise ValueError(f"obstacles: expected shape (n, 3), rows of x, y, radius, got {tuple(obstacles.shape)}")
        super().__init__(dt=dt, bounds=(-max_force, max_force), mass=mass, obstacles=obstacles)

    def constraint(self, state: Tensor) -> Tensor:
        """How deep the mass is inside each obstacle, in m; negative outside, by the distance. `(*batch, n)`."""
        obstacles = self.obstacles.to(state.dtype)
        distance = torch.linalg.vector_norm(state[..., None, :2] - obstacles[:, :2], dim=-1)
        return obstacles[:, 2] - distance

    def _step(self, state: Tensor, action: Tensor) -> Tensor:
        x, y, velocity_x, velocity_y = columns(state)
        acceleration_x, acceleration_y = (force / self.mass for force in columns(action))
        held = self.dt / 2  # x' = x + dt (ẋ + dt/2 ẍ)
        return joined(
            x.add(velocity_x.add(acceleration_x, alpha=held), alpha=self.dt),
            y.add(velocity_y.add(acceleration_y, alpha=held), alpha=self.dt),
            velocity_x.add(acceleration_x, alpha=self.dt),
            velocity_y.add(acceleration_y, alpha=self.dt),
        )

    def _cost(self, state: Tensor, action: Tensor) -> Tensor:
        position, velocity = state[..., :2], state[..., 2:]
        return position.square().sum(-1) + 0.1 * velocity.square().sum(-1) + 0.01 * action.square().sum(-1)

    def sample_states(
        self,
        num: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Left of the obstacles: `x` in -2 ± 0.25, `y` in ±1, speeds within ±0.1. `(num, 4)`."""
        x, *others = uniform(num, (0.25, 1.0, 0.1, 0.1), generator, dtype, device)
        return torch.stack((x - 2, *others), -1)

    def shapes(self, state: Tensor) -> list[Shape]:
        """The mass, the obstacles, the goal."""
        x, y, *_ = state.tolist()
        obstacles = [Circle("obstacle", (left, up), radius) for left, up, radius in self.obstacles.tolist()]
        return [*obstacles, Circle("goal", (0.0, 0.0), 0.08), Circle("body", (x, y), 0.045)]
