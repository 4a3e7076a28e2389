"""Follow a sequence of actions through a model: states are tensors or trees of tensors, any leading axes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dcem._tree import leaves, map_tensors

Dynamics = Callable[..., Any]


def rollout(dynamics: Dynamics, state: Any, actions: Tensor, *, state_dims: Any = 1, action_dims: int = 1) -> Any:
    """The states that a sequence of actions leads through: ``x_{t+1} = f(x_t, u_t)``.

    Args:
        dynamics: ``f(state, action) -> next_state``; a callable or module. One with a method
            ``rollout(state, actions) -> states`` is asked for the whole sequence at once (as a simulator likes it).
            One with a keyword ``t`` is told the number of the step, from 0.
        state: ``x_0``, a tensor ``(*batch, *s)`` or a tree (dicts, tuples, dataclasses) of such tensors.
        actions: ``(*batch, H, *a)``, the batch of the states.
        state_dims: how many trailing axes of ``state`` are one state: an int, or a tree like ``state`` of ints.
        action_dims: how many trailing axes of ``actions`` are one action.

    Returns:
        ``x_0 ... x_H``: ``(*batch, H + 1, *s)``, or a tree of these.

    Raises:
        ValueError: the batches of state and actions differ, or the dynamics return a state of another shape.

    Example:
        >>> import torch
        >>> rollout(lambda x, u: x + u, torch.zeros(1), torch.ones(3, 1)).squeeze(-1)
        tensor([0., 1., 2., 3.])

    Source: Amos & Yarats, ICML 2020, section 4.3: the constraint ``x_{t+1} = f_θ(x_t, u_t)``.
    """
    batch = batch_of(state, state_dims)
    time_dim = actions.dim() - action_dims - 1
    if time_dim < 0 or tuple(actions.shape[:time_dim]) != batch:
        raise ValueError(
            f"actions: expected (*batch, H, *a) with the state's batch {batch} and {action_dims} action axes, "
            f"got {tuple(actions.shape)}"
        )
    path = follow(dynamics, state, actions.movedim(time_dim, 0), len(batch))
    return path.between(0, None, len(batch))


@dataclass(frozen=True, eq=False)
class Path:
    """The states ``x_0 ... x_H`` that actions led through.

    Followed one by one they stay apart, so that a state that nothing depends on takes no part in the backward pass; of
    a model that rolls out by itself they come in one piece, with time as the first axis.
    """

    steps: list[Any] | None = None
    piece: Any = None

    def between(self, start: int, stop: int | None, dim: int = 0) -> Any:
        """These of them, with time as the axis ``dim``."""
        if self.steps is None:
            return map_tensors(lambda leaf: leaf[start:stop].movedim(0, dim), self.piece)
        return map_tensors(lambda *leaf: _stack(leaf, dim), *self.steps[start:stop])

    def last(self) -> Any:
        """The last of them."""
        return map_tensors(lambda leaf: leaf[-1], self.piece) if self.steps is None else self.steps[-1]


def follow(dynamics: Dynamics, state: Any, actions: Tensor, batch_dims: int) -> Path:
    """Follow actions with time as the first axis, ``(H, *batch, *a)``."""
    whole = getattr(dynamics, "rollout", None)
    if whole is not None:
        states = whole(state, actions.movedim(0, batch_dims))
        return Path(piece=map_tensors(lambda leaf: leaf.movedim(batch_dims, 0), states))
    timed = knows_time(dynamics)
    states = [state]
    for t, action in enumerate(actions.unbind(0)):
        after = dynamics(states[-1], action, t=t) if timed else dynamics(states[-1], action)
        states.append(_checked(after, state))
    return Path(states)


def knows_time(fn: Callable[..., Any]) -> bool:
    """Whether a model's function takes, beside state and action, a keyword ``t``, the step of the plan."""
    return takes(fn, "t", 2)


def takes(fn: Callable[..., Any], name: str, after: int) -> bool:
    """Whether ``fn`` has a parameter ``name``, which is none of its first ``after``."""
    fn = fn.forward if isinstance(fn, nn.Module) else fn
    code = getattr(getattr(fn, "__func__", fn), "__code__", None)
    if code is not None and not hasattr(fn, "__wrapped__"):  # a plain function says it at once
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        return name in names[after + hasattr(fn, "__func__") :]
    try:
        return name in list(inspect.signature(fn).parameters)[after:]
    except (TypeError, ValueError):  # a builtin without a signature
        return False


def _stack(parts: tuple[Tensor, ...], dim: int) -> Tensor:
    if parts[-1].dim() > dim and not parts[-1].is_contiguous() and parts[-1].movedim(-1, 0).is_contiguous():
        # Where each column of the states is contiguous, that of the whole is too: half the time in large batches.
        return torch.stack([part.movedim(-1, 0) for part in parts], dim + 1).movedim(0, -1)
    return torch.stack(parts, dim)


def batch_of(state: Any, state_dims: Any) -> tuple[int, ...]:
    """The batch that all tensors of a state share."""
    shapes: list[tuple[tuple[int, ...], Tensor]] = []

    def note(leaf: Tensor, dims: int) -> Tensor:
        if leaf.dim() < dims:
            raise ValueError(f"state: expected at least {dims} axes (*batch, *s), got shape {tuple(leaf.shape)}")
        shapes.append((tuple(leaf.shape[: leaf.dim() - dims]), leaf))
        return leaf

    if isinstance(state_dims, int):
        map_tensors(lambda leaf: note(leaf, state_dims), state)
    else:
        map_tensors(note, state, state_dims)
    if not shapes:
        raise TypeError(f"state: expected a tensor or a tree of tensors, got {state!r}")
    batches = {batch for batch, _ in shapes}
    if len(batches) > 1:
        listed = ", ".join(str(tuple(leaf.shape)) for _, leaf in shapes)
        raise ValueError(
            f"state: expected tensors that share their batch axes, got shapes {listed} with state_dims={state_dims}"
        )
    return shapes[0][0]


def _checked(after: Any, before: Any) -> Any:
    """The next state, of the same structure and shapes as the one before."""

    def same(old: Tensor, new: object) -> Tensor:
        if not isinstance(new, Tensor) or new.shape != old.shape:
            came = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise ValueError(f"dynamics: expected a next state of shape {tuple(old.shape)}, got {came}")
        return new

    try:
        return map_tensors(same, before, after)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"dynamics: expected a next state of the structure of the state, {len(leaves(before))} tensors in a "
            f"{type(before).__name__}, got a {type(after).__name__} ({error})"
        ) from None
