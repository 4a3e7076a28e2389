"""What was seen, as TorchRL's replay buffer keeps it, in a form that goes into a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import LazyTensorStorage, ReplayBuffer, SliceSampler


class Replay:
    """Whole episodes in, windows of ``window`` steps out, drawn uniformly from torch's global generator."""

    def __init__(self, capacity: int, window: int) -> None:
        sampler = SliceSampler(slice_len=window, traj_key="episode", strict_length=True, cache_values=True)
        self.buffer = ReplayBuffer(storage=LazyTensorStorage(capacity), sampler=sampler)
        self.window, self.num_episodes = window, 0

    def extend(self, observations: Tensor, actions: Tensor, rewards: Tensor) -> None:
        """Add episodes that ran to the time limit: ``(E, T + 1, O)``, ``(E, T, A)``, ``(E, T)``."""
        num, steps = rewards.shape
        episode = (self.num_episodes + torch.arange(num)).unsqueeze(-1).expand(num, steps)
        data = TensorDict(
            {
                "observation": observations[:, :-1],
                "action": actions,
                "episode": episode,
                "next": {
                    "observation": observations[:, 1:],
                    "reward": rewards.unsqueeze(-1),
                    "terminated": torch.zeros(num, steps, 1, dtype=torch.bool),
                },
            },
            batch_size=(num, steps),
        )
        self.buffer.extend(data.reshape(-1))
        self.num_episodes += num

    def sample(self, batch_size: int, num_batches: int) -> list[TensorDict]:
        """Batches of windows, ``(batch_size, window)`` each."""
        drawn: Any = self.buffer.sample(num_batches * batch_size * self.window)
        return list(drawn.reshape(num_batches, batch_size, self.window).unbind(0))

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints: the data as they are."""
        data: Any = self.buffer[:] if len(self.buffer) else TensorDict({}, batch_size=(0,))
        return {"data": data.flatten_keys(".").to_dict(), "num_episodes": self.num_episodes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        data = state["data"]
        if data:
            self.buffer.extend(TensorDict(data, batch_size=next(iter(data.values())).shape[:1]).unflatten_keys("."))
        self.num_episodes = state["num_episodes"]
