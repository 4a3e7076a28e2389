"""Settings of `dcem embed-synthetic`."""

from __future__ import annotations

from dataclasses import dataclass

from dcem.experiments.harness.settings import Settings, count, positive, require, setting

BOX = (-1.0, 1.0)
"""Of the latent; searches start at its centre with a standard deviation of `LATENT_STD`."""
LATENT_STD = 0.5
VALID_SEED, TEST_SEED = 500_000, 1_000_000


@dataclass
class Config(Settings):
    """Settings of `dcem embed-synthetic`."""

    seed: int = setting(0, at_least=0, below=VALID_SEED)
    sizes: list[int] = setting([10, 100, 1000], at_least=10, distinct=True)
    """`N`."""
    num_train: int = count(1024)
    num_solutions: int = setting(64, at_least=2, at_most="num_train")
    """Of the training problems, for the principal components."""
    num_valid: int = count(4)
    """Problems on which every method's settings are chosen."""
    num_test: int = count(16)
    num_starts: int = count(32)
    """Random starts from which gradient descent counts minima."""
    budget: int = setting(10_000, at_least=10)
    """Evaluations a problem."""
    target: float = positive(1e-3)
    """Cost at which a problem counts as solved."""
    latent_size: int = count(3)
    hidden: list[int] = count([64, 64])
    num_updates: int = count(300)
    batch_size: int = setting(16, at_least=1, at_most="num_train")
    lr: float = positive(1e-2)
    num_samples: int = count(32)
    """Of the solves in training; likewise below."""
    num_elites: int = setting(4, at_least=1, at_most="num_samples")
    num_iterations: int = count(4)
    temperature: float = positive(0.4)
    checkpoint_every: int = count(100)
    num_seeds: int = count(3)

    def check(self) -> None:
        super().check()
        require(sorted(self.sizes) == self.sizes, "sizes", "rising numbers", self.sizes)
