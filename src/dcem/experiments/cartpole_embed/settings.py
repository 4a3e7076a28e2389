"""Settings of `dcem cartpole-embed`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import dcem
from dcem.experiments import ConfigError
from dcem.experiments.harness.training import require

SELECTIONS = ("soft", "hard")


@dataclass
class Config:
    """Settings of `dcem cartpole-embed`."""

    latent: int = 8
    temperature: float = 1.0
    """0: a hard selection in training, and a gradient that does not go through the search."""
    hidden: list[int] = field(default_factory=lambda: [256, 256, 256])
    num_samples: int = 100
    num_elites: int = 10
    num_iterations: int = 10
    init_std: float = 0.5
    answer: str = "mean"
    """Whose cost is lowered: that of the search's `mean`, or of its `best` sample."""
    num_updates: int = 400
    batch_size: int = 16
    """Initial states an update."""
    lr: float = 1e-3
    """Its peak: it rises over a tenth of the updates and falls along a cosine."""
    grad_clip: float = 1.0
    precision: str = "bfloat16"
    """Of the decoder's products in training, `bfloat16` or `float32`; evaluations are in float32."""
    compile: bool = False
    """Compile the rollouts in training: a minute once, also in a sweep, for a third less an update."""
    eval_every: int = 50
    checkpoint_every: int = 50
    seed: int = 0
    device: str = "cpu"
    threads: int = 1


GROUPS: dict[str, dict[str, Any]] = {}


class Search(NamedTuple):
    """How a plan is searched for."""

    num_samples: int
    num_elites: int
    num_iterations: int
    init_std: float = 0.5
    temperature: float = 0.0
    answer: str = "mean"

    @property
    def num_trajectories(self) -> int:
        """Evaluated in a solve."""
        return self.num_samples * self.num_iterations


def check(config: Config) -> None:
    """Refuse settings that cannot be run."""
    counts = ("latent", "num_updates", "batch_size", "num_iterations", "eval_every", "checkpoint_every", "threads")
    for key in counts:
        require(getattr(config, key) >= 1, key, "at least 1", getattr(config, key))
    require(config.temperature >= 0, "temperature", "0 or above", config.temperature)
    require(bool(config.hidden) and min(config.hidden) >= 1, "hidden", "positive widths", config.hidden)
    require(config.init_std > 0, "init_std", "a positive number", config.init_std)
    require(config.lr > 0, "lr", "a positive number", config.lr)
    require(config.grad_clip > 0, "grad_clip", "a positive number", config.grad_clip)
    require(config.answer in ("mean", "best"), "answer", "mean or best", config.answer)
    require(config.precision in ("bfloat16", "float32"), "precision", "bfloat16 or float32", config.precision)
    try:
        solver(trained_search(config))
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from None


def trained_search(config: Config) -> Search:
    """The search as in training."""
    return Search(
        config.num_samples,
        config.num_elites,
        config.num_iterations,
        config.init_std,
        config.temperature,
        config.answer,
    )


def trajectories_an_update(config: Config) -> int:
    """Evaluated for all the initial states of an update."""
    return config.batch_size * trained_search(config).num_trajectories


def solver(search: Search) -> dcem.CEM:
    """The cross-entropy method of a search."""
    selection = dcem.LML(search.temperature) if search.temperature > 0 else dcem.HardTopK()
    return dcem.CEM(search.num_samples, search.num_elites, selection, init_std=search.init_std)
