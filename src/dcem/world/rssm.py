"""The recurrent state-space model for observations that are vectors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from dcem._check import check_count, check_fraction, check_number, check_positive
from dcem._mlp import check_widths, mlp
from dcem.control.rollout import AT_ONCE
from dcem.world.base import WorldModel, batch_axes
from dcem.world.fused import fused_perceptron, fused_rollout

CARRIED = ("mean", "sample")
STEP = ("_remember", "prior", "_distribution", "_carried")
"""The methods that a step of the imagination is made of."""


class RSSMBelief(NamedTuple):
    """What an `RSSM` knows.

    Attributes:
        deterministic: the state of the GRU, `(*batch, deterministic_size)`.
        stochastic: the Gaussian half, `(*batch, stochastic_size)`.
    """

    deterministic: Tensor
    stochastic: Tensor


class RSSM(WorldModel):
    """Learn what an environment does from sequences of it, as a latent state that is half memory and half chance.

    The deterministic half `h` is the state of a GRU, the stochastic half `s` a diagonal Gaussian:

    - `h' = GRU(h, [s, a])`; prior `p(s' | h')`; posterior `q(s' | h', o')` once the observation is there;
    - `p(o | h, s)`, a normal distribution of unit variance, `r(h, s, a)` and the probability `c(h, s)` that the
      episode goes on.

    A subclass that defines `prior`, `posterior`, `decode` or `cost` anew learns and plans with what it defines.

    Its loss is the negative evidence lower bound of a sequence: squared errors of observation and reward, the
    cross-entropy of the episode's end, and the divergence of the posterior from the prior.

    Args:
        observation_size: how many numbers an observation has. Scale them to about one: their likelihood has unit
            variance.
        action_size: how many numbers an action has.
        deterministic_size: of `h`.
        stochastic_size: of `s`.
        hidden_sizes: widths of the hidden layers (ReLU) of each head.
        min_std: the smallest standard deviation of prior and posterior, above 0.
        carry: what of `s` goes into a belief that is observed or imagined: its `"mean"`, so that beliefs, plans
            and probabilities of actions can be computed again, or a `"sample"`. Training always samples.
        free_nats: a divergence of a step below this many nats is not reduced further.
        kl_balance: None for the divergence as it is. `α` in `[0, 1]` instead moves the prior towards the posterior
            with weight `α` and the posterior towards the prior with `1 - α`.
        reward_weight: weight of the reward's squared error.
        kl_weight: weight of the divergence.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of its range; in a call, what `WorldModel` says.

    Example:
        >>> import torch
        >>> from dcem.control import MPC
        >>> model = RSSM(observation_size=3, action_size=1)
        >>> belief = model.observe(model.initial((4,)), torch.zeros(4, 1), torch.randn(4, 3))
        >>> belief.deterministic.shape, belief.stochastic.shape
        (torch.Size([4, 200]), torch.Size([4, 30]))
        >>> mpc = MPC(model.imagine, model.cost, horizon=5, action_shape=1, bounds=(-1.0, 1.0))
        >>> mpc(belief).action.shape
        torch.Size([4, 1])

    Source: Hafner et al., "Learning latent dynamics for planning from pixels", ICML 2019 (sizes, free nats); balanced
    divergence from Hafner et al., "Mastering Atari with discrete world models", ICLR 2021.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        *,
        deterministic_size: int = 200,
        stochastic_size: int = 30,
        hidden_sizes: Sequence[int] = (200, 200),
        min_std: float = 0.1,
        carry: str = "mean",
        free_nats: float = 3.0,
        kl_balance: float | None = None,
        reward_weight: float = 1.0,
        kl_weight: float = 1.0,
    ) -> None:
        super().__init__(observation_size, action_size)
        observation_size, action_size = self.observation_size, self.action_size
        deterministic_size = check_count("deterministic_size", deterministic_size)
        stochastic_size = check_count("stochastic_size", stochastic_size)
        hidden_sizes = check_widths("hidden_sizes", hidden_sizes)
        check_positive("min_std", min_std)
        if carry not in CARRIED:
            raise ValueError(f"carry: expected one of {', '.join(CARRIED)}, got {carry!r}")
        for name, weight in {"free_nats": free_nats, "reward_weight": reward_weight, "kl_weight": kl_weight}.items():
            check_number(name, weight)
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name}: expected a finite number >= 0, got {weight}")
        if kl_balance is not None:
            check_fraction("kl_balance", kl_balance)
        self.deterministic_size, self.stochastic_size = deterministic_size, stochastic_size
        self.min_std, self.carry, self.free_nats, self.kl_balance = min_std, carry, free_nats, kl_balance
        self.reward_weight, self.kl_weight = reward_weight, kl_weight
        size, width = deterministic_size + stochastic_size, hidden_sizes[0]
        self.embed = nn.Sequential(nn.Linear(stochastic_size + action_size, width), nn.ReLU())
        self.cell = nn.GRUCell(width, deterministic_size)
        self.prior_net = mlp([deterministic_size, width, 2 * stochastic_size], nn.ReLU)
        self.posterior_net = mlp([deterministic_size + observation_size, *hidden_sizes, 2 * stochastic_size], nn.ReLU)
        self.observation_net = mlp([size, *hidden_sizes, observation_size], nn.ReLU)
        self.reward_net = mlp([size + action_size, *hidden_sizes, 1], nn.ReLU)
        self.continuation_net = mlp([size, *hidden_sizes, 1], nn.ReLU)

    def parts(self) -> dict[str, nn.Module]:
        """By what they do: dynamics (with the prior), encoder (the posterior), reward, observation, continuation."""
        return {
            "dynamics": nn.ModuleList([self.embed, self.cell, self.prior_net]),
            "encoder": self.posterior_net,
            "reward": self.reward_net,
            "observation": self.observation_net,
            "continuation": self.continuation_net,
        }

    def initial(self, batch_shape: int | Sequence[int] = ()) -> RSSMBelief:
        """Zeros."""
        like, batch = self.cell.bias_hh, batch_axes(batch_shape)
        return RSSMBelief(like.new_zeros(*batch, self.deterministic_size), like.new_zeros(*batch, self.stochastic_size))

    def observe(
        self, belief: RSSMBelief, action: Tensor, observation: Tensor, *, generator: torch.Generator | None = None
    ) -> RSSMBelief:
        """The belief after `action` led from `belief` to `observation`; the generator is for samples."""
        self.check(belief, action, observation)
        deterministic = self._remember(belief, action)
        return self._carried(deterministic, self.posterior(deterministic, observation), generator)

    def imagine(self, belief: RSSMBelief, action: Tensor, *, generator: torch.Generator | None = None) -> RSSMBelief:
        """The belief that `action` is expected to lead to; the generator is for samples."""
        self.check(belief, action)
        is_plain = self.carry == "mean" and _is_own(self, STEP)
        if is_plain and type(belief) is RSSMBelief:
            path = fused_rollout(self, belief, action.unsqueeze(0))
            if path is not None:
                return RSSMBelief(*(states[1] for states in path))
        deterministic = self._remember(belief, action)
        if is_plain:  # nobody asks for the standard deviation
            return RSSMBelief(deterministic, self.prior_net(deterministic)[..., : self.stochastic_size])
        return self._carried(deterministic, self.prior(deterministic), generator)

    def cost(self, belief: RSSMBelief, action: Tensor) -> Tensor:
        """Minus the reward that is expected of `action` in `belief`."""
        self.check(belief, action)
        return -_number(self.reward_net, *belief, action.to(belief.stochastic))

    def continues(self, belief: RSSMBelief) -> Tensor:
        """The probability that the episode goes on from `belief`."""
        return self._continuation(belief).sigmoid()

    def decode(self, belief: RSSMBelief) -> Tensor:
        """The observation that is expected in `belief`, `(*batch, observation_size)`."""
        return self.observation_net(torch.cat(belief, -1))

    def prior(self, deterministic: Tensor) -> Normal:
        """What is expected of the stochastic state beside this deterministic one, before the observation."""
        return self._distribution(self.prior_net(deterministic))

    def posterior(self, deterministic: Tensor, observation: Tensor) -> Normal:
        """The same after the observation."""
        return self._distribution(self.posterior_net(torch.cat([deterministic, observation.to(deterministic)], -1)))

    def loss(self, sequences: Any, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The negative evidence lower bound a step, but for the constant of the observation's likelihood.

        `loss_observation`, `loss_reward`, `loss_continuation` and `loss_kl` are what its sum is made of;
        `kl`, `observation_error` and `reward_error` (mean squares) are for looking at.
        """
        seen = self.read(sequences)
        observation, action = seen.observation.unbind(1), seen.action.unbind(1)
        belief, before = self.initial((len(seen.action),)), torch.zeros_like(action[0])
        beliefs, posteriors = [], []
        for t in range(len(action)):
            deterministic = self._remember(belief, before)
            posteriors.append(self.posterior(deterministic, observation[t]))
            belief, before = RSSMBelief(deterministic, _sample(posteriors[-1], generator)), action[t]
            beliefs.append(belief)
        last = self._remember(belief, before)
        path = RSSMBelief(*(torch.stack(part, 1) for part in zip(*beliefs, strict=True)))
        posterior = _normal(
            torch.stack([q.mean for q in posteriors], 1), torch.stack([q.stddev for q in posteriors], 1)
        )
        ahead = torch.cat([path.deterministic, last.unsqueeze(1)], 1)
        prior = self.prior(ahead)  # of every step, and of the one after the last: where the episode may have ended

        observation_error = self.decode(path) - seen.observation
        reward_error = self.cost(path, seen.action) + seen.reward
        goes_on = self._continuation(RSSMBelief(ahead[:, 1:], _sample(prior, generator)[:, 1:]))
        divergence = self._divergence(posterior, _normal(prior.mean[:, :-1], prior.stddev[:, :-1]))
        return {
            "loss_observation": 0.5 * observation_error.square().sum(-1).mean(),
            "loss_reward": 0.5 * self.reward_weight * reward_error.square().mean(),
            "loss_continuation": F.binary_cross_entropy_with_logits(goes_on, 1 - seen.terminated),
            "loss_kl": self.kl_weight * divergence.clamp(min=self.free_nats).mean(),
            "kl": divergence.detach().mean(),
            "observation_error": observation_error.detach().square().mean(),
            "reward_error": reward_error.detach().square().mean(),
        }

    def _remember(self, belief: RSSMBelief, action: Tensor) -> Tensor:
        """The deterministic state after `action`; the cell knows one leading axis."""
        driven = self.embed(torch.cat([belief.stochastic, action.to(belief.stochastic)], -1))
        lead = driven.shape[:-1]
        before = belief.deterministic.reshape(-1, self.deterministic_size)
        return self.cell(driven.reshape(-1, driven.shape[-1]), before).reshape(*lead, self.deterministic_size)

    def _distribution(self, parameters: Tensor) -> Normal:
        mean, raw = parameters.chunk(2, -1)
        return _normal(mean, F.softplus(raw) + self.min_std)

    def _carried(self, deterministic: Tensor, normal: Normal, generator: torch.Generator | None) -> RSSMBelief:
        return RSSMBelief(deterministic, normal.mean if self.carry == "mean" else _sample(normal, generator))

    def _continuation(self, belief: RSSMBelief) -> Tensor:
        deterministic, stochastic = belief
        return _number(self.continuation_net, deterministic, stochastic, stochastic[..., :0])

    def _divergence(self, posterior: Normal, prior: Normal) -> Tensor:
        """How far the posterior is from the prior, `(*batch,)`; balanced, the value is the same."""
        if self.kl_balance is None:
            return kl_divergence(posterior, prior).sum(-1)
        moves_prior = kl_divergence(_detach(posterior), prior).sum(-1)
        moves_posterior = kl_divergence(posterior, _detach(prior)).sum(-1)
        return self.kl_balance * moves_prior + (1 - self.kl_balance) * moves_posterior


_OWN = {name: getattr(RSSM, name) for name in (*STEP, "initial", "check", "check_belief")}


def _is_own(model: RSSM, names: Iterable[str]) -> bool:
    """Whether methods are those of the class, in a subclass and on the object, too."""
    return all(name not in vars(model) and getattr(type(model), name) is _OWN[name] for name in names)


def _imagine_at_once(model: RSSM, belief: Any, actions: Tensor) -> RSSMBelief | None:
    """The beliefs that `actions` `(T, *batch, action_size)` lead through, with the first; None where steps are taken.

    Nothing is checked: what would be refused does not fit a kernel, and takes its first step.
    """
    if model.carry != "mean" or type(belief) is not RSSMBelief or not _is_own(model, _OWN):
        return None
    path = fused_rollout(model, belief, actions)
    return None if path is None else RSSMBelief(*path)


AT_ONCE[RSSM.imagine] = _imagine_at_once


def _number(net: nn.Module, h: Tensor, s: Tensor, a: Tensor) -> Tensor:
    """The one number that a network makes of the three, `(*batch,)`; an action that it does not know is empty."""
    fused = fused_perceptron(net, h, s, a)
    return net(torch.cat([h, s, a], -1)).squeeze(-1) if fused is None else fused


def _normal(mean: Tensor, std: Tensor) -> Normal:
    return Normal(mean, std, validate_args=False)


def _detach(normal: Normal) -> Normal:
    return _normal(normal.mean.detach(), normal.stddev.detach())


def _sample(normal: Normal, generator: torch.Generator | None) -> Tensor:
    """A draw, differentiable in mean and std, as `rsample` but for the generator."""
    mean = normal.mean
    noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device, generator=generator)
    return torch.addcmul(mean, normal.stddev, noise)


torch.serialization.add_safe_globals([RSSMBelief])  # a plan, whose states are beliefs, is read with weights_only=True
