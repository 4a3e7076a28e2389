"""A benchmark of planners, yours included: learned dynamics, imitation, energies, embedded search and control.

A planner is what the public project stable-worldmodel calls a solver: it is made for a model that has
`get_cost(info, actions)`, told by `configure` what to plan for, and asked by `solve(info_dict, init_action)`.
"""

from dcem.experiments.benchmark.settings import Config
from dcem.experiments.benchmark.study import main

__all__ = ["Config", "main"]
