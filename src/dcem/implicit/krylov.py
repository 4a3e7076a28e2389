"""Batched linear systems by products alone: each row of a batch is a system of its own, and solved or failed by itself.

The solvers take `matvec`, which maps `(batch, n)` to `(batch, n)` and treats every row with that
row's own matrix. A row that has converged is frozen: what the other rows still need never moves it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dcem.implicit.dense import rounding

MatVec = Callable[[Tensor], Tensor]
ACCURACY = 1e-2
"""The relative error, as far as it can be estimated, at which a solver may stop: where a system is ill-conditioned, the
residual says little."""


class LinearSolve(NamedTuple):
    """What a Krylov solver found for each of `batch` systems."""

    x: Tensor
    """The solutions, `(batch, n)`; finite."""
    relative_residual: Tensor
    """`‖A x - b‖ / ‖b‖`, `(batch,)`; 0 where `b` is 0."""
    relative_error: Tensor
    """`‖A x - b‖ / (σ ‖x‖)`, `(batch,)`, for the smallest singular value `σ` that was met: the error of `x` is at most
    that, if there is none smaller."""
    singular: Tensor
    """Where the system was found to be singular up to rounding, or held numbers that are not finite, `(batch,)`; of
    `minimum_residual`, where `x` is the solution of another `b`, the nearest that has one."""
    lowest: Tensor
    """Smallest `pᵀ A p / pᵀ p` along the way (conjugate gradients only), `(batch,)`: at least the smallest
    eigenvalue."""
    highest: Tensor
    """Largest of these in magnitude: at most the largest eigenvalue."""


def conjugate_gradient(matvec: MatVec, b: Tensor, tolerance: float, max_iterations: int) -> LinearSolve:
    """Solve `A x = b` for symmetric positive definite `A` (Hestenes & Stiefel 1952).

    A row that meets a direction whose curvature is not positive, or no more than rounding, stops there and keeps what
    it has; its relative residual says that it has not converged.
    """
    least = rounding(b.shape[-1], b.dtype)
    b, failed = _finite(b)
    x, residual, direction = torch.zeros_like(b), b, b
    size = b.norm(dim=-1)
    lowest, highest = torch.full_like(size, math.inf), torch.zeros_like(size)
    singular = torch.zeros_like(failed)
    squared = residual.square().sum(-1)
    active = size > 0
    for _ in range(max_iterations):
        if not active.any():
            break
        image, broken = _finite(matvec(direction))
        failed = failed | (active & broken)
        bend = (direction * image).sum(-1)
        slope = bend / direction.square().sum(-1).clamp_min(torch.finfo(b.dtype).tiny)
        lowest = torch.where(active, torch.minimum(lowest, slope), lowest)
        highest = torch.where(active, torch.maximum(highest, slope.abs()), highest)
        singular = singular | (active & (slope.abs() <= least * highest))
        active = active & ~failed & (slope > least * highest)
        rate = torch.where(active, squared / torch.where(active, bend, 1.0), 0.0).unsqueeze(-1)
        x = x + rate * direction
        residual = residual - rate * torch.where(active.unsqueeze(-1), image, 0.0)
        before, squared = squared, residual.square().sum(-1)
        ratio = (squared / torch.where(active, before, 1.0)).unsqueeze(-1)
        direction = torch.where(active.unsqueeze(-1), residual + ratio * direction, direction)
        left = squared.sqrt()
        active = active & ((left > tolerance * size) | (left > ACCURACY * lowest * x.norm(dim=-1)))
    left = (_finite(matvec(x))[0] - b).norm(dim=-1)
    error = _ratio(left, lowest * x.norm(dim=-1))
    lowest = torch.where(failed, math.nan, lowest)
    return LinearSolve(x, _ratio(left, size), error, singular | failed, lowest, highest)


def minimum_residual(matvec: MatVec, b: Tensor, tolerance: float, max_iterations: int) -> LinearSolve:
    """`A⁺ b` for symmetric positive semidefinite `A`, by conjugate residuals (Stiefel 1955).

    Where `b` is not in the range of `A`, `r = b - A x` tends to the part that is not, which is all that `x` has outside
    the range. Rows with numbers that are not finite are NaN.
    """
    noise = rounding(b.shape[-1], b.dtype)
    b, failed = _finite(b)
    size = b.norm(dim=-1)
    x, residual = torch.zeros_like(b), b
    image, broken = _finite(matvec(residual))
    failed = failed | broken
    direction, moved = residual, image
    bend = (residual * image).sum(-1)
    lowest, highest = torch.full_like(size, math.inf), _ratio(image.norm(dim=-1), size)
    probe = generic(b)  # where `A b` is rounding, the size of `A` shows elsewhere
    highest = torch.maximum(highest, _ratio(_finite(matvec(probe))[0].norm(dim=-1), probe.norm(dim=-1)))
    outside = torch.zeros_like(failed)
    active = (size > 0) & ~failed
    for _ in range(max_iterations):
        left = residual.norm(dim=-1)
        # what is left has no image but rounding: nothing can be done about it
        outside = outside | (active & (image.norm(dim=-1) <= noise * highest * left))
        active = active & ~outside & (bend > 0)
        if not active.any():
            break
        rate = torch.where(active, bend / moved.square().sum(-1), 0.0).unsqueeze(-1)
        rayleigh = (direction * moved).sum(-1) / direction.square().sum(-1)
        lowest = torch.where(active, torch.minimum(lowest, rayleigh), lowest)
        x, residual = x + rate * direction, residual - rate * torch.where(active.unsqueeze(-1), moved, 0.0)
        left = residual.norm(dim=-1)
        active = active & ((left > tolerance * size) | (left > ACCURACY * lowest * x.norm(dim=-1)))
        image, broken = _finite(matvec(residual))
        failed, active = failed | (active & broken), active & ~broken
        highest = torch.where(active, torch.maximum(highest, image.norm(dim=-1) / left), highest)
        before, bend = bend, (residual * image).sum(-1)
        ratio = (bend / before).unsqueeze(-1)
        direction = torch.where(active.unsqueeze(-1), residual + ratio * direction, direction)
        moved = torch.where(active.unsqueeze(-1), image + ratio * moved, moved)
    left = residual.norm(dim=-1)
    across = _ratio((residual * x).sum(-1), left.square()).unsqueeze(-1)
    x = torch.where(outside.unsqueeze(-1), x - across * residual, x)
    x = torch.where(failed.unsqueeze(-1), math.nan, x)
    return LinearSolve(x, _ratio(left, size), _ratio(left, lowest * x.norm(dim=-1)), outside, lowest, highest)


_RESTART = 50  # directions that are kept before it begins anew


def gmres(matvec: MatVec, b: Tensor, tolerance: float, max_iterations: int) -> LinearSolve:
    """Solve `A x = b` for any non-singular `A`: restarted GMRES (Saad & Schultz 1986)."""
    batch, n = b.shape
    restart = min(_RESTART, n)
    least, eps = rounding(n, b.dtype), torch.finfo(b.dtype).eps
    b, failed = _finite(b)
    size = b.norm(dim=-1)
    singular = torch.zeros_like(failed)
    smallest = torch.full_like(size, math.inf)
    x, residual = torch.zeros_like(b), b
    used = 0
    while used < max_iterations:
        beta = residual.norm(dim=-1)
        accurate = (beta <= tolerance * size) & ((used == 0) | (beta <= ACCURACY * smallest * x.norm(dim=-1)))
        open_ = ~accurate & ~failed & ~singular
        if not open_.any():
            break
        basis = b.new_zeros(batch, restart + 1, n)
        hessenberg = b.new_zeros(batch, restart + 1, restart)
        basis[:, 0] = residual / torch.where(open_, beta, 1.0).unsqueeze(-1)
        step = torch.zeros_like(x)
        active = open_
        for j in range(restart):
            used += 1
            vector, broken = _finite(matvec(basis[:, j]))
            failed = failed | (active & broken)
            for _ in range(2):  # orthogonalise twice: once loses digits on ill-conditioned systems
                along = torch.einsum("bkn,bn->bk", basis[:, : j + 1], vector)
                vector = vector - torch.einsum("bkn,bk->bn", basis[:, : j + 1], along)
                hessenberg[:, : j + 1, j] += along
            norm = vector.norm(dim=-1)
            hessenberg[:, j + 1, j] = norm
            hessenberg[:, :, j] = _finite(hessenberg[:, :, j])[0]
            broke = norm <= eps * hessenberg[:, : j + 1, j].norm(dim=-1)
            basis[:, j + 1] = torch.where(broke.unsqueeze(-1), 0.0, vector / norm.unsqueeze(-1))
            small = hessenberg[:, : j + 2, : j + 1]
            target = b.new_zeros(batch, j + 2)
            target[:, 0] = beta
            # least squares on the small system by its pseudo-inverse: rows that broke down are rank deficient
            left, values, right = torch.linalg.svd(small, full_matrices=False)
            kept = values > (j + 2) * eps * values[:, :1]
            inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
            weights = torch.einsum("bji,bj,bkj,bk->bi", right, inverse, left, target)
            misfit = (torch.einsum("bij,bj->bi", small, weights) - target).norm(dim=-1)
            candidate = torch.einsum("bkn,bk->bn", basis[:, : j + 1], weights)
            step = torch.where(active.unsqueeze(-1), candidate, step)
            # the smallest singular value of the small system is at least that of A
            smallest = torch.where(active & kept.all(-1), torch.minimum(smallest, values[:, -1]), smallest)
            accurate = (misfit <= tolerance * size) & (misfit <= ACCURACY * smallest * (x + step).norm(dim=-1))
            active = active & ~failed & ~accurate
            singular = singular | (active & (values[:, -1] <= least * values[:, 0]))
            active = active & ~broke & ~singular
            if used >= max_iterations or not active.any():
                break
        x = x + step
        residual = torch.where(open_.unsqueeze(-1), b - _finite(matvec(x))[0], residual)
        stuck = open_ & (residual.norm(dim=-1) >= beta)
        if bool((stuck == open_).all()):
            break
    left, unknown = residual.norm(dim=-1), torch.full_like(size, math.nan)
    error = _ratio(left, smallest * x.norm(dim=-1))
    return LinearSolve(x, _ratio(left, size), error, singular | failed, unknown, unknown)


def generic(like: Tensor) -> Tensor:
    """A fixed vector that is orthogonal to nothing in particular."""
    return torch.arange(1, like.shape[-1] + 1, device=like.device).to(like.dtype).sin().expand_as(like)


def _finite(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows with zeros in place of those that hold a number that is not finite, and which these are."""
    failed = ~rows.isfinite().all(-1)
    return torch.where(failed.unsqueeze(-1), 0.0, rows), failed


def _ratio(left: Tensor, size: Tensor) -> Tensor:
    return torch.where(size > 0, left / torch.where(size > 0, size, 1.0), 0.0)
