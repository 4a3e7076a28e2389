"""What was seen, in a form that goes into a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from dcem.world import replay


class Replay:
    """Whole episodes in, windows of `window` steps out, drawn uniformly from torch's global generator.

    They are kept on the CPU, and samples sent to `device`.
    """

    def __init__(self, capacity: int, batch_size: int, window: int, device: torch.device | str = "cpu") -> None:
        self.buffer = replay(capacity, batch_size, window)
        self.num_episodes, self.device = 0, torch.device(device)

    def extend(self, observations: Tensor, actions: Tensor, rewards: Tensor) -> None:
        """Add episodes that ran to the time limit: `(E, T + 1, O)`, `(E, T, A)`, `(E, T)`."""
        num, steps = rewards.shape
        episode = (self.num_episodes + torch.arange(num, device=rewards.device)).unsqueeze(-1).expand(num, steps)
        data = TensorDict(
            {
                "observation": observations[:, :-1],
                "action": actions,
                "episode": episode,
                "next": {
                    "observation": observations[:, 1:],
                    "reward": rewards.unsqueeze(-1),
                    "terminated": torch.zeros_like(rewards, dtype=torch.bool).unsqueeze(-1),
                },
            },
            batch_size=(num, steps),
        )
        self.buffer.extend(data.reshape(-1).cpu())
        self.num_episodes += num

    def sample(self) -> TensorDict:
        """A batch of windows, `(batch_size, window)`."""
        drawn: TensorDict = self.buffer.sample().to(self.device)
        return drawn

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints: the data as they are."""
        data: Any = self.buffer[:] if len(self.buffer) else TensorDict({}, batch_size=(0,))
        plain = {key: value.clone().as_subclass(Tensor) for key, value in data.flatten_keys(".").items()}
        return {"data": plain, "num_episodes": self.num_episodes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint, in the place of what there is."""
        data = state["data"]
        self.buffer.empty()
        if data:
            rows = TensorDict(data, batch_size=next(iter(data.values())).shape[:1]).unflatten_keys(".")
            self.buffer.extend(rows.cpu())
        self.num_episodes = state["num_episodes"]
