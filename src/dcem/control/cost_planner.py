"""A planner in the form that stable-worldmodel has: `configure` it for environments, then `solve`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dcem._arrays import as_tensor
from dcem._check import check_count, for_choices
from dcem._evaluate import check_axis, hides_axis
from dcem._given import brief
from dcem._guard import Cut, WithData, evaluated
from dcem._setup import NoiseSource
from dcem.bounds import BoundsLike
from dcem.gradients import Detach, GradientMode
from dcem.loop import minimize
from dcem.solvers import CEM, Solver

_DETACH = Detach()


class CostPlanner:
    """Plan for a world model that says what action sequences cost, and nothing else.

    Any solver of this library stands where stable-worldmodel has its own: in its `WorldModelPolicy`, or in a loop of
    yours. Nothing of that package is needed here.

    Args:
        model: has `get_cost(info, actions)`: the costs `(E, N)` of action sequences `(E, N, horizon, action_dim)` in
            `E` environments. The tensors and arrays of `info`, `(E, ...)`, come with an axis for the candidates,
            `(E, N, ...)`.
        solver: [`dcem.CEM`][] by default.
        num_iterations: of the solver, a plan.
        bounds: of the actions as the model has them, which need not be those of the environments. Without them actions
            have no limits: those of `action_space` are not looked at.
        generator: source of randomness, so that a plan can be replayed.
        noise: a source of the draws such as [`dcem.ColoredNoise`][], with time as axis `-2`.
        answer: which actions to return: the `"best"` sample of the whole search, or the `"mean"` of the final
            distribution, whose cost takes one more evaluation.
        gradient: how the mean is differentiated with respect to what the model's costs depend on.

    Raises:
        TypeError: the model has no `get_cost`; `configure` is given discrete actions, or a config without a horizon;
            `init_action` is neither a Tensor nor an array.
        RuntimeError: `solve` before `configure`.
        ValueError: `answer` is neither, or a gradient of the best sample is asked for; the action space is not that of
            so many environments; `init_action` is of another shape; or what [`dcem.minimize`][] raises.

    Example:
        >>> import gymnasium, torch, types
        >>> class Model:  # the actions shall add up to what the environment wants
        ...     def get_cost(self, info, actions):
        ...         return (actions.sum(-2) - info["goal"]).square().sum(-1)
        >>> planner = CostPlanner(Model(), num_iterations=20, generator=torch.Generator().manual_seed(0))
        >>> planner.configure(action_space=gymnasium.spaces.Box(-1, 1, (3, 2)), n_envs=3,
        ...                   config=types.SimpleNamespace(horizon=4, action_block=1))
        >>> found = planner.solve({"goal": torch.ones(3, 2)})
        >>> found["actions"].shape, bool((found["actions"].sum(1) - 1).abs().max() < 0.1)
        (torch.Size([3, 4, 2]), True)

    Source: the solver protocol of stable-worldmodel, https://github.com/rbalestr-lab/stable-worldmodel.
    """

    def __init__(
        self,
        model: Any,
        solver: Solver | None = None,
        *,
        num_iterations: int = 10,
        bounds: BoundsLike | None = None,
        generator: torch.Generator | None = None,
        noise: NoiseSource | None = None,
        answer: str = "best",
        gradient: GradientMode = _DETACH,
    ) -> None:
        if not callable(getattr(model, "get_cost", None)):
            raise TypeError(f"model: expected a method get_cost(info, actions) -> costs, got {brief(model)}")
        if answer not in ("best", "mean"):
            raise ValueError(f"answer: expected best or mean, got {answer!r}")
        if answer == "best" and not isinstance(gradient, Detach):
            raise ValueError(f"gradient: expected Detach() with the best sample, which is a constant, got {gradient!r}")
        self.model, self.solver, self.num_iterations = model, CEM() if solver is None else solver, num_iterations
        self.bounds, self.generator, self.noise = bounds, generator, noise
        self.answer, self.gradient = answer, gradient
        self.n_envs = self.horizon = self.action_dim = 0

    def configure(self, *, action_space: Any, n_envs: int, config: Any) -> None:
        """Plan for `n_envs` environments with the batched `action_space` `(n_envs, *a)` of a vectorised environment,
        `config.horizon` steps of `config.action_block` actions each.
        """
        num = check_count("n_envs", n_envs)
        size = math.prod(_shape_of_actions(action_space, num))
        for name in ("horizon", "action_block"):
            if not hasattr(config, name):
                remedy = "; make it one with types.SimpleNamespace(**config)" if isinstance(config, Mapping) else ""
                raise TypeError(
                    f"config: expected an object with horizon and action_block, got {brief(config)}, without {name} "
                    f"as an attribute{remedy}"
                )
        horizon = check_count("config.horizon", config.horizon)
        self.action_dim = size * check_count("config.action_block", config.action_block)
        self.n_envs, self.horizon = num, horizon

    def solve(self, info_dict: Mapping[str, Any], init_action: Any = None) -> dict[str, Tensor]:
        """The `actions` `(n_envs, horizon, action_dim)` that were found, with their `costs` `(n_envs,)` and `status`.

        They are searched for from `init_action` `(n_envs, t, action_dim)`, `t <= horizon`, a Tensor or an array, and
        zeros after it, on the device of the first tensor of `info_dict`, or else of `init_action`.
        """
        if not self.horizon:
            raise RuntimeError("solve: expected configure(action_space=..., n_envs=..., config=...) before")
        start = self._start(init_action, info_dict)

        def cost(actions: Tensor, info: Mapping[str, Any], cut: Cut) -> Tensor:
            given = {key: _for_candidates(value, actions.shape[1]) for key, value in {**info_dict, **info}.items()}
            costs: Tensor = self.model.get_cost(given, actions)
            return costs

        # Of an environment that is lost, the tensors are kept from the gradient of what it shares with others.
        objective = WithData(cost, {key: value for key, value in info_dict.items() if isinstance(value, Tensor)})
        if hides_axis((self.n_envs,), getattr(self.solver, "num_samples", 1)):
            check_axis("model.get_cost", objective, start.unsqueeze(1), (self.n_envs,), self.generator)
        solution = minimize(
            objective, start, self.solver, num_iterations=self.num_iterations, gradient=self.gradient, event_dims=2,
            bounds=self.bounds, generator=self.generator, noise=self.noise,
        )  # fmt: skip
        if self.answer == "best":
            return {"actions": solution.best_x, "costs": solution.best_value, "status": solution.status}
        costs = evaluated(objective, solution.x.unsqueeze(1), 1).squeeze(1)
        return {"actions": solution.x, "costs": costs, "status": solution.status}

    __call__ = solve

    def _start(self, init_action: Any, info_dict: Mapping[str, Any]) -> Tensor:
        """What is left of the last plan, `(n_envs, t, action_dim)`, and zeros."""
        there = [value.device for value in (*info_dict.values(), init_action) if isinstance(value, Tensor)]
        start = torch.zeros(self.n_envs, self.horizon, self.action_dim, device=there[0] if there else None)
        if init_action is None:
            return start
        if not isinstance(init_action, Tensor):
            if not hasattr(init_action, "dtype"):
                expected = "a Tensor or an array (n_envs, t, action_dim)"
                raise TypeError(f"init_action: expected {expected}, got {brief(init_action)}")
            try:
                init_action = as_tensor(init_action, torch.float32)
            except (TypeError, ValueError):
                raise TypeError(f"init_action: expected numbers, got {brief(init_action)}") from None
        given = tuple(init_action.shape)
        if len(given) != 3 or given[1] > self.horizon or given != (self.n_envs, given[1], self.action_dim):
            raise ValueError(f"init_action: expected (n_envs, t, action_dim) of {tuple(start.shape)}, got {given}")
        return torch.cat([init_action.to(start), start[:, given[1] :]], 1)


def _shape_of_actions(space: Any, num: int) -> tuple[int, ...]:
    """The shape `*a` of an action in a batched space `(num, *a)`."""
    shape = getattr(space, "shape", None)
    if not isinstance(shape, tuple) or for_choices(space):
        raise TypeError(f"action_space: expected a Box of actions, (n_envs, *a), got {brief(space)}")
    if len(shape) < 2 or shape[0] != num:
        raise ValueError(
            f"action_space: expected that of a vectorised environment, (n_envs, *a) with n_envs = {num} and at least "
            f"one axis of actions, got {tuple(shape)}"
        )
    return shape[1:]


def _for_candidates(value: Any, num: int) -> Any:
    """What one environment says, for each of its candidates: `(E, ...)` becomes `(E, num, ...)`."""
    if isinstance(value, Tensor):
        return value.unsqueeze(1).expand(-1, num, *value.shape[1:])
    return value[:, None].repeat(num, 1) if hasattr(value, "dtype") else value  # an array of NumPy
