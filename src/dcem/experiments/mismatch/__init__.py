"""Objective mismatch: the model of the highest likelihood is not the model that controls best.

Small dynamics nets plan the swing-up of a pendulum. One is fitted to transitions (maximum likelihood, that is squared
errors of one step); the other starts from it and learns end to end: its plans, made by DCEM, are executed on the true
system, and the true cost is differentiated with respect to the net. Then the likelihood is held and the control is
ruined; then the state has numbers that do not matter, on which a likelihood spends a small net.
"""

from dcem.experiments.mismatch.settings import Config
from dcem.experiments.mismatch.training import main

__all__ = ["Config", "main"]
