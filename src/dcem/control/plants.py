"""Environments behind one face: Gymnasium's, vectorised or not, and dm_control's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from dcem._check import for_choices

if TYPE_CHECKING:
    import numpy as np

StateOf = Callable[[Any, Any], Any]


class PlantStep(NamedTuple):
    """What a step of all environments gave; a list or array of one entry an environment, `E` of them."""

    states: list[Any]
    """The states to decide in next: those of a new episode where one ended."""
    finals: list[Any]
    """The states that episodes ended in with this step; None elsewhere, and where nobody asked for them."""
    rewards: Any
    done: Any
    """The episode ended with this step."""
    fresh: Any
    """The state begins an episode."""
    counts: Any
    """False where an environment did not take the action: it started anew, or its episodes are over, or it failed."""
    error: Exception | None
    """What an environment raised; then a step counts only where it ended an episode."""


class Space(NamedTuple):
    """A box of actions, in the dtype of the environment."""

    low: np.ndarray[Any, Any]
    high: np.ndarray[Any, Any]

    def applied(self, actions: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Actions `(..., *a)` as the environment gets them: rounded to its dtype first, then kept inside."""
        import numpy as np

        if np.issubdtype(self.low.dtype, np.integer):
            actions = np.rint(actions)
            return np.clip(actions, self.low.astype(actions.dtype), self.high.astype(actions.dtype)).astype(
                self.low.dtype
            )
        return np.clip(actions.astype(self.low.dtype), self.low, self.high)

    def outside(self, actions: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Which of the numbers `(..., *a)` lie outside by more than rounding: boolean."""
        import numpy as np

        given = (np.rint(actions) if np.issubdtype(self.low.dtype, np.integer) else actions).astype(float)
        low, high = self.low.astype(float), self.high.astype(float)
        outside: np.ndarray[Any, Any] = (given < low - 1e-6 * abs(low)) | (given > high + 1e-6 * abs(high))
        return outside


class Plant(Protocol):
    """Several environments of one kind behind one face."""

    num_envs: int
    space: Space
    dt: float

    def reset(self, seed: int | None) -> list[Any]: ...
    def step(self, actions: Any, active: Sequence[bool], *, keep_finals: bool) -> PlantStep: ...
    def can_render(self) -> bool: ...
    def render(self) -> Any: ...
    def close(self) -> None: ...


class _Singles:
    """Environments that are stepped one by one, and start anew as soon as an episode has ended."""

    def __init__(self, envs: Sequence[_Gymnasium | _DmControl], state_of: StateOf, once: bool) -> None:
        self.singles, self.num_envs, self.state_of, self.once = envs, len(envs), state_of, once
        self.space, self.dt = envs[0].space, envs[0].dt
        if len(kinds := {type(single) for single in envs}) > 1:
            names = ", ".join(sorted(kind.__name__.strip("_") for kind in kinds))
            raise TypeError(f"envs: expected environments of one kind, got {names}")
        shapes = [tuple(single.space.low.shape) for single in envs]
        if len(set(shapes)) > 1:
            raise ValueError(f"envs: expected environments of one action shape, got {', '.join(map(str, shapes))}")
        self.states: list[Any] = []

    def reset(self, seed: int | None) -> list[Any]:
        self.states = [self._begin(i, None if seed is None else seed + i) for i in range(self.num_envs)]
        return self.states

    def _begin(self, i: int, seed: int | None) -> Any:
        single = self.singles[i]
        return self.state_of(single.reset(seed), single.env)

    def step(self, actions: Any, active: Sequence[bool], *, keep_finals: bool) -> PlantStep:
        num, error = self.num_envs, None
        states, finals, rewards = list(self.states), [None] * num, [0.0] * num
        done, fresh, counts = [False] * num, [False] * num, [False] * num
        for i, single in enumerate(self.singles):
            if not active[i]:
                continue
            try:
                observation, rewards[i], done[i] = single.step(self.space.applied(actions[i]))
                if not math.isfinite(rewards[i]):
                    raise ValueError(f"expected a finite reward of environment {i}, got {rewards[i]}")
            except Exception as caught:
                error, done[i] = caught, False
                break
            counts[i] = True
            if not done[i] or keep_finals or self.once:
                states[i] = self.state_of(observation, single.env)
            finals[i] = states[i] if done[i] and keep_finals else None
        if error is not None:
            counts = [count and over for count, over in zip(counts, done, strict=True)]
        elif not self.once:
            for i in range(num):
                if done[i] and error is None:
                    try:
                        states[i], fresh[i] = self._begin(i, None), True
                    except Exception as caught:
                        error = caught
        self.states = states
        return PlantStep(states, finals, rewards, done, fresh, counts, error)

    def can_render(self) -> bool:
        return self.singles[0].can_render()

    def render(self) -> Any:
        return self.singles[0].render()

    def close(self) -> None:
        for single in self.singles:
            single.env.close()


class _Gymnasium:
    def __init__(self, env: Any) -> None:
        self.env, self.space = env, _box(env.action_space)
        self.dt = 1 / (env.metadata.get("render_fps") or 30)

    def reset(self, seed: int | None) -> Any:
        return self.env.reset(seed=seed)[0]

    def step(self, action: Any) -> tuple[Any, float, bool]:
        observation, reward, terminated, truncated, _ = self.env.step(action)
        return observation, float(reward), bool(terminated or truncated)

    def can_render(self) -> bool:
        return getattr(self.env, "render_mode", None) == "rgb_array"

    def render(self) -> Any:
        return self.env.render()


class _DmControl:
    def __init__(self, env: Any) -> None:
        import numpy as np

        self.env, self.dt = env, env.control_timestep()
        spec = env.action_spec()
        low, high = (np.broadcast_to(side, spec.shape).astype(spec.dtype) for side in (spec.minimum, spec.maximum))
        self.space = Space(low, high)

    def reset(self, seed: int | None) -> Any:
        if seed is not None:
            own = getattr(self.env.task, "random", None)  # the suite's tasks have it, composer's environments
            (self.env.random_state if own is None else own).seed(seed)
        return self.env.reset().observation

    def step(self, action: Any) -> tuple[Any, float, bool]:
        step = self.env.step(action)
        return step.observation, float(step.reward or 0.0), step.last()

    def can_render(self) -> bool:
        return True

    def render(self) -> Any:
        return self.env.physics.render(240, 320, camera_id=0)


class _Vector:
    """A Gymnasium vector environment, in whichever way it starts anew."""

    def __init__(self, envs: Any, state_of: StateOf) -> None:
        self.vector, self.num_envs, self.state_of = envs, envs.num_envs, state_of
        self.envs = getattr(envs, "envs", [envs] * self.num_envs)
        self.space = _box(envs.single_action_space)
        self.dt = 1 / (envs.metadata.get("render_fps") or 30)
        mode = envs.metadata.get("autoreset_mode")
        self.mode = getattr(mode, "name", "NEXT_STEP")
        self.restarting: Any = [False] * self.num_envs
        self.states: list[Any] = []

    def reset(self, seed: int | None) -> list[Any]:
        self.restarting = [False] * self.num_envs
        self.states = self._states(self.vector.reset(seed=seed)[0])
        return self.states

    def step(self, actions: Any, active: Sequence[bool], *, keep_finals: bool) -> PlantStep:
        num, nobody, none = self.num_envs, [False] * self.num_envs, [None] * self.num_envs
        try:
            observations, rewards, terminated, truncated, info = self.vector.step(self.space.applied(actions))
            done = terminated | truncated
            for i in range(num):
                if not math.isfinite(rewards[i]):
                    raise ValueError(f"expected a finite reward of environment {i}, got {rewards[i]}")
        except Exception as caught:
            return PlantStep(self.states, none, [0.0] * num, nobody, nobody, nobody, caught)
        restarted, self.restarting = self.restarting, done
        next_step = self.mode == "NEXT_STEP"  # then this step starts anew what the one before ended
        counts = [active[i] and not (next_step and restarted[i]) for i in range(num)]
        states, finals, error = self._states(observations), list(none), None
        if keep_finals:
            ended = info.get("final_obs") if self.mode == "SAME_STEP" else None
            finals = [
                None if not done[i] else states[i] if ended is None else self.state_of(ended[i], self.envs[i])
                for i in range(num)
            ]
        if self.mode == "DISABLED" and done.any():
            try:
                states = self._states(self.vector.reset(options={"reset_mask": done})[0])
            except Exception as caught:
                error = caught
        self.states = states
        return PlantStep(states, finals, rewards, done, restarted if next_step else done, counts, error)

    def can_render(self) -> bool:
        return getattr(self.vector, "render_mode", None) == "rgb_array"

    def render(self) -> Any:
        return self.vector.render()[0]

    def close(self) -> None:
        self.vector.close()

    def _states(self, observations: Any) -> list[Any]:
        return [self.state_of(_row(observations, i), self.envs[i]) for i in range(self.num_envs)]


def plant_of(envs: Any, state_of: StateOf, *, once: bool) -> Plant:
    """One face for `envs`; with `once` an environment rests when its first episode is over, where it can."""
    if hasattr(envs, "single_action_space"):
        return _Vector(envs, state_of)
    several = list(envs) if isinstance(envs, (list, tuple)) else [envs]
    if not several:
        raise ValueError("envs: expected at least one environment, got an empty sequence")
    if len({id(env) for env in several}) < len(several):
        raise ValueError("envs: expected environments of their own, got one of them twice")
    return _Singles([_single(env) for env in several], state_of, once)


def _single(env: Any) -> _Gymnasium | _DmControl:
    if hasattr(env, "action_spec") and hasattr(env, "control_timestep"):
        return _DmControl(env)
    if hasattr(env, "action_space") and hasattr(env, "step"):
        return _Gymnasium(env)
    raise TypeError(
        "envs: expected a Gymnasium environment or vector environment, a dm_control Environment, or a sequence of "
        f"environments; got {type(env).__name__}"
    )


def _box(space: Any) -> Space:
    """The lowest and the highest action."""
    if not (hasattr(space, "low") and hasattr(space, "high")):
        raise TypeError(f"envs: expected a Box of continuous actions, got {space}{_as_box(space)}")
    return Space(space.low, space.high)


def _as_box(space: Any) -> str:
    """How an environment of choices becomes one of numbers."""
    if not (remedy := for_choices(space)):
        return ""
    wrapped = "gymnasium.wrappers.TransformAction(env, np.argmax, gymnasium.spaces.Box(0, 1, (C,)))"
    return f"{remedy}, and played in {wrapped}"


def _row(observations: Any, i: int) -> Any:
    """One environment's observation of a batch; dicts and tuples hold a batch each."""
    if isinstance(observations, dict):
        return {key: _row(value, i) for key, value in observations.items()}
    if isinstance(observations, tuple):
        return tuple(_row(value, i) for value in observations)
    return observations[i]
