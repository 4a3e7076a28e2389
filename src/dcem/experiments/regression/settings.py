"""Settings of `dcem regression`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

import dcem
from dcem.experiments.harness.settings import MOST_THREADS, Settings, count, positive, require, setting
from dcem.experiments.harness.training import DECAYS


@dataclass
class DCEM:
    """Settings of `solver=dcem`."""

    name: str = "dcem"
    num_samples: int = count(100)
    num_elites: int = setting(10, at_least=1, at_most="num_samples")
    temperature: float = positive(1.0)
    """Of the soft selection, which the energy is learned through: a hard one has no gradient."""
    init_std: float = positive(7.0)

    def solver(self) -> dcem.Solver:
        """The cross-entropy method."""
        selection = dcem.LML(self.temperature)
        return dcem.CEM(self.num_samples, self.num_elites, selection, init_std=self.init_std)


@dataclass
class Light(DCEM):
    """Settings of `solver=light`: DCEM with few samples, at a temperature at which they settle in five iterations."""

    name: str = "light"
    num_samples: int = count(30)
    num_elites: int = setting(5, at_least=1, at_most="num_samples")
    temperature: float = positive(0.3)


@dataclass
class GD:
    """Settings of `solver=gd`: unrolled gradient descent from 0."""

    name: str = "gd"
    lr: float = positive(0.1)
    momentum: float = setting(0.0, at_least=0, below=1)

    def solver(self) -> dcem.Solver:
        """Gradient descent."""
        return dcem.GradientDescent(self.lr, self.momentum)


@dataclass
class Config(Settings):
    """Settings of `dcem regression`."""

    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"setting": "fast"}, {"solver": "dcem"}])
    solver: Any = MISSING
    hidden: list[int] = count([128, 128, 128])
    num_points: int = setting(100, at_least=2)
    num_iterations: int = count(10)
    """Inner iterations in training."""
    test_iterations: list[int] = setting([1, 5, 8, 10, 12, 20, 30], at_least=1, distinct=True)
    num_updates: int = count(2000)
    batch_size: int = setting(16, at_least=1, at_most="num_points")
    repeats: int = count(1)
    """Updates in a row on one batch."""
    lr: float = positive(3e-3)
    """At its highest: it warms up over a tenth of the updates, then falls to zero."""
    decay: str = setting("cosine", among=tuple(DECAYS))
    """How: along half a cosine, or a straight line, which stays higher in the last third."""
    grad_clip: float = positive(1.0)
    eval_every: int = count(100)
    checkpoint_every: int = count(200)
    threads: int = setting(1, at_least=1, at_most=MOST_THREADS)
    """More than one only slows a model of this size down, badly so on a busy machine."""

    def check(self) -> None:
        super().check()
        expected = type(self.solver)().name
        require(self.solver.name == expected, "solver.name", f"{expected} (solver=... chooses)", self.solver.name)


GROUPS: dict[str, dict[str, Any]] = {
    "solver": {"dcem": DCEM, "light": Light, "gd": GD},
    "setting": {
        # random minibatches and one cosine cycle: two to three minutes instead of an hour on two cores
        "fast": {"num_updates": 2000, "batch_size": 16, "repeats": 1, "lr": 3e-3},
        # with solver=light: a better energy a second than the paper's, see results/regression
        "light": {"num_updates": 2000, "batch_size": 32, "repeats": 1, "lr": 5e-3, "num_iterations": 5},
        # single points, three updates in a row each, as in the paper
        "paper": {
            "num_updates": 60_000,
            "batch_size": 1,
            "repeats": 3,
            "lr": 1e-3,
            "decay": "linear",
            "eval_every": 500,
            "checkpoint_every": 1000,
        },
    },
}
LABELS = {"dcem": "DCEM", "light": "light DCEM", "gd": "unrolled gradient descent"}
