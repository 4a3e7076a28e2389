"""Closed-loop control with true models: returns and time a decision of our controllers and of others' planners."""

from dcem.experiments.mpc.comparison import main
from dcem.experiments.mpc.settings import Config

__all__ = ["Config", "main"]
