"""Settings of `dcem mpc`."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcem.control import tasks
from dcem.control.systems import Pendulum
from dcem.experiments.harness.reading import settings_of, summary_of
from dcem.experiments.harness.settings import Search, Settings, count, require, setting, some_of
from dcem.experiments.mpc import methods

DECISIVE = ("seed", "tasks", "num_samples", "num_elites", "num_iterations", "length", "decoder_updates", "num_seeds")
"""The settings that returns depend on."""


@dataclass
class Config(Settings):
    """Settings of `dcem mpc`."""

    tasks: list[str] = some_of(list(tasks.LABELS), list(tasks.LABELS))
    methods: list[str] = some_of(list(methods.LABELS), list(methods.LABELS))
    num_samples: int = count(48)
    num_elites: int = setting(6, at_least=2, at_most="num_samples")
    num_iterations: int = count(3)
    length: float = setting(1.0, above=0, at_most=1)
    """Share of each task's episode that is played: 1 is the whole."""
    decoder_updates: int = count(300)
    timing_rounds: int = count(10)
    videos: bool = False
    """Film an episode of each task; those of dm_control need a graphics backend (`MUJOCO_GL`)."""
    num_seeds: int = count(10)
    """Starts, the same for all methods."""
    reuse: str = ""
    """Folder of a finished run with the same search and starts: what its methods returned is not played again."""
    device: str = setting("cpu", among=("cpu",))
    """Where the simulators run."""

    def check(self) -> None:
        super().check()
        for package in ("gymnasium", "dm_control"):
            installed = importlib.util.find_spec(package) is not None
            require(installed, "tasks", "their packages, pip install 'dcem[control]'", f"no {package}")
        runs = any(map(self.methods_on, self.tasks))
        require(runs, "methods", f"an installed one that runs on {', '.join(self.tasks)}", self.methods)
        steps = round(self.length * tasks.SECONDS["pendulum"] / Pendulum().dt)
        least = f"at least {Pendulum().dt / tasks.SECONDS['pendulum']}, a step of the pendulum"
        require(steps > 0 or "pendulum" not in self.tasks, "length", least, self.length)
        self.reused()

    def methods_on(self, task: str) -> list[str]:
        """Those asked for that can be run on the task."""
        able = [method for method in self.methods if methods.is_installed(method)]
        return [method for method in able if method != "learned" or task == "pendulum"]

    @property
    def budget(self) -> Search:
        """What each method may spend on a decision: `num_iterations` of `num_samples` trajectories."""
        return Search(self.num_samples, self.num_elites, self.num_iterations)

    def reused(self) -> dict[str, dict[str, Any]]:
        """What the run `reuse` has found, by task and method."""
        if not self.reuse:
            return {}
        summary = summary_of(Path(self.reuse))
        theirs = settings_of(Path(self.reuse), summary)
        wrong = [key for key in DECISIVE if theirs.get(key) != getattr(self, key)]
        there, here = (
            " ".join(f"{key}={value}".replace("'", "").replace(", ", ",") for key, value in zip(wrong, of, strict=True))
            for of in ([theirs.get(key) for key in wrong], [getattr(self, key) for key in wrong])
        )
        require(not wrong, "reuse", f"the settings of that run of `dcem mpc` again, {there}", here)
        results: dict[str, dict[str, Any]] = summary["metrics"]
        return results
