"""Settings of `dcem imitation`."""

from __future__ import annotations

from dataclasses import dataclass

import dcem
from dcem.experiments.harness.settings import Settings, count, positive, require, setting, some_of
from dcem.experiments.imitation.controller import HORIZON, Search
from dcem.experiments.imitation.task import TASKS

METHODS = {
    "cost": "cost through the controller",
    "dynamics": "dynamics through the controller",
    "both": "both through the controller",
    "fine-tune": "likelihood, then both through the controller, from the true cost",
    "likelihood": "dynamics by likelihood",
    "network": "network (behaviour cloning)",
}
OF_PLANT = {
    "matched": ("cost", "dynamics", "both", "likelihood", "network"),
    "mismatched": ("dynamics", "both", "fine-tune", "likelihood", "network"),
}
GRADIENTS = ("unroll", "truncate", "implicit")
HELD_OUT_SEED = 1_000_000


@dataclass
class Config(Settings):
    """Settings of `dcem imitation`."""

    seed: int = setting(0, at_least=0, below=HELD_OUT_SEED)
    system: str = setting("pendulum", among=tuple(TASKS))
    plants: list[str] = some_of(["matched", "mismatched"], list(OF_PLANT))
    """`matched`: the learner's model class holds the plant; `mismatched`: it lacks a damping and a constant force."""
    methods: list[str] = some_of([], list(METHODS), may_be_empty=True)
    """Which to compare; empty: all that make sense for the plant."""
    num_demonstrations: list[int] = setting([10, 50, 100], at_least=1, distinct=True)
    num_steps: int = setting(20, at_least=2)
    """Of a demonstration."""
    wrong: float = setting(0.2, at_least=0)
    """Root mean square error of the logarithms of the parameters that the learner starts from."""
    num_updates: int = count(160)
    batch_size: int = count(16)
    lr: float = positive(0.02)
    cutoff: float = positive(1.0)
    """Plans that differ by much more than this (in units of the action's bound) count as of another branch."""
    matched_steps: int = setting(1, at_least=1, at_most=HORIZON)
    """How much of the plans is compared: 1 is the action that is applied, 12 the whole."""
    gradient: str = setting("truncate", among=GRADIENTS)
    """How the learner's plans are differentiated: unroll, truncate (the last three iterations), implicit."""
    num_samples: int = count(96)
    num_elites: int = setting(12, at_least=1, at_most="num_samples")
    num_iterations: int = count(12)
    temperature: float = positive(0.1)
    """Of the soft selection that unroll and truncate need."""
    network_updates: int = count(1000)
    eval_every: int = count(20)
    num_held_out: int = count(10)
    """Trajectories that the learners are judged on, and initial states of their own ones."""
    closed_loop_steps: int = count(40)
    num_seeds: int = count(4)
    device: str = setting("cpu", among=("cpu",))
    """The tensors are small: only cpu."""

    def check(self) -> None:
        super().check()
        for plant in self.plants:
            require(bool(self.methods_on(plant)), "methods", f"one of {', '.join(OF_PLANT[plant])}", self.methods)

    def methods_on(self, plant: str) -> list[str]:
        """Those asked for that make sense for the plant."""
        return [method for method in OF_PLANT[plant] if not self.methods or method in self.methods]

    @property
    def search(self) -> Search:
        """The learner's. What is differentiated implicitly may be hard, what is unrolled has to be soft."""
        modes = {"implicit": dcem.Implicit(), "unroll": dcem.Unroll(), "truncate": dcem.Truncate(3)}
        selection = dcem.HardTopK() if self.gradient == "implicit" else dcem.LML(self.temperature)
        return Search(self.num_samples, self.num_elites, self.num_iterations, selection, modes[self.gradient])
