"""A policy and a plant in closed loop, where the plant is a function of tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dcem._check import check_count, check_tensor
from dcem._given import brief
from dcem.control.rollout import Dynamics, follow


def closed_loop(
    policy: Callable[[Tensor], Tensor], plant: Dynamics, state: Tensor, num_steps: int
) -> tuple[Tensor, Tensor]:
    """Let a policy act on a plant; gradients flow through both. For environments there is [`dcem.control.run`][].

    Args:
        policy: from states `(*batch, s)` to the actions of the next steps, `(*batch, n, a)`: all of them are
            applied before it is asked again. `n` may change from one time to the next.
        plant: `(state, action) -> next_state`; one with a keyword `t` is told the number of the step, from 0.
        state: where it begins, `(*batch, s)`.
        num_steps: steps in all; of the last answer of the policy what goes beyond them is left out.

    Returns:
        The states `(*batch, num_steps + 1, s)` and the actions `(*batch, num_steps, a)`.

    Raises:
        ValueError: `num_steps` is not positive, or the policy returns no action, or actions of another batch.

    Example:
        >>> import torch
        >>> states, actions = closed_loop(lambda x: -0.5 * x.unsqueeze(-2), torch.add, torch.ones(1), 3)
        >>> states.squeeze(-1), actions.squeeze(-1)
        (tensor([1.0000, 0.5000, 0.2500, 0.1250]), tensor([-0.5000, -0.2500, -0.1250]))
    """
    num_steps = check_count("num_steps", num_steps)
    for name, given in {"policy": policy, "plant": plant}.items():
        if not callable(given):
            raise TypeError(f"{name}: expected a callable, got {brief(given)}")
    check_tensor("state", state, "(*batch, s)")
    visited, applied, step = [state.unsqueeze(-2)], list[Tensor](), 0
    while step < num_steps:
        actions = policy(state)
        check_tensor("policy", actions, "of actions (*batch, n, a)")
        if actions.shape[:-2] != state.shape[:-1] or actions.dim() < 2 or not actions.shape[-2]:
            raise ValueError(
                f"policy: expected actions (*batch, n, a) of the batch {tuple(state.shape[:-1])}, with n at least 1, "
                f"got {tuple(actions.shape)}"
            )
        actions, dims = actions[..., : num_steps - step, :], state.dim() - 1
        path = follow(plant, state, actions.movedim(-2, 0), dims, first=step).states(0, None, dims)
        visited.append(path[..., 1:, :])
        applied.append(actions)
        state, step = path[..., -1, :], step + actions.shape[-2]
    return torch.cat(visited, -2), torch.cat(applied, -2)
