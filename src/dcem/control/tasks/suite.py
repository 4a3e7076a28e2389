"""Tasks with their true models: an environment, its dynamics, and the task's reward as a cost to plan with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dcem.control.mujoco_model import MujocoModel
from dcem.control.systems import Pendulum
from dcem.control.tasks.costs import COSTS


@dataclass(frozen=True, eq=False)
class Task:
    """What a controller needs to know.

    Attributes:
        env: what it is run in.
        model: the true dynamics, `(state, action) -> next_state`.
        cost: `(state, action) -> (...,)`.
        state_of: `(observation, env) -> state`, or None for the observation itself.
        horizon: decisions to look ahead.
        bounds: of each action.
        num_states: numbers in one state.
        num_actions: in one action.
    """

    env: Any
    model: Any
    cost: Callable[[Tensor, Tensor], Tensor]
    state_of: Callable[[Any, Any], Tensor] | None
    horizon: int
    bounds: tuple[float, float]
    num_states: int
    num_actions: int

    def terminal_cost(self, state: Tensor) -> Tensor:
        """The cost of the last state, where nothing is done any more."""
        return self.cost(state, state.new_zeros(*state.shape[:-1], self.num_actions))


LABELS = {
    "pendulum": "Pendulum-v1",
    "cartpole": "cartpole.swingup",
    "acrobot": "acrobot.swingup",
    "reacher": "reacher.hard",
    "point-mass": "point_mass.easy",
}
CONTROL_TIMESTEPS = {"cartpole": 0.1, "acrobot": 0.1, "reacher": 0.04, "point-mass": 0.04}
"""Seconds for which an action is held: 10, 10, 2 and 2 of the tasks' own steps."""
HORIZONS = {"pendulum": 20, "cartpole": 10, "acrobot": 15, "reacher": 15, "point-mass": 20}
"""Decisions to look ahead: 1, 1, 1.5, 0.6 and 0.8 s."""
SECONDS = {"pendulum": 10.0, "cartpole": 5.0, "acrobot": 6.0, "reacher": 5.0, "point-mass": 5.0}
"""Lengths of the episodes: 200, 50, 60, 125 and 125 decisions."""


def load(name: str, length: float, threads: int) -> Task:
    """A task by its name; `length` is what share of its `SECONDS` an episode lasts."""
    seconds = length * SECONDS[name]
    if name == "pendulum":
        import gymnasium

        system = Pendulum()
        steps = round(seconds / system.dt)
        env = gymnasium.make("Pendulum-v1", max_episode_steps=steps)
        return Task(env, system, system.cost, None, HORIZONS[name], system.bounds, 3, 1)
    from dm_control import suite  # type: ignore[import-untyped]

    domain, task = LABELS[name].split(".")
    env = suite.load(
        domain,
        task,
        task_kwargs={"time_limit": seconds, "random": 0},
        environment_kwargs={"control_timestep": CONTROL_TIMESTEPS[name]},
    )
    num_carried = 2 if name == "reacher" else 0
    model = MujocoModel(env, num_carried=num_carried, num_threads=threads)

    def state_of(observation: Any, env: Any) -> Tensor:
        target = env.physics.named.model.geom_pos["target", :2] if num_carried else ()
        return model.state_of(env, carried=target)

    (num_states,), (num_actions,) = model.state_shape, model.action_shape
    return Task(env, model, COSTS[name], state_of, HORIZONS[name], (-1.0, 1.0), num_states, num_actions)
