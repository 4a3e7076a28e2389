"""The cross-entropy method, vanilla and differentiable."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dcem._best import best_of
from dcem._check import as_scalar, check_count, check_flag, check_fraction, check_number, check_positive, check_std
from dcem._eager import is_eager
from dcem._given import brief, came
from dcem._no_gradient import refuse_gradient
from dcem.distributions import Distribution, Gaussian
from dcem.projections import LML, ConstrainedSoftmax, ConstrainedSparsemax, HardTopK
from dcem.solvers.base import Candidates, SamplingSolver, SamplingState, Step
from dcem.solvers.refit import is_plain_lml, refit
from dcem.solvers.scores import scores_of

Selection = Callable[[Tensor, float], Tensor]
_OWN_SELECTIONS = (LML, ConstrainedSoftmax, ConstrainedSparsemax, HardTopK)  # whose weights need no check


def _check_weights(weights: Tensor, valid: Tensor | None) -> None:
    """Of a selection of the user's: there is no distribution to fit to weights that are NaN, negative or all 0."""
    wrong = ~(weights >= 0).all(-1) | ~(weights.sum(-1) > 0) | ~weights.isfinite().all(-1)
    if valid is not None:
        wrong = wrong & valid
    if wrong.any():
        row = weights[wrong][0] if weights.dim() > 1 else weights
        raise ValueError(
            f"selection: expected finite weights >= 0 that are not all 0, got from {row.min():g} to {row.max():g}"
        )


