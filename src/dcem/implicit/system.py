"""The Jacobian of a residual at a point, as products or as a matrix, and the linear systems with it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dcem._eager import without_autocast
from dcem.implicit.dense import Spectrum, apply, invert
from dcem.implicit.krylov import ACCURACY, LinearSolve, conjugate_gradient, gmres, minimum_residual

Method = Literal["auto", "dense", "iterative"]
DENSE_LIMIT = 64
"""Numbers in one problem up to which `method="auto"` builds the Jacobian."""


class Options(NamedTuple):
    """How the linear systems are solved; the first five are `root`'s arguments."""

    batch_dims: int = 0
    method: Method = "auto"
    symmetric: bool = False
    tolerance: float | None = None
    max_iterations: int | None = None
    minimum_norm: bool = False
    """Solve singular symmetric systems by the pseudo-inverse, where they otherwise have no answer."""


class System:
    """The Jacobian `J` at `x`, as products `vᵀ J` with the graph from `x` to `value`; rows of a batch are
    problems.
    """

    def __init__(self, x: Tensor, value: Tensor, options: Options) -> None:
        self.x, self.value, self.options = x, value, options
        self.size = math.prod(x.shape[options.batch_dims :])
        method = options.method
        self.dense = self.size <= DENSE_LIMIT if method == "auto" else method == "dense"

    def flat(self, tensor: Tensor) -> Tensor:
        """`(*batch, *event)` as `(problems, numbers)`."""
        return tensor.reshape(math.prod(self.x.shape[: self.options.batch_dims]), self.size)

    def vjp(self, v: Tensor, rows: bool = False) -> Tensor:
        """`vᵀ J` for every problem; with `rows`, for a further leading axis of `v`."""
        weights = v.reshape(*v.shape[:1], *self.x.shape) if rows else v.reshape(self.x.shape)
        if self.value.requires_grad:
            with without_autocast(v):  # as a backward pass should be
                (out,) = torch.autograd.grad(
                    self.value, self.x, weights, retain_graph=True, allow_unused=True, is_grads_batched=rows
                )
            if out is not None:
                return out.reshape(v.shape)
        if self.options.minimum_norm:  # flat in every direction, or held in all
            return torch.zeros_like(v)
        raise ValueError("residual: expected a function of x, got one that does not depend on x")

    @cached_property
    def jacobian(self) -> Tensor:
        """`(problems, numbers, numbers)`, row `i` the gradient of the residual's number `i`."""
        problems = self.flat(self.x.detach()).shape[0]
        identity = torch.eye(self.size, dtype=self.x.dtype, device=self.x.device)
        seeds = identity.unsqueeze(1).expand(self.size, problems, self.size)
        try:
            rows = self.vjp(seeds, rows=True)
        except RuntimeError:  # an operation without a batching rule
            rows = torch.stack([self.vjp(seed) for seed in seeds])
        return rows.transpose(0, 1)

    @cached_property
    def spectrum(self) -> Spectrum:
        """Of a symmetric Jacobian."""
        return Spectrum.of(self.jacobian)

    @cached_property
    def inverse(self) -> tuple[Tensor, Tensor]:
        """`J⁻¹` `(problems, numbers, numbers)`, or `J⁺`, and the problems in which it has no meaning."""
        return self.spectrum.pseudo_inverse() if self.options.minimum_norm else invert(self.jacobian)

    def solve_transposed(self, b: Tensor) -> Tensor:
        """`Jᵀ u = b`; NaN, for that problem alone, where `J` is singular up to rounding."""
        b = self.flat(b)
        if b.numel() == 0:
            return b.reshape(self.x.shape)
        if not self.dense:
            u, singular = self._iterate(b)
        else:
            inverse, singular = self.inverse
            u = apply(inverse.mT, b)
        u = torch.where(singular.unsqueeze(-1), math.nan, u)
        # a problem that no gradient reaches gives none, even where its Jacobian is singular
        u = torch.where((b != 0).any(-1, keepdim=True), u, 0.0)
        return u.reshape(self.x.shape)

    def krylov(self, b: Tensor, solver: Callable[..., LinearSolve], free: Tensor | None = None) -> LinearSolve:
        """Solve with `J`, or its rows and columns that are `free`, without its matrix, in at least single precision."""
        wide = torch.promote_types(b.dtype, torch.float32)

        def product(v: Tensor) -> Tensor:
            image = self.vjp(v.to(b.dtype)).to(wide)
            return image if free is None else torch.where(free, image, 0.0)

        with without_autocast(b):
            return solver(product, b.to(wide), *self._limits())

    def _limits(self) -> tuple[float, int]:
        default = 1e-10 if self.x.dtype == torch.float64 else 1e-5
        tolerance, most = self.options.tolerance, self.options.max_iterations
        return default if tolerance is None else tolerance, max(100, 10 * self.size) if most is None else most

    def _iterate(self, b: Tensor) -> tuple[Tensor, Tensor]:
        if self.options.minimum_norm:
            solver = minimum_residual
        else:
            solver = conjugate_gradient if self.options.symmetric else gmres
        solved = self.krylov(b, solver)
        tolerance, _ = self._limits()
        residual, error = (
            part.masked_fill(solved.singular | ~part.isfinite(), 0.0).amax().item()
            for part in (solved.relative_residual, solved.relative_error)
        )
        if residual > 10 * tolerance or error > 10 * ACCURACY:
            warnings.warn(
                f"implicit gradient: the linear system is solved to a relative residual of {residual:.1e}, not "
                f"{tolerance:.0e}, and a relative error of about {error:.1e}: raise max_iterations, or use "
                "method='dense' or float64",
                RuntimeWarning,
                stacklevel=2,
            )
        return solved.x.to(b.dtype), solved.singular & (not self.options.minimum_norm)
