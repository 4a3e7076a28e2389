"""Gradients of the answer of any solver, by the implicit function theorem: no unrolling, no memory of the
iterations.

If `g(x*, θ) = 0` and `D_x g` is invertible, then `x*` is locally a function of `θ` with `D_θ x* = -(D_x g)⁻¹
D_θ g` (Dini 1877; Dontchev & Rockafellar, *Implicit Functions and Solution Mappings*, 2009, theorem 1B.1).
`root` applies it to an equation, `argmin` to a minimum, where `g` is the gradient. Both only look at the
answer: how it was found is no matter.
"""

from dcem.implicit.equation import root
from dcem.implicit.minimum import Stationarity, argmin, stationarity
from dcem.implicit.system import DENSE_LIMIT, Method

__all__ = ["DENSE_LIMIT", "Method", "Stationarity", "argmin", "root", "stationarity"]
