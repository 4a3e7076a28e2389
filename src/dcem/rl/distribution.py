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
    are equal is no random variable: it adds 0 to the log-probability and to the entropy.

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
        self._alpha, self._beta = self._standard(self.low), self._standard(self.high)
        self._below, self._above = (self._alpha / _SQRT_2).erf(), (self._beta / _SQRT_2).erf()  # in [-1, 0], [0, 1]
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
    def mean(self) -> Tensor:
        """Of the variables as they are cut off."""
        wide = self._in_double()
        shift = wide.scale * (_density(wide._alpha) - _density(wide._beta)) / wide._mass
        return torch.where(self._fixed, self.low, (wide.loc + shift).to(self.loc))

    @property
    def variance(self) -> Tensor:
        """Of the variables as they are cut off."""
        wide = self._in_double()
        low, high = _density(wide._alpha) / wide._mass, _density(wide._beta) / wide._mass
        curve = _times(wide._alpha, low) - _times(wide._beta, high)
        share = (1 + curve - (low - high).square()).clamp(min=0)  # of what rounding leaves of it
        return torch.where(self._fixed, 0.0, (wide.scale.square() * share).to(self.loc))

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:  # noqa: B008
        """Draws `(*sample_shape, *batch, *event)`, differentiable in `loc` and `scale`."""
        share = torch.rand(self._extended_shape(torch.Size(sample_shape)), dtype=self.loc.dtype, device=self.loc.device)
        edge = 1 - torch.finfo(self.loc.dtype).eps
        x = self.loc + self.scale * _SQRT_2 * torch.lerp(self._below, self._above, share).clamp(-edge, edge).erfinv()
        return torch.clamp(x, self.low, self.high).detach() + (x - x.detach())  # rounding may have left the box

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of actions `(..., *event)`, summed over the event; `-inf` outside the bounds."""
        standard = (value - self.loc) / self.scale
        each = -0.5 * standard.square() - _LOG_SQRT_2_PI - self.scale.log() - self._mass.log()
        each = torch.where(self._fixed, 0.0, each)
        inside = (value >= self.low) & (value <= self.high)
        return self._summed(torch.where(inside, each, -torch.inf))

    def entropy(self) -> Tensor:
        """Of the action, in nats."""
        low, high = _density(self._alpha) / self._mass, _density(self._beta) / self._mass
        curve = _times(self._alpha, low) - _times(self._beta, high)
        each = 0.5 + _LOG_SQRT_2_PI + self.scale.log() + self._mass.log() + 0.5 * curve
        return self._summed(torch.where(self._fixed, 0.0, each))

    def _in_double(self) -> TruncatedNormal:
        """The same, for moments: of a wide normal in a narrow box they are small differences of large numbers."""
        if self.loc.dtype == (double := widest(self.loc.device)):
            return self
        of = [x.to(double) for x in (self.loc, self.scale, self.low, self.high)]
        return TruncatedNormal(of[0], of[1], of[2], of[3], self.event_dims)

    @property
    def _mass(self) -> Tensor:
        """How much of the normal distribution the box holds."""
        return torch.where(self._fixed, 1.0, 0.5 * (self._above - self._below))

    def _standard(self, bound: Tensor) -> Tensor:
        """A bound in stds from `loc`; an open one does not move with them, which would be `0 * inf`."""
        open_, closed = bound.isinf(), torch.where(bound.isinf(), 0.0, bound)
        return torch.where(open_, bound, (closed - self.loc) / self.scale)

    def _summed(self, each: Tensor) -> Tensor:
        return each.flatten(each.dim() - self.event_dims).sum(-1) if self.event_dims else each


def _density(x: Tensor) -> Tensor:
    """Of the standard normal distribution."""
    return (-0.5 * x.square() - _LOG_SQRT_2_PI).exp()


def _times(x: Tensor, density: Tensor) -> Tensor:
    """`x φ(x)`, 0 at infinity, in gradients too."""
    return torch.where(x.isfinite(), x, 0.0) * density
