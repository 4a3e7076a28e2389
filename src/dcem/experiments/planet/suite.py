"""Several episodes of a control-suite task at once, from seeds."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

ACTION_REPEAT = {"cheetah.run": 4, "walker.walk": 2}
"""As in the paper."""


class Stepped(NamedTuple):
    """What one decision in each environment led to."""

    observation: Tensor  # (E, O)
    reward: Tensor  # (E,), the sum over the repeats
    done: bool  # the time limit: the same in all


class Suite:
    """`num_envs` environments of one task in lock-step; an episode is a function of its seeds and the actions.

    Actions come from `device`, where observations and rewards are sent; the simulator is on the CPU.
    """

    def __init__(self, task: str, num_envs: int, episode_steps: int, device: torch.device | str = "cpu") -> None:
        os.environ.setdefault("MUJOCO_GL", "disabled")
        from dm_control import suite  # type: ignore[import-untyped]

        domain, _, name = task.partition(".")
        self.envs = [suite.load(domain, name, task_kwargs={"random": 0}) for _ in range(num_envs)]
        self.num_envs, self.episode_steps, self.action_repeat = num_envs, episode_steps, ACTION_REPEAT[task]
        spec = self.envs[0].action_spec()
        self.device = torch.device(device)
        self.low = torch.tensor(spec.minimum, dtype=torch.float32, device=device)
        self.high = torch.tensor(spec.maximum, dtype=torch.float32, device=device)
        self.observation_size = self.reset(0).shape[-1]
        self.action_size = len(self.low)

    def reset(self, seed: int) -> Tensor:
        """Start an episode in each environment; the first observations, `(E, O)`."""
        self.steps = 0
        seeds = np.random.SeedSequence(seed).generate_state(self.num_envs)
        observations = []
        for env, own in zip(self.envs, seeds, strict=True):
            env.task.random.seed(own)
            observations.append(_flat(env.reset().observation))
        return self._sent(observations)

    def picture(self) -> np.ndarray:
        """What the first environment looks like, `(240, 320, 3)`: if `MUJOCO_GL` names a renderer."""
        pixels: np.ndarray = self.envs[0].physics.render(240, 320, camera_id=0)
        return pixels

    def step(self, actions: Tensor) -> Stepped:
        """Apply actions `(E, A)`, each repeated."""
        observations, rewards = [], []
        for env, action in zip(self.envs, actions.double().cpu().numpy(), strict=True):
            reward = 0.0
            for _ in range(self.action_repeat):
                step = env.step(action)
                reward += step.reward
            observations.append(_flat(step.observation))
            rewards.append(reward)
        self.steps += self.action_repeat
        done = self.steps >= self.episode_steps
        return Stepped(self._sent(observations), self._sent(rewards), done)

    def _sent(self, numbers: list[Any]) -> Tensor:
        """Numbers of each environment, where the controller is."""
        return torch.as_tensor(np.stack(numbers), dtype=torch.float32, device=self.device)


def _flat(observation: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([np.ravel(part) for part in observation.values()])
