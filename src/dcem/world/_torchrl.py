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
        """TorchRL's, for steps that say which episode they are of; a list is one of single steps, as there."""
        for steps in data if isinstance(data, list) else [data]:
            self._check(steps, self.storage.ndim - isinstance(data, list))
        return super().extend(data, *args, **kwargs)

    def add(self, data: Any) -> Any:
        """The same for a single step."""
        self._check(data, self.storage.ndim - 1)
        return super().add(data)

    def _check(self, steps: Any, axes: int) -> None:
        """Raise where the sampler would not find the episodes, which it looks for when it draws."""
        if not is_tensor_collection(steps):
            raise TypeError(f"replay: expected steps as a TensorDict, got {type(steps).__name__}")
        episode = steps.get(self.key, None)
        if episode is None:
            raise ValueError(
                f"replay: expected steps with the entry {self.key!r}, the number of their episode, got "
                f"{', '.join(map(repr, steps.keys(True, True)))}; another entry is named by episode_key, such as "
                '("collector", "traj_ids") of TorchRL\'s collectors'
            )
        batch, shape = tuple(steps.batch_size), tuple(episode.shape)
        if len(batch) != axes or shape != batch:
            remedy = f"; make it one of steps[{self.key!r}].squeeze(-1)" if shape == (*batch, 1) else ""
            raise ValueError(
                f"replay: expected a batch of {axes} axes (batched=True: environments before time) with the entry "
                f"{self.key!r} of its shape, got a batch {batch} with one of shape {shape}{remedy}"
            )

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
