"""TorchRL's replay buffer, returning sequences; imported where one is made."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import is_tensor_collection
from torchrl.data import LazyMemmapStorage, ReplayBuffer, SliceSampler


class SequenceBuffer(ReplayBuffer):  # type: ignore[misc]
    """A `ReplayBuffer` whose samples are `(B, T)`, and which says what is missing where there is nothing to draw.

    See [`dcem.world.replay`][].
    """

    def __init__(
        self, capacity: int, batch_size: int, length: int, axes: int, key: Any, generator: torch.Generator | None
    ) -> None:
        sampler = SliceSampler(
            slice_len=length, traj_key=key, strict_length=True, cache_values=True, init_key=None, truncated_key=None
        )
        storage = LazyMemmapStorage(capacity, ndim=axes)
        super().__init__(storage=storage, sampler=sampler, batch_size=batch_size * length)
        self.capacity, self.length, self.key = capacity, length, key  # the storage's own is a multiple of environments
        if generator is not None:
            self.set_rng(generator)

    def extend(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """TorchRL's, for steps that say which episode they are of."""
        if is_tensor_collection(data) and data.get(self.key, None) is None:
            raise ValueError(
                f"replay: expected steps with the entry {self.key!r}, the number of their episode, got "
                f"{', '.join(map(repr, data.keys(True, True)))}; another entry is named by episode_key, such as "
                '("collector", "traj_ids") of TorchRL\'s collectors'
            )
        return super().extend(data, *args, **kwargs)

    def loads(self, path: Any) -> None:
        """TorchRL's, which does not restore where the last step was written."""
        super().loads(path)
        self.storage._set_last_cursor((self.writer.state_dict()["_cursor"] - 1) % self.storage.shape[0])

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        """TorchRL's, whose `batch_size` is the number of steps in all."""
        what = f"replay: expected an episode of at least {self.length} steps to draw sequences from"
        if not len(self):
            raise ValueError(f"{what}, got an empty buffer")
        try:
            drawn = super().sample(*args, **kwargs)
        except RuntimeError as error:
            if "sufficient length" not in str(error):
                raise
            raise ValueError(f"{what}, got {len(self)} steps, none of an episode as long as that") from error
        if isinstance(drawn, tuple):  # with return_info
            return drawn[0].reshape(-1, self.length), *drawn[1:]
        return drawn.reshape(-1, self.length)
