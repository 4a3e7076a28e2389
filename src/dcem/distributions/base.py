"""What every sampling distribution `g_φ` offers to a solver."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dcem._check import check_int
from dcem._given import kind
from dcem._tree import leaves, map_tensors

if TYPE_CHECKING:
    from typing_extensions import Self

    from dcem.bounds import Bounds

Weigh = Callable[[Tensor], tuple[Tensor, "Tensor | None"]]


class Distribution(ABC):
    """A family of sampling distributions over `(*batch, *event)` that a solver samples and refits.

    A subclass is a frozen dataclass whose tensors have the axes `(*batch, ...)`. It sets `event_dims` (how many
    trailing axes are one candidate), has a `mean` of shape `(*batch, *event)`, the point that a solve answers with,
    and defines `rsample` and `fit`. The rest has defaults that suit any family; a family with a scale
    overrides `clamp_std`.
    """

    event_dims: int

    if TYPE_CHECKING:

        @property
        def mean(self) -> Tensor: ...

    @abstractmethod
    def rsample(self, noise: Tensor) -> Tensor:
        """Turn standard normal `noise` `(*batch, N, *event)` into samples of that shape, differentiably."""

    @abstractmethod
    def fit(self, samples: Tensor, weights: Tensor) -> Self:
        """Return the member of the family that maximises the weighted likelihood `Σ_i w_i log g_φ(X_i)`.

        Args:
            samples: candidates as they were drawn, `(*batch, N, *event)`; what bounds clipped them to is not seen.
            weights: `(*batch, N)`, in `[0, 1]`, summing to one over the samples.
        """

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density of candidates `(*batch, N, *event)`, `(*batch, N)`; log-probabilities where discrete."""
        raise NotImplementedError(f"log_prob: {type(self).__name__} does not define its density")

    def check(self) -> None:
        """Raise a `ValueError` where the parameters make no distribution; they can be looked at."""
        for leaf in leaves(self):
            if not (finite := leaf.isfinite()).all():
                wrong = leaf[~finite][0].item()
                raise ValueError(f"init: expected finite parameters, got {wrong} among {leaf.numel()} numbers")

    def with_mean(self, mean: Tensor) -> Distribution:
        """Move the distribution so that its mean is `mean`; spread and shape stay.

        A family whose mean is computed from other parameters is wrapped in one that moves its samples.
        """
        if any(field.name == "mean" for field in dataclasses.fields(self)):  # type: ignore[arg-type]
            return dataclasses.replace(self, mean=mean)  # type: ignore[type-var]
        from dcem.distributions.shifted import Shifted

        return Shifted(self, mean)

    def around(self, mean: Tensor) -> Distribution:
        """A search as wide as this one, from another mean: where to start from a former answer."""
        return self.with_mean(mean)

    def expand(self, batch_shape: Sequence[int]) -> Self:
        """The same distribution for each problem of a batch; this one is of a single problem."""
        if self.batch_shape:
            raise ValueError(
                f"batch_shape: expected a distribution of one problem, got a batch {tuple(self.batch_shape)}"
            )
        expanded: Self = map_tensors(lambda leaf: leaf.expand((*batch_shape, *leaf.shape)), self)
        return expanded

    @property
    def batch_shape(self) -> torch.Size:
        """The leading axes, one problem each."""
        return self.mean.shape[: self.mean.dim() - self.event_dims]

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one candidate."""
        return self.mean.shape[self.mean.dim() - self.event_dims :]

    @property
    def sample_dim(self) -> int:
        """The (negative) axis of a sample tensor that counts the samples."""
        return -1 - self.event_dims

    def flat(self, samples: Tensor) -> Tensor:
        """Samples with their event as one axis, `(*batch, N, D)`."""
        return samples.flatten(self.sample_dim + 1) if self.event_dims else samples.unsqueeze(-1)

    def weighted_mean(self, samples: Tensor, weights: Tensor) -> Tensor:
        """`Σ_i w_i X_i` for weights `(*batch, N)` and samples `(*batch, N, *event)`, as one matrix product."""
        return torch.matmul(weights.unsqueeze(-2), self.flat(samples)).reshape(self.mean.shape)

    def weighted_deviations(self, samples: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted mean `m`, `(*batch, *event)`, and the deviations from it `X_i - m`, `(*batch, N, D)`.

        Both are taken from deviations from the present mean: in `X_i - m` the rounding of `m` would not cancel,
        and is large where the samples have drawn close to each other far from zero.
        """
        center = self.mean.detach()
        deviations = self.flat(samples - center.unsqueeze(self.sample_dim))
        shift = torch.matmul(weights.unsqueeze(-2), deviations)
        return center + shift.reshape(center.shape), deviations - shift

    def interpolate(self, other: Self, amount: float | Tensor) -> Self:
        """Move the parameters by `amount` (0 to 1) of the way towards those of `other`."""
        moved: Self = map_tensors(lambda old, new: old + amount * (new - old), self, other)
        return moved

    def clamp_std(self, low: float, high: float | None) -> Self:
        """Keep the spread within `[low, high]`; a family without a std returns itself."""
        return self

    def select(self, samples: Tensor, values: Tensor, weigh: Weigh) -> tuple[Self, Tensor, Tensor | None]:
        """The weights that [`dcem.CEM`][] gives to `fit`, and which problems are valid.

        `weigh` turns values `(*batch, N)` into these. A family of several parts selects in each, and returns itself
        with what the values say of the parts.
        """
        return self, *weigh(values)

    def stretch(self, start: Self, clip: Callable[[Tensor], Tensor]) -> Self:
        """Widen along the way that the mean has come from `start`, as far as `clip` lets it come.

        For families whose spread is a matter of direction; the others return themselves.
        """
        return self

    def is_collapsed(self, min_std: float) -> Tensor:
        """Per problem, whether the spread has shrunk to `min_std` in every dimension: `(*batch,)`, boolean."""
        return torch.zeros(self.batch_shape, dtype=torch.bool, device=self.mean.device)

    def clip(self, bounds: Bounds) -> Self:
        """Bring the mean inside `bounds`. A family that lives inside them returns itself."""
        return self

    def narrow(self, bounds: Bounds) -> Self:
        """Bring the std to half the width of `bounds` at most, where a solve begins.

        Of samples with a larger std, most would be at the bounds. What a refit makes of it later is left as it is: a
        limit has no gradient. A family without a std returns itself.
        """
        return self


def check_parameter(name: str, value: Tensor, event_dims: int) -> int:
    """Check a parameter `(*batch, *event)` and `event_dims`, and return these as an int."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a Tensor, got {kind(value)}")
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {value.dtype}")
    event_dims = event_dims if type(event_dims) is int else check_int("event_dims", event_dims)
    if not 0 <= event_dims <= value.dim():
        raise ValueError(
            f"event_dims: expected 0 to {value.dim()} for a {name} of shape {tuple(value.shape)}, got {event_dims}"
        )
    return event_dims
