"""Differentiable control: plan by sampling through a model, and learn model, cost and decoder through the plan."""

from dcem.control.mpc import MPC
from dcem.control.plan import Plan
from dcem.control.risk import CVaR, Mean, WorstCase
from dcem.control.rollout import rollout

__all__ = ["MPC", "CVaR", "Mean", "Plan", "WorstCase", "rollout"]
