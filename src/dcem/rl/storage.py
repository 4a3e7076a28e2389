"""Where a controller's memory lies in a tensordict, and the transform by which an environment carries it."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, TensorSpec, Unbounded
from torchrl.envs import TensorDictPrimer

from dcem._check import for_choices
from dcem._tree import leaves, map_tensors
from dcem.control import WarmStart
from dcem.rl.controller import VECTORS, Controller, Memory

OBSERVATION, STARTED, ACTION, PLAN, LATENT, BELIEF = (
    "observation", "started", "previous_action", "plan", "latent", "belief",
)  # fmt: skip


class Storage:
    """Reads and writes the memory of a controller.

    Args:
        controller: whose memory it is.
        like: a tensor of the dtype and on the device of what is stored.
    """

    def __init__(self, controller: Controller, like: Tensor) -> None:
        blank = controller.blank((), like)
        self.plan_keys: list[NestedKey] = [PLAN, LATENT] if controller.keeps_latent else [PLAN]
        self.belief_keys: list[NestedKey] = [(BELIEF, str(i)) for i in range(len(leaves(blank.belief)))]
        self.decided: list[NestedKey] = [STARTED, *self.plan_keys, *self.belief_keys]
        """What a decision determines, without the action that is applied in the end."""
        self.in_keys: list[NestedKey] = [OBSERVATION, ACTION, *self.decided]

    def specs(self, controller: Controller, like: Tensor) -> dict[NestedKey, TensorSpec]:
        """What an environment has to carry, in the dtype and on the device of `like`."""
        blank = controller.blank((), like)
        tensors = dict(zip([ACTION, *self.decided], [blank.action, *self._tensors(blank)], strict=True))
        specs: dict[NestedKey, TensorSpec] = {
            key: Unbounded(of.shape, device=of.device, dtype=of.dtype) for key, of in tensors.items() if key != STARTED
        }
        return specs | {STARTED: Binary(n=1, shape=(1,), dtype=torch.bool, device=like.device)}

    def read(self, tensordict: TensorDictBase, controller: Controller, like: Tensor) -> tuple[Tensor, Memory]:
        """The observation `(*batch, o)` and the memory that go into a decision, in the dtype of `like`."""
        observation = tensordict.get(OBSERVATION, None)
        if observation is None:
            raise KeyError(
                f"{OBSERVATION}: expected this key, got {sorted(map(str, tensordict.keys(True, True)))}; append "
                f"CatTensors([...], '{OBSERVATION}') of torchrl.envs to the environment, of the keys that are observed"
            )
        if not observation.is_floating_point():
            raise TypeError(f"{OBSERVATION}: expected a floating-point tensor (*batch, o), got {observation.dtype}")
        observation = observation.to(like)
        batch = tuple(observation.shape[:-1])
        blank = controller.blank(batch, like)
        keys = [ACTION, STARTED, *self.belief_keys]
        missing = [key for key in keys if tensordict.get(key, None) is None]
        if missing and controller.model is not None:
            raise ValueError(
                f"{missing[0]}: expected this key in the tensordict, without which the model forgets what it has seen: "
                "append actor.make_tensordict_primer() to the environment, or give a collector "
                "auto_register_policy_transforms=True"
            )
        if missing:
            return observation, blank
        started = tensordict.get(STARTED)
        if started.numel() != blank.started.numel():
            stored, came = tuple(started.shape[:-1]), tuple(observation.shape)
            raise ValueError(f"{OBSERVATION}: {VECTORS}, the batch {stored} of what is remembered, got {came}")
        plan = [tensordict.get(key, of) for key, of in zip(self.plan_keys, blank.plan, strict=False)]
        belief = iter([tensordict.get(key) for key in self.belief_keys])
        return observation, Memory(
            map_tensors(lambda leaf: next(belief), blank.belief),
            tensordict.get(ACTION).to(like),
            WarmStart(plan[0].to(like), plan[-1].to(like)),
            started.reshape(batch).to(like.device, torch.bool),
        )

    def write(self, tensordict: TensorDictBase, memory: Memory) -> None:
        """Put what a decision determines under `"next"`."""
        for key, value in zip(self.decided, self._tensors(memory), strict=True):
            tensordict.set(after(key), value)

    def _tensors(self, memory: Memory) -> list[Tensor]:
        return [memory.started.unsqueeze(-1), *memory.plan[: len(self.plan_keys)], *leaves(memory.belief)]


class Primer(TensorDictPrimer):  # type: ignore[misc]
    """Lets an environment carry what an actor has to remember: blank at each reset, its successor after each step.

    What was applied counts as the previous action, whoever chose it. After a step that the actor did not decide it
    starts afresh.

    Args:
        specs: of what is carried.
        bounds: of the actor's actions, each of their shape.
    """

    def __init__(self, specs: dict[NestedKey, TensorSpec], bounds: tuple[Tensor, Tensor]) -> None:
        super().__init__(Composite(specs), expand_specs=True)
        self.action_shape, self.action_bounds = specs[ACTION].shape, bounds

    def set_container(self, container: Any) -> None:
        """Also checks that the environment takes the actor's actions; it carries all where it is itself."""
        super().set_container(container)
        env = self.parent
        if env is None:
            return
        if env.device is not None:
            own: Any = self
            own.device, own.primers = env.device, own.primers.to(env.device)
        expected = tuple(self.action_shape)
        for key, spec in env.full_action_spec.items(True, True):
            if not spec.dtype.is_floating_point:
                raise TypeError(
                    f"{key}: expected an environment of continuous actions {expected}, got {spec}{for_choices(spec)}"
                )
            if tuple(spec.shape[len(env.batch_size) :]) != expected:
                came = tuple(spec.shape[len(env.batch_size) :])
                raise ValueError(f"{key}: expected an environment of actions of shape {expected}, got {came}")
            if isinstance(spec, Bounded) and _is_wider(self.action_bounds, spec):
                low, high = (bound.tolist() for bound in self.action_bounds)
                raise ValueError(
                    f"{key}: expected an environment that takes the controller's actions, between {low} and {high}, "
                    f"got one between {spec.low.tolist()} and {spec.high.tolist()}: give these to MPC as its bounds"
                )

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        decided = next_tensordict.get(STARTED, None) is not None
        next_tensordict = super()._step(tensordict, next_tensordict)
        if not decided:
            next_tensordict.set(STARTED, torch.zeros_like(next_tensordict.get(STARTED)))
        action = tensordict.get("action").detach()
        return next_tensordict.set(ACTION, action.to(next_tensordict.get(ACTION)))


def _is_wider(bounds: tuple[Tensor, Tensor], spec: Bounded) -> bool:
    """Whether actions within bounds, or without any, can be none of the spec's, by more than rounding.

    An environment clips them in silence, and then what was applied is not what the policy's probability is of.
    """
    low, high = (bound.to(spec.low) for bound in bounds)
    largest = torch.finfo(torch.float32).max  # which is no bound, in double precision neither

    def beyond(inner: Tensor, outer: Tensor) -> Tensor:
        rounding = 1e-4 * torch.maximum(inner.abs().nan_to_num(posinf=0.0), outer.abs())
        return (outer.abs() < largest) & (inner - outer > rounding)

    return bool((beyond(high, spec.high) | beyond(-low, -spec.low)).any())


def after(key: NestedKey) -> tuple[str, ...]:
    """Where the successor of a key lies."""
    return ("next", key) if isinstance(key, str) else ("next", *key)
