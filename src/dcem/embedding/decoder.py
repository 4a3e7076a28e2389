"""What decoders share: the shapes on either side, and a box that their output stays in."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcem._check import as_floating, as_shape
from dcem._eager import is_eager
from dcem.bounds import Bounds, BoundsLike

if TYPE_CHECKING:
    from typing_extensions import Self


class Decoder(nn.Module, ABC):
    """Map a latent variable to a candidate, `x = dec(z)`; a subclass defines `decode`.

    Args:
        latent_shape: shape of `z`; an int is `(int,)`.
        event_shape: shape of `x`; an int is `(int,)`.
        bounds: the box that `x` stays in: `(low, high)`, each None, a number, or a tensor that broadcasts to
            `event`; infinite entries are open. `low` and `high` are buffers of the module.

    Shapes: `z` `(..., *latent)` -> `x` `(..., *event)`, for any leading axes.

    Raises:
        ValueError: a shape has an axis that is not positive, `bounds` do not fit `event` or are in the wrong
            order; when called, `z` does not end in `latent`.

    Example:
        >>> import torch
        >>> from dcem.embedding import Decoder
        >>> class Sum(Decoder):
        ...     def decode(self, z):
        ...         return z.sum(-1, keepdim=True).expand(*z.shape[:-1], *self.event_shape)
        >>> Sum(2, 3)(torch.ones(5, 2)).shape
        torch.Size([5, 3])
    """

    low: Tensor
    high: Tensor

    def __init__(
        self, latent_shape: int | Sequence[int], event_shape: int | Sequence[int], *, bounds: BoundsLike | None = None
    ) -> None:
        super().__init__()
        self.latent_shape = as_shape("latent_shape", latent_shape)
        self.event_shape = as_shape("event_shape", event_shape)
        box = Bounds.check(bounds, torch.Size(self.event_shape), torch.zeros((), dtype=torch.float64)) or Bounds()
        self._exact: dict[str, Tensor] = {}
        for name, side, is_open in (("low", box.low, -math.inf), ("high", box.high, math.inf)):
            self.register_exact(name, torch.as_tensor(is_open if side is None else side, dtype=torch.float64))
        self._round()

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """`x` of `z`, whose shape has been checked."""

    def forward(self, z: Tensor) -> Tensor:
        """`x` `(..., *event)` of `z` `(..., *latent)`."""
        dims = len(self.latent_shape)
        if z.dim() < dims or tuple(z.shape[z.dim() - dims :]) != self.latent_shape:
            raise ValueError(f"z: expected (..., *latent) with latent {self.latent_shape}, got {tuple(z.shape)}")
        return self.decode(as_floating(z))

    def squash(self, x: Tensor) -> Tensor:
        """Free numbers `(..., *event)` smoothly into the box: a sigmoid between two sides, a softplus from one."""
        dtype = torch.promote_types(x.dtype, torch.promote_types(self.low.dtype, torch.float32))
        low, high, x = self.low.to(dtype), self.high.to(dtype), x.to(dtype)
        from_low, from_high = low.isfinite(), high.isfinite()
        closed, visible = from_low & from_high, is_eager() and low.device.type == "cpu"
        if visible and closed.all():
            x = _between(low, high, x)
        elif not visible or (from_low | from_high).any():
            # An open side enters no formula, not even one whose result is discarded: its gradient would be NaN.
            low, high, most = low.where(from_low, 0.0), high.where(from_high, 0.0), torch.finfo(dtype).max
            above, below = (low + F.softplus(x)).clamp(max=most), (high - F.softplus(-x)).clamp(min=-most)
            one_sided = torch.where(from_low, above, torch.where(from_high, below, x))
            x = torch.where(closed, _between(low, high, x), one_sided)
        return x if dtype == self.low.dtype else self.clip(x.to(self.low.dtype))

    def clip(self, x: Tensor) -> Tensor:
        """The nearest point of the box, `(..., *event)`."""
        low, high, dtype = self.low, self.high, self.low.dtype
        if torch.promote_types(x.dtype, dtype) != dtype:  # it can come nearer to a bound than the buffers say
            sides, dtype = self._rounded(x), x.dtype
            low, high = sides["low"], sides["high"]
        return Bounds(low, high, dtype).clip(x)

    def register_exact(self, name: str, tensor: Tensor, persistent: bool = True) -> None:
        """Register a buffer of which the digits are kept that the module's dtype has not: `double()` finds them."""
        self._exact[name] = tensor.detach().double()
        self.register_buffer(name, tensor.to(torch.get_default_dtype()), persistent)

    def _rounded(self, like: Tensor) -> dict[str, Tensor]:
        """These buffers in a dtype and on a device, bounds rounded towards the inside."""
        box = Bounds.check((self._exact["low"], self._exact["high"]), torch.Size(self.event_shape), like)
        sides = {} if box is None else {"low": box.low, "high": box.high}
        given: dict[str, Any] = {name: sides.get(name, exact) for name, exact in self._exact.items()}
        return {
            name: side.to(like) if isinstance(side, Tensor) else torch.full_like(self._exact[name], side).to(like)
            for name, side in given.items()
        }

    def _round(self) -> None:
        """Give the buffers the digits of their dtype."""
        for name, tensor in self._rounded(self.low).items():
            if name in self._buffers:
                setattr(self, name, tensor.clone())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.low.dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.low.dtype != before:
            self._round()
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        exact = dict(self._exact)
        for name, digits in self._exact.items():
            loaded = state_dict.get(prefix + name)
            if isinstance(loaded, Tensor) and loaded.shape == digits.shape:
                loaded = loaded.detach().cpu()
                same = self._rounded(loaded)[name] == loaded  # then nothing speaks against the digits known here
                exact[name] = torch.where(same, digits.cpu(), loaded.double())
        self._exact = exact
        self._round()


def _between(low: Tensor, high: Tensor, x: Tensor) -> Tensor:
    """Unlike `low + (high - low) σ(x)`, never outside by rounding; of halves, the width does not overflow."""
    return 2 * torch.lerp(low / 2, high / 2, x.sigmoid())


def as_sequence(event_shape: int | Sequence[int]) -> tuple[int, ...]:
    """The shape of a sequence: it has at least one axis, which is time."""
    shape = as_shape("event_shape", event_shape)
    if not shape:
        raise ValueError("event_shape: expected (horizon, *action), got ()")
    return shape