@dataclass(frozen=True, eq=False)
class CEM(SamplingSolver):
    """Minimise by sampling, selecting the best and refitting; differentiable when the selection is soft.

    Each iteration draws `X_i ~ g_φ`, evaluates `v_i = f(X_i)`, selects `w = Π_k(-v)` and refits `φ` by the
    weighted maximum likelihood `argmax_φ Σ_i w_i log g_φ(X_i)`. With [`dcem.HardTopK`][] this is the vanilla
    cross-entropy method, with [`dcem.LML`][] (or another soft selection) the differentiable one, DCEM. With
    `keep_elites`, `population_decay`, `smoothing` and a [`dcem.ColoredNoise`][] it is iCEM.

    Args:
        num_samples: `N`, candidates evaluated an iteration, at least 1.
        num_elites: `k`, how many of them are selected, `0 < k <= N`; may be a float for a soft selection.
        selection: `selection(scores, k) -> weights` in `[0, 1]` that sum to `k` and depend on differences of
            scores only, as [`dcem.LML`][], [`dcem.ConstrainedSoftmax`][], [`dcem.ConstrainedSparsemax`][],
            [`dcem.HardTopK`][] do. Higher scores are better; a failed sample has the score `-inf`.
        init_std: `σ` to start from when only means are given; a number or a tensor that broadcasts to the mean.
        standardize: bring the values of each problem to mean 0 and std 1 before selection, so that the temperature
            means the same for every objective.
        min_std: floor of the sampling std, at least 0; a problem that reaches it everywhere is `COLLAPSED`.
        max_std: ceiling of the sampling std, or None.
        smoothing: how much of the previous mean and std to keep, in `[0, 1)`.
        keep_elites: fraction of the elites, in `[0, 1]`, that take the place of fresh samples in the next iteration:
            above 0 at least one, and never all of an iteration's candidates.
        population_decay: `γ >= 1` of iCEM: iteration `t` evaluates `max(N γ^-t, 2 k)` candidates.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> import torch, dcem
        >>> solver = dcem.CEM(num_samples=200, num_elites=20, selection=dcem.HardTopK(), init_std=3.0)
        >>> generator = torch.Generator().manual_seed(0)
        >>> solution = dcem.minimize(
        ...     lambda x: (x - 2.0).square().sum(-1), torch.zeros(3), solver, num_iterations=20, generator=generator)
        >>> solution.x
        tensor([2.0000, 2.0000, 2.0000])

    Source: Rubinstein & Kroese, 2004; Amos & Yarats, "The Differentiable Cross-Entropy Method", ICML 2020,
    algorithm 1; the iCEM options from Pinneri et al., 2020.
    """

    num_samples: int = 100
    num_elites: float = 10
    selection: Selection = field(default_factory=LML)
    init_std: float | Tensor = field(default=1.0, kw_only=True)
    standardize: bool = field(default=True, kw_only=True)
    min_std: float = field(default=1e-6, kw_only=True)
    max_std: float | None = field(default=None, kw_only=True)
    smoothing: float | Tensor = field(default=0.0, kw_only=True)
    keep_elites: float = field(default=0.0, kw_only=True)
    population_decay: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        plain: dict[str, float] = {"num_samples": check_count("num_samples", self.num_samples)}
        plain |= {name: check_number(name, getattr(self, name)) for name in ("num_elites", "min_std", "keep_elites")}
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        check_flag("standardize", self.standardize)
        if not 0 < self.num_elites <= self.num_samples:
            raise ValueError(
                f"num_elites: expected 0 < num_elites <= num_samples={self.num_samples}, got {self.num_elites}"
            )
        selection: Any = self.selection
        if not callable(selection) or isinstance(selection, type):
            raise TypeError(f"selection: expected a callable (scores, k) -> weights, got {brief(selection)}")
        if isinstance(selection, HardTopK) and self.num_elites != int(self.num_elites):
            raise ValueError(f"num_elites: expected a whole number for a hard selection, got {self.num_elites}")
        check_std("init_std", self.init_std)
        check_std("min_std", self.min_std)
        if self.max_std is not None:
            check_number("max_std", self.max_std)
        if self.max_std is not None and not self.max_std >= self.min_std:
            raise ValueError(f"max_std: expected at least min_std={self.min_std}, got {self.max_std}")
        check_fraction("smoothing", self.smoothing, below_one=True)
        check_fraction("keep_elites", self.keep_elites)
        if self.keep_elites > 0 and self.num_samples == 1:
            raise ValueError(f"keep_elites: expected 0 where num_samples is 1, got {self.keep_elites}")
        check_number("population_decay", self.population_decay)
        if not self.population_decay >= 1:
            raise ValueError(
                f"population_decay: expected a number >= 1 (1.25 shrinks the population by a fifth an iteration), "
                f"got {self.population_decay}"
            )

    def init(self, distribution: Distribution) -> SamplingState:
        check_fraction("smoothing", self.smoothing, below_one=True)
        temperature = getattr(self.selection, "temperature", 1.0)
        if isinstance(temperature, Tensor):
            check_positive("temperature", temperature)
        return SamplingState(distribution.clamp_std(self.min_std, self.max_std), 0, None)

    def population(self, iteration: int) -> int:
        """How many candidates iteration `iteration` (from 0) evaluates."""
        if self.population_decay == 1:
            return self.num_samples
        decayed = int(self.num_samples * self.population_decay**-iteration * (1 + 1e-12))  # 121 / 1.1² is 100
        return min(self.num_samples, max(decayed, math.ceil(2 * self.num_elites)))

    def tell(self, state: SamplingState, asked: Candidates, values: Tensor, clip: Callable[[Tensor], Tensor]) -> Step:
        step = super().tell(state, asked, values, clip)
        fitted: Distribution = step.state.distribution
        stretched = fitted.stretch(state.distribution, clip)
        if stretched is fitted:
            return step
        return step._replace(state=step.state._replace(distribution=stretched.clamp_std(self.min_std, self.max_std)))

    def sample(self, state: SamplingState, noise: Tensor) -> Tensor:
        num_kept = 0 if state.elites is None else state.elites.shape[state.distribution.sample_dim]
        num_fresh = self.population(state.iteration) - num_kept
        if num_fresh < self.num_samples:
            noise = noise.narrow(state.distribution.sample_dim, 0, num_fresh)
        samples = state.distribution.rsample(noise)
        return samples if state.elites is None else torch.cat([samples, state.elites], state.distribution.sample_dim)

    @property
    def num_required(self) -> float:
        return self.num_elites

    def weigh(self, values: Tensor) -> tuple[Tensor, Tensor | None]:
        scores, valid = scores_of(values, self.num_required, standardize=self.standardize)
        selection: Any = self.selection
        weights = selection(scores, self.num_elites)
        if not isinstance(weights, Tensor) or weights.shape != scores.shape:
            expected = tuple(scores.shape)
            raise ValueError(
                f"selection: expected to return weights of shape {expected}, got {came(weights, expected)}"
            )
        if type(selection) not in _OWN_SELECTIONS and is_eager() and weights.is_cpu:
            _check_weights(weights.detach(), valid)
        return refuse_gradient(weights, scores, self.selection), valid

    def fit(self, distribution: Distribution, samples: Tensor, weights: Tensor) -> Distribution:
        total = weights.sum(-1, keepdim=True)  # 0 where a family has selected nothing: it stays, without a gradient
        fitted = distribution.fit(samples, weights / total.where(total > 0, 1.0))
        return self._smooth(distribution, fitted).clamp_std(self.min_std, self.max_std)

    def _smooth(self, old: Distribution, fitted: Distribution) -> Distribution:
        if isinstance(self.smoothing, Tensor) or self.smoothing > 0:
            return old.interpolate(fitted, 1 - as_scalar(self.smoothing))
        return fitted

    def refit(
        self, distribution: Distribution, samples: Tensor, values: Tensor
    ) -> tuple[Distribution, Tensor, Tensor | None]:
        if not (self._is_plain(distribution) and samples.dtype == values.dtype in (torch.float32, torch.float64)):
            distribution, weights, valid = distribution.select(samples, values, self.weigh)
            return self.fit(distribution, samples, weights), weights, valid
        selection: Any = self.selection
        weights, mean, std, valid = refit(
            values, samples, self.num_elites, selection.temperature, self.standardize, self.min_std, self.max_std
        )
        return Gaussian(mean, std, distribution.event_dims), weights, valid

    def _is_plain(self, distribution: Distribution) -> bool:
        """Whether weighing and fitting are what `refit` does at once, by far the commonest case.

        A subclass, a subclass of the selection or of the distribution, and whatever is hooked or put in the place of
        a method, say by themselves what they do.
        """
        kind = type(self)
        return (
            type(distribution) is Gaussian
            and is_plain_lml(self.selection)
            and not isinstance(self.smoothing, Tensor)
            and self.smoothing == 0
            and (kind.weigh, kind.fit, kind._smooth, kind.num_required) == _STEPS
            and not any(name in vars(self) for name in _NAMES)
        )

    def advance(
        self, state: SamplingState, distribution: Distribution, samples: Tensor, values: Tensor
    ) -> SamplingState:
        return SamplingState(distribution, state.iteration + 1, self._elites(state, samples, values))

    def is_collapsed(self, state: SamplingState) -> Tensor:
        return state.distribution.is_collapsed(self.min_std)

    def is_converged(self, before: SamplingState, after: SamplingState, tolerance: float) -> Tensor:
        """Whether the std is `tolerance` at most in every dimension: means of samples never come to rest."""
        return after.distribution.is_collapsed(tolerance)

    def _elites(self, state: SamplingState, samples: Tensor, values: Tensor) -> Tensor | None:
        wanted = max(1, round(self.keep_elites * self.num_elites)) if self.keep_elites > 0 else 0
        num_kept = min(wanted, self.population(state.iteration + 1) - 1)
        if num_kept == 0:
            return None
        return best_of(samples, values, num_kept)[0]


_STEPS = (CEM.weigh, CEM.fit, CEM._smooth, CEM.num_required)
_NAMES = ("weigh", "fit", "_smooth")  # a subclass that is no dataclass may have its own set on an instance
