"""Model-predictive path integral control as a solver."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dcem._check import as_scalar, check_count, check_flag, check_fraction, check_positive, check_std
from dcem.distributions import Distribution
from dcem.projections.checks import of_rows
from dcem.solvers.base import SamplingSolver, SamplingState
from dcem.solvers.scores import scores_of


@dataclass(frozen=True, eq=False)
class MPPI(SamplingSolver):
    """Minimise by averaging samples under the softmax of their values; the spread stays as it is.

    Each iteration sets the mean to `Σ_i w_i X_i` with `w = softmax(-v / τ)`, the case `k = 1` of the
    constrained softmax.

    Args:
        num_samples: `N`, candidates evaluated an iteration, at least 1.
        temperature: `τ > 0`, a number or a tensor that broadcasts to `batch`; in units of the objective unless
            `standardize`.
        init_std: `σ` of the samples when only means are given.
        standardize: bring the values of each problem to mean 0 and std 1 first.
        smoothing: how much of the previous mean to keep, in `[0, 1)`.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> import torch, dcem
        >>> solution = dcem.minimize(
        ...     lambda x: (x - 2.0).square().sum(-1), torch.zeros(2), dcem.MPPI(500, temperature=0.1),
        ...     num_iterations=20, generator=torch.Generator().manual_seed(0))
        >>> bool((solution.x - 2.0).abs().max() < 0.1)
        True

    Source: Williams et al., "Information theoretic MPC for model-based reinforcement learning", ICRA 2017.
    """

    num_samples: int = 100
    temperature: float | Tensor = 1.0
    init_std: float | Tensor = field(default=1.0, kw_only=True)
    standardize: bool = field(default=False, kw_only=True)
    smoothing: float | Tensor = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_samples", check_count("num_samples", self.num_samples))
        check_flag("standardize", self.standardize)
        check_std("init_std", self.init_std)
        self._check_tensors()

    def _check_tensors(self) -> None:
        check_positive("temperature", self.temperature)
        check_fraction("smoothing", self.smoothing, below_one=True)

    def init(self, distribution: Distribution) -> SamplingState:
        self._check_tensors()  # which may have been learned since
        return super().init(distribution.with_mean(distribution.mean))

    def weigh(self, values: Tensor) -> tuple[Tensor, Tensor | None]:
        scores, valid = scores_of(values, self.num_required, standardize=self.standardize)
        temperature = self.temperature
        gap = scores - scores.detach().amax(-1, keepdim=True)
        if not isinstance(temperature, Tensor):
            return torch.softmax(gap / temperature, dim=-1), valid
        temperature = of_rows("temperature", temperature, scores, scores.dim() - 1)
        # What is so far behind, or failed, has no weight; nor may it have a part in the temperature's derivative, which
        # is in proportion to the gap: 0 * inf.
        weightless = gap < math.log(torch.finfo(gap.dtype).tiny) * temperature
        logits = torch.where(weightless, 0.0, gap) / temperature
        return torch.softmax(logits.masked_fill(weightless, -torch.inf), dim=-1), valid

    def fit(self, distribution: Distribution, samples: Tensor, weights: Tensor) -> Distribution:
        mean = distribution.weighted_mean(samples, weights)
        if isinstance(self.smoothing, Tensor) or self.smoothing > 0:
            mean = distribution.mean + (1 - as_scalar(self.smoothing)) * (mean - distribution.mean)
        return distribution.with_mean(mean)
