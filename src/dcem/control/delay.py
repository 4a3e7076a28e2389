"""Compensation for a delay: plan from the state in which the actions that are on their way will have arrived."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dcem._given import kind
from dcem._guard import Cut, guarded
from dcem._tree import leaves, map_tensors
from dcem.control.rollout import Dynamics, follow


def arrived(
    dynamics: Dynamics,
    state: Any,
    sent: Tensor,
    batch: tuple[int, ...],
    action_shape: tuple[int, ...],
    num_particles: int,
    generator: torch.Generator | None,
) -> Any:
    """The state `(*batch, *s)` that actions `sent` `(*batch, d, *a)`, the oldest first, lead to."""
    if not isinstance(sent, Tensor):
        raise TypeError(f"sent: expected a Tensor (*batch, d, *a) or None, got {kind(sent)}")
    dim = len(batch)
    if sent.dim() <= dim or sent.shape[:dim] + sent.shape[dim + 1 :] != (*batch, *action_shape):
        raise ValueError(
            f"sent: expected actions (*batch, d, *a) with batch {batch} and action {action_shape}, "
            f"got {tuple(sent.shape)}"
        )
    if num_particles > 1:
        raise ValueError(f"sent: expected None with several particles, got num_particles={num_particles}")
    like = next((leaf for leaf in leaves(state) if leaf.is_floating_point()), None)
    sent = sent if like is None else sent.to(like)  # what an environment was sent may be of its own precision

    def follow_all(sent: Tensor, state: Any, cut: Cut) -> Any:
        # Copies, as in a plan: whatever the dynamics do, what the caller holds stays as it is.
        each = map_tensors(lambda leaf: leaf.unsqueeze(dim).clone(), state)
        actions = sent.movedim(dim + 1, 0).clone()
        return follow(dynamics, each, actions, dim + 1, generator, first=-len(actions)).last()

    def judge(last: Any) -> Any:
        """A number that was infinite to begin with, such as a deadline, may stay so."""
        return map_tensors(lambda new, old: torch.where(new == old.unsqueeze(dim), 0, new), last, state)

    # A single candidate. Where its state is lost, so is its problem, and not the gradient of the others.
    last = guarded(follow_all, sent.unsqueeze(dim), state, dim, judge=judge, generator=generator)
    return map_tensors(lambda leaf: leaf.squeeze(dim), last)
