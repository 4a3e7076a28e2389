"""What a learned model has to offer so that a controller can plan through it."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

from dcem._check import check_count
from dcem._given import brief
from dcem._tree import leaves
from dcem.world.sequences import Sequences, check_finite, check_vectors, read_sequences

Belief = Any
"""What a model knows of the world now: a tensor or a tree of tensors, each `(*batch, n)`."""


def batch_axes(batch_shape: int | Sequence[int]) -> torch.Size:
    """The axes of a batch, of which a whole number is one."""
    try:
        return torch.Size([batch_shape] if isinstance(batch_shape, SupportsIndex) else list(batch_shape))
    except TypeError:
        raise TypeError(f"batch_shape: expected an int or a sequence of ints, got {brief(batch_shape)}") from None


class WorldModel(nn.Module, ABC):
    """A model of an environment, learned from what was seen of it, to plan through.

    It turns observations into a *belief*, and a belief and an action into the next belief and a cost. A belief is a
    tensor or a tree of tensors, each `(*batch, n)` with any leading axes, so that it can be the state of a
    controller: `MPC(model.imagine, model.cost, horizon, action_size, ...)`.

    A subclass defines `initial`, `observe`, `imagine`, `cost` and `loss`. It may define
    more, each of which [`dcem.control.MPC`][] has a place for:

    - `terminal_cost(belief) -> (*batch,)`: what the time after the horizon costs.
    - `continues(belief) -> (*batch,)`: the probability that the episode goes on from here, in `[0, 1]`.
    - `propose(belief, horizon, num) -> (*batch, num, horizon, action_size)`: sequences of actions worth trying.

    Observations, actions and sequences come from outside: `check` and `read` say what is wrong with them.
    Problems of a batch never influence each other. Draws come from torch's global generator, or from a keyword
    `generator` where a method has one.

    Args:
        observation_size: how many numbers an observation has.
        action_size: how many numbers an action has.

    Raises:
        TypeError: a size is not an int.
        ValueError: a size is below 1.

    Example:
        >>> import torch
        >>> class Point(WorldModel):  # a position, seen as it is and moved by the action; the gain is learned
        ...     def __init__(self):
        ...         super().__init__(1, 1)
        ...         self.gain = nn.Parameter(torch.tensor(0.5))
        ...
        ...     def initial(self, batch_shape=()):
        ...         return self.gain.new_zeros(*batch_shape, 1)
        ...
        ...     def observe(self, belief, action, observation):
        ...         self.check(belief, action, observation)
        ...         return observation
        ...
        ...     def imagine(self, belief, action):
        ...         self.check(belief, action)
        ...         return belief + self.gain * action
        ...
        ...     def cost(self, belief, action):
        ...         return belief.square().sum(-1)
        ...
        ...     def loss(self, sequences):
        ...         seen, action, *_ = self.read(sequences)
        ...         error = self.imagine(seen[:, :-1], action[:, :-1]) - seen[:, 1:]
        ...         return {"loss_dynamics": error.square().mean()}
        >>> from dcem.control import MPC
        >>> model = Point()
        >>> belief = model.observe(model.initial((2,)), torch.zeros(2, 1), torch.tensor([[1.0], [-2.0]]))
        >>> plan = MPC(model.imagine, model.cost, horizon=5, action_shape=1, bounds=(-1.0, 1.0))(belief)
        >>> plan.action.shape
        torch.Size([2, 1])

    Source: Ha & Schmidhuber, "World models", 2018; the split into observing and imagining as in Hafner et al.,
    "Learning latent dynamics for planning from pixels", ICML 2019.
    """

    def __init__(self, observation_size: int, action_size: int) -> None:
        super().__init__()
        self.observation_size = check_count("observation_size", observation_size)
        self.action_size = check_count("action_size", action_size)

    @abstractmethod
    def initial(self, batch_shape: tuple[int, ...] = ()) -> Belief:
        """The belief before anything was seen: a tree of tensors `(*batch_shape, n)`."""

    @abstractmethod
    def observe(self, belief: Belief, action: Tensor, observation: Tensor) -> Belief:
        """The belief after `action` led from `belief` to `observation`.

        Args:
            belief: the one before, `(*batch, ...)`; `initial` at an episode's start.
            action: `(*batch, action_size)`; zeros at an episode's start.
            observation: `(*batch, observation_size)`, what was seen after the action.

        Raises:
            ValueError: belief, action or observation have the wrong shape, or the observation is not finite.
        """

    @abstractmethod
    def imagine(self, belief: Belief, action: Tensor) -> Belief:
        """The belief that `action`, `(*batch, action_size)`, is expected to lead to: the dynamics to plan with."""

    @abstractmethod
    def cost(self, belief: Belief, action: Tensor) -> Tensor:
        """What taking `action` in `belief` costs, `(*batch,)`: minus the expected reward."""

    @abstractmethod
    def loss(self, sequences: Any) -> dict[str, Tensor]:
        """What to minimise so that the model fits what was seen.

        Args:
            sequences: a TensorDict of batch size `(B, T)`, of `T >= 2` steps of one episode each, in TorchRL's
                convention: `"action"` was taken at `"observation"` and led to `("next", "reward")` and
                `("next", "terminated")`.

        Returns:
            Scalars. The sum of those whose name starts with `loss_` is what is minimised: they are weighted already.
            The others are detached, for looking at.

        Raises:
            TypeError: `sequences` is not a TensorDict.
            ValueError: a key is missing, a shape or the length is wrong, a number is not finite, or an episode ends
                before the last step of a sequence (of `("next", "terminated")`, `"truncated"` and `"done"`).
        """

    def forward(self, sequences: Any) -> dict[str, Tensor]:
        """The same as `loss`, for whatever wraps modules: `DistributedDataParallel`, `functional_call`."""
        return self.loss(sequences)

    def parts(self) -> dict[str, nn.Module]:
        """What the model is made of, by name, for who trains some of it: its children, if it does not say otherwise.

        What is left out [`dcem.rl.parts`][] finds.
        """
        return dict(self.named_children())

    def check(self, belief: Belief, action: Tensor, observation: Tensor | None = None) -> None:
        """Raise where there is no belief, what does not belong to it, or an observation that is not finite."""
        batch_shape = self.check_belief(belief)
        check_vectors("action", action, batch_shape, self.action_size)
        if observation is not None:
            check_vectors("observation", observation, batch_shape, self.observation_size)
            check_finite("observation", observation)

    def check_belief(self, belief: Belief) -> torch.Size:
        """The batch of a belief; raise where it is none of this model's, such as an observation."""
        tensors, own = leaves(belief), leaves(self.initial())
        if not tensors:
            raise TypeError(f"belief: expected a tensor or a tree of tensors (*batch, n), got {brief(belief)}")
        if [leaf.shape[-1:] for leaf in tensors] != [leaf.shape[-1:] for leaf in own]:
            wanted, came = (
                ", ".join(str(("*batch", *leaf.shape[-1:])).replace("'", "") for leaf in own),
                ", ".join(str(tuple(leaf.shape)) for leaf in tensors),
            )
            raise ValueError(
                f"belief: expected {wanted}, as `initial`, `observe` and `imagine` return it, got {came}; "
                "dcem.rl.policy(mpc, model) is the controller that keeps a belief of what it observes"
            )
        return tensors[0].shape[:-1]

    def read(self, sequences: Any) -> Sequences:
        """The tensors of a TensorDict to learn from, checked, in the dtype and on the device of the parameters.

        A model without any takes those of its buffers, or leaves them as they are.
        """
        held = (x for x in itertools.chain(self.parameters(), self.buffers()) if x.is_floating_point())
        return read_sequences(sequences, self.observation_size, self.action_size, next(held, None))
