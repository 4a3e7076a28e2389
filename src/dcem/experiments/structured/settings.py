"""Settings that the experiments on structured outputs share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dcem.experiments.harness.training import require


@dataclass
class Config:
    """Settings that the experiments on structured outputs share."""

    models: list[str] = field(default_factory=list)
    """Which to compare; empty: all."""
    num_epochs: int = 40
    feed_forward_epochs: int = 200
    """The feed-forward net is cheap, so it may learn until it overfits."""
    batch_size: int = 64
    lr: float = 5e-3
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    eval_every: int = 5
    """Epochs between evaluations; the weights that are best on the validation set are kept."""
    num_iterations: int = 5
    """Inner iterations in training."""
    test_iterations: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5, 6, 8, 10, 15, 20])
    num_samples: int = 50
    """Of DCEM."""
    num_elites: int = 5
    temperature: float = 1.0
    num_seeds: int = 3
    seed: int = 0
    device: str = "cpu"
    threads: int = 1


def check(config: Any, labels: Mapping[str, str]) -> None:
    """Refuse settings that cannot be run."""
    counts = ("num_epochs", "feed_forward_epochs", "batch_size", "eval_every", "num_iterations", "num_samples")
    for key in (*counts, "num_seeds", "threads"):
        require(getattr(config, key) >= 1, key, "at least 1", getattr(config, key))
    require(config.weight_decay >= 0, "weight_decay", "at least 0", config.weight_decay)
    for key in ("lr", "grad_clip", "temperature"):
        require(getattr(config, key) > 0, key, "a positive number", getattr(config, key))
    require(1 <= config.num_elites <= config.num_samples, "num_elites", "1 to num_samples", config.num_elites)
    iterations = config.test_iterations
    require(bool(iterations) and min(iterations) >= 1, "test_iterations", "numbers of at least 1", iterations)
    unknown = [name for name in config.models if name not in labels]
    require(not unknown, "models", f"some of {', '.join(labels)}", ", ".join(unknown))
