"""Noise sources: where the standard normal draws of a solve come from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dcem._check import check_int, check_number
from dcem._eager import widest


@dataclass(frozen=True)
class WhiteNoise:
    """Draw independent standard normal numbers, `noise(shape, ...) -> Tensor`.

    This is what every noise source looks like: a callable that [`dcem.minimize`][] asks each iteration for draws of
    `shape` `(*batch, N, *event)`. One that has a method `check_event(event_shape)` is asked before the solve
    whether it can serve such events.
    """

    def __call__(
        self,
        shape: tuple[int, ...],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device, generator=generator)


@dataclass(frozen=True)
class ColoredNoise:
    """Draw normal numbers of unit variance that are correlated along one axis, with power spectrum `1/f^β`.

    Sequences of actions drawn this way vary smoothly, which explores farther than independent actions that cancel
    one another.

    Args:
        exponent: `β`, finite and at least 0; 0 is white, 1 pink, 2 brown noise.
        dim: the axis of the event along which the draws are correlated, negative so as to count from its end: time is
            `-2` for events `(horizon, action)`, and `-1` for events `(horizon,)`.

    Raises:
        TypeError: `exponent` is not a number, or `dim` not an int.
        ValueError: `exponent` is out of its range, `dim` is not negative; when called, the event has no such axis.

    Example:
        >>> import torch, dcem
        >>> noise = dcem.ColoredNoise(exponent=2.0, dim=-2)((100, 30, 1), generator=torch.Generator().manual_seed(0))
        >>> neighbours = (noise[:, 1:] * noise[:, :-1]).mean()
        >>> bool(neighbours > 0.7)
        True

    Source: Timmer & Koenig, 1995, for the spectrum; Pinneri et al., "Sample-efficient cross-entropy method for
    real-time planning" (iCEM), 2020, for its use.
    """

    exponent: float = 1.0
    dim: int = -1

    def __post_init__(self) -> None:
        object.__setattr__(self, "exponent", check_number("exponent", self.exponent))
        object.__setattr__(self, "dim", check_int("dim", self.dim))
        if not 0 <= self.exponent < math.inf:
            raise ValueError(f"exponent: expected a finite number >= 0, got {self.exponent}")
        if self.dim >= 0:
            raise ValueError(f"dim: expected a negative axis (counted from the event's end), got {self.dim}")

    def check_event(self, event_shape: Sequence[int]) -> None:
        """Raise where events of this shape have no axis `dim`: candidates would be correlated with each other."""
        if -self.dim > len(event_shape):
            raise ValueError(
                f"dim: expected at least {-len(event_shape)}, an axis of the event, for events of shape "
                f"{tuple(event_shape)}, got {self.dim}"
            )

    def __call__(
        self,
        shape: tuple[int, ...],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        self.check_event(shape)
        white = torch.randn(shape, dtype=dtype, device=device, generator=generator)
        length = shape[self.dim]
        # In units of the slowest oscillation, whose power the constant component has as well: no amplitude overflows.
        frequency = torch.arange(length // 2 + 1, dtype=widest(white.device), device=white.device).clamp(min=1)
        amplitude = frequency ** (-self.exponent / 2)
        both_sides = torch.ones_like(amplitude)
        both_sides[1 : (length + 1) // 2] = 2.0
        amplitude = amplitude / ((both_sides * amplitude.square()).sum() / length).sqrt()  # unit variance
        wide = white.float() if white.dtype in (torch.bfloat16, torch.float16) else white  # which Fourier has none for
        spectrum = torch.fft.rfft(wide.movedim(self.dim, -1)) * amplitude.to(wide)
        return torch.fft.irfft(spectrum, n=length).movedim(-1, self.dim).to(white.dtype)


def check_noise_source(source: Any, event_shape: Sequence[int]) -> None:
    """Let a noise source that knows about events refuse those of this shape."""
    check = getattr(source, "check_event", None)
    if check is not None:
        check(event_shape)
