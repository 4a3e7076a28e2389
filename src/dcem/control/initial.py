"""Where the search for a plan starts: from the plan before, and from what others propose. Both are constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dcem._arrays import as_tensor
from dcem._eager import all_true
from dcem._given import brief, kind
from dcem.control.plan import Plan, WarmStart
from dcem.control.problem import unchanging
from dcem.control.rollout import drawn_by


@torch.no_grad()
def warm(
    plan: Any,
    reset: Any,
    fresh: Tensor,
    batch: tuple[int, ...],
    actions_shape: tuple[int, ...],
    decoder: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor, Tensor | None]:
    """The first mean `(*batch, *latent)` from the plan before, shifted in time, and the action that was applied.

    Where `reset` says so, or the plan holds what is not finite, the mean is `fresh` and the action NaN. Without a plan
    it is `fresh` in all problems, and there was no action.
    """
    reset = None if reset is None else _mask(reset, batch, fresh.device)
    if plan is None:
        return fresh, None
    if not isinstance(plan, (Plan, WarmStart)):
        raise TypeError(f"warm_start: expected a dcem.control.Plan, a WarmStart or None, got {type(plan).__name__}")
    plan = plan.warm_start if isinstance(plan, Plan) else plan
    expected = (*batch, *actions_shape)
    if tuple(plan.actions.shape) != expected:
        raise ValueError(
            f"warm_start: expected a plan with actions (*batch, horizon, *a) = {expected}, "
            f"got {tuple(plan.actions.shape)}"
        )
    if plan.actions.device != fresh.device:
        raise ValueError(f"warm_start: expected a plan on {fresh.device} like the state, got {plan.actions.device}")
    actions = plan.actions.detach().to(fresh)
    applied = actions.select(len(batch), 0)
    encode = getattr(decoder, "encode", None)
    if decoder is not None and encode is None:
        mean = plan.mean.detach().to(fresh)
    else:
        steps = actions.unbind(len(batch))
        shifted = torch.stack([*steps[1:], steps[-1]], len(batch))
        mean = shifted if encode is None else encode(shifted)
    if mean.shape != fresh.shape:
        raise ValueError(f"warm_start: expected a plan over {tuple(fresh.shape)}, got {tuple(mean.shape)}")
    afresh = _not_finite(mean, len(batch)) | _not_finite(applied, len(batch))
    if reset is not None:
        afresh = afresh | reset
    if all_true(~afresh):
        return mean, applied

    def choose(new: Tensor, old: Tensor | float) -> Tensor:
        return torch.where(afresh.reshape((*batch, *(1,) * (new.dim() - len(batch)))), old, new)

    return choose(mean, fresh), choose(applied, torch.nan)


def _mask(reset: Any, batch: tuple[int, ...], device: torch.device) -> Tensor:
    """Which problems start afresh, as a tensor of the batch, or one for all."""
    if isinstance(reset, bool) or hasattr(reset, "__array__"):  # as environments say what is done
        reset = as_tensor(reset, device=device)
    if not isinstance(reset, Tensor) or reset.dtype != torch.bool or tuple(reset.shape) not in (batch, ()):
        came = f"{reset.dtype} {tuple(reset.shape)}" if isinstance(reset, Tensor) else kind(reset)
        raise ValueError(f"reset: expected a boolean tensor of the batch {batch}, or one for all, got {came}")
    return reset


def _not_finite(x: Tensor, batch_dims: int) -> Tensor:
    """Which problems hold something that is not finite: `(*batch,)`."""
    bad = ~x.isfinite()
    return bad.flatten(batch_dims).any(-1) if x.dim() > batch_dims else bad


@torch.no_grad()
def asked(proposals: Callable[..., Any], state: Any, horizon: int, num: int, generator: torch.Generator | None) -> Any:
    """What a function that proposes action sequences says; one with a keyword `generator` draws by that."""
    return unchanging("proposals", proposals, state, horizon, num, **drawn_by(proposals, generator, 3))


@torch.no_grad()
def proposed(actions: Any, expected: tuple[int | str, ...], decoder: Callable[[Tensor], Tensor] | None) -> Tensor:
    """Candidates from outside, `(*batch, M, *latent)`, of action sequences, which should have a given shape."""
    shape = tuple(actions.shape) if isinstance(actions, Tensor) else ()
    if len(shape) != len(expected) or any(w not in ("M", g) for w, g in zip(expected, shape, strict=True)):
        came = shape if isinstance(actions, Tensor) else kind(actions)
        raise ValueError(
            f"proposals: expected actions (*batch, num, horizon, *a) = ({', '.join(map(str, expected))}), got {came}"
        )
    if decoder is not None:
        encode = getattr(decoder, "encode", None)
        if encode is None:
            raise ValueError(f"proposals: expected a decoder with a method encode, got {brief(decoder)}")
        actions = encode(actions)
    return actions.detach()
