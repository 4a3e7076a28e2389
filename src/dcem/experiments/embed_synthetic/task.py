"""The family of objectives, whose solutions lie near a surface."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dcem.experiments.embed_synthetic.settings import TEST_SEED, Config
from dcem.experiments.harness.settings import choose_device


@dataclass(frozen=True)
class Problems:
    """Objectives `(n, N, size) -> (n, N)` of one family, with their solutions."""

    config: Config
    hidden: Tensor
    """`c`, `(n, 2)`: not seen by any method."""
    solution: Tensor
    """`(n, size)`, of value 0."""

    @classmethod
    def draw(cls, config: Config, num: int, size: int, generator: torch.Generator) -> Problems:
        """A wave of hidden frequency and phase, and slow wiggles of the problem's own."""
        c = torch.rand(num, 2, generator=generator)
        t = torch.linspace(0, 1, size)
        wave = 0.5 + 0.35 * (2 * math.pi * ((0.5 + c[:, :1]) * t + 0.6 * c[:, 1:])).sin()
        order = torch.arange(1, 9).unsqueeze(-1)
        own = torch.randn(num, 8, generator=generator) / 2 @ (math.pi * order * t).cos()  # of variance 1
        device = choose_device(config.device)
        return cls(config, c.to(device), (wave + config.own * own).clamp(0, 1).to(device))

    def some(self, chosen: Tensor) -> Problems:
        """A batch."""
        return Problems(self.config, self.hidden[chosen], self.solution[chosen])

    def __call__(self, x: Tensor) -> Tensor:
        """Mean squared distance, with ripples on it and neighbours coupled."""
        config, error = self.config, x - self.solution.unsqueeze(1)
        ripples = config.ripple * (1 - (2 * math.pi / config.wavelength * error).cos())
        return (error.square() + ripples).mean(-1) + config.coupling * error.diff(dim=-1).square().mean(-1)


def test_problems(config: Config, size: int, seed: int) -> Problems:
    """Problems that no decoder has seen."""
    return Problems.draw(config, config.num_test, size, torch.Generator().manual_seed(TEST_SEED + seed))
