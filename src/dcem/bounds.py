"""Box constraints on candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor

from dcem._arrays import as_tensor
from dcem._check import for_choices
from dcem._eager import is_eager, may_have_gradient
from dcem._given import brief, kind


class BoxLike(Protocol):
    """What has a `low` and a `high`, such as `gymnasium.spaces.Box`."""

    @property
    def low(self) -> Any: ...
    @property
    def high(self) -> Any: ...


BoundsLike = Sequence[Any] | BoxLike
"""`(low, high)`, each None, a number, a tensor, an array or a list of numbers; or a box that has them.

Not a pair for each coordinate, as SciPy takes them: write `tuple(zip(*pairs))`. Two such pairs that make sense as sides
cannot be told from them.
"""

_HALF = (torch.bfloat16, torch.float16)


def clip(x: Tensor, low: float | Tensor | None = None, high: float | Tensor | None = None) -> Tensor:
    """The nearest number of `[low, high]`, with the derivative 1 inside and on a side, and 0 beyond.

    That of `torch.clamp` on a side differs between versions of torch, and between numbers and tensors: 1, 0.5 or 0.
    A side that is a tensor has the derivative 1 where it was taken. NaN stays NaN, as in `torch.clamp`.
    """
    if low is None and high is None:
        return x
    if not may_have_gradient():
        return x.clamp(low, high)  # type: ignore[arg-type]
    nearest = x.detach().clamp(low, high)  # type: ignore[arg-type]
    return torch.where(x == nearest, x, nearest)


@dataclass(frozen=True)
class Bounds:
    """A box `low <= x <= high`; each side is None (open), a number, or a tensor that broadcasts to the event.

    Sides are rounded towards the inside: to the nearest number inside the box that `dtype` has. What is clipped in a
    wider dtype and rounded to `dtype` later stays inside.
    """

    low: float | Tensor | None = None
    high: float | Tensor | None = None
    dtype: torch.dtype = torch.float64

    @classmethod
    def check(
        cls, bounds: BoundsLike | None, event_shape: torch.Size, like: Tensor, dtype: torch.dtype | None = None
    ) -> Bounds | None:
        """Validate `bounds` for events of `event_shape` and bring tensors to the dtype and device of `like`.

        `dtype` is what candidates are rounded to before the objective sees them, where that is not `like`'s.
        """
        if bounds is None:
            return None
        if not isinstance(bounds, (tuple, list)) and hasattr(bounds, "low") and hasattr(bounds, "high"):
            bounds = _sides(bounds, event_shape)
        if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
            raise TypeError(f"bounds: expected a pair (low, high) or None, got {brief(bounds)}{_remedy(bounds)}")
        low, high = (
            _side(f"bounds[{i}]", side, event_shape, beyond=beyond)
            for i, (side, beyond) in enumerate(zip(bounds, (math.inf, -math.inf), strict=True))
        )
        if low is None and high is None:
            return None
        if low is not None and high is not None and is_eager():
            if not _agree(low, high):
                raise ValueError(f"bounds: expected low <= high, got {_crossed(low, high)}{_remedy(bounds)}")
            if _are_pairs(bounds) and list(bounds[0]) == list(bounds[1]):  # as sides they leave nothing to search
                raise ValueError(
                    f"bounds: expected low < high in some coordinate, got {brief(bounds)}{_remedy(bounds)}"
                )
        low, high = (side.to(like.device) if isinstance(side, Tensor) else side for side in (low, high))
        if isinstance(low, Tensor) != isinstance(high, Tensor):  # torch.clamp takes numbers or tensors, not both
            low, high = (
                torch.full((), side, dtype=torch.float64, device=like.device)
                if isinstance(side, (int, float))
                else side
                for side in (low, high)
            )
        box = cls(low, high, torch.float64)._rounded(like.dtype if dtype is None else dtype)
        low, high = (side.to(like) if isinstance(side, Tensor) else side for side in (box.low, box.high))
        return cls(low, high, box.dtype)

    def clip(self, x: Tensor) -> Tensor:
        """The nearest point of the box to each candidate in `x`, `(..., *event)`."""
        box = self._rounded(x.dtype) if x.dtype in _HALF and x.dtype != self.dtype else self
        return clip(x, box.low, box.high)

    def contains(self, x: Tensor) -> Tensor:
        """Which numbers of `x` lie inside, or are a bound as their dtype rounds it: boolean, like `x`."""
        return (self.clip(x) - x).abs() <= torch.finfo(x.dtype).eps * x.abs()

    def half_width(self) -> float | Tensor | None:
        """Half of `high - low`, infinite where a dimension is open; None where one side is open altogether."""
        return None if self.low is None or self.high is None else self.high / 2 - self.low / 2

    def split(self, sizes: list[int], event_shape: torch.Size) -> list[Bounds]:
        """The boxes of slices of these sizes along the last axis of the event."""

        def of(side: float | Tensor | None) -> list[Any]:
            return (
                list(side.expand(event_shape).split_with_sizes(sizes, -1))
                if isinstance(side, Tensor)
                else [side] * len(sizes)
            )

        pairs = zip(of(self.low), of(self.high), strict=True)
        return [Bounds(low, high, self.dtype) for low, high in pairs]

    def steps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From `x` to either side, infinite where there is none."""
        return (
            torch.full_like(x, -torch.inf) if self.low is None else self.low - x,
            torch.full_like(x, torch.inf) if self.high is None else self.high - x,
        )

    def _rounded(self, dtype: torch.dtype) -> Bounds:
        """The box with sides that are numbers of `dtype`."""
        low = None if self.low is None else _round(self.low, dtype, _UP)
        high = None if self.high is None else _round(self.high, dtype, _DOWN)
        if self.low is None or self.high is None or low is None or high is None:
            return Bounds(low, high, dtype)
        # Where the dtype has no number inside, as for low = high = 0.3, the nearest ones have to do.
        lows, highs = _round(self.low, dtype, _NEAREST), _round(self.high, dtype, _NEAREST)
        if isinstance(low, Tensor):
            empty = low > high
            return Bounds(torch.where(empty, lows, low), torch.where(empty, highs, high), dtype)
        return Bounds(lows, highs, dtype) if low > high else Bounds(low, high, dtype)


