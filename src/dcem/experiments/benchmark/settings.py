"""Settings of `dcem benchmark`."""

from __future__ import annotations

from dataclasses import dataclass

from dcem.experiments.benchmark import planners
from dcem.experiments.harness.settings import Settings, count, require, setting, some_of
from dcem.experiments.mpc import methods

TASKS = {
    "mismatch": "learned dynamics",
    "imitation": "imitation",
    "energy": "energy",
    "embedded": "embedded search",
    "pendulum": "pendulum",
    "cartpole": "cartpole",
}
LEARNED = ("mismatch", "imitation", "energy")
"""Those whose model can be learned through a planner."""


@dataclass
class Config(Settings):
    """Settings of `dcem benchmark`."""

    tasks: list[str] = some_of(list(TASKS), list(TASKS))
    planners: list[str] = some_of(planners.OURS, list(planners.LABELS), may_be_empty=True)
    """Those that are there; the others are compared with the first."""
    planner: str = ""
    """Yours, as `module:name` of what makes it: `name(model, budget)`, with the methods `configure` and `solve`."""
    budget: int = setting(150, at_least=10)
    """Evaluations of a candidate that a planner may make for a decision in a problem."""
    num_problems: int = setting(10, at_least=2)
    """Of a task: starts of an episode, or problems that are solved once."""
    learn: bool = True
    """Learn the models through the planners that can be differentiated, too."""
    num_updates: int = count(100)
    """Of a model that is learned through a planner."""
    fit_updates: int = count(800)
    """Of a model that is fitted to data, which all planners are given."""
    num_solved: int = setting(200, at_least=2)
    """Plans of the expert that the embedding is fitted to."""
    device: str = setting("cpu", among=("cpu",))
    """The tensors are small: only cpu."""

    def check(self) -> None:
        super().check()
        some = bool(self.planner) or any(map(methods.is_installed, self.planners))
        require(some, "planners", "some that are installed, or a planner of yours", self.planners)
        if self.planner:
            planners.load(self.planner)
