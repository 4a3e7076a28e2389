"""Settings of `dcem mpc`."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import Any

from dcem.control import tasks
from dcem.experiments.harness.training import require
from dcem.experiments.mpc import methods

GROUPS: dict[str, dict[str, Any]] = {}


@dataclass
class Config:
    """Settings of `dcem mpc`."""

    tasks: list[str] = field(default_factory=lambda: list(tasks.LABELS))
    methods: list[str] = field(default_factory=lambda: list(methods.LABELS))
    num_samples: int = 48
    num_elites: int = 6
    num_iterations: int = 3
    length: float = 1.0
    """Of the episodes, as a share of the tasks' `SECONDS`."""
    decoder_updates: int = 300
    timing_rounds: int = 10
    videos: bool = False
    """Film an episode of each task; those of dm_control need a graphics backend (`MUJOCO_GL`)."""
    num_seeds: int = 3
    seed: int = 0
    device: str = "cpu"
    threads: int = 1


def check(config: Config) -> None:
    """Refuse settings that cannot be run."""
    for key in ("num_samples", "num_iterations", "decoder_updates", "timing_rounds", "num_seeds", "threads"):
        require(getattr(config, key) >= 1, key, "at least 1", getattr(config, key))
    require(2 <= config.num_elites <= config.num_samples, "num_elites", "2 to num_samples", config.num_elites)
    require(0 < config.length <= 1, "length", "a share in (0, 1]", config.length)
    require(config.device == "cpu", "device", "cpu, where the simulators run", config.device)
    for key, known in (("tasks", tasks.LABELS), ("methods", methods.LABELS)):
        names = getattr(config, key)
        require(bool(names) and set(names) <= set(known), key, f"some of {', '.join(known)}", ", ".join(names))
    for package in ("gymnasium", "dm_control"):
        installed = importlib.util.find_spec(package) is not None
        require(installed, "tasks", "their packages, pip install 'dcem[control]'", f"no {package}")
