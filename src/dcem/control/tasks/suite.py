"""Tasks with their true models: an environment, its dynamics, and the task's reward as a cost to plan with."""

from __future__ import annotations

import copy
import math
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
    "acrobot-hanging": "acrobot.swingup, hanging",
    "reacher": "reacher.hard",
    "point-mass": "point_mass.easy",
    "cheetah": "cheetah.run",
    "walker": "walker.walk",
}
HELD = {"cartpole": 10, "acrobot": 5, "acrobot-hanging": 5, "reacher": 2, "point-mass": 5, "cheetah": 2, "walker": 2}
"""For how many of the task's own steps an action is held: 0.1 s, 0.05 s of the acrobot, which falls too fast to be
balanced every 0.1 s, 0.04, 0.1, 0.02 and 0.05 s of the others.
"""
HORIZONS = {
    "pendulum": 20, "cartpole": 10, "acrobot": 50, "acrobot-hanging": 50, "reacher": 15, "point-mass": 8, "cheetah": 25,
    "walker": 15,
}  # fmt: skip
"""Decisions to look ahead: 1, 1, 2.5, 2.5, 0.6, 0.8, 0.5 and 0.75 s (hanging, the acrobot did not get up with 1.5)."""
COARSE = {"cartpole": 2, "acrobot": 1, "acrobot-hanging": 1, "walker": 10}
"""Steps of MuJoCo's that the model makes in a decision where the plant makes 10, 5, 5 and 20. Those of cartpole and
acrobot are of the fourth-order Runge-Kutta; with random actions the angles at a horizon of 1 and 3 s differ by 2e-5 and
0.04 rad, in the median.
"""
SENSORS = {"cheetah": ("torso_subtreelinvel",), "walker": ("torso_subtreelinvel",)}
"""What a cost needs beside positions and speeds, as the last numbers of a state: how fast the whole body moves."""
SECONDS = {
    "pendulum": 10.0,
    "cartpole": 10.0,
    "acrobot": 10.0,
    "acrobot-hanging": 10.0,
    "reacher": 20.0,
    "point-mass": 20.0,
    "cheetah": 10.0,
    "walker": 25.0,
}
"""Lengths of the episodes, those of the tasks: 200 steps of Gymnasium's, 1000 of dm_control's."""


class Held:
    """A dm_control environment whose actions are held for some of its steps, whose rewards add up.

    So a return is that of the task whatever an action is held for. Where the acrobot is to hang, its upper link does,
    give or take 0.1 rad, and the lower one from it.
    """

    def __init__(self, env: Any, num_steps: int, *, hanging: bool = False) -> None:
        self.env, self.num_steps, self.hanging = env, num_steps, hanging
        self.physics, self.task, self.action_spec = env.physics, env.task, env.action_spec

    def control_timestep(self) -> float:
        """Seconds that an action is held for."""
        return float(self.num_steps * self.env.control_timestep())

    def reset(self) -> Any:
        """Begin an episode."""
        first = self.env.reset()
        if self.hanging:
            with self.physics.reset_context():
                self.physics.data.qpos[:] = (math.pi, 0.0)
                self.physics.data.qpos[:] += self.task.random.uniform(-0.1, 0.1, 2)
        return first

    def step(self, action: Any) -> Any:
        """Hold an action; the last step that it led to, with the rewards of all."""
        reward = 0.0
        for _ in range(self.num_steps):
            step = self.env.step(action)
            reward += step.reward
            if step.last():
                break
        return step._replace(reward=reward)

    def close(self) -> None:
        """As the environment itself."""
        self.env.close()


def environment(name: str, length: float) -> Any:
    """What a task is run in.

    Args:
        name: one of `LABELS`.
        length: what share of its `SECONDS` an episode lasts; 1 for the whole.

    Returns:
        Gymnasium's Pendulum-v1; otherwise a dm_control environment whose actions are held for some steps of the task,
        whose rewards add up, so that returns are the task's own.

    Raises:
        KeyError: there is no such task.

    Example:
        >>> from dcem.control.tasks import environment
        >>> environment("pendulum", 0.5).spec.max_episode_steps
        100
    """
    seconds = length * SECONDS[name]
    if name == "pendulum":
        import gymnasium

        return gymnasium.make("Pendulum-v1", max_episode_steps=round(seconds / Pendulum().dt))
    from dm_control import suite  # type: ignore[import-untyped]

    domain, task = LABELS[name].partition(",")[0].split(".")
    env = suite.load(domain, task, task_kwargs={"time_limit": seconds, "random": 0})
    return Held(env, HELD[name], hanging=name.endswith("hanging"))


def load(name: str, length: float, threads: int) -> Task:
    """A task of Gymnasium or the DeepMind control suite with its true model, ready to be planned for.

    Args:
        name: one of `LABELS`.
        length: what share of its `SECONDS` an episode lasts; 1 for the whole.
        threads: of the processor, among which MuJoCo divides the candidates.

    Returns:
        Environment, model, cost and what else a controller needs.

    Raises:
        KeyError: there is no such task.

    Example:
        >>> import dcem
        >>> from dcem.control import MPC, run
        >>> from dcem.control.tasks import load
        >>> task = load("pendulum", 0.02, threads=1)  # four steps
        >>> mpc = MPC(task.model, task.cost, task.horizon, task.num_actions, task.bounds, dcem.CEM(48, 6))
        >>> run(mpc, task.env, state_of=task.state_of).returns.shape
        torch.Size([1])
    """
    env = environment(name, length)
    if name == "pendulum":
        system = Pendulum()
        return Task(env, system, system.cost, None, HORIZONS[name], system.bounds, 3, 1)
    num_carried = 2 if name == "reacher" else 0
    source, num_steps = env, None
    if name in COARSE:
        source, num_steps = copy.deepcopy(env.physics.model.ptr), COARSE[name]
        source.opt.timestep = env.control_timestep() / num_steps
    model = MujocoModel(
        source, frame_skip=num_steps, sensors=SENSORS.get(name, ()), num_carried=num_carried, num_threads=threads
    )

    def state_of(observation: Any, env: Any) -> Tensor:
        target = env.physics.named.model.geom_pos["target", :2] if num_carried else ()
        return model.state_of(env, carried=target)

    (num_states,), (num_actions,) = model.state_shape, model.action_shape
    return Task(env, model, COSTS[name], state_of, HORIZONS[name], (-1.0, 1.0), num_states, num_actions)
