"""The fixed decoder for sequences: a few knots, and a smooth curve through them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dcem._check import as_floating, check_count, check_int
from dcem.bounds import BoundsLike
from dcem.embedding.decoder import Decoder, as_sequence


class SplineDecoder(Decoder):
    """Interpolate a sequence from a few knots: fewer numbers to search, and a smooth answer, with nothing to learn.

    The knots are spread evenly over the horizon, the first and the last step included; one knot is a constant. The
    latent is in the units of the sequence, so bounds, means and stds mean the same for both.

    Args:
        num_knots: `K`, at most the horizon, at which the spline can be any sequence.
        event_shape: `(horizon, *action)`; an int is a sequence of numbers.
        degree: 1 for straight lines between the knots; 3 for the natural cubic spline, smooth up to its curvature,
            which may overshoot the knots.
        bounds: the box of `x`, as in `MLPDecoder`, but clipped to: a sequence inside it stays as it is.

    Shapes: `z` `(..., K, *action)` -> `x` `(..., horizon, *action)`.

    Raises:
        ValueError: `num_knots` is not in `[1, horizon]`, `degree` is neither 1 nor 3, or `bounds` do not fit
            `event`; when called, `z` does not end in `latent`.

    Example:
        >>> import torch
        >>> from dcem.embedding import SplineDecoder
        >>> decoder = SplineDecoder(3, 5)
        >>> decoder(torch.tensor([0.0, 4.0, 2.0]))
        tensor([0., 2., 4., 3., 2.])
        >>> knots = decoder.encode(torch.tensor([0.0, 2.0, 4.0, 3.0, 2.0]))
        >>> torch.allclose(knots, torch.tensor([0.0, 4.0, 2.0]), atol=1e-6)
        True

    Source: de Boor, "A Practical Guide to Splines", 1978.
    """

    basis: Tensor
    inverse: Tensor

    def __init__(
        self, num_knots: int, event_shape: int | Sequence[int], *, degree: int = 1, bounds: BoundsLike | None = None
    ) -> None:
        horizon, *action = as_sequence(event_shape)
        num_knots, degree = check_count("num_knots", num_knots), check_int("degree", degree)
        if num_knots > horizon:
            raise ValueError(f"num_knots: expected 1 to the horizon {horizon}, got {num_knots}")
        if degree not in (1, 3):
            raise ValueError(f"degree: expected 1 or 3, got {degree}")
        super().__init__((num_knots, *action), event_shape, bounds=bounds)
        basis = _basis(num_knots, horizon, degree)
        self.register_exact("basis", basis, persistent=False)
        self.register_exact("inverse", torch.linalg.pinv(basis), persistent=False)

    def decode(self, z: Tensor) -> Tensor:
        return self.clip(self._along_time("basis", z))

    def encode(self, x: Tensor) -> Tensor:
        """The knots `(..., K, *action)` whose spline is nearest to `x` `(..., horizon, *action)`, in squares."""
        dims = len(self.event_shape)
        if x.dim() < dims or tuple(x.shape[x.dim() - dims :]) != self.event_shape:
            raise ValueError(f"x: expected (..., *event) with event {self.event_shape}, got {tuple(x.shape)}")
        return self._along_time("inverse", as_floating(x))

    def _along_time(self, name: str, sequence: Tensor) -> Tensor:
        matrix: Tensor = getattr(self, name)
        if matrix.dtype != sequence.dtype:
            matrix = self._exact[name].to(sequence)
        time = -len(self.event_shape)
        return torch.nn.functional.linear(sequence.movedim(time, -1), matrix).movedim(-1, time)


def _basis(num_knots: int, horizon: int, degree: int) -> Tensor:
    """The matrix `(horizon, K)` from knots to the sequence, in double precision.

    Between knots `i` and `i + 1`, at the fraction `s` of the way, with `r = 1 - s` and the second derivatives
    `m` at the knots: `r z_i + s z_{i+1} + ((r³ - r) m_i + (s³ - s) m_{i+1}) / 6`; `m = 0` for straight lines.
    """
    unit = torch.eye(num_knots, dtype=torch.float64)
    if num_knots == 1:
        return unit.expand(horizon, 1).clone()
    position = torch.linspace(0, num_knots - 1, horizon, dtype=torch.float64)
    left = position.floor().clamp(max=num_knots - 2).long()
    s = (position - left).unsqueeze(-1)
    r = 1 - s
    x = r * unit[left] + s * unit[left + 1]
    if degree == 1:
        return x
    # A continuous slope asks for m_{i-1} + 4 m_i + m_{i+1} = 6 (z_{i-1} - 2 z_i + z_{i+1}); natural: m = 0 at the ends.
    inner = slice(1, num_knots - 1)
    m = torch.zeros_like(unit)
    second = unit[:-2] - 2 * unit[1:-1] + unit[2:]
    system = 4 * unit + unit.roll(1, 0) + unit.roll(-1, 0)
    m[inner] = torch.linalg.solve(system[inner, inner], 6 * second)
    return x + ((r**3 - r) * m[left] + (s**3 - s) * m[left + 1]) / 6
