"""Settings of `dcem regression`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from dcem.experiments import ConfigError
from dcem.experiments.harness.training import require


@dataclass
class DCEM:
    """Settings of `solver=dcem`."""

    name: str = "dcem"
    num_samples: int = 100
    num_elites: int = 10
    temperature: float = 1.0
    init_std: float = 7.0


@dataclass
class Light(DCEM):
    """Settings of `solver=light`: DCEM with few samples, at a temperature at which they settle in five iterations."""

    name: str = "light"
    num_samples: int = 30
    num_elites: int = 5
    temperature: float = 0.3


@dataclass
class GD:
    """Settings of `solver=gd`: unrolled gradient descent from 0."""

    name: str = "gd"
    lr: float = 0.1
    momentum: float = 0.0


@dataclass
class Config:
    """Settings of `dcem regression`."""

    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"setting": "fast"}, {"solver": "dcem"}])
    solver: Any = MISSING
    hidden: list[int] = field(default_factory=lambda: [128, 128, 128])
    num_points: int = 100
    num_iterations: int = 10
    """Inner iterations in training."""
    test_iterations: list[int] = field(default_factory=lambda: [1, 5, 8, 10, 12, 20, 30])
    num_updates: int = 2000
    batch_size: int = 16
    repeats: int = 1
    """Updates in a row on one batch."""
    lr: float = 3e-3
    schedule: str = "cosine"
    """`cosine` (with a warm-up of a tenth) or `plateau` (halved after `patience` evaluations without progress)."""
    patience: int = 20
    grad_clip: float = 1.0
    eval_every: int = 100
    checkpoint_every: int = 200
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    """More than one only slows a model of this size down, badly so on a busy machine."""


GROUPS: dict[str, dict[str, Any]] = {
    "solver": {"dcem": DCEM, "light": Light, "gd": GD},
    "setting": {
        # random minibatches and one cosine cycle: two to three minutes instead of an hour on two cores
        "fast": {"num_updates": 2000, "batch_size": 16, "repeats": 1, "lr": 3e-3, "schedule": "cosine"},
        # with solver=light: a better energy a second than the paper's, see results/regression
        "light": {
            "num_updates": 2000,
            "batch_size": 32,
            "repeats": 1,
            "lr": 5e-3,
            "schedule": "cosine",
            "num_iterations": 5,
        },
        # single points, three updates in a row each, as in the paper
        "paper": {
            "num_updates": 60_000,
            "batch_size": 1,
            "repeats": 3,
            "lr": 1e-3,
            "schedule": "plateau",
            "checkpoint_every": 1000,
        },
    },
}
LABELS = {"dcem": "DCEM", "light": "light DCEM", "gd": "unrolled gradient descent"}


def check(config: Config) -> None:
    """Refuse settings that cannot be run."""
    counts = (
        "num_iterations",
        "num_updates",
        "batch_size",
        "repeats",
        "eval_every",
        "checkpoint_every",
        "patience",
        "threads",
    )
    for key in counts:
        require(getattr(config, key) >= 1, key, "at least 1", getattr(config, key))
    require(config.num_points >= 2, "num_points", "at least 2", config.num_points)
    require(config.batch_size <= config.num_points, "batch_size", "at most num_points", config.batch_size)
    require(config.lr > 0, "lr", "a positive number", config.lr)
    require(config.schedule in ("cosine", "plateau"), "schedule", "cosine or plateau", config.schedule)
    require(bool(config.hidden) and min(config.hidden) >= 1, "hidden", "positive widths", config.hidden)
    iterations = config.test_iterations
    require(bool(iterations) and min(iterations) >= 1, "test_iterations", "numbers of at least 1", iterations)
    expected = type(config.solver)().name
    require(config.solver.name == expected, "solver.name", f"{expected} (solver=... chooses)", config.solver.name)

    from dcem.experiments.regression.task import build

    try:
        build(config)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"solver.{error}") from None
