"""A differentiable system as an environment of TorchRL."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from dcem._check import check_count
from dcem._given import brief
from dcem.control.systems import System

_NEEDED = ("state_shape", "action_shape", "bounds", "sample_states", "cost")


class SystemEnv(EnvBase):  # type: ignore[misc]
    """A batch of a system's episodes: the observation is the state, the reward minus the system's cost.

    Episodes do not end by themselves: put `StepCounter(max_steps)` around it.

    Args:
        system: with its `cost`, `bounds` and `sample_states`.
        num_envs: how many, side by side.
        seed: of the initial states.

    Raises:
        TypeError: `system` has not what a system has, or `num_envs` no whole number.
        ValueError: `num_envs` is below 1.

    Example:
        >>> from dcem.control.systems import Pendulum
        >>> env = SystemEnv(Pendulum(), num_envs=2, seed=0)
        >>> env.rollout(3)["next", "reward"].shape
        torch.Size([2, 3, 1])

    Source: the environments of TorchRL, whose specs and batched resets these are.
    """

    def __init__(self, system: System, num_envs: int, seed: int = 0) -> None:
        missing = [name for name in _NEEDED if not hasattr(system, name)]
        if missing:
            expected = "a system such as dcem.control.systems.Pendulum()"
            raise TypeError(f"system: expected {expected}, got {brief(system)}, without {missing[0]}")
        num_envs = check_count("num_envs", num_envs)
        super().__init__(batch_size=[num_envs])
        self.system = system
        size, (low, high) = system.state_shape[0], system.bounds
        self.observation_spec = Composite(observation=Unbounded((num_envs, size)), shape=(num_envs,))
        self.action_spec = Bounded(low, high, (num_envs, *system.action_shape))
        self.reward_spec = Unbounded((num_envs, 1))
        self.generator = torch.Generator()
        self.set_seed(seed)

    def _reset(self, tensordict: TensorDictBase | None = None, **_: Any) -> TensorDictBase:
        state = self.system.sample_states(*self.batch_size, generator=self.generator)
        return TensorDict(observation=state, batch_size=self.batch_size)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        state, action = tensordict["observation"], tensordict["action"]
        return TensorDict(
            observation=self.system(state, action),
            reward=-self.system.cost(state, action).unsqueeze(-1),
            terminated=torch.zeros(*self.batch_size, 1, dtype=torch.bool),
            batch_size=self.batch_size,
        )

    def _set_seed(self, seed: int | None) -> None:
        self.generator.manual_seed(0 if seed is None else seed)
