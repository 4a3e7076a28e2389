"""Settings of `dcem mismatch`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from dcem.experiments.harness.training import require

GROUPS: dict[str, dict[str, Any]] = {}


@dataclass
class Config:
    """Settings of `dcem mismatch`."""

    widths: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 6, 12])
    adversary_width: int = 12
    """Of the model that is degraded and then recovered, among `widths`."""
    adversary_references: list[int] = field(default_factory=lambda: [12, 6])
    """Whose errors the degraded one may have: widths of fitted models, among `widths`."""
    distractors: list[int] = field(default_factory=lambda: [2, 8, 32])
    distractor_width: int = 6
    num_episodes: int = 100
    """Of random actions, from the task's initial states; as many again to validate, and to test."""
    episode_length: int = 25
    fit_updates: int = 3000
    fit_batch_size: int = 256
    fit_lr: float = 1e-2
    num_updates: int = 120
    """End to end; also of the adversary."""
    batch_size: int = 16
    lr: float = 1e-2
    grad_clip: float = 1.0
    eval_every: int = 20
    num_replans: int = 3
    """Plans in a row that an update is differentiated through."""
    num_executed: int = 5
    """Actions of each that are executed."""
    restart: float = 0.3
    """How many of the systems that an update has controlled start anew; the others go on from where they are."""
    horizon: int = 15
    num_samples: int = 64
    num_elites: int = 8
    num_iterations: int = 4
    temperature: float = 0.3
    """Of DCEM, in training; what is trained is tested with the hard selection, too."""
    num_steps: int = 50
    """Of an episode of closed loop."""
    num_valid: int = 64
    num_test: int = 128
    seed: int = 0
    device: str = "cpu"
    threads: int = 1


def check(config: Config) -> None:
    """Refuse settings that cannot be run."""
    others = ("widths", "adversary_references", "distractors", "fit_lr", "lr", "grad_clip", "restart", "temperature")
    for key in (of.name for of in fields(config) if of.name not in (*others, "seed", "device")):
        require(getattr(config, key) >= 1, key, "at least 1", getattr(config, key))
    require(bool(config.widths) and min(config.widths) >= 1, "widths", "positive widths", config.widths)
    among = {*config.adversary_references, config.adversary_width} <= set(config.widths)
    known = among or not config.adversary_references
    require(known, "adversary_references", "some of widths, and adversary_width too", config.adversary_references)
    even = all(num >= 2 and num % 2 == 0 for num in config.distractors)
    require(even, "distractors", "even numbers of at least 2", config.distractors)
    for key in ("fit_lr", "lr", "grad_clip", "temperature"):
        require(getattr(config, key) > 0, key, "a positive number", getattr(config, key))
    require(1 <= config.num_elites <= config.num_samples, "num_elites", "1 to num_samples", config.num_elites)
    require(config.num_executed <= config.horizon, "num_executed", "at most horizon", config.num_executed)
    require(0 <= config.restart <= 1, "restart", "a fraction", config.restart)
