"""The distribution of actions around a planned one: normal, cut off at the bounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from dcem._eager import widest

_SQRT_2 = math.sqrt(2.0)
_LOG_SQRT_2_PI = 0.5 * math.log(2.0 * math.pi)


class TruncatedNormal(Distribution):
    """Explore around a planned action within the bounds: independent normal variables, given `low <= x <= high`.

    Unlike clipped draws its draws have a density, the one that `log_prob` gives, also where the planned action
    lies on a bound. Its most likely value, the planned action, is its deterministic sample. A dimension whose bounds
    are equal is no random variable: it adds 0 to the log-probability and to the entropy. Half precision is computed in
    single.

    Args:
        loc: the planned action, `(*batch, *event)`, within the bounds.
        scale: standard deviation before the cut, above 0, broadcasts to `loc`.
        low: lower bound, broadcasts to `loc`; `-inf` for none.
        high: upper bound, likewise.
        event_dims: how many trailing axes are one action.

    Example:
        >>> import torch
        >>> action = TruncatedNormal(torch.tensor([1.0]), torch.tensor([0.1]), torch.tensor(-1.0), torch.tensor(1.0))
        >>> action.mode, bool(action.mean < 1), bool(action.sample((100,)).max() <= 1)
        (tensor([1.]), True, True)

    Source: Robert, "Simulation of truncated normal variables", 1995; sampled by inversion.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor, event_dims: int = 1) -> None:
        of = torch.broadcast_tensors(loc, scale, low.to(loc), high.to(loc))  # type: ignore[no-untyped-call]
        self.loc, self.scale, self.low, self.high = of
        self.event_dims = event_dims
        self._fixed = self.low >= self.high  # leaves nothing to chance, and no density
        split = self.loc.dim() - event_dims
        super().__init__(self.loc.shape[:split], self.loc.shape[split:], validate_args=False)

    @property
    def mode(self) -> Tensor:
        """The most likely action: the planned one."""
        return self.loc

    @property
    def deterministic_sample(self) -> Tensor:
        """What TorchRL takes without exploration: the planned action, not the mean, which the bounds push inwards."""
        return self.loc

    @property
    def median(self) -> Tensor:
        """Of the variables as they are cut off: each is as often below it as above."""
        return self._quantile(torch.full_like(self.loc, 0.5))

    @property
    def mean(self) -> Tensor:
        """Of the variables as they are cut off."""
        cut = self._in_double()
        shift = cut.scale * (_density(cut.alpha) - _density(cut.beta)) / cut.mass
        return torch.where(self._fixed, self.low, (cut.loc + shift).to(self.loc))

    @property
    def variance(self) -> Tensor:
        """Of the variables as they are cut off."""
        cut = self._in_double()
        low, high = _density(cut.alpha) / cut.mass, _density(cut.beta) / cut.mass
        curve = _times(cut.alpha, low) - _times(cut.beta, high)
        share = (1 + curve - (low - high).square()).clamp(min=0)  # of what rounding leaves of it
        return torch.where(self._fixed, 0.0, (cut.scale.square() * share).to(self.loc))

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:  # noqa: B008
        """Draws `(*sample_shape, *batch, *event)`, differentiable in `loc` and `scale`."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self._quantile(torch.rand(shape, dtype=_at_least_single(self.loc.dtype), device=self.loc.device))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of actions `(..., *event)`, summed over the event; `-inf` outside the bounds."""
        cut = self._in_single()
        standard = (value - cut.loc) / cut.scale
        each = -0.5 * standard.square() - _LOG_SQRT_2_PI - cut.scale.log() - cut.mass.log()
        each = torch.where(self._fixed, 0.0, each)
        inside = (value >= self.low) & (value <= self.high)
        return self._summed(torch.where(inside, each, -torch.inf)).to(torch.result_type(value, self.loc))

    def entropy(self) -> Tensor:
        """Of the action, in nats."""
        cut = self._in_single()
        low, high = _density(cut.alpha) / cut.mass, _density(cut.beta) / cut.mass
        curve = _times(cut.alpha, low) - _times(cut.beta, high)
        each = 0.5 + _LOG_SQRT_2_PI + cut.scale.log() + cut.mass.log() + 0.5 * curve
        return self._summed(torch.where(self._fixed, 0.0, each)).to(self.loc)

    def _quantile(self, share: Tensor) -> Tensor:
        """Below which so large a share of each variable lies."""
        cut = self._in_single()
        edge = 1 - torch.finfo(cut.loc.dtype).eps
        normal = torch.lerp(cut.below, cut.above, share.to(cut.loc)).clamp(-edge, edge)
        x = cut.loc + cut.scale * _SQRT_2 * normal.erfinv()
        inside = torch.clamp(x, self.low, self.high)  # rounding may have left the box
        return (inside.detach() + (x - x.detach())).to(self.loc)

    def _in_single(self) -> _Cut:
        return _Cut(self, _at_least_single(self.loc.dtype))

    def _in_double(self) -> _Cut:
        """For moments: of a wide normal in a narrow box they are small differences of large numbers."""
        return _Cut(self, widest(self.loc.device))

    def _summed(self, each: Tensor) -> Tensor:
        return each.flatten(each.dim() - self.event_dims).sum(-1) if self.event_dims else each


class _Cut:
    """A truncated normal in standard units and in some precision; each result is of its own, and has its own graph.

    Args:
        of: the distribution.
        dtype: the precision.
    """

    def __init__(self, of: TruncatedNormal, dtype: torch.dtype) -> None:
        self.fixed, self.loc, self.scale = of._fixed, of.loc.to(dtype), of.scale.to(dtype)
        self.alpha, self.beta = self._standard(of.low.to(dtype)), self._standard(of.high.to(dtype))
        self.below, self.above = (self.alpha / _SQRT_2).erf(), (self.beta / _SQRT_2).erf()  # in [-1, 0], [0, 1]

    @property
    def mass(self) -> Tensor:
        """How much of the normal distribution the box holds."""
        return torch.where(self.fixed, 1.0, 0.5 * (self.above - self.below))

    def _standard(self, bound: Tensor) -> Tensor:
        """A bound in stds from `loc`; an open one does not move with them, which would be `0 * inf`."""
        open_ = bound.isinf()
        return torch.where(open_, bound, (torch.where(open_, 0.0, bound) - self.loc) / self.scale)


def _at_least_single(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _density(x: Tensor) -> Tensor:
    """Of the standard normal distribution."""
    return (-0.5 * x.square() - _LOG_SQRT_2_PI).exp()


def _times(x: Tensor, density: Tensor) -> Tensor:
    """`x φ(x)`, 0 at infinity, in gradients too."""
    return torch.where(x.isfinite(), x, 0.0) * density
