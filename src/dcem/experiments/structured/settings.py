"""Settings that the experiments on structured outputs share."""

from __future__ import annotations

from dataclasses import dataclass

from dcem.experiments.harness.settings import Settings, count, positive, setting


@dataclass
class StructuredSettings(Settings):
    """Settings that the experiments on structured outputs share; each says which `models` there are."""

    num_epochs: int = count(40)
    feed_forward_epochs: int = count(200)
    """The feed-forward net is cheap, so it may learn until it overfits."""
    batch_size: int = count(64)
    lr: float = positive(5e-3)
    weight_decay: float = setting(0.1, at_least=0)
    grad_clip: float = positive(1.0)
    eval_every: int = count(5)
    """Epochs between evaluations; the weights that are best on the validation set are kept."""
    num_iterations: int = count(5)
    """Inner iterations in training."""
    test_iterations: list[int] = setting([1, 2, 3, 4, 5, 6, 8, 10, 15, 20], at_least=1, distinct=True)
    num_samples: int = count(50)
    """Of DCEM."""
    num_elites: int = setting(5, at_least=1, at_most="num_samples")
    temperature: float = positive(1.0)
    num_seeds: int = count(3)
