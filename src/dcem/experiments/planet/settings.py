"""Settings of `dcem planet`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dcem.experiments.planet.suite import ACTION_REPEAT
from dcem.experiments.training import require


@dataclass
class Planner:
    """The search of one decision."""

    horizon: int = 3
    num_samples: int = 128
    num_elites: int = 16
    num_iterations: int = 4
    num_proposals: int = 16
    """Of the model's policy, beside the samples."""
    init_std: float = 1.0
    min_std: float = 0.05
    max_std: float = 1.0


@dataclass
class Config:
    """Settings of `dcem planet`."""

    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"scale": "cpu"}])
    task: str = "walker.walk"
    """`walker.walk` or `cheetah.run`."""
    num_rounds: int = 25
    """Of one episode in each environment."""
    seed_rounds: int = 1
    """With random actions, before anything is learned."""
    num_envs: int = 4
    """In lock-step, planned for in one batch."""
    updates_per_decision: float = 0.5
    """Of the model, for each decision in each environment."""
    batch_size: int = 128
    window: int = 3
    """Steps of a replayed sequence."""
    lr: float = 1e-3
    encoder_lr: float = 3e-4
    grad_clip: float = 20.0
    latent_size: int = 128
    hidden: int = 256
    discount: float = 0.99
    planner: Planner = field(default_factory=Planner)
    eval_every: int = 5
    """Rounds between evaluations, an episode in each environment without exploration."""
    seed: int = 0
    device: str = "cpu"
    threads: int = 1


GROUPS: dict[str, dict[str, Any]] = {
    "scale": {
        "cpu": {},
        "gpu": {"num_envs": 16, "updates_per_decision": 1.0, "batch_size": 256, "hidden": 512, "latent_size": 512},
    }
}


def check(config: Config) -> None:
    """Refuse settings that cannot be run."""
    require(config.task in ACTION_REPEAT, "task", f"one of {', '.join(ACTION_REPEAT)}", config.task)
    for key in ("num_rounds", "seed_rounds", "num_envs", "batch_size", "eval_every", "latent_size", "hidden"):
        require(getattr(config, key) >= 1, key, "at least 1", getattr(config, key))
    require(config.window >= 2, "window", "at least 2 steps", config.window)
    for key in ("updates_per_decision", "lr", "encoder_lr", "grad_clip"):
        require(getattr(config, key) > 0, key, "a positive number", getattr(config, key))
    require(0 <= config.discount < 1, "discount", "a number in [0, 1)", config.discount)
    planner = config.planner
    for key in ("horizon", "num_samples", "num_elites", "num_iterations", "num_proposals"):
        require(getattr(planner, key) >= 1, f"planner.{key}", "at least 1", getattr(planner, key))
    require(planner.num_elites <= planner.num_samples, "planner.num_elites", "at most num_samples", planner.num_elites)
    require(0 < planner.min_std <= planner.max_std, "planner.min_std", "0 < min_std <= max_std", planner.min_std)
