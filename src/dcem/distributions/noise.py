"""Noise sources: where the standard normal draws of a solve come from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class WhiteNoise:
    """Draw independent standard normal numbers: ``noise(shape, ...) -> Tensor``."""

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
    """Draw normal numbers of unit variance that are correlated along one axis, with power spectrum ``1/f^β``.

    Sequences of actions drawn this way vary smoothly, which explores farther than independent actions that cancel
    one another.

    Args:
        exponent: ``β``; 0 is white, 1 pink, 2 brown noise.
        dim: the axis along which the draws are correlated, negative so as to count from the event's end: for events
            ``(horizon, action)`` time is ``-2``.

    Raises:
        ValueError: ``exponent`` is negative, or ``dim`` is not negative.

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
        if not self.exponent >= 0:
            raise ValueError(f"exponent: expected a number >= 0, got {self.exponent}")
        if self.dim >= 0:
            raise ValueError(f"dim: expected a negative axis (counted from the event's end), got {self.dim}")

    def __call__(
        self,
        shape: tuple[int, ...],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        if -self.dim > len(shape):
            raise ValueError(f"dim: expected at least -{len(shape)} for noise of shape {tuple(shape)}, got {self.dim}")
        white = torch.randn(shape, dtype=dtype, device=device, generator=generator)
        length = shape[self.dim]
        frequency = torch.fft.rfftfreq(length, dtype=white.dtype, device=device)
        # The constant component has the power of the slowest oscillation; amplitudes are scaled to unit variance.
        frequency[0] = 1.0 / length
        amplitude = frequency ** (-self.exponent / 2)
        both_sides = torch.ones_like(amplitude)
        both_sides[1 : (length + 1) // 2] = 2.0
        amplitude = amplitude / ((both_sides * amplitude.square()).sum() / length).sqrt()
        spectrum = torch.fft.rfft(white.movedim(self.dim, -1)) * amplitude
        return torch.fft.irfft(spectrum, n=length).movedim(-1, self.dim)
