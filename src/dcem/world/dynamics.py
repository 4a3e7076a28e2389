"""Small networks that predict the next state, and the transitions that they are fitted to."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dcem._check import check_count, check_tensor
from dcem._eager import calls_only, may_look
from dcem._given import brief
from dcem.control.rollout import rollout, rolls_out


class Transitions(NamedTuple):
    """States, actions and the states after them.

    Attributes:
        state: `(n, s)`.
        action: `(n, a)`.
        after: `(n, s)`.
    """

    state: Tensor
    action: Tensor
    after: Tensor


@torch.no_grad()
def transitions(plant: Callable[[Tensor, Tensor], Tensor], states: Tensor, actions: Tensor) -> Transitions:
    """What sequences of actions show of a plant.

    Args:
        plant: `(state, action) -> next_state`.
        states: where the sequences begin, `(m, s)`.
        actions: `(m, T, a)`.

    Returns:
        `m T` transitions, those of one sequence after those of the other.

    Raises:
        TypeError: `states` or `actions` is no Tensor.
        ValueError: one is of another shape.

    Example:
        >>> import torch
        >>> transitions(torch.add, torch.zeros(1, 1), torch.ones(1, 3, 1)).after.squeeze(-1)
        tensor([1., 2., 3.])
    """
    check_tensor("states", states, "(m, s)")
    if states.dim() != 2:
        raise ValueError(f"states: expected (m, s), got {tuple(states.shape)}")
    visited = rollout(plant, states, actions)
    return Transitions(visited[:, :-1].flatten(0, 1), actions.flatten(0, 1), visited[:, 1:].flatten(0, 1))


class DynamicsNet(nn.Module):
    """One hidden layer that predicts how a state changes: `x + W₂ tanh(W₁ [x, u] + b₁) + b₂`.

    Inputs are taken from their mean in the data, and they and changes are on the scale of the data, or on their own
    where they are constant in it, as a goal is.
    Sequences are followed at once by `rollout`, which is what a controller that plans with the net asks for. A subclass
    with a `forward` of its own, and a net with hooks, are called at each step.

    Args:
        width: of the hidden layer.
        data: transitions that inputs and changes have their scale from, and the layers their precision.

    Shapes: `state` `(*batch, s)`, `action` `(*batch, a)` -> the next state `(*batch, s)`.

    Raises:
        TypeError: `data` are no `Transitions`, or something is no Tensor.
        ValueError: `width` is not positive; the transitions are sequences, differ in number, are none, or hold what is
            not finite; a state or an action is of another size than theirs, or their batches differ.

    Example:
        >>> import torch
        >>> data = transitions(torch.add, torch.randn(5, 1), torch.randn(5, 3, 1))
        >>> net = DynamicsNet(8, data)
        >>> net(torch.zeros(7, 1), torch.zeros(7, 1)).shape
        torch.Size([7, 1])
        >>> bool(net.squared_errors(data).mean() > 0)
        True
    """

    input_mean: Tensor
    input_scale: Tensor
    change_scale: Tensor

    def __init__(self, width: int, data: Transitions) -> None:
        super().__init__()
        width = check_count("width", width)
        _check(data)
        for name, value in data._asdict().items():
            if not value.is_floating_point() or (may_look(value) and not value.isfinite().all()):
                raise ValueError(f"data.{name}: expected finite floating-point numbers, got {_wrong(value)}")
        self.num_states = data.state.shape[-1]
        inputs = torch.cat([data.state, data.action], -1)
        self.inner = nn.Linear(self.num_states + data.action.shape[-1], width, dtype=inputs.dtype)
        self.outer = nn.Linear(width, self.num_states, dtype=inputs.dtype)
        self.register_buffer("input_mean", inputs.mean(0))
        self.register_buffer("input_scale", _scale(inputs, inputs))
        self.register_buffer("change_scale", _scale(data.after - data.state, data.state, data.after))

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """The next state."""
        self._expect(state, action, "action", ())
        return self._followed(state, action.unsqueeze(-2)).select(-2, 1)

    def rollout(self, state: Tensor, actions: Tensor) -> Tensor:
        """All states at once."""
        self._expect(state, actions, "actions", ("H",))
        return self._followed(state, actions) if rolls_out(self) else rollout(self, state, actions)

    def _expect(self, state: Tensor, action: Tensor, name: str, steps: tuple[str, ...]) -> None:
        """A state and an action, or one for each of some `steps`, that share their batch."""
        size = len(self.input_scale) - self.num_states
        of_state, of_action = f"(*batch, {self.num_states})", f"({', '.join(['*batch', *steps, str(size)])})"
        check_tensor("state", state, of_state)
        check_tensor(name, action, of_action)
        if state.shape[-1:] != (self.num_states,):
            raise ValueError(f"state: expected {of_state}, got {tuple(state.shape)}")
        batch = tuple(state.shape[:-1])
        has_axes = action.dim() == len(batch) + len(steps) + 1
        if not has_axes or action.shape[-1] != size or tuple(action.shape[: len(batch)]) != batch:
            raise ValueError(f"{name}: expected {of_action} with the state's batch {batch}, got {tuple(action.shape)}")

    def _followed(self, state: Tensor, actions: Tensor) -> Tensor:
        """What depends on actions alone is computed ahead, each step is two matrix products."""
        if not (calls_only(self.inner, nn.Linear) and calls_only(self.outer, nn.Linear)):
            return self._called(state, actions)
        *batch, horizon, size = actions.shape
        weight = self.inner.weight / self.input_scale
        of_state, of_action = weight[:, : self.num_states].T, weight[:, self.num_states :]
        center, mean_action = self.input_mean[: self.num_states], self.input_mean[self.num_states :]
        rows = actions.movedim(-2, 0).reshape(horizon, math.prod(batch), size)
        driven = nn.functional.linear(rows - mean_action, of_action, self.inner.bias)
        out, bias = self.outer.weight.T * self.change_scale, self.outer.bias * self.change_scale
        states = [state.reshape(math.prod(batch), self.num_states)]
        for drive in driven.unbind(0):
            hidden = torch.addmm(drive, states[-1] - center, of_state).tanh()
            change = torch.addmm(bias, hidden, out)  # which alone is in half precision under autocast
            states.append(states[-1] + change)
        return torch.stack(states).reshape(horizon + 1, *batch, self.num_states).movedim(0, -2)

    def _called(self, state: Tensor, actions: Tensor) -> Tensor:
        """The same by the layers as they are: a hook may make their weights, as torch.nn.utils.spectral_norm does, or
        another one be in their place.
        """
        states = [state]
        for action in actions.unbind(-2):
            hidden = self.inner((torch.cat([states[-1], action], -1) - self.input_mean) / self.input_scale).tanh()
            states.append(states[-1] + self.change_scale * self.outer(hidden))
        return torch.stack(states, -2)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        state_dict.setdefault(f"{prefix}input_mean", torch.zeros_like(self.input_mean))  # of before inputs were centred
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def squared_errors(self, data: Transitions) -> Tensor:
        """Mean squared error of one step, by number of the state: `(s,)`. The unit is the variance of the change.

        The negative log-likelihood of a Gaussian with those variances is half its sum, but for a constant.
        """
        _check(data)
        return ((self(data.state, data.action) - data.after) / self.change_scale).square().mean(0)


def _check(data: Transitions) -> None:
    """Transitions, at least one, each with a state, an action and the state after it."""
    if not isinstance(data, Transitions):
        raise TypeError(f"data: expected Transitions(state, action, after), got {brief(data)}")
    for name, value in data._asdict().items():
        shape = "(n, a)" if name == "action" else "(n, s)"
        check_tensor(f"data.{name}", value, shape)
        if value.dim() != 2:
            remedy = "; put sequences after one another with .flatten(0, 1)" if value.dim() == 3 else ""
            raise ValueError(f"data.{name}: expected {shape}, got {tuple(value.shape)}{remedy}")
    num = len(data.state)
    if not num:
        raise ValueError("data: expected at least one transition, got none")
    if len(data.action) != num:
        raise ValueError(f"data.action: expected one for each of the {num} states, got {len(data.action)}")
    if data.after.shape != data.state.shape:
        expected = f"the shape of data.state, {tuple(data.state.shape)}"
        raise ValueError(f"data.after: expected {expected}, got {tuple(data.after.shape)}")


def _wrong(value: Tensor) -> str:
    if not value.is_floating_point():
        return str(value.dtype)
    return f"{int((~value.isfinite()).sum())} of {value.numel()} that are not"


def _scale(data: Tensor, *sizes: Tensor) -> Tensor:
    """The standard deviation of each column of `(n, m)`: 1 where it is no more than rounding of numbers as `sizes`."""
    spread, largest = data.std(0, correction=min(1, len(data) - 1)), torch.cat(sizes).abs().amax(0)
    return spread.masked_fill(spread <= 4 * torch.finfo(data.dtype).eps * largest, 1.0)


torch.serialization.add_safe_globals([Transitions])
