"""One of several choices: a categorical sampling distribution over one-hot vectors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dcem._check import check_positive
from dcem._eager import is_eager
from dcem.distributions.base import Distribution, check_parameter
from dcem.distributions.gaussian import safe_sqrt

if TYPE_CHECKING:
    from typing_extensions import Self

    from dcem.bounds import Bounds

SAMPLES = ("hard", "straight-through", "relaxed")


@dataclass(frozen=True, eq=False)
class Categorical(Distribution):
    """Sample one of `C` choices, as a one-hot vector: discrete actions, assignments, architectures.

    `X = onehot(argmax_c (logits_c + G_c))` with Gumbel noise `G`. The refit is that of the cross-entropy method,
    the weighted frequencies `p_c = Σ_i w_i X_ic`. The mean, with which a solve answers, is the vector of
    probabilities; `solution.best_x` is a choice.

    The gradient of an answer flows through the selection's weights into the probabilities whatever the samples are; a
    hard sample does not move with the logits, so that this is all of the derivative. Where the objective is
    differentiable in its candidates, `samples` lets it reach the logits through them, too.

    Args:
        logits: unnormalised log-probabilities, `(*batch, *event)` with the `C` choices as the last axis of the
            event: `(*batch, horizon, C)` for a sequence of choices. `-inf` forbids one.
        event_dims: how many trailing axes of `logits` are one candidate, at least 1.
        samples: `"hard"`: one-hot vectors. `"straight-through"`: one-hot vectors with the derivative of relaxed
            ones, which is biased. `"relaxed"`: `softmax((logits + G) / relaxation)`, between the choices, with
            their exact derivative, for objectives that can evaluate them.
        relaxation: the temperature of relaxed samples, above 0; towards 0 they become hard. A tensor is one for all
            problems, or one for each in a shape that broadcasts to `batch`.

    Raises:
        TypeError: `logits` is not a floating-point tensor.
        ValueError: `event_dims`, `samples` or `relaxation` is out of its range; in a solve, the bounds of a choice do
            not hold 0 and 1.

    Example:
        >>> import torch, dcem
        >>> cost = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])  # of 3 choices in 2 places
        >>> init = dcem.Categorical(torch.zeros(2, 3), event_dims=2)
        >>> solution = dcem.minimize(
        ...     lambda x: (x * cost).sum((-1, -2)), init, generator=torch.Generator().manual_seed(0))
        >>> solution.best_x
        tensor([[0., 1., 0.],
                [1., 0., 0.]])

    Source: Rubinstein, "The cross-entropy method for combinatorial and continuous optimization", 1999; relaxed and
    straight-through samples: Jang, Gu & Poole, "Categorical reparameterization with Gumbel-softmax", ICLR 2017.
    """

    logits: Tensor
    event_dims: int = 1
    samples: str = "hard"
    relaxation: float | Tensor = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "event_dims", check_parameter("logits", self.logits, self.event_dims))
        if self.event_dims == 0:
            raise ValueError("event_dims: expected at least 1, the axis of the choices, got 0")
        if self.samples not in SAMPLES:
            raise ValueError(f"samples: expected one of {', '.join(SAMPLES)}, got {self.samples!r}")
        check_positive("relaxation", self.relaxation)
        if isinstance(self.relaxation, Tensor):
            object.__setattr__(self, "relaxation", self._of_problems(self.relaxation))

    @property
    def mean(self) -> Tensor:
        """The probabilities, `(*batch, *event)`."""
        return self.logits.softmax(-1)

    @property
    def std(self) -> Tensor:
        """Of each choice, `√(p (1 - p))`, `(*batch, *event)`."""
        probability = self.mean
        return safe_sqrt(probability * (1 - probability))

    def check(self) -> None:
        if self.logits.isnan().any() or (self.logits == math.inf).any() or (self.logits == -math.inf).all(-1).any():
            raise ValueError(f"init: expected finite logits, or -inf for some of the choices, got {self.logits}")

    def rsample(self, noise: Tensor) -> Tensor:
        # -log(-log u) of the uniform u = Φ(noise); the logarithm of Φ keeps the digits of both tails.
        exponential = -torch.special.log_ndtr(noise)
        gumbel = -exponential.clamp(min=torch.finfo(noise.dtype).tiny).log()
        logits = self.logits.unsqueeze(self.sample_dim)
        choice = (logits + gumbel).argmax(-1, keepdim=True)
        hard = (choice == torch.arange(logits.shape[-1], device=noise.device)).to(noise)
        if self.samples == "hard":
            return hard
        forbidden = logits == -math.inf  # which have no part in the derivative with respect to `relaxation`
        relaxation = self.relaxation
        if isinstance(relaxation, Tensor):
            relaxation = relaxation.reshape(relaxation.shape + (1,) * (1 + self.event_dims))
        scaled = (logits.masked_fill(forbidden, 0.0) + gumbel) / relaxation
        soft = scaled.masked_fill(forbidden, -math.inf).softmax(-1)
        return soft if self.samples == "relaxed" else hard + (soft - soft.detach())

    def fit(self, samples: Tensor, weights: Tensor) -> Self:
        return self._of(self.weighted_mean(samples, weights))

    def log_prob(self, x: Tensor) -> Tensor:
        if self.samples == "relaxed":
            raise NotImplementedError("log_prob: expected a Categorical of hard samples, got relaxed ones")
        log_probability = self.logits.log_softmax(-1).unsqueeze(self.sample_dim)
        return self.flat(torch.where(x > 0, log_probability, 0.0)).sum(-1)

    def with_mean(self, mean: Tensor) -> Self:
        """The choices with these probabilities, or with those next to them where `mean` is off the simplex."""
        return self._of(_nearest_on_simplex(mean))

    def around(self, mean: Tensor) -> Self:
        """Half of these probabilities and half of `mean`: a certain choice leaves nothing to search."""
        return self.interpolate(self.with_mean(mean), 0.5)

    def interpolate(self, other: Self, amount: float | Tensor) -> Self:
        return self._of(self.mean + amount * (other.mean - self.mean))

    def clamp_std(self, low: float, high: float | None) -> Self:
        """Leave every choice a probability of about `low²`, for a std of `low`; `high` has no meaning."""
        if low == 0:
            return self
        log_probability = self.logits.log_softmax(-1)
        floored = log_probability.clamp(min=2 * math.log(low))
        return dataclasses.replace(self, logits=torch.where(self.logits == -math.inf, self.logits, floored))

    def is_collapsed(self, min_std: float) -> Tensor:
        # Of the likeliest choice it is that of all others together, which is more than each of them has.
        others = self.std.scatter(-1, self.logits.argmax(-1, keepdim=True), 0.0)
        # The logit of the floor, 2 log(min_std), is rounded, and of a probability a std is known only up to rounding.
        rounding = 1e-3 - torch.finfo(others.dtype).eps * min(math.log(min_std), -1.0) if min_std > 0 else 0.0
        certain = others <= min_std * (1 + rounding)
        return certain.flatten(certain.dim() - self.event_dims).all(-1)

    def narrow(self, bounds: Bounds) -> Self:
        """Itself, which lives between 0 and 1: a narrower box is refused, whose candidates would be no choices."""
        low, high = _known(bounds.low, torch.amax, -math.inf), _known(bounds.high, torch.amin, math.inf)
        if low > 0 or high < 1:
            raise ValueError(
                f"bounds: expected a box that holds the choices of a Categorical, from 0 to 1, got {low:g} to "
                f"{high:g}; a logit of -inf forbids a choice, and tensors bound the numbers beside choices alone"
            )
        return self

    def _of_problems(self, relaxation: Tensor) -> Tensor:
        """A number for each problem, `(*batch,)`."""
        batch = self.logits.shape[: self.logits.dim() - self.event_dims]
        if relaxation.shape == batch and relaxation.dtype == self.logits.dtype:
            return relaxation.to(self.logits)  # a parameter stays the parameter that it is
        number = relaxation.reshape(()) if relaxation.numel() == 1 else relaxation
        try:
            return number.to(self.logits).expand(batch)
        except RuntimeError:
            raise ValueError(
                f"relaxation: expected a number, or a Tensor that broadcasts to the batch shape {tuple(batch)}, got "
                f"shape {tuple(relaxation.shape)}"
            ) from None

    def _of(self, probability: Tensor) -> Self:
        """The member with these probabilities; what was forbidden stays so."""
        logits = probability.clamp(min=torch.finfo(probability.dtype).tiny).log()
        return dataclasses.replace(self, logits=torch.where(self.logits == -math.inf, self.logits, logits))


def _known(side: float | Tensor | None, innermost: Callable[[Tensor], Tensor], beyond: float) -> float:
    """The innermost number of a side of a box; `beyond` where there is none, or none to look at at no cost."""
    if isinstance(side, Tensor):
        return innermost(side).item() if is_eager() and side.is_cpu else beyond
    return beyond if side is None else side


def _nearest_on_simplex(x: Tensor) -> Tensor:
    """`argmin_p |p - x|²` subject to `p >= 0` and `Σp = 1`, along the last axis: what is above a threshold.

    Source: Duchi et al., "Efficient projections onto the l1-ball", ICML 2008.
    """
    ordered = x.sort(-1, descending=True).values
    count = torch.arange(1, x.shape[-1] + 1, device=x.device)
    thresholds = (ordered.cumsum(-1) - 1) / count
    num_above = (ordered > thresholds).sum(-1, keepdim=True)
    return (x - thresholds.gather(-1, num_above - 1)).clamp(min=0)
