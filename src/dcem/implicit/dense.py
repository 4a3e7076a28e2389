"""Batched linear systems as matrices: each is a system of its own, and singular by itself.

Rounding leaves each entry of a Jacobian a relative error, and no solve can do better than the condition number times
that. What counts is the condition that is left when rows and columns are brought to the same size: units do not matter.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dcem._eager import without_autocast


def rounding(size: int, dtype: torch.dtype) -> float:
    """The smallest singular value, relative to the largest, that is more than the rounding of `size²` entries.

    A matrix whose condition number is above the inverse of this is singular as far as its numbers tell. The cap is for
    half precision, which supports next to nothing.
    """
    return min(10 * math.sqrt(size) * torch.finfo(dtype).eps, 0.1)


def invert(a: Tensor) -> tuple[Tensor, Tensor]:
    """`a⁻¹` of every problem, `(*batch, n, n)`, and where `a` is singular up to rounding, `(*batch,)`: 0 there."""
    scaled, finite = _finite(a)
    rows = _sizes(scaled.abs().amax(-1), a.dtype).unsqueeze(-1)
    columns = _sizes((scaled / rows).abs().amax(-2), a.dtype).unsqueeze(-2)
    scaled = scaled / rows / columns
    inverse, info = torch.linalg.inv_ex(scaled)
    condition = scaled.norm(dim=(-2, -1)) * inverse.norm(dim=(-2, -1))
    singular = ~((condition * rounding(a.shape[-1], a.dtype) <= 1) & (info == 0) & finite)
    return torch.where(singular[..., None, None], 0.0, inverse / rows.mT / columns.mT).to(a.dtype), singular


class Spectrum(NamedTuple):
    """A symmetric matrix `A` with `S A S = V diag(λ) Vᵀ`, for a scaling `S` that makes its diagonal ones."""

    values: Tensor
    """`λ`, `(batch, n)`, ascending; NaN where `A` holds numbers that are not finite."""
    vectors: Tensor
    """`V`, `(batch, n, n)`."""
    scale: Tensor
    """The diagonal of `S`, `(batch, n)`."""

    @classmethod
    def of(cls, a: Tensor) -> Spectrum:
        wide, finite = _finite(a)
        size = _sizes(wide.diagonal(dim1=-2, dim2=-1).abs(), a.dtype, wide.abs().amax((-2, -1)))
        scale = 1 / size.sqrt()
        values, vectors = torch.linalg.eigh(scale.unsqueeze(-1) * wide * scale.unsqueeze(-2))
        return cls(
            torch.where(finite.unsqueeze(-1), values, math.nan).to(a.dtype), vectors.to(a.dtype), scale.to(a.dtype)
        )

    @property
    def curved(self) -> Tensor:
        """Which eigenvalues are more than rounding, `(batch, n)`."""
        size = self.values.abs()
        return size > rounding(size.shape[-1], size.dtype) * size.amax(-1, keepdim=True)

    @property
    def singular(self) -> Tensor:
        """Whether `A` is singular up to rounding, by the measure of `invert`, `(batch,)`."""
        scaled = self.values / self.values.abs().amax(-1, keepdim=True)
        condition = scaled.norm(dim=-1) * (1 / scaled).norm(dim=-1)
        return ~(condition * rounding(scaled.shape[-1], scaled.dtype) <= 1)

    @property
    def flat(self) -> Tensor:
        """Directions in which `A` is zero up to rounding, and columns of zeros, `(batch, n, n)`."""
        directions = self.scale.unsqueeze(-1) * self.vectors
        return torch.where(self.curved.unsqueeze(-2), 0.0, directions / directions.norm(dim=-2, keepdim=True))

    def inverse(self) -> Tensor:
        """`A⁻¹`, with 0 in place of the inverse of what is not curved."""
        inverse = torch.where(self.curved, 1 / self.values, 0.0)
        half = self.scale.unsqueeze(-1) * self.vectors
        with without_autocast(half):
            return (half * inverse.unsqueeze(-2)) @ half.mT

    def pseudo_inverse(self) -> tuple[Tensor, Tensor]:
        """`A⁺`, and where it has no meaning; of what comes nearest to solving `A x = b`, `A⁺ b` is the shortest."""
        inverse, flat = self.inverse(), self.flat
        if flat.any():
            with without_autocast(flat):
                keep = torch.eye(flat.shape[-1], dtype=flat.dtype, device=flat.device) - flat @ torch.linalg.pinv(flat)
                inverse = keep @ inverse @ keep
        return inverse, self.values.isnan().any(-1)


def apply(a: Tensor, b: Tensor) -> Tensor:
    """The product with each problem's vector."""
    with without_autocast(a):
        return (a @ b.unsqueeze(-1)).squeeze(-1)


def smallest_eigenvalue(a: Tensor) -> Tensor:
    """That of symmetric matrices, `(batch,)`; NaN where they hold numbers that are not finite."""
    wide, finite = _finite(a)
    return torch.where(finite, torch.linalg.eigvalsh(wide)[..., 0], math.nan).to(a.dtype)


def _finite(a: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices of at least single precision, zero in place of those that hold a number that is not finite."""
    finite = a.isfinite().all(-1).all(-1)
    wide = a.to(torch.promote_types(a.dtype, torch.float32))
    return torch.where(finite[..., None, None], wide, 0.0), finite


def _sizes(sizes: Tensor, dtype: torch.dtype, largest: Tensor | None = None) -> Tensor:
    """What to divide rows by; those that are rounding beside the largest are left in its units."""
    largest = (sizes.amax(-1) if largest is None else largest).unsqueeze(-1)
    largest = torch.where(largest > 0, largest, 1.0)
    return torch.where(sizes > torch.finfo(dtype).eps * largest, sizes, largest)
