"""Settings of `dcem gallery`, and its scenes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dcem.control import systems
from dcem.experiments.harness.training import require

GROUPS: dict[str, dict[str, Any]] = {}


class Scene(NamedTuple):
    """A system, where it starts, how far the controller looks ahead, and for how long it acts."""

    system: Callable[[], systems.System]
    start: tuple[float, ...]
    horizon: int
    num_steps: int


SCENES = {
    "pendulum": Scene(systems.Pendulum, (-1.0, 0.0, 0.0), 25, 120),
    "cartpole": Scene(systems.Cartpole, (0.0, 0.0, -1.0, 0.0, 0.0), 20, 100),
    "acrobot": Scene(lambda: systems.Acrobot(max_torque=5.0, dt=0.1), (1.0, 0.0, 1.0, 0.0, 0.0, 0.0), 30, 120),
    "quadrotor": Scene(systems.Quadrotor, (-1.5, 1.0, 0.4, 0.9165, 0.0, -0.5, 0.0), 20, 80),
    "point-mass": Scene(systems.PointMass, (-2.0, 0.1, 0.0, 0.0), 25, 60),
}


@dataclass
class Config:
    """Settings of `dcem gallery`."""

    scenes: list[str] = field(default_factory=lambda: list(SCENES))
    num_samples: int = 300
    num_elites: int = 30
    num_iterations: int = 4
    seed: int = 0
    device: str = "cpu"
    threads: int = 1


def check(config: Config) -> None:
    """Refuse settings that cannot be run."""
    for key in ("num_samples", "num_elites", "num_iterations", "threads"):
        require(getattr(config, key) >= 1, key, "at least 1", getattr(config, key))
    require(config.num_elites <= config.num_samples, "num_elites", "at most num_samples", config.num_elites)
    require(bool(config.scenes) and set(config.scenes) <= set(SCENES), "scenes", ", ".join(SCENES), config.scenes)
