"""Run a controller in closed loop, in Gymnasium environments or dm_control tasks, all planned for in one batch."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcem._check import check_count
from dcem._tree import leaves, map_tensors
from dcem.control.mpc import MPC
from dcem.control.plan import Plan
from dcem.control.plants import Plant, PlantStep, plant_of
from dcem.solution import Status


@dataclass(frozen=True, eq=False)
class Episodes:
    """What :func:`run` saw. Episodes are listed by environment, each environment's in the order in which they ended.

    Attributes:
        returns: sum of the rewards of each episode, ``(n,)``.
        lengths: decisions in each episode, ``(n,)``.
        environments: which environment it was in, ``(n,)``.
        finished: whether the environment ended it, ``(n,)``; False where the run stopped first.
        solve_times: seconds of each call of the controller, for all environments together, ``(T,)``.
        num_replaced: how many actions of the controller were not finite or came of a failed solve, and were replaced
            by the last good plan's.
        states: with ``record=True`` the states that were decided in, ``(T, E, *s)`` or a tree of these; else None.
        actions: with ``record=True`` the actions that were applied, ``(T, E, *a)``; else None.
        rewards: with ``record=True``, ``(T, E)``; else None.
        error: what an environment raised, which ended the run; else None.
    """

    returns: Tensor
    lengths: Tensor
    environments: Tensor
    finished: Tensor
    solve_times: Tensor
    num_replaced: int
    states: Any
    actions: Tensor | None
    rewards: Tensor | None
    error: Exception | None


def run(
    policy: MPC | Callable[[Any], Tensor],
    envs: Any,
    *,
    state_of: Callable[[Any, Any], Any] | None = None,
    num_steps: int | None = None,
    seed: int | None = None,
    record: bool = False,
    video: str | Path | None = None,
) -> Episodes:
    """Control environments in closed loop: one batched plan a step, warm-started, afresh where an episode begins.

    Args:
        policy: an :class:`MPC`, or any callable from the states ``(E, *s)`` of all environments to actions
            ``(E, *a)``. One with a method ``reset(where)`` is told where episodes begin, ``(E,)`` boolean, such as
            :func:`dcem.rl.policy`.
        envs: a Gymnasium environment or vector environment, a dm_control ``Environment``, or a sequence of
            environments of one kind. Their action space must be a box; actions are clipped to it.
        state_of: ``(observation, env) -> state``, the model's state of one environment; the observation flattened to
            a float32 vector by default, and ``lambda _, env: model.state_of(env)`` for a :class:`MujocoModel`. Of a
            vector environment ``env`` is the single environment where it can be reached, else the whole.
        num_steps: decisions in each environment, one episode after the other; None for one episode each.
        seed: of the controller and, ``seed + i``, of environment ``i``.
        record: keep states, actions and rewards.
        video: where to write a GIF of the first environment, which must be able to render (Gymnasium's with
            ``render_mode="rgb_array"``).

    Returns:
        Returns, lengths and times. If an environment raises, the run ends with a ``RuntimeWarning``, what there is is
        returned with the ``error``, and the environments are closed.

    Raises:
        TypeError: ``envs`` is not an environment, or its actions are not a box.
        ValueError: environments of different action shapes, or a policy with actions of the wrong shape.

    An action that is not finite, or that of a solve with the status ``NONFINITE``, is replaced by the next action of
    the last good plan of the episode (zero beyond its end), and counted.

    Example:
        >>> import gymnasium, torch
        >>> env = gymnasium.make("Pendulum-v1")
        >>> episodes = run(lambda state: -state[:, 1:2] - 0.1 * state[:, 2:], env, seed=0)
        >>> episodes.lengths, bool(episodes.returns < 0)
        (tensor([200]), True)
    """
    if num_steps is not None:
        check_count("num_steps", num_steps)
    plant = plant_of(envs)
    state_of = _flattened if state_of is None else state_of
    controller = _Controller(policy, plant, seed)
    log = _Log(plant.num_envs, once=num_steps is None)
    seconds: list[float] = []
    states: list[Any] = []
    applied: list[Tensor] = []
    rewards: list[Tensor] = []
    frames: list[Any] = []
    fresh = torch.ones(plant.num_envs, dtype=torch.bool)
    error = None
    observations = plant.reset(seed)
    while not log.is_complete and (num_steps is None or len(seconds) < num_steps):
        if video is not None and (num_steps is not None or not log.ended[0]):
            frames.append(plant.render())
        state = _stacked([state_of(o, e) for o, e in zip(observations, plant.envs, strict=True)])
        started = time.perf_counter()
        action = controller(state, fresh)
        seconds.append(time.perf_counter() - started)
        try:
            step = plant.step(action.numpy())
        except Exception as caught:
            warnings.warn(f"an environment raised {caught!r}: the run ends early", RuntimeWarning, stacklevel=2)
            error = caught
            plant.close()
            break
        if record:
            states.append(state)
            applied.append(action)
            rewards.append(torch.as_tensor(step.rewards, dtype=torch.float32))
        log.add(step)
        observations, fresh = step.observations, torch.as_tensor(step.fresh)
    if video is not None:
        _save(video, frames, plant.dt)
    return Episodes(
        *log.episodes(),
        solve_times=torch.tensor(seconds, dtype=torch.float64),
        num_replaced=controller.num_replaced,
        states=_stacked(states) if states else None,
        actions=torch.stack(applied) if applied else None,
        rewards=torch.stack(rewards) if rewards else None,
        error=error,
    )


class _Controller:
    """The policy with its warm start, and with something to do where it fails."""

    def __init__(self, policy: MPC | Callable[[Any], Tensor], plant: Plant, seed: int | None) -> None:
        if not callable(policy):
            raise TypeError(f"policy: expected an MPC or a callable state -> action, got {policy!r}")
        self.policy, self.seed, self.num_replaced = policy, seed, 0
        self.low, self.high = plant.low, plant.high
        self.shape = (plant.num_envs, *plant.low.shape)
        self.generator: torch.Generator | None = None
        self.plan: Plan | None = None
        self.failed = torch.zeros(plant.num_envs, dtype=torch.bool)
        self.ahead: Tensor | None = None  # (E, H, *a): the last good plans from here on

    @torch.no_grad()
    def __call__(self, state: Any, fresh: Tensor) -> Tensor:
        """Actions ``(E, *a)`` within the bounds; ``fresh`` says where an episode begins."""
        actions, good = self._decide(state, fresh | self.failed)
        if actions.dim() != len(self.shape) + 1 or (actions.shape[0], *actions.shape[2:]) != self.shape:
            came = (actions.shape[0], *actions.shape[2:])
            raise ValueError(f"policy: expected actions (E, *a) = {self.shape}, got {came}")
        self.failed = ~actions.flatten(1).isfinite().all(1)
        good = good & ~self.failed
        self.num_replaced += int((~good).sum())
        left = torch.zeros_like(actions)
        if self.ahead is not None:
            left[:, :-1] = self.ahead[:, 1:]
            left[fresh] = 0.0
        self.ahead = torch.where(good.reshape(-1, *(1,) * len(self.shape)), actions, left)
        return self.ahead[:, 0].clamp(self.low, self.high)

    def _decide(self, state: Any, reset: Tensor) -> tuple[Tensor, Tensor]:
        """The actions from here on, ``(E, H, *a)``, and whether the solve that they came of went well."""
        if not isinstance(self.policy, MPC):
            forget = getattr(self.policy, "reset", None)
            if forget is not None and reset.any():
                forget(reset)
            action: Any = self.policy(state)
            if not isinstance(action, Tensor):
                raise TypeError(f"policy: expected it to return a Tensor of actions, got {type(action).__name__}")
            return _plain(action).unsqueeze(1), torch.ones(self.shape[0], dtype=torch.bool)
        device = leaves(state)[0].device
        if self.generator is None and self.seed is not None:
            self.generator = torch.Generator(device).manual_seed(self.seed)
        warm = None if self.plan is None else reset.to(device)
        self.plan = self.policy(state, warm_start=self.plan, reset=warm, generator=self.generator)
        return _plain(self.plan.actions), self.plan.status.cpu() != Status.NONFINITE


class _Log:
    """Adds up episodes; with ``once`` the first of each environment."""

    def __init__(self, num_envs: int, once: bool) -> None:
        self.once, self.ended = once, [False] * num_envs
        self.under_way = [(0.0, 0)] * num_envs
        self.rows: list[tuple[int, float, int, bool]] = []

    @property
    def is_complete(self) -> bool:
        return self.once and all(self.ended)

    def add(self, step: PlantStep) -> None:
        for i, (total, length) in enumerate(self.under_way):
            if not step.counts[i] or (self.once and self.ended[i]):
                continue
            self.under_way[i] = (total + float(step.rewards[i]), length + 1)
            if step.done[i]:
                self.rows.append((i, *self.under_way[i], True))
                self.under_way[i], self.ended[i] = (0.0, 0), True

    def episodes(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns, lengths, environments and whether they finished."""
        cut = [(i, *sums, False) for i, sums in enumerate(self.under_way) if sums[1]]
        rows = sorted([*self.rows, *cut], key=lambda row: row[0])  # stable: in the order in which they ended
        environments, returns, lengths, finished = zip(*rows, strict=True) if rows else ((), (), (), ())
        return torch.tensor(returns), torch.tensor(lengths), torch.tensor(environments), torch.tensor(finished)


def _flattened(observation: Any, env: Any) -> Tensor:
    """An observation as one vector, the parts of a dict in their order."""
    if isinstance(observation, Mapping):
        return torch.cat([_flattened(value, env) for value in observation.values()])
    if isinstance(observation, tuple):
        return torch.cat([_flattened(value, env) for value in observation])
    return torch.tensor(observation, dtype=torch.float32).reshape(-1)


def _stacked(states: list[Any]) -> Any:
    return map_tensors(lambda *of_each: torch.stack(of_each), states[0], *states[1:])


def _plain(action: Tensor) -> Tensor:
    return action.detach().cpu().float()


def _save(path: str | Path, frames: list[Any], dt: float) -> None:
    """A GIF in real time, of as many of the frames as the format can show."""
    import numpy as np

    from dcem.plotting import save_gif

    every = max(1, round(1 / (50 * dt)))
    save_gif(path, np.stack(frames[::every]), min(50.0, 1 / (every * dt)))
