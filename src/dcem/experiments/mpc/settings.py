"""Settings of `dcem mpc`."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from dcem.control import tasks
from dcem.experiments.harness.settings import Search, Settings, count, require, setting, some_of
from dcem.experiments.mpc import methods


@dataclass
class Config(Settings):
    """Settings of `dcem mpc`."""

    tasks: list[str] = some_of(list(tasks.LABELS), list(tasks.LABELS))
    methods: list[str] = some_of(list(methods.LABELS), list(methods.LABELS))
    num_samples: int = count(48)
    num_elites: int = setting(6, at_least=2, at_most="num_samples")
    num_iterations: int = count(3)
    length: float = setting(1.0, above=0, at_most=1)
    """Of the episodes, as a share of the tasks' `SECONDS`."""
    decoder_updates: int = count(300)
    timing_rounds: int = count(10)
    videos: bool = False
    """Film an episode of each task; those of dm_control need a graphics backend (`MUJOCO_GL`)."""
    num_seeds: int = count(10)
    """Starts, the same for all methods."""
    device: str = setting("cpu", among=("cpu",))
    """Where the simulators run."""

    def check(self) -> None:
        super().check()
        for package in ("gymnasium", "dm_control"):
            installed = importlib.util.find_spec(package) is not None
            require(installed, "tasks", "their packages, pip install 'dcem[control]'", f"no {package}")

    @property
    def budget(self) -> Search:
        """What each method may spend on a decision: `num_iterations` of `num_samples` trajectories."""
        return Search(self.num_samples, self.num_elites, self.num_iterations)
