"""Settings of `dcem embed-synthetic`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import dcem
from dcem.experiments import ConfigError
from dcem.experiments.harness.training import require

GROUPS: dict[str, dict[str, Any]] = {}
BOX = (-1.0, 1.0)
"""Of the latent; searches start at its centre with a standard deviation of `LATENT_STD`."""
LATENT_STD = 0.5


@dataclass
class Search:
    """A cross-entropy search with a hard selection."""

    num_samples: int
    num_elites: int
    num_iterations: int


@dataclass
class Config:
    """Settings of `dcem embed-synthetic`."""

    sizes: list[int] = field(default_factory=lambda: [10, 30, 100, 300, 1000])
    """`N`."""
    ripple: float = 0.02
    """Height of the ripples that make the objective non-convex."""
    wavelength: float = 0.5
    """Of the ripples."""
    coupling: float = 1.0
    """Weight of the differences between neighbours' errors."""
    own: float = 0.01
    """Standard deviation of what a solution has of its own, off the surface."""
    num_train: int = 256
    num_test: int = 8
    latent_size: int = 4
    hidden: list[int] = field(default_factory=lambda: [64, 64])
    num_updates: int = 500
    batch_size: int = 16
    lr: float = 1e-2
    num_samples: int = 50
    """Of the solves in training; likewise below."""
    num_elites: int = 5
    num_iterations: int = 5
    temperature: float = 1.0
    full: Search = field(default_factory=lambda: Search(1000, 100, 100))
    full_std: float = 0.3
    icem: Search = field(default_factory=lambda: Search(300, 20, 100))
    latent: Search = field(default_factory=lambda: Search(50, 5, 20))
    checkpoint_every: int = 100
    num_seeds: int = 3
    seed: int = 0
    device: str = "cpu"
    threads: int = 1


def check(config: Config) -> None:
    """Refuse settings that cannot be run."""
    counts = ("num_train", "num_test", "latent_size", "num_updates", "batch_size", "num_samples", "num_iterations")
    for key in (*counts, "checkpoint_every", "num_seeds", "threads"):
        require(getattr(config, key) >= 1, key, "at least 1", getattr(config, key))
    sizes = config.sizes
    require(bool(sizes) and min(sizes) >= 2 and sorted(set(sizes)) == sizes, "sizes", "rising, at least 2", sizes)
    require(config.latent_size <= config.num_train, "latent_size", "at most num_train", config.latent_size)
    require(config.batch_size <= config.num_train, "batch_size", "at most num_train", config.batch_size)
    require(bool(config.hidden) and min(config.hidden) >= 1, "hidden", "positive widths", config.hidden)
    for key in ("wavelength", "lr", "temperature", "full_std"):
        require(getattr(config, key) > 0, key, "a positive number", getattr(config, key))
    for key in ("ripple", "coupling", "own"):
        require(getattr(config, key) >= 0, key, "at least 0", getattr(config, key))
    for key, search in (("", config), ("full.", config.full), ("icem.", config.icem), ("latent.", config.latent)):
        require(search.num_iterations >= 1, f"{key}num_iterations", "at least 1", search.num_iterations)
        try:
            dcem.CEM(search.num_samples, search.num_elites)
        except ValueError as error:
            raise ConfigError(f"{key}{error}") from None
