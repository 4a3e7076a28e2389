"""A controller as a TorchRL policy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor, nn
from torchrl.data import Bounded, TensorSpec, Unbounded
from torchrl.envs import TensorDictPrimer
from torchrl.modules import ProbabilisticActor
from torchrl.objectives import add_random_module

from dcem._check import check_int, check_number, check_positive
from dcem._tree import leaves
from dcem.control import MPC
from dcem.distributions import WhiteNoise
from dcem.distributions.product import has_choices
from dcem.gradients import Prune
from dcem.rl.controller import Controller
from dcem.rl.distribution import TruncatedNormal
from dcem.rl.draws import made_again
from dcem.rl.storage import ACTION, OBSERVATION, STARTED, Primer, Storage, after


class Actor(ProbabilisticActor):  # type: ignore[misc]
    """Put a controller where TorchRL has a policy: its losses then train the model, the cost, the decoder inside.

    The action is drawn from a normal distribution around the planned one, cut off at the bounds. Everything that a
    decision depends on is *stored*: it is read from the tensordict, and what the next decision needs is written under
    `"next"`. So any shuffled minibatch of stored steps gives the same distributions again, whatever the batch:

    ==================== ============================================ =========================
    key                  what                                         its successor
    ==================== ============================================ =========================
    `observation`      what is seen                                 the environment's
    `belief`           before the observation, with a model         after it
    `previous_action`  that led here                                the action drawn
    `plan`             before; where the search starts              the new plan
    `latent`           with a decoder that has no `encode`        the new latent
    `started`          False at an episode's start: no memory then  True
    ==================== ============================================ =========================

    An environment carries these if it has `make_tensordict_primer` as a transform, which collectors append with
    `auto_register_policy_transforms=True`. Without it an actor with a model refuses, since it would forget; one
    without a model plans every decision afresh, unless the loop carries the keys on from `"next"`, and with them, since
    nothing says that an episode has begun, the last plan of the episode before. The search makes the same draws at
    every decision, and so do proposals, in every problem of a batch: from torch's global generators, or from the one
    that they are given. All else is to draw nothing.

    TorchRL's losses keep the tensors that the controller has when they are made: `init_mean`, `init_std` and
    `action_rate_cost` are among them, so that a loss is made anew where one of these is set. Bounds and other settings
    hold at once.

    Args:
        mpc: the controller. Its modules are trained; of a model whose methods it calls, give `model` too.
        model: a world model ([`dcem.world.WorldModel`][]) whose belief is the state that `mpc` plans from; None:
            the observation is.
        std: of the action around the plan, in units of the action, above 0: a number or a tensor that broadcasts to
            `a`. An `nn.Parameter` is learned (of which the magnitude counts).
        state_of: `observation -> state`, without a model; one that is a module is trained, too.
        residual: a module `state -> (*batch, *a)` that is added to the planned action: what a small network
            corrects.
        seed: of the search's draws.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: `std` is 0, or of the wrong shape; the controller's actions are choices; in a call, the observation
            has the wrong shape or is not finite, a learned `std` has become 0 or NaN (both as far as they are on the
            CPU), what the actor has to remember is missing, or the dynamics, the cost or a network draw random
            numbers. The transform of `make_tensordict_primer` raises in an environment whose actions are discrete, of
            another shape, or within narrower bounds than the controller has, or bounded where it has no bounds.

    Example:
        >>> import torch, dcem
        >>> from tensordict import TensorDict
        >>> from dcem.control.systems import Pendulum
        >>> model = Pendulum(mass=torch.nn.Parameter(torch.tensor(1.3)))
        >>> mpc = dcem.control.MPC(model, model.cost, 10, 1, model.bounds, dcem.CEM(32, 4), num_iterations=3)
        >>> actor = Actor(mpc, std=0.2)
        >>> step = actor(TensorDict(observation=torch.tensor([[-1.0, 0.0, 0.0]]), batch_size=[1]))
        >>> step["action"].shape, step["action_log_prob"].shape, step["next", "plan"].shape
        (torch.Size([1, 1]), torch.Size([1]), torch.Size([1, 10, 1]))
        >>> actor.get_dist(step).log_prob(torch.zeros(1, 1)).sum().backward()
        >>> model.mass.grad.shape
        torch.Size([])

    Source: Amos & Yarats, ICML 2020, section 5.3: PPO through the controller. Gradients go through one decision: a
    stored belief or plan is a constant, though it was made with older weights, and so are proposals, though they are
    made with those of today.
    """

    def __init__(
        self,
        mpc: MPC,
        model: nn.Module | None = None,
        std: float | Tensor = 0.1,
        state_of: Callable[[Tensor], Any] | None = None,
        *,
        residual: Callable[[Any], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        planner = Planner(Controller(mpc, model, state_of, residual), std, seed)
        super().__init__(
            planner,
            in_keys=["loc", "scale"],
            out_keys=["action"],
            spec=planner.action_spec(),
            distribution_class=planner.distribution,
            return_log_prob=True,
            log_prob_key="action_log_prob",
        )
        self.out_keys: list[NestedKey] = [*planner.out_keys, *self.module[-1].out_keys, after(ACTION)]

    @dispatch(auto_batch_size=False)  # type: ignore[untyped-decorator]
    def forward(
        self, tensordict: TensorDictBase, tensordict_out: TensorDictBase | None = None, **kwargs: Any
    ) -> TensorDictBase:
        """Decide, and draw an action as TorchRL's exploration type says."""
        out = super().forward(tensordict, tensordict_out, **kwargs)
        return out.set(after(ACTION), out.get("action").detach())

    def select_out_keys(self, *out_keys: NestedKey) -> Actor:
        """Write these only, and what the next decision needs: without that the actor would forget at every step."""
        needed = ["action", *self.remembered]
        return super().select_out_keys(*out_keys, *(key for key in needed if key not in out_keys))

    @property
    def remembered(self) -> list[NestedKey]:
        """Where that lies which an environment carries to the next decision."""
        return [*map(after, self.planner.storage.decided), after(ACTION)]

    def get_dist(
        self, tensordict: TensorDictBase, tensordict_out: TensorDictBase | None = None, **kwargs: Any
    ) -> TruncatedNormal:
        """The distribution of the action, from the stored inputs, of which nothing is overwritten.

        A planned action that equals the stored `loc` up to rounding is that one.
        """
        stored = tensordict.get("loc", None)
        found = super().get_dist(tensordict.copy() if tensordict_out is None else tensordict, tensordict_out, **kwargs)
        if stored is None or stored.shape != found.loc.shape:
            return found
        return self.planner.distribution(as_stored(found.loc, stored.to(found.loc), found.scale), found.scale)

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The transform by which an environment carries what the actor has to remember."""
        planner = self.planner
        specs = planner.storage.specs(planner.controller, planner.noise)
        return Primer(specs, planner.controller.bounds(planner.noise))

    def observer(self) -> Observer:
        """The state that the controller plans from, for a critic to read: a module that writes it as `"state"`.

        With a model the critic is `TensorDictSequential(actor.observer(), ValueOperator(net, in_keys=["state"]))`.
        It reads the stored inputs, so that it finds at each next step what the actor will find there.
        """
        return Observer(self.planner)

    @property
    def planner(self) -> Planner:
        """The deterministic part: from a tensordict to `loc` and `scale`."""
        return self.module[0]

    @property
    def controller(self) -> Controller:
        """What decides."""
        return self.planner.controller

    @property
    def std(self) -> Tensor:
        """Of the action around the plan."""
        return self.planner.std


class Planner(TensorDictModuleBase):  # type: ignore[misc]
    """The deterministic part of an `Actor`: stored inputs in, planned action and successors out."""

    def __init__(self, controller: Controller, std: float | Tensor, seed: int) -> None:
        super().__init__()
        mpc = controller.mpc
        if getattr(controller.model, "carry", "mean") == "sample":
            raise ValueError(
                "model: expected carry='mean', so that a stored decision can be made again, got carry='sample', which "
                "draws another belief each time: act by dcem.rl.policy(mpc, model)"
            )
        if mpc.decoder is None and has_choices(mpc.init):
            raise ValueError(
                "mpc: expected a controller of continuous actions, around which an actor draws, got one of choices, "
                f"init={type(mpc.init).__name__}(...): act by dcem.rl.policy(mpc)"
            )
        self.controller = controller
        self.std: Tensor
        self.noise: Tensor
        _hold_std(self, std, mpc.action_shape, controller.device)
        generator = torch.Generator("cpu").manual_seed(check_int("seed", seed))
        source = WhiteNoise() if mpc.noise is None else mpc.noise
        shape = (mpc.solver.num_samples, *mpc.latent_shape)
        options: Any = {"dtype": torch.float32, "device": generator.device, "generator": generator}
        draws = [source(shape, **options) for _ in range(mpc.num_iterations)]  # the same for a seed wherever it is
        dtype = torch.promote_types(controller.dtype, torch.float32)
        self.register_buffer("noise", torch.stack(draws).to(controller.device, dtype))
        self.storage = Storage(controller, self.noise)
        self.in_keys = self.storage.in_keys
        self.out_keys = ["loc", "scale", *map(after, self.storage.decided)]

    @dispatch  # type: ignore[untyped-decorator]
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write `loc`, `scale`, and under `"next"` what the next decision needs."""
        observation, memory = self.storage.read(tensordict, self.controller, self.noise)
        batch = memory.started.shape
        self._check_draws()
        std = self.std.abs()
        check_positive("std", std)  # one that is learned may have become NaN
        noise = self.noise.reshape(len(self.noise), *(1,) * len(batch), *self.noise.shape[1:])
        noise = noise.expand(len(noise), *batch, *self.noise.shape[1:])
        decide = partial(self.controller, observation, memory, noise=noise)
        # Prune draws, too, for the gradient alone.
        may_draw = isinstance(self.controller.mpc.gradient, Prune) and torch.is_grad_enabled()
        decision = decide() if may_draw else made_again(decide, observation)
        tensordict.set("loc", decision.action)
        tensordict.set("scale", std.to(decision.action).expand(decision.action.shape))
        self.storage.write(tensordict, decision.memory)
        return tensordict

    def distribution(self, loc: Tensor, scale: Tensor) -> TruncatedNormal:
        """Of the action around the planned one, within the bounds that the controller has now."""
        return TruncatedNormal(loc, scale, *self.controller.bounds(loc), len(self.controller.mpc.action_shape))

    def _check_draws(self) -> None:
        """The draws are those of the search as it was: they are stored, so that its decisions can be made again."""
        mpc = self.controller.mpc
        expected = (mpc.num_iterations, mpc.solver.num_samples)
        if tuple(self.noise.shape[:2]) != expected:
            raise ValueError(
                "mpc: expected num_iterations and num_samples to stay as the actor was made with, "
                f"{tuple(self.noise.shape[:2])}, got {expected}: make another actor"
            )

    def action_spec(self) -> TensorSpec:
        """What actions there are."""
        shape = torch.Size(self.controller.mpc.action_shape)
        low, high = self.controller.bounds(self.noise)
        if not bool((low.isfinite() & high.isfinite()).all()):
            return Unbounded(shape)
        return Bounded(low, high, shape)


