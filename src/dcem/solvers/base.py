"""What a solver is: hyperparameters in a frozen dataclass, one iteration as a function of an immutable state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from dcem._eager import all_true
from dcem.distributions import Distribution, Gaussian

Objective = Callable[[Tensor], Tensor]


class Step(NamedTuple):
    """What one iteration of a solver gives.

    Attributes:
        state: the next state; a NamedTuple with a field `distribution`.
        samples: the candidates evaluated, `(*batch, N, *event)`.
        values: the objective at them, `(*batch, N)`.
        weights: how much each candidate counted, `(*batch, N)`.
        valid: per problem, whether the iteration succeeded, `(*batch,)`; None where all did. Where it did not, the
            loop keeps the previous state.
        flat: which of these problems had enough finite values, but equal ones up to rounding, `(*batch,)`; None
            where none did. The others have failed, and the loop reports `Status.NONFINITE`.
    """

    state: Any
    samples: Tensor
    values: Tensor
    weights: Tensor
    valid: Tensor | None
    flat: Tensor | None = None

    def without(self, flat: Tensor | None) -> Step:
        """The same where these problems `(*batch,)` are flat, too, unless they have failed."""
        if flat is None:
            return self
        if self.valid is not None:
            flat = flat & self.valid if self.flat is None else flat & self.valid | self.flat
        valid = ~flat if self.valid is None else self.valid & ~flat
        return self._replace(weights=_where_selected(valid, self.weights, self.values), valid=valid, flat=flat)


def _where_selected(valid: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    """The weights where a selection was made; elsewhere all candidates count alike, but those that failed do not."""
    finite = values.isfinite()
    even = (weights.detach().sum(-1, keepdim=True) / finite.sum(-1, keepdim=True).clamp(min=1)).clamp(max=1)
    return torch.where(valid.unsqueeze(-1), weights, torch.where(finite, even, 0.0))


class Solver(ABC):
    """An iterated solver. A subclass is a frozen dataclass of hyperparameters that defines `init` and
    `step`; it never looks at gradient modes.
    """

    num_samples: int
    init_std: float | Tensor = 1.0
    is_captured: ClassVar[bool] = False
    """Whether `dcem.capture` has made it."""

    def distribution(self, mean: Tensor, event_dims: int) -> Distribution:
        """The sampling distribution to start from when the user gives only means."""
        try:
            return Gaussian(mean, self.init_std, event_dims)
        except ValueError as error:
            said = str(error)
            raise ValueError(f"init_{said}" if said.startswith("std:") else said) from None

    @abstractmethod
    def init(self, distribution: Distribution) -> Any:
        """The state before the first iteration: a NamedTuple with a field `distribution`."""

    @abstractmethod
    def step(self, objective: Objective, state: Any, noise: Tensor, clip: Callable[[Tensor], Tensor]) -> Step:
        """One iteration.

        Args:
            objective: `(*batch, N, *event) -> (*batch, N)`.
            state: from `init` or the previous step.
            noise: standard normal draws, `(*batch, num_samples, *event)`.
            clip: brings candidates inside the bounds.
        """

    def is_collapsed(self, state: Any) -> Tensor:
        """Per problem, whether further iterations cannot change the answer, `(*batch,)`, boolean."""
        mean = state.distribution.mean
        return torch.zeros(state.distribution.batch_shape, dtype=torch.bool, device=mean.device)

    def is_converged(self, before: Any, after: Any, tolerance: float) -> Tensor:
        """Per problem, whether an iteration came to rest, `(*batch,)`: its mean moved by `tolerance` at most."""
        moved = (after.distribution.mean - before.distribution.mean).detach().abs()
        return moved.reshape(*after.distribution.batch_shape, -1).amax(-1) <= tolerance


class SamplingState(NamedTuple):
    """Where a sampling solver stands.

    Attributes:
        distribution: the current `g_φ`.
        iteration: how many iterations have been made.
        elites: candidates kept for the next iteration, `(*batch, M, *event)`, or None.
        proposals: candidates from outside that take part in every iteration, `(*batch, M, *event)`, or None.
    """

    distribution: Distribution
    iteration: int
    elites: Tensor | None
    proposals: Tensor | None = None


class Candidates(NamedTuple):
    """What a sampling solver wants to know the values of.

    Attributes:
        drawn: as they were drawn, `(*batch, N, *event)`.
        samples: the same inside the bounds, where the objective is evaluated.
    """

    drawn: Tensor
    samples: Tensor


@dataclass(frozen=True, eq=False)
class SamplingSolver(Solver):
    """The template of CEM and MPPI: sample, evaluate, weigh, refit.

    A subclass defines `weigh` and `fit`; it may override `sample` and `advance`. It draws
    `num_samples = 100` candidates an iteration, the first with the std `init_std = 1.0`, unless it says otherwise:
    as attributes of the class, or as fields of a frozen dataclass.

    Example:
        >>> import torch, dcem
        >>> class Boltzmann(dcem.SamplingSolver):  # weights from the ranks of the values
        ...     def weigh(self, values):
        ...         ranks = values.argsort(-1).argsort(-1)
        ...         return (-ranks / 3).softmax(-1), None
        ...     def fit(self, distribution, samples, weights):
        ...         return distribution.fit(samples, weights)
        >>> solver = Boltzmann()
        >>> x = dcem.minimize(lambda x: (x - 1).abs().sum(-1), torch.zeros(2), solver,
        ...                   generator=torch.Generator().manual_seed(0)).x
        >>> bool((x - 1).abs().max() < 0.1)
        True
    """

    num_samples = 100  # no field: a dataclass says in which order its own come

    def init(self, distribution: Distribution) -> SamplingState:
        return SamplingState(distribution, 0, None)

    def step(self, objective: Objective, state: SamplingState, noise: Tensor, clip: Callable[[Tensor], Tensor]) -> Step:
        asked = self.ask(state, noise, clip)
        return self.tell(state, asked, objective(asked.samples), clip)

    def ask(self, state: SamplingState, noise: Tensor, clip: Callable[[Tensor], Tensor]) -> Candidates:
        """The first half of an iteration: the candidates whose values `tell` needs."""
        drawn = self.sample(state, noise)
        if state.proposals is not None:
            drawn = torch.cat([drawn, clip(state.proposals)], state.distribution.sample_dim)
        return Candidates(drawn, clip(drawn))

    def tell(self, state: SamplingState, asked: Candidates, values: Tensor, clip: Callable[[Tensor], Tensor]) -> Step:
        """The second half: from the values `(*batch, N)` of what was asked to the next state."""
        # Refitted to what was drawn: clipped samples pull the mean inwards and the std to zero, whatever their values.
        distribution, weights, valid = self.refit(state.distribution, asked.drawn, values)
        after = self.advance(state, distribution, asked.drawn, values)._replace(proposals=state.proposals)
        flat = None
        if valid is not None and not all_true(valid):
            flat = ~valid & (values.isfinite().sum(-1) >= self.num_required)
            weights = _where_selected(valid, weights, values)
        return Step(after, asked.samples, values, weights, valid, flat)

    @property
    def num_required(self) -> float:
        """How many finite values an iteration needs to select from."""
        return 1

    def sample(self, state: SamplingState, noise: Tensor) -> Tensor:
        """Candidates `X_i ~ g_φ`, `(*batch, N, *event)`."""
        return state.distribution.rsample(noise)

    def refit(
        self, distribution: Distribution, samples: Tensor, values: Tensor
    ) -> tuple[Distribution, Tensor, Tensor | None]:
        """The next distribution, the weights, and which problems are valid, as `weigh` says."""
        weights, valid = self.weigh(values)
        return self.fit(distribution, samples, weights), weights, valid

    @abstractmethod
    def weigh(self, values: Tensor) -> tuple[Tensor, Tensor | None]:
        """Turn values `(*batch, N)` into weights of that shape, and say which problems have enough finite values that
        are not all equal, `(*batch,)`, as `dcem.solvers.scores.scores_of` does; None where all have.
        """

    @abstractmethod
    def fit(self, distribution: Distribution, samples: Tensor, weights: Tensor) -> Distribution:
        """The distribution after an iteration with these weights."""

    def advance(
        self, state: SamplingState, distribution: Distribution, samples: Tensor, values: Tensor
    ) -> SamplingState:
        """The next state, with the new distribution."""
        return SamplingState(distribution, state.iteration + 1, None)
