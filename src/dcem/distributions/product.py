"""Several distributions side by side: continuous and discrete parts of one candidate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dcem.distributions.base import Distribution
from dcem.distributions.categorical import Categorical
from dcem.distributions.gaussian import add_log_densities

if TYPE_CHECKING:
    from typing_extensions import Self

    from dcem.bounds import Bounds


@dataclass(frozen=True, eq=False)
class Product(Distribution):
    """Sample independent parts of a candidate, each from its own distribution: a throttle and a gear, say.

    The parts lie side by side on the last axis of the event. Each is refitted to its own slice of the samples, with the
    weights of whole candidates.

    Args:
        parts: distributions whose means have the same shape but for the last axis, and the same `event_dims` of at
            least 1.

    Raises:
        TypeError: a part is no distribution.
        ValueError: there is no part, or shapes do not fit.

    Example:
        >>> import torch, dcem
        >>> throttle = dcem.Gaussian(torch.zeros(1), 1.0)
        >>> gear = dcem.Categorical(torch.zeros(3))
        >>> solution = dcem.minimize(  # each gear has a throttle of its own
        ...     lambda x: (x[..., 0] - x[..., 1:] @ torch.tensor([2.0, 0.5, 1.0])).abs() - x[..., 2],
        ...     dcem.Product((throttle, gear)), num_iterations=20, generator=torch.Generator().manual_seed(0))
        >>> solution.x.round(decimals=1)
        tensor([0.5000, 0.0000, 1.0000, 0.0000])

    Source: mixed continuous and discrete variables in the cross-entropy method, Kroese, Porotsky & Rubinstein, 2006.
    """

    parts: tuple[Distribution, ...]

    def __post_init__(self) -> None:
        given: Any = self.parts
        if not isinstance(given, (tuple, list)):
            raise TypeError(f"parts: expected a sequence of dcem distributions, got {type(given).__name__}")
        parts: Any = tuple(given)
        object.__setattr__(self, "parts", parts)
        for part in parts:
            if not isinstance(part, Distribution):
                raise TypeError(f"parts: expected dcem distributions, got {type(part).__name__}")
        shapes = [(part.mean.shape[:-1], part.event_dims) for part in parts]
        if not parts or any(shape != shapes[0] for shape in shapes) or shapes[0][1] == 0:
            came = [(tuple(part.mean.shape), part.event_dims) for part in parts]
            raise ValueError(
                "parts: expected one or more with the same shape but for the last axis, and the same event_dims of at "
                f"least 1, got shapes and event_dims {came}"
            )

    @property
    def event_dims(self) -> int:  # type: ignore[override]
        """How many trailing axes are one candidate."""
        return self.parts[0].event_dims

    @property
    def mean(self) -> Tensor:
        """The means of the parts, side by side."""
        return torch.cat([part.mean for part in self.parts], -1)

    @property
    def std(self) -> Tensor:
        """The marginal stds of the parts, side by side; NaN for one that has none."""
        stds = [getattr(part, "std", torch.full_like(part.mean, torch.nan)) for part in self.parts]
        return torch.cat(stds, -1)

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        return torch.split(x, [part.mean.shape[-1] for part in self.parts], -1)

    def _each(self, of_part: Callable[..., Distribution], *others: Any) -> Self:
        return dataclasses.replace(self, parts=tuple(map(of_part, self.parts, *others)))

    def check(self) -> None:
        for part in self.parts:
            part.check()

    def rsample(self, noise: Tensor) -> Tensor:
        return torch.cat([part.rsample(x) for part, x in zip(self.parts, self._split(noise), strict=True)], -1)

    def fit(self, samples: Tensor, weights: Tensor) -> Self:
        return self._each(lambda part, x: part.fit(x, weights), self._split(samples))

    def log_prob(self, x: Tensor) -> Tensor:
        each = torch.stack([part.log_prob(y) for part, y in zip(self.parts, self._split(x), strict=True)])
        return add_log_densities(each, 0)

    def with_mean(self, mean: Tensor) -> Self:
        return self._each(lambda part, x: part.with_mean(x), self._split(mean))

    def around(self, mean: Tensor) -> Self:
        return self._each(lambda part, x: part.around(x), self._split(mean))

    def interpolate(self, other: Self, amount: float | Tensor) -> Self:
        return self._each(lambda part, new: part.interpolate(new, amount), other.parts)

    def clamp_std(self, low: float, high: float | None) -> Self:
        return self._each(lambda part: part.clamp_std(low, high))

    def stretch(self, start: Self, clip: Callable[[Tensor], Tensor]) -> Self:
        ends = self._split(clip(self.mean))
        return self._each(lambda part, old, end: part.stretch(old, lambda mean: end), start.parts, ends)

    def is_collapsed(self, min_std: float) -> Tensor:
        return torch.stack([part.is_collapsed(min_std) for part in self.parts]).all(0)

    def clip(self, bounds: Bounds) -> Self:
        return self._each(lambda part, box: part.clip(box), self._boxes(bounds))

    def narrow(self, bounds: Bounds) -> Self:
        return self._each(lambda part, box: part.narrow(box), self._boxes(bounds))

    def _boxes(self, bounds: Bounds) -> list[Bounds]:
        return bounds.split([part.mean.shape[-1] for part in self.parts], self.event_shape)


def has_choices(of: Any) -> bool:
    """Whether what is drawn are choices, or some of its numbers are."""
    return isinstance(of, Categorical) or any(map(has_choices, getattr(of, "parts", ())))
