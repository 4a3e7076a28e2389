"""The family of objectives: many minima along the surface of the solutions, and many across it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ALONG = 0.2
"""Weight of the error along the surface."""
LENGTHS_ALONG, LENGTHS_ACROSS = (0.3, 0.7), (0.1, 0.5)
"""Of the ripples: a problem draws its own, two along the surface and `N` across it."""
RIPPLE_ALONG, RIPPLE_ACROSS = 0.25, 0.08
"""Heights of the ripples."""
FLAT, CURVED = 0.12, 0.09
"""Amplitudes of the cosines that say where on the surface a point is, and of those that follow from these."""
DIRECTIONS = 0.6 * math.pi * torch.tensor([[0.2, 1.0], [0.9, 0.4], [-0.7, 0.7], [1.0, -0.2]])
PHASES = torch.tensor([0.5, 2.0, 3.5, 5.0])
"""How the latter follow: as the sines of so much of `a`, plus these."""
WAVES = (2, 5, 9, 14, 20, 27)
"""Half waves of the cosines, the first two those that say where."""
OWN_WAVES = (3, 4, 6, 7, 8, 10, 11, 12)
OWN = 0.01
"""Standard deviation of what a solution has of its own, off the surface."""


def cosines(waves: Sequence[int], size: int) -> Tensor:
    """The cosines of so many half waves over the `size` numbers, a row each."""
    t = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    return (math.pi * torch.tensor(waves).unsqueeze(-1) * t).cos().float()


def off(rows: Tensor, first: Tensor) -> Tensor:
    """Rows without what they share with the first cosines, as they do where `N` is too small for their waves."""
    return rows - rows @ first.T / first.square().sum(-1) @ first


def rastrigin(error: Tensor, ripple: float, frequency: Tensor) -> Tensor:
    """A bowl with ripples, `e² + h (1 - cos ωe)`, averaged over the last axis: 0 at 0, and local minima around it."""
    return error.square().mean(-1) + ripple * (1 - (frequency * error).cos().mean(-1))


@dataclass(frozen=True)
class Problems:
    """A batch of objectives `(n, M, N) -> (n, M)` over `[0, 1]^N`, with their solutions.

    Two cosines in `x` say where along the surface it is, `a(x)`; on the surface `s(a)` four others follow from these.
    With the hidden `c` of a problem and its own `o`,

        f(x) = 0.2 ρ(a(x) - c) + ρ(x - o - s(a(x))),    ρ(e) = mean(e² + h (1 - cos 2πe/λ)),

    which is 0 at `x* = s(c) + o` alone. Each problem has wavelengths `λ` of its own, so that its slope alone does
    not lead to the solution, while the mean over many problems has a single minimum across the surface.

    Source: Rastrigin, "Systems of extremal control", 1974, for `ρ`.
    """

    hidden: Tensor
    """`c`, `(n, 2)`, in `[-1, 1]`; not seen by any method."""
    own: Tensor
    """`o`, `(n, N)`; has no share of the first two cosines."""
    along: Tensor
    """`2π/λ` of the ripples along the surface, `(n, 2)`."""
    across: Tensor
    """Likewise across it, `(n, N)`."""
    basis: Tensor
    """The six cosines, `(6, N)`."""

    @classmethod
    def draw(cls, num: int, size: int, generator: torch.Generator, device: torch.device | None = None) -> Problems:
        """Problems with `c`, `o` and wavelengths at random."""
        hidden = 2 * torch.rand(num, 2, generator=generator) - 1
        basis = cosines(WAVES, size)
        basis[2:] = off(basis[2:], basis[:2])
        own = (
            OWN / 2 * torch.randn(num, len(OWN_WAVES), generator=generator) @ cosines(OWN_WAVES, size)
        )  # variance OWN²
        lengths = [
            low + (high - low) * torch.rand(num, count, generator=generator)
            for (low, high), count in ((LENGTHS_ALONG, 2), (LENGTHS_ACROSS, size))
        ]
        along, across = (2 * math.pi / length for length in lengths)
        return cls(*(part.to(device) for part in (hidden, off(own, basis[:2]), along, across, basis)))

    @property
    def size(self) -> int:
        """`N`."""
        return self.own.shape[-1]

    def __len__(self) -> int:
        return len(self.hidden)

    def some(self, chosen: Tensor) -> Problems:
        """A batch of them."""
        return Problems(self.hidden[chosen], self.own[chosen], self.along[chosen], self.across[chosen], self.basis)

    def surface(self, a: Tensor) -> Tensor:
        """`s(a)`: `(..., 2) -> (..., N)`."""
        follow = CURVED * (a @ DIRECTIONS.to(a).T + PHASES.to(a)).sin()
        return 0.5 + torch.cat([FLAT * a, follow], -1) @ self.basis

    def position(self, x: Tensor) -> Tensor:
        """`a(x)`: `(..., N) -> (..., 2)`."""
        first = self.basis[:2]
        return (x - 0.5) @ (first / (FLAT * first.square().sum(-1, keepdim=True))).T

    @property
    def solution(self) -> Tensor:
        """`x*`, `(n, N)`, of value 0."""
        return self.surface(self.hidden) + self.own

    def __call__(self, x: Tensor) -> Tensor:
        """`f(x)`, the `(n, M)` values of `M` candidates a problem."""
        a = self.position(x)
        along = rastrigin(a - self.hidden.unsqueeze(1), RIPPLE_ALONG, self.along.unsqueeze(1))
        error = x - self.own.unsqueeze(1) - self.surface(a)
        return ALONG * along + rastrigin(error, RIPPLE_ACROSS, self.across.unsqueeze(1))
