"""Searching a latent in the place of a candidate: what a decoder gives is checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from dcem._check import as_shape
from dcem._given import brief, came, kind
from dcem._guard import WithData
from dcem._unchanged import Versions


def behind(objective: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`f(dec(z))` as an objective over `z`."""
    decoded = WithData.of(objective)
    return WithData(lambda z, data, cut: decoded.function(cut(decode(z)), data, cut), decoded.data)


def latent_shape_of(decoder: Any, given: Any, event_shape: tuple[int, ...], what: str) -> tuple[int, ...]:
    """The shape of what is searched: that of the decoder's latent, or of a candidate where there is none."""
    shape = None if given is None else as_shape("latent_shape", given)
    if decoder is None:
        if shape not in (None, event_shape):
            raise ValueError(f"latent_shape: expected None without a decoder, got {given}")
        return event_shape
    if not callable(decoder):
        raise TypeError(f"decoder: expected a callable, got {brief(decoder)}")
    own = getattr(decoder, "latent_shape", None)
    own = None if own is None else as_shape("latent_shape", own)
    if own is not None and shape not in (None, own):
        raise ValueError(f"latent_shape: expected that of the decoder, {own}, got {shape}")
    event = getattr(decoder, "event_shape", None)
    if event is not None and tuple(event) != event_shape:
        raise ValueError(f"decoder: expected one that gives {what} = {event_shape}, got one that gives {tuple(event)}")
    return next(found for found in (shape, own, event_shape) if found is not None)


def decoded(
    decoder: Callable[..., Tensor],
    z: Tensor,
    latent_shape: Any,
    event_shape: Any,
    what: str = "candidates (*batch, N, *event)",
    **seen: Any,
) -> Tensor:
    """`dec(z)` `(*batch, N, *event)` of latents `(*batch, N, *latent)`, checked; of any shape if these are None."""
    noted = Versions(z, seen)
    x: Any = decoder(z, **seen)
    if noted.changed():
        raise ValueError("decoder: expected to leave its latents as they are, got them changed in place")
    if not isinstance(x, Tensor):
        raise TypeError(f"decoder: expected to return a Tensor, got {kind(x)}")
    if latent_shape is not None and event_shape is not None:
        expected = (*z.shape[: z.dim() - len(latent_shape)], *event_shape)
        if tuple(x.shape) != expected:
            raise ValueError(f"decoder: expected {what} = {expected}, got {came(x, expected)}")
    return x
