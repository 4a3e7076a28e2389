"""Differentiable sampling-based optimisation for PyTorch.

`minimize` runs a solver on a batch of problems and differentiates the answer; the projections
(`lml` and its family) are differentiable top-k layers; `dcem.implicit` is the implicit function theorem.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dcem import implicit
from dcem._eager import unchecked
from dcem.distributions import (
    Categorical,
    ColoredNoise,
    Distribution,
    FullGaussian,
    Gaussian,
    Mixture,
    Product,
    WhiteNoise,
)
from dcem.gradients import Checkpoint, Detach, GradientMode, Implicit, Prune, Truncate, Unroll
from dcem.layer import Argmin
from dcem.loop import minimize
from dcem.projections import (
    LML,
    ConstrainedSoftmax,
    ConstrainedSparsemax,
    HardTopK,
    constrained_softmax,
    constrained_sparsemax,
    hard_topk,
    lml,
)
from dcem.scalars import Scalars
from dcem.search import Search
from dcem.solution import Iteration, Solution, Status
from dcem.solvers import CEM, MPPI, GradientDescent, SamplingSolver, Solver, Step

if TYPE_CHECKING:
    from dcem import control, distributed, embedding, energy, world
    from dcem.capturing import capture
    from dcem.diagnosis import diagnose
    from dcem.embedding import embed
    from dcem.exporting import export

__version__ = "0.1.0"

__all__ = [
    "CEM",
    "LML",
    "MPPI",
    "Argmin",
    "Categorical",
    "Checkpoint",
    "ColoredNoise",
    "ConstrainedSoftmax",
    "ConstrainedSparsemax",
    "Detach",
    "Distribution",
    "FullGaussian",
    "Gaussian",
    "GradientDescent",
    "GradientMode",
    "HardTopK",
    "Implicit",
    "Iteration",
    "Mixture",
    "Product",
    "Prune",
    "SamplingSolver",
    "Scalars",
    "Search",
    "Solution",
    "Solver",
    "Status",
    "Step",
    "Truncate",
    "Unroll",
    "WhiteNoise",
    "capture",
    "constrained_softmax",
    "constrained_sparsemax",
    "control",
    "diagnose",
    "distributed",
    "embed",
    "embedding",
    "energy",
    "export",
    "hard_topk",
    "implicit",
    "lml",
    "minimize",
    "unchecked",
    "world",
]


_WHERE = {"capture": "capturing", "diagnose": "diagnosis", "embed": "embedding", "export": "exporting"}
"""Functions that are imported where they are first used."""


def __getattr__(name: str) -> Any:
    """Import applications where they are first used: a third of what importing this package would take."""
    if name in ("control", "distributed", "embedding", "energy", "plotting", "rl", "world"):
        return import_module(f"dcem.{name}")
    if name in _WHERE:
        return getattr(import_module(f"dcem.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'dcem' has no attribute {name!r}")
