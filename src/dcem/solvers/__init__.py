"""What is iterated: CEM, MPPI and gradient descent under one interface."""

from dcem.solvers.base import Candidates, SamplingSolver, SamplingState, Solver, Step
from dcem.solvers.cem import CEM
from dcem.solvers.gradient_descent import GradientDescent
from dcem.solvers.mppi import MPPI

__all__ = ["CEM", "MPPI", "Candidates", "GradientDescent", "SamplingSolver", "SamplingState", "Solver", "Step"]