def _are_pairs(bounds: Any) -> bool:
    """Whether these may be meant as `(low, high)` of each coordinate, as SciPy takes them."""
    rows = bounds if isinstance(bounds, (tuple, list)) else getattr(bounds, "tolist", list)()
    are = [isinstance(row, (tuple, list)) and len(row) == 2 for row in rows] if isinstance(rows, (tuple, list)) else []
    return bool(are) and all(are)


def _are_rows(bounds: Any) -> bool:
    """Whether this is a tensor or an array whose two rows are `low` and `high`, and of 2 x 2 numbers not pairs."""
    if not isinstance(bounds, Tensor) and not hasattr(bounds, "__array__"):
        return False
    if len(bounds.shape) != 2 or len(bounds) != 2:
        return False
    low, high = bounds
    return bool(len(low) != 2 or ((low <= high).all() and (low < high).any()))


def _remedy(bounds: Any) -> str:
    """What to give instead of what is often given."""
    if _are_rows(bounds):
        return "; of rows lower and upper give tuple(bounds)"
    if _are_pairs(bounds):
        return "; bounds are (lower, upper), not a pair for each coordinate: write tuple(zip(*bounds))"
    return for_choices(bounds)


def _sides(box: BoxLike, event_shape: torch.Size) -> tuple[Any, Any]:
    """The sides of an action space, whose shape says what it bounds: that of the event, or of its last axes."""
    for side in (box.low, box.high):
        shape = tuple(getattr(side, "shape", ()))
        if shape != tuple(event_shape[max(0, len(event_shape) - len(shape)) :]):
            raise ValueError(
                f"bounds: expected a space of the shape of the event {tuple(event_shape)}, or of its last axes, got "
                f"one of shape {shape}"
            )
    return box.low, box.high


