"""A controller as a plain function from observations to actions, for loops that know nothing of tensordicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dcem._arrays import as_tensor
from dcem._check import check_int
from dcem.control import MPC
from dcem.rl.controller import Controller, Memory


def policy(
    mpc: MPC,
    model: nn.Module | None = None,
    *,
    state_of: Callable[[Tensor], Any] | None = None,
    residual: Callable[[Any], Tensor] | None = None,
    seed: int | None = None,
) -> Policy:
    """Use a controller in any loop: a function from observation to action, with a `reset` for episodes that begin.

    Args:
        mpc: the controller.
        model: a world model whose belief is the state that `mpc` plans from; None: the observation is.
        state_of: `observation -> state`, without a model.
        residual: `state -> (*batch, *a)`, added to the planned action.
        seed: of the planner's draws; None: torch's global generator.

    Returns:
        A callable that takes an observation `(*batch, o)`, one or a batch of environments, as an array or a tensor,
        and returns the action `(*batch, *a)` of the same kind. It remembers its plan and its belief.
        [`dcem.control.run`][] takes it, and resets it where episodes begin.

    Raises:
        TypeError: an argument is of the wrong type; in a call, the observation is.
        ValueError: in a call, the observation has another shape than before, or is not finite.

    Example:
        >>> import dcem, gymnasium
        >>> from dcem.control.systems import Pendulum
        >>> model = Pendulum()
        >>> act = policy(dcem.control.MPC(model, model.cost, 10, 1, model.bounds, dcem.CEM(32, 4), num_iterations=3))
        >>> env = gymnasium.make("Pendulum-v1")
        >>> observation, _ = env.reset(seed=0)
        >>> for _ in range(3):
        ...     observation, reward, *_ = env.step(act(observation))
        >>> act.reset()
    """
    return Policy(Controller(mpc, model, state_of, residual), None if seed is None else check_int("seed", seed))


class Policy:
    """What `policy` returns: a controller with its memory.

    Args:
        controller: what plans, and says what it has to remember.
        seed: of the planner's draws; None: torch's global generator.

    Raises:
        TypeError: in a call, the observation is neither an array nor a tensor of numbers.
        ValueError: in a call, it has another shape than before, or is not finite.
    """

    def __init__(self, controller: Controller, seed: int | None) -> None:
        self.controller, self.seed = controller, seed
        self.generator: torch.Generator | None = None  # made with the first decision, where it is made
        self.memory: Memory | None = None
        self.status: Tensor | None = None

    @torch.no_grad()
    def __call__(self, observation: Any) -> Any:
        """The action for an observation, of which the policy then remembers what it needs.

        A decision whose solve failed ([`dcem.Status.NONFINITE`][]) is not remembered: the next one starts afresh.
        """
        # A copy: a model may believe what it sees as it is, and a loop fill its buffer again.
        seen = observation.clone() if isinstance(observation, Tensor) else _as_tensor(observation, self.controller)
        batch = tuple(seen.shape[:-1])
        memory = self.controller.blank(batch, seen) if self.memory is None else self.memory
        if tuple(memory.started.shape) != batch:
            raise ValueError(
                f"observation: expected a batch {tuple(memory.started.shape)} as before, got {batch}; reset() starts "
                "anew with another"
            )
        generator = None if self.generator is None else self.generator.clone_state()
        if generator is None and self.seed is not None:
            generator = torch.Generator(seen.device).manual_seed(self.seed)
        decision = self.controller(seen, memory, generator=generator)
        # Kept from here on: a decision that raised has drawn nothing, and decides neither the batch nor the device.
        self.memory, self.status = decision.memory, decision.status
        self.generator = generator
        if isinstance(observation, Tensor):
            return decision.action.clone()
        action = decision.action.to("cpu", copy=True)  # what is remembered is not the caller's
        return (action.float() if action.dtype == torch.bfloat16 else action).numpy()  # NumPy has no bfloat16

    @property
    def dtype(self) -> torch.dtype:
        """That of the controller's numbers, in which [`dcem.control.run`][] gives it observations."""
        return self.controller.dtype

    def applied(self, action: Any) -> None:
        """Say what was applied in place of the last action, where something was added to it or cut off.

        The model observes what that led to, and the next plan starts from it. [`dcem.control.run`][] says it.

        Raises:
            RuntimeError: no action has been decided.
            ValueError: `action` has another shape than the last one.
        """
        if self.memory is None:
            raise RuntimeError("applied: expected an action to have been decided since the last reset")
        before = self.memory.action
        taken = as_tensor(action).detach().to(before, copy=True)  # a loop may fill its buffer again
        if taken.shape != before.shape:
            raise ValueError(
                f"action: expected the shape {tuple(before.shape)} of the last one, got {tuple(taken.shape)}"
            )
        self.memory = self.memory._replace(action=taken)

    def reset(self, where: Any = None) -> None:
        """Forget: an episode begins, in all environments or, booleans `(*batch,)` as a tensor or an array, in some.

        Episodes that begin in all environments of another number of them are a new start.

        Raises:
            TypeError: `where` holds no booleans.
            ValueError: it has another shape than the batch of the observations, and is not all true.
        """
        if where is None:
            self.memory = None
        elif self.memory is not None:
            started = self.memory.started
            mask = where if isinstance(where, Tensor) else as_tensor(where)
            if mask.dtype != torch.bool:
                raise TypeError(f"where: expected booleans, got {mask.dtype}")
            if mask.shape != started.shape and mask.dim() and mask.all():
                self.memory = None
                return
            if mask.shape != started.shape:
                came = tuple(mask.shape)
                raise ValueError(f"where: expected the shape {tuple(started.shape)} of the batch, got {came}")
            self.memory = self.memory._replace(started=started & ~mask.to(started.device))


def _as_tensor(observation: Any, like: Controller) -> Tensor:
    """An array or a list as a tensor, as the controller has them."""
    if isinstance(observation, tuple):
        raise TypeError("observation: expected an array or a tensor, got a tuple: observation, info = env.reset()")
    try:
        return as_tensor(observation, like.dtype, like.device).clone()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"observation: expected an array or a tensor, got {type(observation).__name__}") from None
