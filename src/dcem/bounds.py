"""Box constraints on candidates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dcem._eager import is_eager

BoundsLike = tuple[float | Tensor | None, float | Tensor | None]


@dataclass(frozen=True)
class Bounds:
    """A box ``low <= x <= high``; each side is None (open), a number, or a tensor that broadcasts to the event."""

    low: float | Tensor | None = None
    high: float | Tensor | None = None

    @classmethod
    def check(cls, bounds: BoundsLike | None, event_shape: torch.Size, like: Tensor) -> Bounds | None:
        """Validate ``bounds`` for events of ``event_shape`` and bring tensors to the dtype and device of ``like``."""
        if bounds is None:
            return None
        if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:  # type: ignore[redundant-expr]
            raise TypeError(f"bounds: expected a pair (low, high) or None, got {bounds!r}")
        low, high = (_side(f"bounds[{i}]", side, event_shape, like) for i, side in enumerate(bounds))
        if low is None and high is None:
            return None
        if low is not None and high is not None and is_eager():
            wrong = torch.as_tensor(low) > torch.as_tensor(high)
            if wrong.device.type == "cpu" and wrong.any():
                raise ValueError(f"bounds: expected low <= high, got low={low}, high={high}")
        if isinstance(low, Tensor) != isinstance(high, Tensor):  # torch.clamp takes numbers or tensors, not both
            low, high = (None if side is None else torch.as_tensor(side).to(like) for side in (low, high))
        return cls(low, high)

    def clip(self, x: Tensor) -> Tensor:
        """The nearest point of the box to each candidate in ``x``, ``(..., *event)``."""
        return torch.clamp(x, self.low, self.high)  # type: ignore[arg-type]

    def active(self, x: Tensor, gradient: Tensor, slack: Tensor) -> Tensor:
        """Which coordinates of ``x`` lie within ``slack`` of a side that descent pushes them to: boolean."""
        held = torch.zeros_like(x, dtype=torch.bool)
        if self.low is not None:
            held = held | ((x <= self.low + slack) & (gradient > 0))
        if self.high is not None:
            held = held | ((x >= self.high - slack) & (gradient < 0))
        return held


def _side(name: str, side: float | Tensor | None, event_shape: torch.Size, like: Tensor) -> float | Tensor | None:
    if side is None or (isinstance(side, (int, float)) and not isinstance(side, bool)):
        if side is not None and side != side:
            raise ValueError(f"{name}: expected a number, got NaN")
        return side
    if not isinstance(side, Tensor):
        raise TypeError(f"{name}: expected None, a number or a Tensor, got {type(side).__name__}")
    try:
        fits = torch.broadcast_shapes(side.shape, event_shape) == event_shape  # type: ignore[no-untyped-call]
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name}: expected a shape that broadcasts to the event {tuple(event_shape)}, got {tuple(side.shape)}"
        )
    if is_eager() and side.device.type == "cpu" and side.isnan().any():
        raise ValueError(f"{name}: expected numbers, got NaN in {side}")
    return side.to(like)
