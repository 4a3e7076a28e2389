"""`dcem planet-evaluate`: fresh episodes of a controller that `dcem planet` has written."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcem.experiments.harness.run import Run
from dcem.experiments.harness.settings import Settings, count, require, setting
from dcem.experiments.planet.controllers import Controller, load
from dcem.experiments.planet.settings import require_controller
from dcem.experiments.planet.suite import ACTION_REPEAT, Suite
from dcem.experiments.planet.training import play
from dcem.plotting import save_gif

TEST_SEED = 2_000_000
"""Neither training nor its evaluations start from these."""
SEARCH = ("num_samples", "num_iterations", "temperature")
"""Settings of the search that an evaluation may change."""


@dataclass
class Config(Settings):
    """Settings of `dcem planet-evaluate`."""

    checkpoint: str = "controller.pt"
    """Written by `dcem planet`."""
    num_episodes: int = count(50)
    num_envs: int = count(10)
    """Played side by side, or all episodes if there are fewer."""
    num_samples: int = setting(0, at_least=0)
    """Candidates of an iteration of the search; 0: as many as the controller was learned with."""
    num_iterations: int = setting(0, at_least=0)
    """Of the search; 0: as it was learned with."""
    temperature: float = setting(0.0, at_least=0)
    """Of an embedded controller's selection; 0: as it was learned with. A decoder that was learned by a soft selection
    is searched better by a harder one.
    """
    animate: int = setting(0, at_least=0)
    """Decisions of one more episode to show in episode.gif, from its beginning; 0 for no picture.

    MuJoCo needs a renderer for it: EGL, or what the environment variable MUJOCO_GL names.
    """

    def check(self) -> None:
        super().check()
        even = self.num_episodes % self.side_by_side == 0
        require(even, "num_episodes", f"a multiple of num_envs={self.num_envs}, or fewer", self.num_episodes)
        require_controller(Path(self.checkpoint), "checkpoint")

    @property
    def side_by_side(self) -> int:
        """Episodes that are played at once."""
        return min(self.num_envs, self.num_episodes)


class _Returns(list[float]):
    """Of the episodes so far; part of a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"returns": list(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self[:] = state["returns"]


def main(config: Config, run: Run) -> dict[str, Any]:
    """Play; returns median, quartiles and the environment steps that the controller has learned from."""
    if config.animate:
        os.environ.setdefault("MUJOCO_GL", "egl")  # read when MuJoCo is imported
    controller, _ = load(Path(config.checkpoint), device=run.device)
    controller = controller.searched_with(**{name: value for name in SEARCH if (value := getattr(config, name))})
    suite, mpc, returns = (
        Suite(controller.config.task, config.side_by_side, controller.config.episode_steps, run.device),
        controller.mpc,
        _Returns(),
    )
    run.track(returns=returns)
    for step in run.steps(config.num_episodes // config.side_by_side, 1, "episodes"):
        seed = TEST_SEED + 10_000 * config.seed + step
        torch.manual_seed(seed)  # of the search
        returns += play(suite, seed, controller.model, mpc, explore=0.0).returns.tolist()
        run.log(step, mean=sum(returns) / len(returns))
    quartiles = torch.tensor(returns).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    solver = mpc.solver
    metrics = {
        "task": controller.config.task,
        "median": quartiles[1],
        "quartiles": [quartiles[0], quartiles[2]],
        "mean": math.fsum(returns) / len(returns),
        "phase": controller.config.phase,
        "env_steps": controller.env_steps,
        "trajectories": mpc.num_iterations * (solver.num_samples + (mpc.num_proposals if mpc.proposals else 0)),
        "returns": list(returns),
    }
    if config.animate:
        animate(run.folder / "episode.gif", controller, config.animate)
    run.say("  ".join(f"{key} {value}" for key, value in metrics.items() if key != "returns"))
    run.finish(**metrics)
    return metrics


def animate(path: Path, controller: Controller, num_decisions: int) -> None:
    """Write what one fresh episode looks like, every second decision a picture, in the time that the task has."""
    repeat = ACTION_REPEAT[controller.config.task]
    suite = Suite(
        controller.config.task,
        1,
        min(controller.config.episode_steps, repeat * num_decisions),
        controller.model.low.device,
    )
    pictures = [suite.picture()]
    torch.manual_seed(TEST_SEED)

    def look() -> None:
        pictures.append(suite.picture())

    play(suite, TEST_SEED, controller.model, controller.mpc, explore=0.0, between=look)
    seconds = suite.envs[0].control_timestep() * repeat * 2
    save_gif(path, np.stack(pictures[::2]), 1 / seconds)
