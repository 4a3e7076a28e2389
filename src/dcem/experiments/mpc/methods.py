"""The controllers that `dcem mpc` compares: ours, TorchRL's planners and pytorch-mppi, on one model and cost.

Each plans with the same horizon and the same number of trajectories, and starts as its authors meant it to: ours and
pytorch-mppi from the last plan shifted in time, TorchRL's planners from nothing and with a std of 1; so does
`cem-afresh`, which is our CEM with no more than theirs has.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import dcem
from dcem.control import MPC
from dcem.control.tasks import Task
from dcem.embedding import SplineDecoder
from dcem.experiments.harness.settings import Search

LABELS = {
    "cem": "CEM",
    "cem-afresh": "CEM afresh",
    "icem": "iCEM",
    "mppi": "MPPI",
    "dcem": "DCEM",
    "spline": "DCEM over spline knots",
    "learned": "DCEM over a learned latent",
    "torchrl-cem": "TorchRL CEMPlanner",
    "torchrl-mppi": "TorchRL MPPIPlanner",
    "pytorch-mppi": "pytorch-mppi",
}
RIVALS = {"torchrl-cem": "torchrl", "torchrl-mppi": "torchrl", "pytorch-mppi": "pytorch_mppi"}
"""What has to be installed for a method."""
TORCHRL_TEMPERATURE, PYTORCH_MPPI_TEMPERATURE = 0.1, 0.01
"""Of the rivals' weights (TorchRL's multiplies): the best of 0.1, 1, 10 and of 0.01, 0.1, 1 on other seeds of three of
the tasks.
"""


class Stepped(Protocol):
    """What a planner that follows a model step by step has to know; a `Task` is one."""

    @property
    def model(self) -> Callable[[Tensor, Tensor], Tensor]:
        """`(state, action) -> next_state`."""

    @property
    def cost(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Of the next state, and the action that led there."""

    @property
    def horizon(self) -> int:
        """Decisions to look ahead."""

    @property
    def bounds(self) -> tuple[float, float]:
        """Of each action."""

    @property
    def num_states(self) -> int:
        """Numbers in one state."""

    @property
    def num_actions(self) -> int:
        """In one action."""


def is_installed(method: str) -> bool:
    """Whether the package that a method needs is there."""
    return method not in RIVALS or importlib.util.find_spec(RIVALS[method]) is not None


def controller(method: str, task: Task, budget: Search, decoder: nn.Module | None) -> MPC | Callable[[Tensor], Tensor]:
    """A fresh controller of that name; `decoder` is the learned one's."""
    if method in ("torchrl-cem", "torchrl-mppi"):
        return torchrl(method, task, budget)
    if method == "pytorch-mppi":
        return _one_each(lambda: pytorch_mppi(task, budget))
    n, k = budget.num_samples, budget.num_elites
    width = task.bounds[1] / 2
    action = (task.horizon, task.num_actions)
    options: dict[str, Any] = {
        "num_iterations": budget.num_iterations, "gradient": dcem.Detach(), "init_std": width,
        "terminal_cost": task.terminal_cost,
    }  # fmt: skip
    solver: dcem.Solver
    if method == "mppi":
        solver = dcem.MPPI(n, temperature=0.1, standardize=True)
    elif method == "icem":
        solver = dcem.CEM(n, k, dcem.HardTopK(), keep_elites=0.3, smoothing=0.1)
        options |= {"noise": dcem.ColoredNoise(2.0, dim=-2), "answer": "best"}
    else:
        solver = dcem.CEM(n, k, dcem.HardTopK() if method.startswith("cem") else dcem.LML(0.1))
    if method == "spline":
        options["decoder"] = SplineDecoder(max(2, task.horizon // 4), action, bounds=task.bounds)
    if method == "learned":
        options |= {"decoder": decoder, "init_std": 0.5, "latent_bounds": (-1.0, 1.0)}
    if method == "cem-afresh":
        options["init_std"] = 1.0
    mpc = MPC(task.model, task.cost, task.horizon, task.num_actions, task.bounds, solver, **options)
    return (lambda state: mpc(state, evaluate=False).action) if method == "cem-afresh" else mpc


def _one_each(make: Callable[[], Any]) -> Callable[[Tensor], Tensor]:
    """A planner for each environment, as each goes on from its own last plan."""
    planners: list[Any] = []

    def act(states: Tensor) -> Tensor:
        planners.extend(make() for _ in range(len(states) - len(planners)))
        return torch.stack([planner.command(state) for planner, state in zip(planners, states, strict=True)])

    return act


def pytorch_mppi(task: Stepped, budget: Search) -> Any:
    """Its planner, which makes one iteration a decision, and gets the trajectories of all iterations at once."""
    from pytorch_mppi import MPPI  # type: ignore[import-untyped]

    width = task.bounds[1] / 2
    low, high = (torch.full((task.num_actions,), bound) for bound in task.bounds)
    return MPPI(
        task.model, task.cost, task.num_states, width**2 * torch.eye(task.num_actions),
        num_samples=budget.num_samples * budget.num_iterations, horizon=task.horizon, lambda_=PYTORCH_MPPI_TEMPERATURE,
        u_min=low, u_max=high, U_init=torch.zeros(task.horizon, task.num_actions),
    )  # fmt: skip


def torchrl(method: str, task: Stepped, budget: Search) -> Callable[[Tensor], Tensor]:
    """TorchRL's planners on the model as one of its environments."""
    from tensordict import TensorDict
    from tensordict.nn import TensorDictModule
    from torchrl.data import Bounded, Composite, Unbounded
    from torchrl.envs import ModelBasedEnvBase
    from torchrl.modules import CEMPlanner, MPPIPlanner

    def step(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        after = task.model(state, action)
        return after, -task.cost(after, action).unsqueeze(-1)

    class Model(ModelBasedEnvBase):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(TensorDictModule(step, in_keys=["state", "action"], out_keys=["state", "reward"]))
            self.state_spec = Composite(state=Unbounded((task.num_states,)))
            self.observation_spec = Composite(state=Unbounded((task.num_states,)))
            self.action_spec = Bounded(*task.bounds, (task.num_actions,))
            self.reward_spec = Unbounded((1,))

        def _reset(self, tensordict: Any) -> Any:
            raise RuntimeError("planners start from the state that they are given")

    class Return(nn.Module):
        """The sum of the rewards, up to what all candidates share, as the planner takes its exponential."""

        def forward(self, rollouts: Any) -> Any:
            total = rollouts["next", "reward"].sum(-2, keepdim=True)
            advantage = total - total.amax(-3, keepdim=True)
            return rollouts.set("advantage", advantage.expand_as(rollouts["next", "reward"]))

    common: dict[str, Any] = {
        "planning_horizon": task.horizon, "optim_steps": budget.num_iterations,
        "num_candidates": budget.num_samples, "top_k": budget.num_elites,
    }  # fmt: skip
    if method == "torchrl-cem":
        planner = CEMPlanner(Model(), **common)
    else:
        planner = MPPIPlanner(Model(), Return(), temperature=TORCHRL_TEMPERATURE, **common)
    return lambda state: planner(TensorDict({"state": state}, state.shape[:1]))["action"]
