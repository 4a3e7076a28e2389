"""Settings of `dcem gallery`, and its scenes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from dcem.control import systems
from dcem.experiments.harness.settings import Settings, count, setting, some_of


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
class Config(Settings):
    """Settings of `dcem gallery`."""

    scenes: list[str] = some_of(list(SCENES), list(SCENES))
    num_samples: int = count(300)
    num_elites: int = setting(30, at_least=1, at_most="num_samples")
    num_iterations: int = count(4)
