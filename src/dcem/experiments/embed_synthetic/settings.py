"""Settings of `dcem embed-synthetic`."""

from __future__ import annotations

from dataclasses import dataclass, field

from dcem.experiments.harness.settings import Search, Settings, count, positive, require, setting

BOX = (-1.0, 1.0)
"""Of the latent; searches start at its centre with a standard deviation of `LATENT_STD`."""
LATENT_STD = 0.5
TEST_SEED = 1_000_000


@dataclass
class Config(Settings):
    """Settings of `dcem embed-synthetic`."""

    seed: int = setting(0, at_least=0, below=TEST_SEED)
    sizes: list[int] = setting([10, 30, 100, 300, 1000], at_least=2, distinct=True)
    """`N`."""
    ripple: float = setting(0.02, at_least=0)
    """Height of the ripples that make the objective non-convex."""
    wavelength: float = positive(0.5)
    """Of the ripples."""
    coupling: float = setting(1.0, at_least=0)
    """Weight of the differences between neighbours' errors."""
    own: float = setting(0.01, at_least=0)
    """Standard deviation of what a solution has of its own, off the surface."""
    num_train: int = count(256)
    num_test: int = count(8)
    latent_size: int = setting(4, at_least=1, at_most="num_train")
    hidden: list[int] = count([64, 64])
    num_updates: int = count(500)
    batch_size: int = setting(16, at_least=1, at_most="num_train")
    lr: float = positive(1e-2)
    num_samples: int = count(50)
    """Of the solves in training; likewise below."""
    num_elites: int = setting(5, at_least=1, at_most="num_samples")
    num_iterations: int = count(5)
    temperature: float = positive(1.0)
    full: Search = field(default_factory=lambda: Search(1000, 100, 100))
    full_std: float = positive(0.3)
    icem: Search = field(default_factory=lambda: Search(300, 20, 100))
    latent: Search = field(default_factory=lambda: Search(50, 5, 20))
    checkpoint_every: int = count(100)
    num_seeds: int = count(3)

    def check(self) -> None:
        super().check()
        require(sorted(self.sizes) == self.sizes, "sizes", "rising numbers", self.sizes)
