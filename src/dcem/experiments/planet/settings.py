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
class Embedding:
    """The search over a decoder's latent, and how the decoder is learned."""

    latent_size: int = 6
    num_samples: int = 14
    num_elites: float = 4
    num_iterations: int = 4
    temperature: float = 1.0
    init_std: float = 1.0
    batch_size: int = 32
    """Beliefs planned from in an update."""
    lr: float = 3e-4


@dataclass
class Config:
    """Settings of `dcem planet`."""

    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"scale": "cpu"}])
    task: str = "walker.walk"
    """`walker.walk` or `cheetah.run`."""
    phase: str = "model"
    """`model` (full-space planning) or `embed` (embedded DCEM; its decoder is learned while the model goes on)."""
    start: str = ""
    """The folder of a run of the same task whose model and replay to go on with."""
    num_rounds: int = 25
    """Of one episode in each environment."""
    seed_rounds: int = 1
    """With random actions, before anything is learned."""
    num_envs: int = 4
    """In lock-step, planned for in one batch."""
    explore: float = 0.05
    """The least std of the noise on actions while learning."""
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
    embedding: Embedding = field(default_factory=Embedding)
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
    require(config.phase in ("model", "embed"), "phase", "model or embed", config.phase)
    require(config.task in ACTION_REPEAT, "task", f"one of {', '.join(ACTION_REPEAT)}", config.task)
    for key in ("num_rounds", "seed_rounds", "num_envs", "batch_size", "eval_every", "latent_size", "hidden"):
        require(getattr(config, key) >= 1, key, "at least 1", getattr(config, key))
    require(config.window >= 2, "window", "at least 2 steps", config.window)
    for key in ("updates_per_decision", "lr", "encoder_lr", "grad_clip"):
        require(getattr(config, key) > 0, key, "a positive number", getattr(config, key))
    require(0 <= config.discount < 1, "discount", "a number in [0, 1)", config.discount)
    require(config.explore >= 0, "explore", "at least 0", config.explore)
    require(config.phase == "model" or bool(config.start), "start", "the folder of a run to embed", config.start)
    planner, embedding = config.planner, config.embedding
    for key in ("latent_size", "num_samples", "num_iterations", "batch_size"):
        require(getattr(embedding, key) >= 1, f"embedding.{key}", "at least 1", getattr(embedding, key))
    for key in ("temperature", "init_std", "lr"):
        require(getattr(embedding, key) > 0, f"embedding.{key}", "a positive number", getattr(embedding, key))
    elites = embedding.num_elites
    require(0 < elites <= embedding.num_samples, "embedding.num_elites", "above 0, at most num_samples", elites)
    for key in ("horizon", "num_samples", "num_elites", "num_iterations", "num_proposals"):
        require(getattr(planner, key) >= 1, f"planner.{key}", "at least 1", getattr(planner, key))
    require(planner.num_elites <= planner.num_samples, "planner.num_elites", "at most num_samples", planner.num_elites)
    require(0 < planner.min_std <= planner.max_std, "planner.min_std", "0 < min_std <= max_std", planner.min_std)