add_random_module(Planner)  # its proposals draw, which a loss that maps over networks has to allow


class Observer(TensorDictModuleBase):  # type: ignore[misc]
    """The state that a controller plans from, `(*batch, n)`, as a constant: it has no parameters of its own."""

    def __init__(self, planner: Planner) -> None:
        super().__init__()
        self.__dict__["planner"] = planner
        storage = planner.storage
        read = [OBSERVATION, STARTED, ACTION, *storage.belief_keys]
        self.in_keys = read if planner.controller.model is not None else [OBSERVATION]
        self.out_keys = ["state"]

    @dispatch  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write `"state"`."""
        planner = self.__dict__["planner"]
        memory = planner.storage.read(tensordict.select(*self.in_keys, strict=False), planner.controller, planner.noise)
        state = leaves(planner.controller.state(*memory))
        batch_dims = memory[1].started.dim()
        return tensordict.set("state", torch.cat([leaf.flatten(batch_dims) for leaf in state], -1))


def as_stored(loc: Tensor, stored: Tensor, scale: Tensor) -> Tensor:
    """A planned action, as it was stored where the two differ by rounding only; the gradient is that of `loc`.

    A search enlarges rounding, which depends on the size of a batch, some hundred times, and a small `std` enlarges
    it again in the probability of an action: the probabilities of equal weights would not be equal. By a hundredth of
    `scale` and more the plan counts as moved, however coarse the precision and large the action.
    """
    rounding = 1000 * torch.finfo(loc.dtype).eps * (stored.abs() + scale)
    tolerance = torch.minimum(rounding, 0.01 * scale)
    same = (loc.detach() - stored).abs() <= tolerance
    return torch.where(same, stored + (loc - loc.detach()), loc)


def _hold_std(module: nn.Module, std: float | Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    if not isinstance(std, Tensor):
        check_number("std", std)
    exact: Any = {"dtype": torch.float64, "device": "cpu"}  # in any precision
    tensor = std if isinstance(std, Tensor) else torch.tensor(float(std), **exact)
    value = tensor.detach().abs() if isinstance(std, nn.Parameter) else tensor
    if not bool(((value > 0) & value.isfinite()).all()):
        raise ValueError(f"std: expected finite numbers > 0, got {std}")
    try:
        tensor.expand(shape)
    except RuntimeError:
        came = tuple(tensor.shape)
        raise ValueError(f"std: expected a shape that broadcasts to the action {shape}, got {came}") from None
    if isinstance(std, nn.Parameter):
        module.register_parameter("std", std)
    else:
        module.register_buffer("std", tensor if isinstance(std, Tensor) else tensor.to(device))
