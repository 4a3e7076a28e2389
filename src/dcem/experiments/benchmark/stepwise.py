"""Planners of other packages, which follow a model step by step, on costs of whole sequences of actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dcem.experiments.harness.settings import Search
from dcem.experiments.mpc import methods

ITERATIONS = 3
"""Of ours and of theirs, but for pytorch-mppi, which makes one of all candidates."""


class Sequences:
    """An objective of whole sequences as a model: its state counts the actions so far and keeps them, and only the
    last one costs something. It is a [`Stepped`][dcem.experiments.mpc.methods.Stepped].
    """

    bounds = (-1.0, 1.0)

    def __init__(self, of: Any, horizon: int, num_actions: int) -> None:
        self.of, self.horizon, self.num_actions = of, horizon, num_actions
        self.num_states = 1 + horizon * num_actions
        self.info: Mapping[str, Any] = {}

    def model(self, state: Tensor, action: Tensor) -> Tensor:
        """The state that has one more action."""
        return torch.cat([state[..., :1] + 1, state[..., 1 + self.num_actions :], action], -1)

    def cost(self, state: Tensor, action: Tensor) -> Tensor:
        """Of the whole sequence, at its end: `(E, N, s)`, or `(N, s)` of a single problem, to `(E, N)` or `(N,)`."""
        if float(state[..., 0].flatten()[0]) < self.horizon:
            return state.new_zeros(state.shape[:-1])
        actions = state[..., 1:].reshape(-1, *state.shape[-2:-1], self.horizon, self.num_actions)
        num = actions.shape[1]
        info = {key: of.unsqueeze(1).expand(-1, num, *of.shape[1:]) for key, of in self.info.items()}
        costs: Tensor = self.of.get_cost(info, actions)
        return costs.reshape(state.shape[:-1])


class StepwisePlanner:
    """One of TorchRL's planners, which plan from nothing every time, or pytorch-mppi, which goes on from a plan."""

    def __init__(self, name: str, model: Any, budget: int) -> None:
        num = max(3, budget // ITERATIONS)
        self.name, self.model, self.budget = name, model, Search(num, max(2, num // 8), ITERATIONS)

    def configure(self, *, action_space: Any, n_envs: int, config: Any) -> None:
        """As the protocol has it."""
        alone = self.name == "pytorch-mppi"  # which plans for one problem at a time
        num_actions = action_space.shape[-1]
        self.of = [Sequences(self.model, config.horizon, num_actions) for _ in range(n_envs if alone else 1)]
        self.planners: list[Any] = [
            methods.pytorch_mppi(of, self.budget) if alone else methods.torchrl(self.name, of, self.budget)
            for of in self.of
        ]

    @torch.no_grad()
    def solve(self, info_dict: Mapping[str, Any], init_action: Tensor | None = None) -> dict[str, Tensor]:
        """The first action, which is all that TorchRL gives away, or pytorch-mppi's whole plan of each problem."""
        num = len(next(iter(info_dict.values())))
        if self.name != "pytorch-mppi":
            self.of[0].info = info_dict
            return {"actions": self.planners[0](torch.zeros(num, self.of[0].num_states)).unsqueeze(1)}
        plans = []
        for i, (of, planner) in enumerate(zip(self.of, self.planners, strict=True)):
            of.info = {key: value[i : i + 1] for key, value in info_dict.items()}
            planner.U = torch.zeros(of.horizon, of.num_actions)
            if init_action is not None:
                planner.U[: init_action.shape[1]] = init_action[i]
            planner.command(torch.zeros(of.num_states), shift_nominal_trajectory=False)
            plans.append(planner.U)
        return {"actions": torch.stack(plans)}
