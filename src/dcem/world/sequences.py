"""What comes from outside, checked: observations, actions, and sequences of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dcem._eager import is_eager, is_unchecked, may_look
from dcem._given import kind

KEYS = ("observation", "action", ("next", "reward"), ("next", "terminated"))
ENDS = ("terminated", "truncated", "done")
"""What an episode's end is called in TorchRL; what comes after it is of another one."""


class Sequences(NamedTuple):
    """Steps of episodes, batch first: the action taken at an observation, and the reward and end it led to.

    Attributes:
        observation: `(B, T, observation_size)`.
        action: `(B, T, action_size)`.
        reward: `(B, T)`.
        terminated: `(B, T)`, 1.0 where the episode ended with this step, else 0.0.
        next_observation: `(B, T, observation_size)` where it was recorded, else None.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    next_observation: Tensor | None


def check_vectors(name: str, value: Any, batch_shape: tuple[int, ...] | torch.Size, size: int) -> None:
    """A floating-point tensor `(*batch_shape, size)`."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        came = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else kind(value)
        raise TypeError(f"{name}: expected a floating-point tensor, got {came}")
    if tuple(value.shape) != (*batch_shape, size):
        raise ValueError(f"{name}: expected shape {(*batch_shape, size)}, got {tuple(value.shape)}")


def check_finite(name: str, value: Tensor, waits: bool = False) -> None:
    """Only finite numbers, where a look costs nothing; where it `waits` also on a GPU."""
    if _looks_at(value, waits) and not bool(value.isfinite().all()):
        where = (~value.detach().isfinite()).nonzero()[0].tolist()
        raise ValueError(f"{name}: expected finite numbers, got {value.detach()[tuple(where)].item()} at {where}")


def check_within(name: str, value: Tensor, low: Tensor, high: Tensor) -> None:
    """Only numbers inside the bounds, to a thousandth of their width: what others have rounded or clipped is inside."""
    if not _looks_at(value, waits=not is_unchecked()):
        return
    room = 1e-3 * (high - low)
    if bool(((value < low - room) | (value > high + room)).any()):
        least, most = value.detach().aminmax()
        raise ValueError(
            f"{name}: expected numbers inside the model's bounds, {low.min():.4g} to {high.max():.4g}, got numbers "
            f"from {least:.4g} to {most:.4g}; build the model with the bounds of the environment, "
            "and clip actions to them"
        )


def check_ends_elsewhere(ended: Tensor, terminates: bool) -> None:
    """The last step of sequences without a successor does not count: what ends an episode may not be one."""
    if terminates or (_looks_at(ended, waits=not is_unchecked()) and bool(ended[:, -1].any())):
        raise ValueError(
            'sequences: expected the key ("next", "observation") where episodes end: without it the last step, which '
            "alone can be an end, has no successor to learn from"
        )


def check_one_episode(sequences: Any) -> None:
    """No sequence goes on after the end of an episode, where no action leads from one step to the next."""
    told = {name: sequences.get(("next", name), None) for name in ENDS}
    if not _looks_at(told["terminated"], waits=not is_unchecked()):
        return
    ends = {name: end[:, :-1] for name, end in told.items() if isinstance(end, Tensor)}
    if not torch.stack([end.any() for end in ends.values()]).any():  # one look
        return
    for name, end in ends.items():
        if end.any():
            row, step = end.nonzero()[0, :2].tolist()
            raise ValueError(
                f'sequences: expected steps of one episode each, got ("next", "{name}") at step {step} of sequence '
                f"{row}, which goes on into another one; draw sequences by dcem.world.replay, or by TorchRL's "
                "SliceSampler, which keep to one"
            )


def _looks_at(value: Tensor, waits: bool) -> bool:
    """Whether a look costs nothing, or is worth waiting for."""
    return is_eager() and (value.is_cpu or (waits and not value.is_meta and may_look(value)))


def read_sequences(sequences: Any, observation_size: int, action_size: int, like: Tensor | None) -> Sequences:
    """Take what a model learns from out of a TensorDict `(B, T)`, in the dtype and on the device of `like`, or else of
    the observations.

    Raises:
        TypeError: `sequences` is not a TensorDict, or a number in it is not floating-point.
        ValueError: a key is missing, a shape or the length is wrong, a number is not finite, or an episode ends before
            the last step.
    """
    batch_size, get = getattr(sequences, "batch_size", None), getattr(sequences, "get", None)
    if batch_size is None or get is None:
        raise TypeError(f"sequences: expected a TensorDict of batch size (B, T), got {type(sequences).__name__}")
    if len(batch_size) != 2 or batch_size[0] < 1 or batch_size[1] < 2:
        raise ValueError(f"sequences: expected a batch size (B, T) with T >= 2 steps, got {tuple(batch_size)}")
    missing = [key for key in KEYS if get(key, None) is None]
    if missing:
        raise ValueError(
            f"sequences: expected the keys {', '.join(map(repr, KEYS))}, of which {missing[0]!r} is missing"
        )
    observation, action, reward, terminated = (get(key) for key in KEYS)
    after = get(("next", "observation"), None)
    check_vectors('sequences["observation"]', observation, batch_size, observation_size)
    check_vectors('sequences["action"]', action, batch_size, action_size)
    if after is not None:
        check_vectors('sequences["next", "observation"]', after, batch_size, observation_size)
    for name, value in {"reward": reward, "terminated": terminated}.items():
        if tuple(value.shape) not in (tuple(batch_size), (*batch_size, 1)):
            expected = (*batch_size, 1)
            raise ValueError(f'sequences["next", "{name}"]: expected shape {expected}, got {tuple(value.shape)}')
    like = observation if like is None else like
    read = Sequences(
        observation.to(like),
        action.to(like),
        reward.reshape(batch_size).to(like),
        terminated.reshape(batch_size).to(like),
        None if after is None else after.to(like),
    )
    for name, value in zip(Sequences._fields, read, strict=True):
        if value is not None:
            check_finite(f"sequences, {name}", value, waits=not is_unchecked())  # one NaN is in all weights at once
    check_one_episode(sequences)
    return read
