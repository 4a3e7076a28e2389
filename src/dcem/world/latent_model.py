"""A latent model without a decoder: learned to predict its own next latents, rewards and values."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dcem._check import check_count, check_flag, check_fraction, check_positive
from dcem._given import brief
from dcem.bounds import Bounds, BoundsLike, clip
from dcem.world.base import WorldModel, batch_axes
from dcem.world.sequences import check_ends_elsewhere, check_within
from dcem.world.two_hot import TwoHot, symlog

_SATURATION = 1e-4  # of the squared numbers that tanh makes the policy's actions of, against a value of 1


class LatentModel(WorldModel):
    """Plan from observations through a learned latent, a few steps ahead, with a learned value beyond.

    An encoder turns an observation into a latent `z`; dynamics, reward, two value heads and a policy live on `z`.
    All are learned from replayed sequences: latents by consistency (the dynamics shall predict the encoder's next
    latent), rewards and values by classification, the policy by climbing the value. Nothing is decoded back into
    observations, so nothing is spent on what does not matter for reward and value.

    Args:
        observation_size: `O`, numbers in an observation.
        action_size: `A`, numbers in an action.
        bounds: `(low, high)` of the actions, finite numbers or sequences of `A` numbers; or an environment's
            `action_space` itself.
        latent_size: of `z`, a multiple of `group_size`.
        group_size: the latent is normalised by a softmax over each group of so many numbers.
        hidden: widths of the two hidden layers of each network.
        num_values: value heads, at least 2; the lowest of them counts.
        discount: `γ` in `[0, 1)` of the value.
        terminates: whether episodes can end by themselves; a head then learns the probability of going on.
        policy_std: of the noise on the policy's actions where it proposes and where it is learned, in half widths of
            the bounds.
        step_weight: `ρ` in `(0, 1]`: losses `t` steps ahead count `ρ^t`.
        target_rate: how far the target copy of the value heads follows at each `update_target`.

    Raises:
        ValueError: an argument is out of its range.

    A subclass that defines `encode`, `imagine` or `act` anew learns and plans with what it defines.

    A belief is the latent itself, `(*batch, latent_size)`. Call `update_target` after every optimiser step.

    Example:
        >>> import torch, dcem
        >>> from dcem.control import MPC
        >>> model = LatentModel(observation_size=3, action_size=1)
        >>> mpc = MPC(model.imagine, model.cost, 3, 1, (-1.0, 1.0), dcem.CEM(64, 8, dcem.HardTopK()),
        ...           terminal_cost=model.terminal_cost, proposals=model.propose, discount=0.99)
        >>> belief = model.observe(model.initial((4,)), torch.zeros(4, 1), torch.randn(4, 3))
        >>> mpc(belief).action.shape
        torch.Size([4, 1])

    Source: Hansen et al., "Temporal difference learning for model predictive control", ICML 2022, and "TD-MPC2",
    ICLR 2024, whose losses these are; here in a compact form.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        bounds: BoundsLike = (-1.0, 1.0),
        *,
        latent_size: int = 128,
        group_size: int = 8,
        hidden: int = 256,
        num_values: int = 2,
        discount: float = 0.99,
        terminates: bool = False,
        policy_std: float = 0.2,
        step_weight: float = 0.5,
        target_rate: float = 0.01,
    ) -> None:
        super().__init__(observation_size, action_size)
        observation_size, action_size = self.observation_size, self.action_size
        latent_size = check_count("latent_size", latent_size)
        group_size, hidden = check_count("group_size", group_size), check_count("hidden", hidden)
        num_values, terminates = check_count("num_values", num_values), check_flag("terminates", terminates)
        if latent_size % group_size:
            raise ValueError(f"latent_size: expected a multiple of group_size={group_size}, got {latent_size}")
        if num_values < 2:
            raise ValueError(f"num_values: expected at least 2, got {num_values}")
        check_fraction("discount", discount, below_one=True)
        check_positive("policy_std", policy_std)
        for name, share in {"step_weight": step_weight, "target_rate": target_rate}.items():
            check_fraction(name, share)
            check_positive(name, share)
        self.latent_size, self.discount, self.terminates = latent_size, discount, terminates
        self.policy_std = policy_std
        self.step_weight, self.target_rate = step_weight, target_rate
        box = Bounds.check(bounds, torch.Size((action_size,)), torch.zeros(())) or Bounds()
        low, high = (
            torch.as_tensor(open_ if side is None else side, dtype=torch.get_default_dtype())
            .expand(action_size)
            .clone()
            for side, open_ in ((box.low, -torch.inf), (box.high, torch.inf))
        )
        if not (low.is_meta or bool((low.isfinite() & high.isfinite() & (low < high)).all())):
            raise ValueError(f"bounds: expected finite low < high, got {brief(bounds)}")
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        numbers = TwoHot()
        joint = latent_size + action_size
        latent: list[nn.Module] = [nn.LayerNorm(latent_size), _GroupSoftmax(group_size)]
        self.numbers = numbers
        self.encoder = _network(observation_size, hidden, latent_size, latent, depth=1)
        self.dynamics = _network(joint, hidden, latent_size, copy.deepcopy(latent))
        self.reward = _network(joint, hidden, numbers.num_bins, zero=True)
        self.values = nn.ModuleList(_network(joint, hidden, numbers.num_bins, zero=True) for _ in range(num_values))
        self.policy = _network(latent_size, hidden, action_size)
        self.continuation = _network(latent_size, hidden, 1) if terminates else None
        self.target_values = copy.deepcopy(self.values).requires_grad_(False)

    # The world as a planner sees it.

    def initial(self, batch_shape: int | Sequence[int] = ()) -> Tensor:
        return self.low.new_zeros(*batch_axes(batch_shape), self.latent_size)

    def observe(self, belief: Tensor, action: Tensor, observation: Tensor) -> Tensor:
        """The latent of the observation: what came before does not matter to this model."""
        self.check(belief, action, observation)
        return self.encode(observation)

    def imagine(self, belief: Tensor, action: Tensor) -> Tensor:
        self.check(belief, action)
        z: Tensor = self.dynamics(torch.cat([belief, self._unit(action)], -1))
        return z

    def cost(self, belief: Tensor, action: Tensor) -> Tensor:
        """Minus the predicted reward, `(*batch,)`."""
        self.check(belief, action)
        return -self.numbers.decode(self.reward(torch.cat([belief, self._unit(action)], -1)))

    def terminal_cost(self, belief: Tensor) -> Tensor:
        """Minus the value of going on with the policy, `(*batch,)`."""
        return -self.value(belief, self.act(belief))

    @property
    def continues(self) -> Callable[[Tensor], Tensor]:
        """`continues(belief) -> (*batch,)`, the probability that the episode goes on: if the model `terminates`."""
        if self.continuation is None:
            raise AttributeError  # upon which Python asks __getattr__
        return self._continues

    def __getattr__(self, name: str) -> Any:
        if name == "continues":  # `nn.Module` would say that there is no such attribute
            raise AttributeError("continues: expected a model built with terminates=True, got terminates=False")
        return super().__getattr__(name)

    def _continues(self, belief: Tensor) -> Tensor:
        assert self.continuation is not None
        return torch.sigmoid(self.continuation(belief)).squeeze(-1)

    def propose(self, belief: Tensor, horizon: int, num: int, generator: torch.Generator | None = None) -> Tensor:
        """What the policy would do, with noise, in `num` ways: `(*batch, num, horizon, A)`; the first without."""
        self.check_belief(belief)
        z = belief.unsqueeze(-2).expand(*belief.shape[:-1], num, self.latent_size)
        actions = []
        for t in range(horizon):
            noise = torch.randn(*z.shape[:-1], self.action_size, dtype=z.dtype, device=z.device, generator=generator)
            noise[..., 0, :] = 0.0
            actions.append(self._noisy(self.act(z), noise))
            z = self.imagine(z, actions[-1]) if t + 1 < horizon else z
        return torch.stack(actions, -2)

    # Its parts.

    def parts(self) -> dict[str, nn.Module]:
        """By what they do: encoder, dynamics, reward, value, policy, and continuation where there is one."""
        parts = {"encoder": self.encoder, "dynamics": self.dynamics, "reward": self.reward, "value": self.values}
        parts["policy"] = self.policy
        return parts if self.continuation is None else parts | {"continuation": self.continuation}

    def encode(self, observation: Tensor) -> Tensor:
        """The latent of an observation, `(*batch, latent_size)`."""
        z: Tensor = self.encoder(symlog(observation.to(self.low)))
        return z

    def act(self, belief: Tensor) -> Tensor:
        """The policy's action, `(*batch, A)`, inside the bounds."""
        return self._squashed(self.policy(belief))

    def _squashed(self, raw: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * (0.5 + 0.5 * torch.tanh(raw))

    def value(self, belief: Tensor, action: Tensor, *, target: bool = False) -> Tensor:
        """The lowest head's discounted return after `action`, `(*batch,)`."""
        heads = self.target_values if target else self.values
        return self.numbers.decode(self._heads(heads, belief, action)).amin(0)

    def update_target(self) -> None:
        """Let the target heads follow the value heads: after every optimiser step."""
        with torch.no_grad():
            for target, now in zip(self.target_values.parameters(), self.values.parameters(), strict=True):
                target.lerp_(now, self.target_rate)

    def _heads(self, heads: nn.Module, belief: Tensor, action: Tensor) -> Tensor:
        joint = torch.cat([belief, self._unit(action)], -1)
        return torch.stack([head(joint) for head in heads])  # type: ignore[attr-defined]

    def _unit(self, action: Tensor) -> Tensor:
        """Actions in half widths around the middle of the bounds."""
        action = action.to(self.low)
        return (2 * action - (self.high + self.low)) / (self.high - self.low)

    def _noisy(self, action: Tensor, noise: Tensor) -> Tensor:
        spread = self.policy_std * 0.5 * (self.high - self.low)
        return clip(action + spread * noise, self.low, self.high)

    # How it is learned.

    def loss(self, sequences: Any) -> dict[str, Tensor]:
        """Consistency, reward, value, policy and, where episodes end, continuation; with `("next", "observation")`
        all `T` transitions count. Without it the last has no successor and is left out, which is a ValueError where
        episodes end, since the end is in it; so are actions outside the bounds, of which the policy proposes none.
        """
        seen, actions, rewards, ended, after = self.read(sequences)
        check_within("sequences, action", actions, self.low, self.high)
        if after is None:
            check_ends_elsewhere(ended, self.terminates)
            observations = seen
            actions, rewards, ended = actions[:, :-1], rewards[:, :-1], ended[:, :-1]
        else:
            observations = torch.cat([seen, after[:, -1:]], 1)
        num_steps = actions.shape[1]
        with torch.no_grad():
            next_latents = self.encode(observations[:, 1:])
            next_actions = self.act(next_latents)
            noise = torch.randn_like(next_actions).clamp(-2, 2)
            beyond = self.value(next_latents, self._noisy(next_actions, noise), target=True)
            targets = rewards + self.discount * (1 - ended) * beyond
        z = [self.encode(observations[:, 0])]
        for t in range(num_steps):
            z.append(self.imagine(z[-1], actions[:, t]))
        latents = torch.stack(z, 1)  # (B, T + 1, latent)
        weights = self.step_weight ** torch.arange(num_steps + 1, dtype=latents.dtype, device=latents.device)

        def mean(of_steps: Tensor) -> Tensor:
            """Over the batch, a step ahead counting less and less."""
            shares = weights[: of_steps.shape[1]]
            return (of_steps.mean(0) * shares).sum() / num_steps

        joint = torch.cat([latents[:, :-1], self._unit(actions)], -1)
        value_logits = torch.stack([head(joint) for head in self.values])
        errors = self.numbers.loss(value_logits, targets.expand(len(self.values), *targets.shape)).mean(0)
        losses = {
            "loss_consistency": 20.0 * mean((latents[:, 1:] - next_latents).square().mean(-1)),
            "loss_reward": 0.1 * mean(self.numbers.loss(self.reward(joint), rewards)),
            "loss_value": 0.1 * mean(errors),
            "loss_policy": mean(self._policy_loss(latents.detach())),
        }
        if self.continuation is not None:
            logits = self.continuation(latents[:, 1:]).squeeze(-1)
            losses["loss_continuation"] = mean(
                nn.functional.binary_cross_entropy_with_logits(logits, 1 - ended, reduction="none")
            )
        return losses | {"value": targets.mean(), "reward": rewards.mean()}

    def _policy_loss(self, latents: Tensor) -> Tensor:
        """Minus the value of the policy's actions, in units of itself; the value heads take no gradient from it.

        What is squashed into the bounds is kept small: far out, where the first, wrong values drive it, tanh is flat
        and no better value brings it back.
        """
        raw = self.policy(latents)
        acts_by_it = type(self).act is LatentModel.act and "act" not in vars(self)
        actions = self._squashed(raw) if acts_by_it else self.act(latents)
        joint = torch.cat([latents, self._unit(self._noisy(actions, torch.randn_like(actions)))], -1)
        logits = []
        for head in self.values:
            fixed = {name: parameter.detach() for name, parameter in head.named_parameters()}
            logits.append(functional_call(head, fixed, joint))
        values = self.numbers.decode(torch.stack(logits)).mean(0)
        return _SATURATION * raw.square().sum(-1) - values / values.detach().abs().mean().clamp(min=1.0)


class _GroupSoftmax(nn.Module):
    """A softmax over each group of numbers: the latent stays on a product of simplices and cannot blow up."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], x.shape[-1] // self.size, self.size).softmax(-1).reshape(x.shape)


def _network(
    size: int, hidden: int, out: int, last: Sequence[nn.Module] = (), *, depth: int = 2, zero: bool = False
) -> nn.Sequential:
    """Linear layers, each hidden one followed by a LayerNorm and a SiLU; `zero` lets the outputs start at 0."""
    layers: list[nn.Module] = []
    for width in [size, *[hidden] * (depth - 1)]:
        layers += [nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.SiLU()]
    output = nn.Linear(hidden, out)
    if zero:
        nn.init.zeros_(output.weight)
        nn.init.zeros_(output.bias)
    return nn.Sequential(*layers, output, *last)
