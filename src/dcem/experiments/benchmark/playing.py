"""Let a planner play a task: what it is told, what it does, what that costs."""

from __future__ import annotations

import copy
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dcem._given import brief
from dcem.experiments import ConfigError
from dcem.experiments.benchmark.planners import Make
from dcem.experiments.harness.training import Schedule, descend

BATCH = 16
"""States that a model is learned from at a time."""
Solve = Callable[[Tensor], Tensor]
"""From states `(n, s)` to actions `(n, any, a)`."""


class Task(NamedTuple):
    """A planning problem, of which there are many instances; actions are within ±1.

    Attributes:
        model: what planners are told: a module from states `(E, N, s)` and actions `(E, N, horizon, a)` to costs
            `(E, N)`. Its parameters may be learned.
        horizon: actions to look ahead.
        num_actions: numbers in an action.
        num_decisions: of an episode; 1 where there is nothing to decide but the answer.
        starts: from a number and a generator to states `(n, s)`.
        price: what doing an action in a state costs in truth, `(n, s)` and `(n, a)` to `(n,)`.
        plant: the state after it.
        reference: from starts to the total price `(n,)` of what has the score 1.
        training: begins to learn the model through a planner: from a generator to a loss of the planner's `solve`,
            which maps `BATCH` states to actions `(BATCH, any, a)`. None where nothing is learned.
        lr: of that training.
    """

    model: nn.Module
    horizon: int
    num_actions: int
    num_decisions: int
    starts: Callable[[int, torch.Generator], Tensor]
    price: Callable[[Tensor, Tensor], Tensor]
    plant: Callable[[Tensor, Tensor], Tensor]
    reference: Callable[[Tensor], Tensor]
    training: Callable[[torch.Generator], Callable[[Solve], Tensor]] | None = None
    lr: float = 1e-2


class Told:
    """The model as a planner sees it, which counts what it is asked."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.num_evaluated = model, 0

    def get_cost(self, info: dict[str, Any], actions: Tensor) -> Tensor:
        """Costs `(E, N)` of actions `(E, N, horizon, a)`, which are clipped to ±1."""
        self.num_evaluated += actions.shape[0] * actions.shape[1]
        costs: Tensor = self.model(info["state"], actions.clamp(-1.0, 1.0))
        return costs


class Planning:
    """A planner at work on so many problems of a task, each plan starting from what is left of the one before.

    It is handed the model itself, which its solves are differentiated to, and can change it.
    """

    def __init__(self, make: Make, task: Task, model: nn.Module, num: int, budget: int) -> None:
        from gymnasium.spaces import Box

        self.told, self.task, self.num, self.budget = Told(model), task, num, budget
        self.planner = _asked("it to be made", make, self.told, budget)
        config = SimpleNamespace(horizon=task.horizon, receding_horizon=1, action_block=1, warm_start=True)
        space = Box(-1.0, 1.0, (num, task.num_actions))
        _asked("configure to work", lambda: self.planner.configure(action_space=space, n_envs=num, config=config))
        self.left: Tensor | None = None

    def solve(self, states: Tensor, *, afresh: bool = False) -> Tensor:
        """Actions `(n, any, a)` for states `(n, s)`."""
        before = self.told.num_evaluated
        left = None if afresh else self.left
        info = {"state": states.clone()}  # the planner's own: what it does to it changes no result
        found = _asked("solve to work", lambda: self.planner.solve(info, init_action=left))
        keys = list(found.keys()) if isinstance(found, Mapping) else None
        if keys is None or "actions" not in keys:
            came = brief(found) if keys is None else f"a dict with {', '.join(map(str, keys)) or 'nothing'}"
            raise ConfigError(f"planner: expected solve to return a dict with actions; got {came}")
        told = _asked("solve to return a dict with actions", lambda: torch.as_tensor(found["actions"]))
        actions: Tensor = told.to(states)  # NumPy's are of double precision
        made = (self.told.num_evaluated - before) / self.num
        if made > self.budget:
            raise ConfigError(f"planner: expected at most {self.budget} evaluations a decision; it made {made:g}")
        size = tuple(actions.shape)
        if len(size) != 3 or not size[1] or size != (self.num, size[1], self.task.num_actions):
            expected = f"(n_envs, at least 1, action_dim) = ({self.num}, at least 1, {self.task.num_actions})"
            raise ConfigError(f"planner: expected solve to return actions {expected}; got {size}")
        if not actions.isfinite().all():
            raise ConfigError("planner: expected finite actions; got some that are not")
        self.left = actions[:, 1:].detach() if size[1] > 1 else None
        return actions.clamp(-1.0, 1.0)


def _asked(for_what: str, call: Callable[..., Any], *of: Any) -> Any:
    """What a planner answers; or what its own code raised, and where."""
    try:
        return call(*of)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an exit, too, is the planner's and not the command's
        frames = traceback.extract_tb(error.__traceback__)
        at = next((frame for frame in frames if frame.filename != __file__), frames[-1])
        where = f"{Path(at.filename).name}:{at.lineno}"
        raise ConfigError(f"planner: expected {for_what}; got {type(error).__name__}: {error}, at {where}") from error


def total(task: Task, states: Tensor, decide: Callable[[Tensor], Tensor]) -> Tensor:
    """What an episode costs, `(n,)`, of the actions `(n, a)` that are decided on."""
    costs = torch.zeros(len(states))
    for _ in range(task.num_decisions):
        action = decide(states)
        costs = costs + task.price(states, action)
        states = task.plant(states, action)
    return costs


@torch.no_grad()
def play(make: Make, task: Task, model: nn.Module, starts: Tensor, budget: int) -> tuple[Tensor, float]:
    """What a planner's episodes cost, `(n,)`, and the processor milliseconds of a decision for all of them."""
    planning, seconds = Planning(make, task, copy.deepcopy(model), len(starts), budget), 0.0

    def decide(states: Tensor) -> Tensor:
        nonlocal seconds
        started = time.process_time()
        action = planning.solve(states)[:, 0]
        seconds += time.process_time() - started
        return action

    costs = total(task, starts, decide)
    return costs, 1e3 * seconds / task.num_decisions


@torch.no_grad()
def idle(task: Task, starts: Tensor) -> Tensor:
    """What episodes cost in which nothing is done: the action 0, the middle of what there is."""
    return total(task, starts, lambda states: states.new_zeros(len(states), task.num_actions))


def learn(make: Make, task: Task, num_updates: int, budget: int, seed: int) -> nn.Module | None:
    """The model as it has been learned through a planner; None if no gradient flows through that."""
    assert task.training is not None
    model = copy.deepcopy(task.model)
    planning = Planning(make, task, model, BATCH, budget)
    loss = task.training(torch.Generator().manual_seed(seed))
    optimizer = torch.optim.Adam(model.parameters(), lr=task.lr)
    schedule = Schedule(optimizer, num_updates)
    for _ in range(num_updates):
        value = loss(partial(planning.solve, afresh=True))
        if not value.requires_grad:
            return None
        descend(optimizer, value, 1.0)
        schedule.step()
    return model
