"""What is iterated: CEM, MPPI and gradient descent under one interface."""

import torch

from dcem.projections import LML, ConstrainedSoftmax, ConstrainedSparsemax, HardTopK
from dcem.solvers.base import Candidates, SamplingSolver, SamplingState, Solver, Step
from dcem.solvers.cem import CEM
from dcem.solvers.gradient_descent import GradientDescent
from dcem.solvers.mppi import MPPI

__all__ = ["CEM", "MPPI", "Candidates", "GradientDescent", "SamplingSolver", "SamplingState", "Solver", "Step"]

# Plain hyperparameters: a saved one is read by `torch.load(..., weights_only=True)`.
torch.serialization.add_safe_globals(
    [CEM, MPPI, GradientDescent, LML, ConstrainedSoftmax, ConstrainedSparsemax, HardTopK]
)
