"""Differentiable control: plan by sampling through a model, and learn model, cost and decoder through the plan."""

from dcem.control import systems
from dcem.control.closed_loop import closed_loop
from dcem.control.compiled import Compiled
from dcem.control.cost_planner import CostPlanner
from dcem.control.model import Model
from dcem.control.mpc import MPC
from dcem.control.mujoco_model import MujocoModel
from dcem.control.plan import Plan, WarmStart
from dcem.control.risk import CVaR, Mean, WorstCase
from dcem.control.rollout import rollout
from dcem.control.run import Episodes, run

__all__ = [
    "MPC",
    "CVaR",
    "Compiled",
    "CostPlanner",
    "Episodes",
    "Mean",
    "Model",
    "MujocoModel",
    "Plan",
    "WarmStart",
    "WorstCase",
    "closed_loop",
    "rollout",
    "run",
    "systems",
]
