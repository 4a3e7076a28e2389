"""Settings of `dcem imitation`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import dcem
from dcem.experiments.harness.training import require
from dcem.experiments.imitation.controller import HORIZON, Search
from dcem.experiments.imitation.task import TASKS

METHODS = {
    "cost": "cost through the controller",
    "dynamics": "dynamics through the controller",
    "both": "both through the controller",
    "fine-tune": "likelihood, then both through the controller",
    "likelihood": "dynamics by likelihood",
    "network": "network (behaviour cloning)",
}
OF_PLANT = {
    "matched": ("cost", "dynamics", "both", "likelihood", "network"),
    "mismatched": ("dynamics", "both", "fine-tune", "likelihood", "network"),
}
GRADIENTS = ("unroll", "truncate", "implicit")
GROUPS: dict[str, dict[str, Any]] = {}


@dataclass
class Config:
    """Settings of `dcem imitation`."""

    system: str = "pendulum"
    plants: list[str] = field(default_factory=lambda: ["matched", "mismatched"])
    """`matched`: the learner's model class holds the plant; `mismatched`: it lacks a damping and a constant force."""
    methods: list[str] = field(default_factory=list)
    """Which to compare; empty: all that make sense for the plant."""
    num_demonstrations: list[int] = field(default_factory=lambda: [10, 50, 100])
    num_steps: int = 20
    """Of a demonstration."""
    wrong: float = 0.2
    """Root mean square error of the logarithms of the parameters that the learner starts from."""
    num_updates: int = 160
    batch_size: int = 16
    lr: float = 0.02
    cutoff: float = 1.0
    """Plans that differ by much more than this (in units of the action's bound) count as of another branch."""
    matched_steps: int = 1
    """How much of the plans is compared: 1 is the action that is applied, 12 the whole."""
    gradient: str = "truncate"
    """How the learner's plans are differentiated: unroll, truncate (the last three iterations), implicit."""
    num_samples: int = 96
    num_elites: int = 12
    num_iterations: int = 12
    temperature: float = 0.1
    """Of the soft selection that unroll and truncate need."""
    network_updates: int = 1000
    eval_every: int = 20
    num_held_out: int = 10
    """Trajectories that the learners are judged on, and initial states of their own ones."""
    closed_loop_steps: int = 40
    num_seeds: int = 4
    seed: int = 0
    device: str = "cpu"
    """The tensors are small: only cpu."""
    threads: int = 1


def check(config: Config) -> None:
    """Refuse settings that cannot be run."""
    require(config.system in TASKS, "system", f"one of {', '.join(TASKS)}", config.system)
    unknown = [plant for plant in config.plants if plant not in OF_PLANT]
    require(bool(config.plants) and not unknown, "plants", f"some of {', '.join(OF_PLANT)}", config.plants)
    unknown = [method for method in config.methods if method not in METHODS]
    require(not unknown, "methods", f"some of {', '.join(METHODS)}", ", ".join(unknown))
    for plant in config.plants:
        require(bool(_methods(config, plant)), "methods", f"one of {', '.join(OF_PLANT[plant])}", config.methods)
    numbers = config.num_demonstrations
    require(bool(numbers) and min(numbers) >= 1, "num_demonstrations", "numbers of at least 1", numbers)
    counts = ("num_updates", "batch_size", "num_iterations", "network_updates", "eval_every", "num_held_out")
    for key in (*counts, "num_samples", "closed_loop_steps", "num_seeds", "threads"):
        require(getattr(config, key) >= 1, key, "at least 1", getattr(config, key))
    require(config.num_steps >= 2, "num_steps", "at least 2", config.num_steps)
    require(config.wrong >= 0, "wrong", "at least 0", config.wrong)
    for key in ("lr", "cutoff", "temperature"):
        require(getattr(config, key) > 0, key, "a positive number", getattr(config, key))
    require(1 <= config.num_elites <= config.num_samples, "num_elites", "1 to num_samples", config.num_elites)
    require(1 <= config.matched_steps <= HORIZON, "matched_steps", f"1 to {HORIZON}", config.matched_steps)
    require(config.gradient in GRADIENTS, "gradient", f"one of {', '.join(GRADIENTS)}", config.gradient)
    require(config.device == "cpu", "device", "cpu", config.device)


def search(config: Config) -> Search:
    """The learner's search. What is differentiated implicitly may be hard, what is unrolled has to be soft."""
    modes = {"implicit": dcem.Implicit(), "unroll": dcem.Unroll(), "truncate": dcem.Truncate(3)}
    selection = dcem.HardTopK() if config.gradient == "implicit" else dcem.LML(config.temperature)
    return Search(config.num_samples, config.num_elites, config.num_iterations, selection, modes[config.gradient])


def _methods(config: Config, plant: str) -> list[str]:
    return [method for method in OF_PLANT[plant] if not config.methods or method in config.methods]
