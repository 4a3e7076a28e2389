"""A controller's decision as a function of what was seen and what it remembers: the core of every policy here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dcem._eager import is_eager
from dcem._given import brief, came, kind
from dcem._tree import leaves, map_tensors, precision_of
from dcem.bounds import Bounds
from dcem.control import MPC, WarmStart
from dcem.control.rollout import drawn_by
from dcem.rl.draws import asked_alike
from dcem.solution import Status

VECTORS = (
    "expected vectors (*batch, o) (flatten images, as FlattenObservation(-3, -1, in_keys=['observation']) of "
    "torchrl.envs does, and let state_of unflatten them)"
)


class Memory(NamedTuple):
    """What a controller has to remember between two decisions; of problems that have not begun the rest is ignored.

    Attributes:
        belief: what the model believed before the observation, a tree of `(*batch, ...)`; None without a model.
        action: that has been applied since, `(*batch, *a)`.
        plan: the plan that it was the first action of.
        started: `(*batch,)`, boolean: False where an episode begins, and after a solve that failed
            ([`dcem.Status.NONFINITE`][]): what led to that would fail every solve that comes.
    """

    belief: Any
    action: Tensor
    plan: WarmStart
    started: Tensor


class Decision(NamedTuple):
    """What a controller decides.

    Attributes:
        action: the action to apply, `(*batch, *a)`, differentiable as the plan is.
        memory: for the next decision, all of it detached.
        status: of the plan, `(*batch,)`.
    """

    action: Tensor
    memory: Memory
    status: Tensor


class Controller(nn.Module):
    """Observe, plan, act: an [`dcem.control.MPC`][], perhaps with a learned model and a network beside the plan.

    Args:
        mpc: plans.
        model: a world model, whose belief is the state that `mpc` plans from; None where the observation tells it.
        state_of: `observation -> state` without a model; None: the observation is the state.
        residual: `state -> (*batch, *a)`, added to the planned action.
    """

    def __init__(
        self,
        mpc: MPC,
        model: nn.Module | None = None,
        state_of: Callable[[Tensor], Any] | None = None,
        residual: Callable[[Any], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(mpc, MPC):
            raise TypeError(f"mpc: expected a dcem.control.MPC, got {type(mpc).__name__}")
        needed = ("initial", "observe") if model is not None else ()
        missing = [name for name in needed if not callable(getattr(model, name, None))]
        if missing:
            raise TypeError(f"model: expected a world model with a method {missing[0]}, got {type(model).__name__}")
        if model is not None and state_of is not None:
            raise ValueError("state_of: expected None with a model, whose belief is the state")
        for name, fn in {"state_of": state_of, "residual": residual}.items():
            if fn is not None and not callable(fn):
                raise TypeError(f"{name}: expected a callable or None, got {brief(fn)}")
        self.mpc, self.model, self.state_of, self.residual = mpc, model, state_of, residual

    @property
    def device(self) -> torch.device:
        """Where its tensors are: arrays come from environments, which know nothing of devices."""
        held = [*self.parameters(), *self.buffers()]
        return held[0].device if held else torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of what floating-point numbers it has, the first of its parameters."""
        return precision_of(self)

    @property
    def keeps_latent(self) -> bool:
        """Whether the next plan needs the latent of this one, since its actions do not tell it."""
        return self.mpc.decoder is not None and not hasattr(self.mpc.decoder, "encode")

    def blank(self, batch_shape: tuple[int, ...], like: Tensor) -> Memory:
        """The memory of problems that have not begun."""
        mpc = self.mpc
        plan = like.new_zeros((*batch_shape, mpc.horizon, *mpc.action_shape))
        return Memory(
            None if self.model is None else self.model.initial(batch_shape),  # type: ignore[operator]
            like.new_zeros((*batch_shape, *mpc.action_shape)),
            WarmStart(plan, like.new_zeros((*batch_shape, *mpc.latent_shape)) if self.keeps_latent else plan),
            torch.zeros(batch_shape, dtype=torch.bool, device=like.device),
        )

    def state(self, observation: Tensor, memory: Memory, generator: torch.Generator | None = None) -> Any:
        """The state to plan from: the model's belief, or what the observation tells."""
        check_observation(observation, tuple(memory.started.shape), getattr(self.model, "observation_size", None))
        if self.model is None:
            return observation if self.state_of is None else self._of_vectors(observation)
        fresh = self.model.initial(tuple(memory.started.shape))  # type: ignore[operator]
        belief = map_tensors(lambda new, old: _where(memory.started, old.to(new), new), fresh, memory.belief)
        action = _where(memory.started, memory.action, torch.zeros_like(memory.action))
        observe: Callable[..., Any] = self.model.observe  # type: ignore[assignment]
        return observe(belief, action, observation, **drawn_by(observe, generator, 3))

    def forward(
        self,
        observation: Tensor,
        memory: Memory,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Decision:
        """Decide.

        Args:
            observation: `(*batch, ...)`.
            memory: of the decision before, or `blank`.
            noise: of the search, as [`dcem.control.MPC`][] takes it, in a decision that can be made again: then
                proposals make the same draws each time, too. All is drawn otherwise.
            generator: source of what is drawn.

        Raises:
            ValueError: the observation has the wrong shape or is not finite.
        """
        mpc = self.mpc
        state = self.state(observation, memory, generator)
        proposals = None
        if noise is not None and mpc.proposals is not None:
            proposals = asked_alike(mpc.proposals, state, memory.started.dim(), mpc.horizon, mpc.num_proposals)
        plan = mpc(
            state,
            warm_start=self._warm_start(memory),
            reset=~memory.started,
            noise=noise,
            proposals=proposals,
            generator=generator,
        )
        action = plan.action
        if self.residual is not None:
            action = self._clipped(action + self._correction(state, action))
        belief = None if self.model is None else map_tensors(Tensor.detach, state)
        memory = Memory(belief, action.detach(), plan.warm_start, plan.status != int(Status.NONFINITE))
        return Decision(action, memory, plan.status)

    def bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Lowest and highest first action, `(*a)` each, infinite where there is no bound."""
        shape = (self.mpc.horizon, *self.mpc.action_shape)
        box = Bounds.check(self.mpc.bounds, torch.Size(shape), like) or Bounds()
        ends = {-torch.inf: box.low, torch.inf: box.high}
        low, high = (
            torch.as_tensor(end if side is None else side, device=like.device).to(like).expand(shape)[0].clone()
            for end, side in ends.items()
        )
        return low, high

    def _of_vectors(self, observation: Tensor) -> Any:
        """The state, of which `state_of` has to leave the batch as it is: of images it would be another one."""
        assert self.state_of is not None
        state, batch = self.state_of(observation), tuple(observation.shape[:-1])
        for leaf in leaves(state):
            if tuple(leaf.shape[: len(batch)]) != batch:
                raise ValueError(
                    f"observation: {VECTORS}, got {tuple(observation.shape)}, of which state_of made a state "
                    f"{tuple(leaf.shape)}, not one of the batch {batch}"
                )
        return state

    def _warm_start(self, memory: Memory) -> WarmStart:
        """The plan before, with the action that was applied in the place of the one that was planned."""
        at = memory.started.dim()
        applied = memory.action.to(memory.plan.actions).unsqueeze(at)
        rest = memory.plan.actions.narrow(at, 1, self.mpc.horizon - 1)
        return memory.plan._replace(actions=torch.cat([applied, rest], at))

    def _correction(self, state: Any, action: Tensor) -> Tensor:
        assert self.residual is not None
        correction: Any = self.residual(state)
        if not isinstance(correction, Tensor) or correction.shape != action.shape:
            expected = tuple(action.shape)
            raise ValueError(
                f"residual: expected a correction (*batch, *a) = {expected}, got {came(correction, expected)}"
            )
        return correction

    def _clipped(self, action: Tensor) -> Tensor:
        """Within the bounds, with the gradient of no clipping: what has been pushed beyond them can come back."""
        low, high = self.bounds(action)
        return action.clamp(low, high).detach() + (action - action.detach())


def check_observation(observation: Any, batch_shape: tuple[int, ...], size: int | None) -> None:
    """A floating-point tensor `(*batch, ...)` of finite numbers, as far as these may be looked at."""
    if not isinstance(observation, Tensor) or not observation.is_floating_point():
        came = f"a tensor of {observation.dtype}" if isinstance(observation, Tensor) else kind(observation)
        raise TypeError(f"observation: expected a floating-point tensor, got {came}")
    shape = tuple(observation.shape)
    if shape[: len(batch_shape)] != batch_shape:
        raise ValueError(f"observation: expected the leading axes {batch_shape}, got shape {shape}")
    if size is not None and shape != (*batch_shape, size):
        raise ValueError(f"observation: expected shape {(*batch_shape, size)}, got {shape}")
    if is_eager() and observation.device.type == "cpu" and not bool(observation.isfinite().all()):
        wrong = (~observation.isfinite()).nonzero()
        at = tuple(wrong[0].tolist())
        raise ValueError(
            f"observation: expected finite numbers, got {len(wrong)} that are not, the first {observation[at].item()} "
            f"at {at}"
        )


def _where(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(mask.reshape(*mask.shape, *(1,) * (yes.dim() - mask.dim())), yes, no)


torch.serialization.add_safe_globals([Memory])
