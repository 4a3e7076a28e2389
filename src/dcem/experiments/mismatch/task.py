"""What the experiment on objective mismatch controls, what it knows of it, and the nets that model it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dcem.control import rollout
from dcem.control.systems import Pendulum

DT = 0.1
"""Seconds a step: two of Gymnasium's."""
TASK_DIMS = 3
"""Numbers of the state that matter: `(cos θ, sin θ, θ̇)`."""


class Plant(nn.Module):
    """The pendulum, observed along with numbers that have dynamics of their own and cost nothing.

    State: `(cos θ, sin θ, θ̇)`, then `num_distractors` numbers: points that go round circles, 0.3 to 1.2 rad a step.
    """

    turn: Tensor

    def __init__(self, num_distractors: int = 0) -> None:
        super().__init__()
        self.pendulum = Pendulum(dt=DT)
        self.bounds, self.num_states = self.pendulum.bounds, TASK_DIMS + num_distractors
        angles = torch.linspace(0.3, 1.2, num_distractors // 2).tolist()
        turns = [torch.tensor([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]]) for a in angles]
        self.register_buffer("turn", torch.zeros(num_distractors, num_distractors))
        for i, turn in enumerate(turns):
            self.turn[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = turn

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """The next state."""
        return torch.cat([self.pendulum(state[..., :TASK_DIMS], action), state[..., TASK_DIMS:] @ self.turn], -1)

    def cost(self, state: Tensor, action: Tensor) -> Tensor:
        """Gymnasium's, of the pendulum alone."""
        return self.pendulum.cost(state[..., :TASK_DIMS], action)

    def sample_states(self, num: int, generator: torch.Generator) -> Tensor:
        """Initial states: any angle, the pendulum all but at rest; the points anywhere on their circles."""
        device = generator.device
        pendulum = self.pendulum.sample_states(num, generator=generator, device=device)
        shape = (num, (self.num_states - TASK_DIMS) // 2)
        phase = 2 * math.pi * torch.rand(shape, generator=generator, device=device)
        return torch.cat([pendulum, torch.stack([phase.cos(), phase.sin()], -1).flatten(1)], -1)


class Transitions(NamedTuple):
    """States, actions and the states after them, `(n, ...)` each."""

    state: Tensor
    action: Tensor
    after: Tensor


@torch.no_grad()
def transitions(plant: Plant, num_episodes: int, length: int, generator: torch.Generator) -> Transitions:
    """What random actions show of the plant."""
    low, high = plant.bounds
    actions = low + (high - low) * torch.rand(num_episodes, length, 1, generator=generator, device=generator.device)
    states = rollout(plant, plant.sample_states(num_episodes, generator), actions)
    return Transitions(states[:, :-1].flatten(0, 1), actions.flatten(0, 1), states[:, 1:].flatten(0, 1))


class DynamicsNet(nn.Module):
    """`x + W₂ tanh(W₁ [x, u] + b₁) + b₂`, inputs and changes on the scale of the data."""

    input_scale: Tensor
    change_scale: Tensor

    def __init__(self, width: int, data: Transitions) -> None:
        super().__init__()
        self.num_states = data.state.shape[-1]
        self.inner = nn.Linear(self.num_states + data.action.shape[-1], width)
        self.outer = nn.Linear(width, self.num_states)
        self.register_buffer("input_scale", torch.cat([data.state, data.action], -1).std(0))
        self.register_buffer("change_scale", (data.after - data.state).std(0))

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """The next state."""
        return self.rollout(state, action.unsqueeze(-2)).select(-2, 1)

    def rollout(self, state: Tensor, actions: Tensor) -> Tensor:
        """All states at once: what depends on actions alone is computed ahead, each step is two matrix products."""
        *batch, horizon, size = actions.shape
        weight = self.inner.weight / self.input_scale
        of_state, of_action = weight[:, : self.num_states].T, weight[:, self.num_states :]
        rows = actions.movedim(-2, 0).reshape(horizon, -1, size)
        driven = nn.functional.linear(rows, of_action, self.inner.bias)
        out, bias = (self.outer.weight.T * self.change_scale), self.outer.bias * self.change_scale
        states = [state.reshape(-1, self.num_states)]
        for drive in driven.unbind(0):
            hidden = torch.addmm(drive, states[-1], of_state).tanh()
            states.append(torch.addmm(states[-1] + bias, hidden, out))
        return torch.stack(states).reshape(horizon + 1, *batch, self.num_states).movedim(0, -2)


def squared_errors(model: DynamicsNet, data: Transitions) -> Tensor:
    """Mean squared error of one step, by number of the state: `(num_states,)`. The unit is the variance of the change.

    The negative log-likelihood of a Gaussian with those variances is half its sum, but for a constant.
    """
    return ((model(data.state, data.action) - data.after) / model.change_scale).square().mean(0)