def _agree(low: float | Tensor, high: float | Tensor) -> bool:
    """Whether `low <= high`, where a look costs nothing: also for a solve on a GPU, before they are moved there."""
    if any(isinstance(side, Tensor) and not side.is_cpu for side in (low, high)):
        return True
    wrong = low > high
    return not (wrong if isinstance(wrong, bool) else bool(wrong.any()))


def _crossed(low: float | Tensor, high: float | Tensor) -> str:
    """The first numbers that are the wrong way round."""
    lows, highs = torch.broadcast_tensors(torch.as_tensor(low), torch.as_tensor(high))  # type: ignore[no-untyped-call]
    wrong = lows > highs
    among = f" among {wrong.numel()} numbers" if wrong.numel() > 1 else ""
    return f"low={lows[wrong][0].item()}, high={highs[wrong][0].item()}{among}"


_UP, _DOWN, _NEAREST = (math.ceil, torch.ceil), (math.floor, torch.floor), (round, torch.round)


def _round(side: float | Tensor, dtype: torch.dtype, towards: Any) -> float | Tensor:
    """The number of `dtype` next to `side`, above, below or nearest: a multiple of the unit in its last place."""
    info, (of_number, of_tensor) = torch.finfo(dtype), towards
    smallest = info.smallest_normal * info.eps
    if not isinstance(side, Tensor):
        if math.isinf(side) or dtype == torch.float64:
            return side
        unit = max(math.ldexp(info.eps, math.frexp(side)[1] - 1), smallest)
        return min(max(of_number(side / unit) * unit, info.min), info.max)
    if side.dtype == dtype:
        return side
    exact = side.detach().double()
    mantissa = exact.frexp().mantissa.where(exact != 0, 1.0)  # in [1/2, 1)
    units = (info.eps / 2 * (exact / mantissa)).clamp(min=smallest)
    rounded = torch.where(exact.isinf(), exact, (of_tensor(exact / units) * units).clamp(info.min, info.max))
    if side.requires_grad:  # rounding has the derivative of the identity
        rounded = torch.where(exact.isinf(), exact, rounded + (side - side.detach()))
    return rounded.to(dtype)


def _side(name: str, side: Any, event_shape: torch.Size, beyond: float) -> float | Tensor | None:
    """`beyond`, infinity, is where a side has no number inside."""
    if side is None:
        return None
    if isinstance(side, Real) and not isinstance(side, bool):  # also those of NumPy
        if side != side:
            raise ValueError(f"{name}: expected a number, got NaN")
        if side == beyond:
            raise ValueError(f"{name}: expected a finite number or {-beyond}, got {beyond}")
        return float(side)
    if not isinstance(side, Tensor) and (hasattr(side, "__array__") or isinstance(side, (list, tuple))):
        try:
            side = as_tensor(side, torch.float64, "cpu")
        except (TypeError, ValueError):  # of strings, or ragged
            raise TypeError(f"{name}: expected numbers, got {brief(side)}") from None
    if not isinstance(side, Tensor):
        raise TypeError(f"{name}: expected None, a number or a Tensor, got {kind(side)}")
    try:
        fits = torch.broadcast_shapes(side.shape, event_shape) == event_shape  # type: ignore[no-untyped-call]
    except RuntimeError:
        fits = False
    if not fits:
        remedy = (
            "; for a box of each problem search a share z of it, with bounds=(0, 1), and let the objective take "
            "low + (high - low) * z"
            if side.dim() > len(event_shape)
            else ""
        )
        raise ValueError(
            f"{name}: expected a shape that broadcasts to the event {tuple(event_shape)}, got {tuple(side.shape)}"
            + remedy
        )
    if is_eager() and side.device.type == "cpu":
        if side.isnan().any():
            raise ValueError(f"{name}: expected numbers, got NaN among {side.numel()}")
        if (side == beyond).any():
            raise ValueError(f"{name}: expected finite numbers or {-beyond}, got {beyond} among {side.numel()}")
    return side
