"""Environments behind one face: Gymnasium's, vectorised or not, and dm_control's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class PlantStep(NamedTuple):
    """What a step of all environments gave; observations are those of a new episode where one ended."""

    observations: list[Any]
    rewards: Any
    """``(E,)``"""
    done: Any
    """``(E,)``: the episode ended with this step."""
    fresh: Any
    """``(E,)``: the observation begins an episode."""
    counts: Any
    """``(E,)``: False where an environment did not take the action because it started anew."""


class Plant(Protocol):
    """Several environments of one kind behind one face."""

    envs: Sequence[Any]
    num_envs: int
    low: Tensor
    high: Tensor
    dt: float

    def reset(self, seed: int | None) -> list[Any]: ...
    def step(self, actions: Any) -> PlantStep: ...
    def render(self) -> Any: ...
    def close(self) -> None: ...


class _Singles:
    """Environments that are stepped one by one, and start anew as soon as an episode has ended."""

    def __init__(self, envs: Sequence[_Gymnasium | _DmControl]) -> None:
        self.singles, self.num_envs = envs, len(envs)
        self.envs: Sequence[Any] = [single.env for single in envs]
        self.low, self.high, self.dt = envs[0].low, envs[0].high, envs[0].dt
        shapes = [tuple(single.low.shape) for single in envs]
        if len(set(shapes)) > 1:
            raise ValueError(f"envs: expected environments of one action shape, got {', '.join(map(str, shapes))}")

    def reset(self, seed: int | None) -> list[Any]:
        return [single.reset(None if seed is None else seed + i) for i, single in enumerate(self.singles)]

    def step(self, actions: Any) -> PlantStep:
        outcomes = [single.step(action) for single, action in zip(self.singles, actions, strict=True)]
        observations, rewards, done = (list(of) for of in zip(*outcomes, strict=True))
        for i, single in enumerate(self.singles):
            if done[i]:
                observations[i] = single.reset(None)
        return PlantStep(observations, rewards, done, done, [True] * self.num_envs)

    def render(self) -> Any:
        return self.singles[0].render()

    def close(self) -> None:
        for env in self.envs:
            env.close()


class _Gymnasium:
    def __init__(self, env: Any) -> None:
        self.env = env
        self.low, self.high = _box(env.action_space)
        self.dt = 1 / env.metadata.get("render_fps", 30)

    def reset(self, seed: int | None) -> Any:
        return self.env.reset(seed=seed)[0]

    def step(self, action: Any) -> tuple[Any, float, bool]:
        observation, reward, terminated, truncated, _ = self.env.step(action.astype(self.env.action_space.dtype))
        return observation, float(reward), bool(terminated or truncated)

    def render(self) -> Any:
        return self.env.render()


class _DmControl:
    def __init__(self, env: Any) -> None:
        self.env, self.dt = env, env.control_timestep()
        spec = env.action_spec()
        self.low, self.high = (
            torch.tensor(bound, dtype=torch.float32).broadcast_to(spec.shape).clone()
            for bound in (spec.minimum, spec.maximum)
        )

    def reset(self, seed: int | None) -> Any:
        if seed is not None:
            self.env.task.random.seed(seed)
        return self.env.reset().observation

    def step(self, action: Any) -> tuple[Any, float, bool]:
        step = self.env.step(action)
        return step.observation, float(step.reward or 0.0), step.last()

    def render(self) -> Any:
        return self.env.physics.render(240, 320, camera_id=0)


class _Vector:
    """A Gymnasium vector environment, in whichever way it starts anew."""

    def __init__(self, envs: Any) -> None:
        self.vector, self.num_envs = envs, envs.num_envs
        self.envs = getattr(envs, "envs", [envs] * self.num_envs)
        self.low, self.high = _box(envs.single_action_space)
        self.dt = 1 / envs.metadata.get("render_fps", 30)
        mode = envs.metadata.get("autoreset_mode")
        self.mode = getattr(mode, "name", "NEXT_STEP")
        self.restarting = [False] * self.num_envs

    def reset(self, seed: int | None) -> list[Any]:
        return self._rows(self.vector.reset(seed=seed)[0])

    def step(self, actions: Any) -> PlantStep:
        actions = actions.astype(self.vector.single_action_space.dtype)
        observations, rewards, terminated, truncated, _ = self.vector.step(actions)
        done = terminated | truncated
        if self.mode == "NEXT_STEP":  # this step starts anew what the one before ended
            restarted, self.restarting = self.restarting, done
            return PlantStep(self._rows(observations), rewards, done, restarted, [not anew for anew in restarted])
        if self.mode == "DISABLED" and done.any():
            observations, _ = self.vector.reset(options={"reset_mask": done})
        return PlantStep(self._rows(observations), rewards, done, done, [True] * self.num_envs)

    def render(self) -> Any:
        return self.vector.render()[0]

    def close(self) -> None:
        self.vector.close()

    def _rows(self, observations: Any) -> list[Any]:
        return [_row(observations, i) for i in range(self.num_envs)]


def plant_of(envs: Any) -> Plant:
    if hasattr(envs, "single_action_space"):
        return _Vector(envs)
    several = list(envs) if isinstance(envs, (list, tuple)) else [envs]
    if not several:
        raise ValueError("envs: expected at least one environment, got an empty sequence")
    return _Singles([_single(env) for env in several])


def _single(env: Any) -> _Gymnasium | _DmControl:
    if hasattr(env, "action_spec") and hasattr(env, "control_timestep"):
        return _DmControl(env)
    if hasattr(env, "action_space") and hasattr(env, "step"):
        return _Gymnasium(env)
    raise TypeError(
        "envs: expected a Gymnasium environment or vector environment, a dm_control Environment, or a sequence of "
        f"environments; got {type(env).__name__}"
    )


def _box(space: Any) -> tuple[Tensor, Tensor]:
    """The lowest and the highest action."""
    if not (hasattr(space, "low") and hasattr(space, "high")):
        raise TypeError(f"envs: expected a Box of continuous actions, got {space}")
    return torch.tensor(space.low, dtype=torch.float32), torch.tensor(space.high, dtype=torch.float32)


def _row(observations: Any, i: int) -> Any:
    """One environment's observation of a batch; dicts and tuples hold a batch each."""
    if isinstance(observations, dict):
        return {key: _row(value, i) for key, value in observations.items()}
    if isinstance(observations, tuple):
        return tuple(_row(value, i) for value in observations)
    return observations[i]
