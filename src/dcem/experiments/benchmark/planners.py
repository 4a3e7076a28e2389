"""The planners that are there, and yours: each is made by `make(model, budget)`.

`model.get_cost(info, actions)` says what sequences of actions within ±1 cost: `(E, N)` for `actions` `(E, N, horizon,
action_dim)` and `info` with `state` `(E, N, s)`. `budget` is how many candidates a problem may be evaluated for a
decision. A planner has `configure(action_space=..., n_envs=..., config=...)` and `solve(info_dict, init_action)`, which
returns a dict with `actions` `(E, at least 1, action_dim)`: the solvers of stable-worldmodel do.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import dcem
from dcem.control import CostPlanner
from dcem.experiments import ConfigError
from dcem.experiments.benchmark import stepwise
from dcem.experiments.mpc import methods

Make = Callable[[Any, int], Any]
"""From a model and a budget to a planner."""
OURS = ["cem", "icem", "mppi", "dcem"]
LABELS = {name: methods.LABELS[name] for name in (*OURS, *methods.RIVALS)}


def find(name: str) -> Make:
    """What makes the planner of that name, or that of an import path `module:name`."""
    if ":" in name:
        return load(name)
    return partial(stepwise.StepwisePlanner, name) if name in methods.RIVALS else partial(ours, name)


def load(path: str) -> Make:
    """What an import path `module:name` leads to, from the working directory or what is installed."""
    module, _, name = path.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # of the module's own code, too; an exit as well
        said = str(error) if isinstance(error, (ImportError, AttributeError, ValueError)) else repr(error)
        raise ConfigError(f"planner: expected module:name of what makes a planner; got {path}: {said}") from None
    finally:
        sys.path.remove(os.getcwd())
    if not callable(found):
        raise ConfigError(f"planner: expected a callable (model, budget) -> planner; got {path}, {found!r}")
    made: Make = found
    return made


def ours(name: str, model: Any, budget: int) -> CostPlanner:
    """One of ours: three iterations, and the evaluation of the answer where that is the mean."""
    num = max(2, (budget - 1) // stepwise.ITERATIONS)
    elites = max(2, num // 8)
    options: dict[str, Any] = {"answer": "mean", "bounds": (-1.0, 1.0), "num_iterations": stepwise.ITERATIONS}
    solver: dcem.Solver
    if name == "icem":
        solver = dcem.CEM(num, elites, dcem.HardTopK(), init_std=0.5, keep_elites=0.3, smoothing=0.1)
        options |= {"noise": dcem.ColoredNoise(2.0, dim=-2), "answer": "best"}
    elif name == "cem":
        solver = dcem.CEM(num, elites, dcem.HardTopK(), init_std=0.5)
    else:
        options["gradient"] = dcem.Unroll()
        if name == "dcem":
            solver = dcem.CEM(num, elites, dcem.LML(0.1), init_std=0.5)
        else:
            solver = dcem.MPPI(num, temperature=0.1, standardize=True, init_std=0.5)
    return CostPlanner(model, solver, **options)
