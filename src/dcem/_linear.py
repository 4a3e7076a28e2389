"""Batched linear systems: each row of a batch is a system of its own, and solved or failed by itself.

The matrix-free solvers take `matvec`, which maps `(batch, n)` to `(batch, n)` and treats every row with that
row's own matrix. A row that has converged is frozen: what the other rows still need never moves it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

MatVec = Callable[[Tensor], Tensor]


class LinearSolve(NamedTuple):
    """What a Krylov solver found for each of `batch` systems."""

    x: Tensor
    """The solutions, `(batch, n)`."""
    relative_residual: Tensor
    """`‖A x - b‖ / ‖b‖`, `(batch,)`; 0 where `b` is 0."""
    min_curvature: Tensor
    """Smallest `pᵀ A p / pᵀ p` along the way (conjugate gradients only), `(batch,)`: at least the smallest
    eigenvalue."""


def conjugate_gradient(matvec: MatVec, b: Tensor, tolerance: float, max_iterations: int) -> LinearSolve:
    """Solve `A x = b` for symmetric positive definite `A` (Hestenes & Stiefel 1952).

    A row that meets a direction of non-positive curvature stops there and keeps what it has; its relative
    residual says that it has not converged.
    """
    x, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
    size = b.norm(dim=-1)
    curvature = torch.full_like(size, float("inf"))
    squared = residual.square().sum(-1)
    active = size > 0
    for _ in range(max_iterations):
        if not active.any():
            break
        image = matvec(direction)
        bend = (direction * image).sum(-1)
        length = direction.square().sum(-1)
        slope = bend / length.clamp_min(torch.finfo(b.dtype).tiny)
        curvature = torch.where(active, torch.minimum(curvature, slope), curvature)
        active = active & (bend > 0)
        rate = torch.where(active, squared / torch.where(active, bend, 1.0), 0.0).unsqueeze(-1)
        x = x + rate * direction
        residual = residual - rate * torch.where(active.unsqueeze(-1), image, 0.0)
        before, squared = squared, residual.square().sum(-1)
        ratio = (squared / torch.where(active, before, 1.0)).unsqueeze(-1)
        direction = torch.where(active.unsqueeze(-1), residual + ratio * direction, direction)
        active = active & (squared.sqrt() > tolerance * size)
    return LinearSolve(x, _relative(matvec(x) - b, size), curvature)


def gmres(matvec: MatVec, b: Tensor, tolerance: float, max_iterations: int, restart: int = 50) -> LinearSolve:
    """Solve `A x = b` for any non-singular `A`: restarted GMRES (Saad & Schultz 1986)."""
    batch, n = b.shape
    restart = min(restart, n)
    size = b.norm(dim=-1)
    x, residual = torch.zeros_like(b), b
    used = 0
    while used < max_iterations and bool((residual.norm(dim=-1) > tolerance * size).any()):
        beta = residual.norm(dim=-1)
        open_ = beta > tolerance * size
        basis = b.new_zeros(batch, restart + 1, n)
        hessenberg = b.new_zeros(batch, restart + 1, restart)
        basis[:, 0] = residual / torch.where(open_, beta, 1.0).unsqueeze(-1)
        step = torch.zeros_like(x)
        active = open_
        for j in range(restart):
            used += 1
            vector = matvec(basis[:, j])
            for _ in range(2):  # orthogonalise twice: once loses digits on ill-conditioned systems
                along = torch.einsum("bkn,bn->bk", basis[:, : j + 1], vector)
                vector = vector - torch.einsum("bkn,bk->bn", basis[:, : j + 1], along)
                hessenberg[:, : j + 1, j] += along
            norm = vector.norm(dim=-1)
            hessenberg[:, j + 1, j] = norm
            broke = norm <= torch.finfo(b.dtype).eps * hessenberg[:, : j + 1, j].norm(dim=-1)
            basis[:, j + 1] = torch.where(broke.unsqueeze(-1), 0.0, vector / norm.unsqueeze(-1))
            small = hessenberg[:, : j + 2, : j + 1]
            target = b.new_zeros(batch, j + 2)
            target[:, 0] = beta
            # least squares on the small system by its pseudo-inverse: rows that broke down are rank deficient
            weights = torch.einsum("bij,bj->bi", torch.linalg.pinv(small), target)
            misfit = (torch.einsum("bij,bj->bi", small, weights) - target).norm(dim=-1)
            candidate = torch.einsum("bkn,bk->bn", basis[:, : j + 1], weights)
            step = torch.where(active.unsqueeze(-1), candidate, step)
            active = active & ~broke & (misfit > tolerance * size)
            if used >= max_iterations or not active.any():
                break
        x = x + step
        residual = torch.where(open_.unsqueeze(-1), b - matvec(x), residual)
        stuck = open_ & (residual.norm(dim=-1) >= beta)
        if bool((stuck == open_).all()):
            break
    relative = _relative(residual, size)
    return LinearSolve(x, relative, torch.full_like(relative, float("nan")))


def _relative(residual: Tensor, size: Tensor) -> Tensor:
    return torch.where(size > 0, residual.norm(dim=-1) / torch.where(size > 0, size, 1.0), 0.0)


def solve(a: Tensor, b: Tensor) -> Tensor:
    """`a⁻¹ b` for every problem; NaN, for that problem alone, where `a` is singular."""
    wide = torch.promote_types(b.dtype, torch.float32)
    x, info = torch.linalg.solve_ex(a.to(wide), b.to(wide).unsqueeze(-1))
    return torch.where((info == 0).unsqueeze(-1), x.squeeze(-1), math.nan).to(b.dtype)


def eigh(a: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and vectors of symmetric matrices; NaN for a problem with numbers that are not finite."""
    wide = a.to(torch.promote_types(a.dtype, torch.float32))
    finite = wide.isfinite().all(-1).all(-1)[:, None, None]
    values, vectors = torch.linalg.eigh(torch.where(finite, wide, 0.0))
    return torch.where(finite.squeeze(-1), values, math.nan).to(a.dtype), vectors.to(a.dtype)
