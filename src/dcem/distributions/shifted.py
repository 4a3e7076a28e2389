"""A distribution moved to another mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from dcem.distributions.base import Distribution, Weigh

if TYPE_CHECKING:
    from typing_extensions import Self

    from dcem.bounds import Bounds


@dataclass(frozen=True, eq=False)
class Shifted(Distribution):
    """`X + μ - E[X]` for `X` of another distribution: how a family with a computed mean is given another one.

    [`dcem.MPPI`][] and [`dcem.GradientDescent`][] move means and leave the spread alone. Where a family cannot be
    rebuilt around a mean, `solution.distribution` is of this class, and `base` is the one that it was.

    Args:
        base: the distribution that is moved.
        mean: `μ`, `(*batch, *event)`.

    Source: location families, Lehmann & Casella, "Theory of Point Estimation", 1998, section 1.4.
    """

    base: Distribution
    mean: Tensor

    @property
    def event_dims(self) -> int:  # type: ignore[override]
        """How many trailing axes are one candidate."""
        return self.base.event_dims

    @property
    def std(self) -> Tensor:
        """The marginal stds, `(*batch, *event)`, if `base` has any."""
        std: Tensor = self.base.std  # type: ignore[attr-defined]
        return std

    @property
    def _offset(self) -> Tensor:
        return self.mean - self.base.mean

    def _back(self, samples: Tensor) -> Tensor:
        return samples - self._offset.unsqueeze(self.sample_dim)

    def rsample(self, noise: Tensor) -> Tensor:
        return self.base.rsample(noise) + self._offset.unsqueeze(self.sample_dim)

    def fit(self, samples: Tensor, weights: Tensor) -> Self:
        return self._of(self.base.fit(self._back(samples), weights), self._offset)

    def select(self, samples: Tensor, values: Tensor, weigh: Weigh) -> tuple[Self, Tensor, Tensor | None]:
        base, weights, valid = self.base.select(self._back(samples), values, weigh)
        return self if base is self.base else self._of(base, self._offset), weights, valid

    def stretch(self, start: Self, clip: Callable[[Tensor], Tensor]) -> Self:
        offset = self._offset
        base = self.base.stretch(start.base, lambda mean: clip(mean + offset) - offset)
        return self if base is self.base else dataclasses.replace(self, base=base)

    def interpolate(self, other: Self, amount: float | Tensor) -> Self:
        offset = self._offset + amount * (other._offset - self._offset)
        return self._of(self.base.interpolate(other.base, amount), offset)

    def _of(self, base: Distribution, offset: Tensor) -> Self:
        return dataclasses.replace(self, base=base, mean=base.mean + offset)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.base.log_prob(self._back(x))

    def check(self) -> None:
        super().check()
        self.base.check()

    def clamp_std(self, low: float, high: float | None) -> Self:
        return dataclasses.replace(self, base=self.base.clamp_std(low, high))

    def is_collapsed(self, min_std: float) -> Tensor:
        return self.base.is_collapsed(min_std)

    def clip(self, bounds: Bounds) -> Self:
        return dataclasses.replace(self, mean=bounds.clip(self.mean))

    def narrow(self, bounds: Bounds) -> Self:
        return dataclasses.replace(self, base=self.base.narrow(bounds))
