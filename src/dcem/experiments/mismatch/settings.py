"""Settings of `dcem mismatch`."""

from __future__ import annotations

from dataclasses import dataclass

from dcem.experiments.harness.settings import Settings, count, positive, require, setting

DATA_SEED, VALID_SEED, TEST_SEED = 1_000, 2_000, 3_000
"""The states that models are chosen and tested by are those of every run; the data are the seed's own."""


@dataclass
class Config(Settings):
    """Settings of `dcem mismatch`."""

    seed: int = setting(0, at_least=0, below=DATA_SEED)
    """Beyond it the data of one seed would be the states that another is tested by."""
    widths: list[int] = setting([1, 2, 3, 4, 6, 12], at_least=1, distinct=True)
    adversary_width: int = count(12)
    """Of the model that is degraded and then recovered, among `widths`."""
    adversary_references: list[int] = setting([12, 6], at_least=1, distinct=True, may_be_empty=True)
    """Whose errors the degraded one may have: widths of fitted models, among `widths`."""
    distractors: list[int] = setting([2, 8, 32], at_least=2, distinct=True, may_be_empty=True)
    distractor_width: int = count(6)
    num_episodes: int = count(100)
    """Of random actions, from the task's initial states; as many again to validate, and to test."""
    episode_length: int = count(25)
    fit_updates: int = count(3000)
    fit_batch_size: int = count(256)
    fit_lr: float = positive(1e-2)
    num_updates: int = count(120)
    """End to end; also of the adversary."""
    batch_size: int = count(16)
    lr: float = positive(1e-2)
    grad_clip: float = positive(1.0)
    eval_every: int = count(20)
    num_replans: int = count(3)
    """Plans in a row that an update is differentiated through."""
    num_executed: int = setting(5, at_least=1, at_most="horizon")
    """Actions of each that are executed."""
    restart: float = setting(0.3, at_least=0, at_most=1)
    """How many of the systems that an update has controlled start anew; the others go on from where they are."""
    horizon: int = count(15)
    num_samples: int = count(64)
    num_elites: int = setting(8, at_least=1, at_most="num_samples")
    num_iterations: int = count(4)
    temperature: float = positive(0.3)
    """Of DCEM, in training; what is trained is tested with the hard selection, too."""
    num_steps: int = count(50)
    """Of an episode of closed loop."""
    num_valid: int = count(64)
    num_test: int = count(128)

    def check(self) -> None:
        super().check()
        among = {*self.adversary_references, self.adversary_width} <= set(self.widths)
        known = among or not self.adversary_references
        require(known, "adversary_references", "some of widths, and adversary_width too", self.adversary_references)
        even = all(num % 2 == 0 for num in self.distractors)
        require(even, "distractors", "even numbers of at least 2", self.distractors)
