"""Settings of `dcem cartpole-embed`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import dcem
from dcem.experiments import ConfigError
from dcem.experiments.harness import settings
from dcem.experiments.harness.settings import Settings, count, positive, require, setting

VALIDATION_SEED, TEST_SEED = 20, 1000
"""The expert's mean cost depends on the states by ±0.6. Of the seeds 0 to 23 this one comes closest to the expert's
-9.17 on another set of 100, so that costs compare; it was chosen by the expert alone, before any training."""
SELECTIONS = ("soft", "hard")


@dataclass
class Search(settings.Search):
    """How a plan is searched for."""

    init_std: float = 0.5
    temperature: float = 0.0
    """Of the soft selection; 0 for the hard one."""
    answer: str = "mean"

    def but(self, **changes: Any) -> Search:
        """The same, but for these."""
        return replace(self, **changes)

    def solver(self, keep_elites: float = 0.0) -> dcem.CEM:
        """The cross-entropy method, with a hard selection at temperature 0."""
        selection = dcem.LML(self.temperature) if self.temperature > 0 else dcem.HardTopK()
        return dcem.CEM(self.num_samples, self.num_elites, selection, init_std=self.init_std, keep_elites=keep_elites)

    def __str__(self) -> str:
        return f"{self.num_samples} × {self.num_iterations}, {self.num_elites} elites, {self.answer}"


@dataclass
class Config(Settings):
    """Settings of `dcem cartpole-embed`."""

    latent: int = count(8)
    temperature: float = setting(1.0, at_least=0)
    """0: a hard selection in training, and a gradient that does not go through the search."""
    sees_state: bool = False
    """Whether the decoder is given the initial state beside the latent."""
    hidden: list[int] = count([256, 256, 256])
    num_samples: int = count(100)
    num_elites: int = count(10)
    num_iterations: int = count(10)
    init_std: float = positive(0.5)
    answer: str = setting("mean", among=("mean", "best"))
    """Whose cost is lowered: that of the search's `mean`, or of its `best` sample."""
    num_updates: int = count(400)
    batch_size: int = count(16)
    """Initial states an update."""
    lr: float = positive(1e-3)
    """Its peak: it rises over a tenth of the updates and falls along a cosine."""
    grad_clip: float = positive(1.0)
    precision: str = setting("bfloat16", among=("bfloat16", "float32"))
    """Of the decoder's products in training, `bfloat16` or `float32`; evaluations are in float32."""
    compile: bool = False
    """Compile the rollouts in training: a minute once, also in a sweep, for a third less an update."""
    eval_every: int = count(50)
    checkpoint_every: int = count(50)

    def check(self) -> None:
        super().check()
        require(self.seed not in (VALIDATION_SEED, TEST_SEED), "seed", "none of a set of validation or test", self.seed)
        try:
            self.search.solver()
        except (ValueError, TypeError) as error:
            raise ConfigError(str(error)) from None

    @property
    def search(self) -> Search:
        """The search as in training."""
        return Search(
            self.num_samples, self.num_elites, self.num_iterations, self.init_std, self.temperature, self.answer
        )

    @property
    def trajectories_an_update(self) -> int:
        """Evaluated for all the initial states of an update."""
        return self.batch_size * self.search.num_trajectories
