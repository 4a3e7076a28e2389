"""Model-predictive control by sampling, differentiable in the model."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dcem._check import Fixed, as_shape, check_flag
from dcem._eager import all_true, is_eager, may_have_gradient
from dcem._evaluate import hides_axis
from dcem._guard import Cut, Reports, WithData, Work, guarded, marked
from dcem._latent import decoded
from dcem._setup import NoiseSource
from dcem._tree import leaves, map_tensors
from dcem.bounds import Bounds, BoundsLike
from dcem.control.answer import Followed, Seen, batch_first, chosen
from dcem.control.delay import arrived
from dcem.control.initial import asked, proposed, warm
from dcem.control.plan import Plan, WarmStart
from dcem.control.problem import Problem
from dcem.control.rollout import Dynamics, batch_of, takes
from dcem.control.settings import EVENT, START, checked
from dcem.distributions import Distribution
from dcem.distributions.product import has_choices
from dcem.gradients import GradientMode, Implicit
from dcem.layer import Argmin, broadcastable
from dcem.loop import Shard
from dcem.solution import Status
from dcem.solvers import SamplingSolver, Solver


class MPC(Argmin):
    """Choose actions by planning: minimise `Σ_t C(x_t, u_t)` over a horizon, subject to `x_{t+1} = f(x_t, u_t)`.

    Applied in closed loop, the first action of each plan is executed and the next solve starts from the plan shifted
    in time. The plan is differentiable in whatever dynamics, cost, terminal cost and decoder depend on, and in the
    solver's tensors, as `gradient` says: all that are modules are registered, so `mpc.parameters()` trains them.
    A method of a module, such as `imagine` of a [`dcem.world.WorldModel`][], does not register the module: train,
    move and save that by itself.

    Args:
        dynamics: `f(state, action) -> next_state` on any leading axes, deterministic or stochastic; state may be a
            tree of tensors. Called with states `(*batch, N, *s)` and actions `(*batch, N, *a)`. One with a method
            `rollout(state, actions) -> states` is asked for whole sequences (see [`dcem.control.rollout`][]). One
            with a keyword `t` is told the step of the plan, `0 ... H - 1`; with `generator` it is given the plan's.
        cost: `C(state, action) -> (...,)` on any leading axes; called for all times at once, with time as the first
            axis: `(H, *batch, N, *s)`. One with a keyword `t` is given the steps of the plan, `(H,)`: a
            reference can be tracked without a clock in the state. What it looks up has the axis of time alone: weigh
            steps by `lambda x, u, t: torch.einsum("t,t...->t...", w[t], x.square().sum(-1))`.
        horizon: `H`, at least 1.
        action_shape: `a`; an int is `(int,)`.
        bounds: `(low, high)` of the actions, each None, a number, or a tensor, array or list that broadcasts to
            `(horizon, *a)`; or an environment's `action_space` itself, of shape `a`.
        solver: [`dcem.CEM`][] (the default, `CEM(100, 10, LML(1.0))`), [`dcem.MPPI`][], ...
        num_iterations: of the solver, a plan.
        gradient: how a plan is differentiated, [`dcem.Unroll`][] by default.
        decoder: plan over a latent `z`: maps `(*batch, N, *latent)` to `(*batch, N, horizon, *a)`. A learned one
            makes long plans small; [`dcem.embedding.SplineDecoder`][] plans over knots. One with a keyword `state`
            is given the states that the plans start from, `(*batch, N, *s)`: what is worth searching depends on it.
        latent_shape: shape of `z`; the decoder's own `latent_shape` by default.
        latent_bounds: bounds of `z`.
        terminal_cost: `(state) -> (...,)`, of the last state.
        discount: `γ` in `(0, 1]`: what step `t` costs, and violates, counts `γ^t`, the terminal cost `γ^H`.
        continues: `p(state) -> (...,)` in `[0, 1]`, the probability that the episode goes on in a state that has
            been reached: step `t` then counts `Π_{s=1..t} p(x_s)` as well. After the end (`p = 0`) nothing costs or
            has a gradient. The first state is taken to be alive. The action rate is charged in full.
        proposals: `(state, horizon, num) -> (*batch, num, horizon, *a)`: action sequences from outside, of a policy
            or a library of motions, that take part in every selection beside the samples. They are constants: no
            gradient flows into them. With a decoder, its `encode` turns them into latents.
            A function with a keyword `generator` is given the plan's.
        num_proposals: how many of them to ask for.
        action_rate_cost: weight of `Σ_t |u_t - u_{t-1}|²`, a number or a tensor that broadcasts to `a`; the action
            before the first is that of the warm start's plan, if there is one.
        constraint: `g(state) -> (...,)` or `(..., m)`, of which every entry should be at most 0 in the states
            `x_1 ... x_H`; each is charged `constraint_weight * max(g, 0)`.
        constraint_weight: the price of violation; large enough, the penalty is exact. Of a parameter the magnitude
            counts.
        num_particles: `P`; above 1 every candidate is rolled out `P` times, states and actions having a first axis
            `P`: for stochastic dynamics, or an ensemble with a member a particle.
        risk: what the costs of the particles count as: `Mean`, `WorstCase`, `CVaR`, or any
            callable `(P, ...) -> (...)`.
        noise: a source of candidates' noise, such as `ColoredNoise(dim=-2)` for sequences that vary smoothly. Its
            `dim` is the axis of time among those of `(horizon, *a)`: `-2` for actions that are vectors, `-1`
            for numbers (an `action_shape` of `()`); with a decoder an axis of the latent.
        init_mean: where the first search starts: a number, or a tensor that broadcasts to `(horizon, *a)` (to
            `latent` with a decoder).
        init_std: how wide every search starts, likewise; None for the solver's `init_std`. Choose it about as
            large as the actions are: half the width of their bounds, say.
        init: what every search starts from, instead of a Gaussian of `init_mean` and `init_std`: a distribution
            of one problem over `(horizon, *a)` (`latent` with a decoder). A [`dcem.Categorical`][] for discrete
            actions, a [`dcem.Product`][] for mixed ones, for which `answer="best"` returns a choice. It is moved
            to a warm start by [`dcem.Distribution.around`][].
        answer: which actions to return: the `"mean"` of the final distribution, the `"best"` sample of the whole
            solve, or the best of the `"last"` iteration.
        chunk_size: evaluate so many candidates at a time, in the backward pass again: memory is that of a chunk.
        state_dims: how many trailing axes of the state are one state: an int, or a tree of ints like the state.
        shard: divide each plan's search among processes: `dcem.distributed.Samples()` or `Problems()`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of its range or of the wrong shape; in a call, dynamics, cost, decoder or warm
            start have the wrong shape, or what [`dcem.minimize`][] raises.

    A candidate with an action, a cost or a state `x_1 ... x_H` that is not finite is a failed sample and never
    chosen, whatever the cost looks at. If that holds for the plan itself (the mean of good candidates need not be one),
    its cost is not finite and its status `NONFINITE`. The warm start is a constant: gradients do not flow from one
    solve into the one before, and a problem in which it is not finite starts afresh.

    Settings may be changed at any time, and hold from the next plan on; `horizon`, `action_shape` and
    `latent_shape` may not.

    Example:
        >>> import torch, dcem
        >>> speed = torch.tensor(0.1, requires_grad=True)
        >>> mpc = MPC(lambda x, u: x + speed * u, lambda x, u: x.square().sum(-1) + 0.1 * u.square().sum(-1),
        ...           horizon=10, action_shape=1, bounds=(-1.0, 1.0))
        >>> plan = mpc(torch.tensor([[1.0], [-2.0]]), generator=torch.Generator().manual_seed(0))
        >>> plan.actions.shape, plan.states.shape, plan.cost.shape
        (torch.Size([2, 10, 1]), torch.Size([2, 11, 1]), torch.Size([2]))
        >>> plan.cost.sum().backward()
        >>> bool(speed.grad < 0)  # faster is cheaper
        True
        >>> again = mpc(plan.states[:, 1].detach(), warm_start=plan, reset=torch.tensor([False, True]))

    Source: Amos & Yarats, ICML 2020, section 4.3; warm start and smooth candidates as in Pinneri et al., "Sample-
    efficient cross-entropy method for real-time planning", 2020.
    """

    horizon = Fixed[int]()
    action_shape = Fixed[tuple[int, ...]]()
    _event_name = EVENT

    def __init__(
        self,
        dynamics: Dynamics,
        cost: Callable[..., Tensor],
        horizon: int,
        action_shape: int | Sequence[int],
        bounds: BoundsLike | None = None,
        solver: Solver | None = None,
        *,
        num_iterations: int = 10,
        gradient: GradientMode | None = None,
        decoder: Callable[[Tensor], Tensor] | None = None,
        latent_shape: int | Sequence[int] | None = None,
        latent_bounds: BoundsLike | None = None,
        terminal_cost: Callable[[Any], Tensor] | None = None,
        discount: float = 1.0,
        continues: Callable[[Any], Tensor] | None = None,
        proposals: Callable[[Any, int, int], Tensor] | None = None,
        num_proposals: int = 16,
        action_rate_cost: float | Tensor = 0.0,
        constraint: Callable[[Any], Tensor] | None = None,
        constraint_weight: float | Tensor = 1000.0,
        num_particles: int = 1,
        risk: Callable[[Tensor], Tensor] | None = None,
        noise: NoiseSource | None = None,
        init_mean: float | Tensor = 0.0,
        init_std: float | Tensor | None = None,
        init: Distribution | None = None,
        answer: str = "mean",
        chunk_size: int | None = None,
        state_dims: Any = 1,
        shard: Shard | None = None,
    ) -> None:
        self.horizon, self.action_shape = horizon, as_shape("action_shape", action_shape)
        if callable(decoder) and latent_shape is None and not hasattr(decoder, "latent_shape"):
            raise ValueError("latent_shape: expected the shape of the decoder's latent, which it does not say itself")
        super().__init__(
            self.actions_shape,
            solver,
            num_iterations=num_iterations,
            gradient=gradient,
            init=(init_mean, init_std),
            decoder=decoder,
            latent_shape=latent_shape,
            shard=shard,
        )
        self.dynamics, self.cost = dynamics, cost
        self.terminal_cost, self.constraint, self.constraint_weight = terminal_cost, constraint, constraint_weight
        self.discount, self.continues = discount, continues
        self.proposals, self.num_proposals = proposals, num_proposals
        self.risk: Callable[[Tensor], Tensor] = risk  # type: ignore[assignment]  # None becomes the mean
        self.bounds, self.latent_bounds = bounds, latent_bounds
        self.num_particles, self.noise, self.answer = num_particles, noise, answer
        self.chunk_size, self.state_dims = chunk_size, state_dims
        self.action_rate_cost: Tensor
        rate = broadcastable("action_rate_cost", action_rate_cost, *self._start_shape("action_rate_cost"))
        self._hold("action_rate_cost", checked(self, "action_rate_cost", rate))
        if init is not None:
            self.init = init

    @property
    def init(self) -> Distribution | None:
        """What every search starts from, with its tensors as they are now: learned, loaded or moved."""
        return self._held_family()

    @init.setter
    def init(self, init: Distribution | None) -> None:
        if init is not None or self._family is not None:  # None says nothing to a mean that was never replaced
            self._hold_start((0.0, None) if init is None else init)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in START and (name in self._buffers or name in self._parameters):
            value = None if value is None else broadcastable(name, value, *self._start_shape(name))
        super().__setattr__(name, checked(self, name, value))

    @property
    def actions_shape(self) -> tuple[int, ...]:
        """`(horizon, *a)`, the shape of a plan's actions."""
        return (self.horizon, *self.action_shape)

    def extra_repr(self) -> str:
        """What is planned, and how."""
        shown = {name: getattr(self, name) for name in ("horizon", "action_shape", "bounds", "solver")}
        shown |= {name: getattr(self, name) for name in ("num_iterations", "gradient", "answer")}
        if self.num_particles > 1:
            shown |= {"num_particles": self.num_particles, "risk": self.risk}
        functions = ("dynamics", "cost", "terminal_cost", "constraint", "continues", "proposals", "decoder", "noise")
        shown |= {name: fn for name in functions if (fn := self.__dict__.get(name)) is not None}
        return ",\n".join(
            f"{name}={getattr(value, '__qualname__', None) or repr(value)}" for name, value in shown.items()
        )

    def forward(  # type: ignore[override]  # a layer whose objective is its own
        self,
        state: Any,
        *,
        warm_start: Plan | WarmStart | None = None,
        reset: Any = None,
        sent: Tensor | None = None,
        num_iterations: int | None = None,
        gradient: GradientMode | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        proposals: Tensor | None = None,
        record: bool = False,
        evaluate: bool = True,
    ) -> Plan:
        """Plan from `state`.

        Args:
            state: `(*batch, *s)`, or a tree of such tensors.
            warm_start: the plan of the step before, or its `warm_start` (the tensors alone), whose actions, shifted
                in time, are the first mean. With a decoder that has no `encode` its latent is the first mean as it
                is.
            reset: `(*batch,)`, booleans as a tensor or an array, or one for all: problems that start afresh in spite
                of `warm_start`. Where there is none, all do.
            sent: actions that have been sent and have not arrived yet, `(*batch, d, *a)`, the oldest first. The plan
                starts from the state that they lead to, by the model: it is one for a plant that acts `d` steps late.
                To dynamics with a keyword `t` they are steps `-d ... -1`.
            num_iterations: instead of the module's own, for this plan.
            gradient: likewise.
            generator: source of randomness, so that a plan can be replayed.
            noise: instead of drawing, `(T, *batch, N, horizon, *a)` (`*latent` with a decoder).
            proposals: instead of asking the module's `proposals`: action sequences `(*batch, M, horizon, *a)`.
            record: keep every iteration in `plan.solution.history`.
            evaluate: say where the plan leads. False saves a rollout, a third of a decision by one iteration: `states`
                are None, `cost` and `violation` NaN, and `NONFINITE` is a failed solve or actions that are not finite.
        """
        evaluate, record = check_flag("evaluate", evaluate), check_flag("record", record)
        batch = batch_of(state, self.state_dims)
        if sent is not None:
            state = arrived(self.dynamics, state, sent, batch, self.action_shape, self.num_particles, generator)
        gradient = self.gradient if gradient is None else gradient
        if self.answer != "mean" and isinstance(gradient, Implicit) and torch.is_grad_enabled():
            raise ValueError(f"answer: Implicit differentiates the mean, not a sample; got answer={self.answer!r}")
        like = next((leaf for leaf in leaves(state) if leaf.is_floating_point()), torch.empty(()))
        fresh = self.initial(batch, like)
        mean = fresh.mean if isinstance(fresh, Distribution) else fresh
        mean, previous = warm(warm_start, reset, mean, batch, self.actions_shape, self.decoder)
        problem, box = self._problem(), Bounds.check(self.bounds, torch.Size(self.actions_shape), like)
        seen = Seen(len(batch)) if self._sees(like) else None

        def costs(z: Tensor, data: tuple[Any, Tensor | None], cut: Cut) -> Tensor:
            if seen is not None and self.answer == "last":
                seen.forget()
            actions, note = cut(self._actions(z, box, data[0])), None if seen is None else seen.note
            return problem.costs(data[0], actions, data[1], self.chunk_size, generator, note)

        solution = self.search(
            WithData(costs, (state, previous)),
            fresh.around(mean) if isinstance(fresh, Distribution) else mean,
            num_iterations=num_iterations,
            gradient=gradient,
            bounds=self.bounds if self.decoder is None else self.latent_bounds,
            generator=generator,
            noise=self.noise if noise is None else noise,
            proposals=self._proposed(state, proposals, batch, generator),
            record=record or self.answer != "mean",
        )

        def followed(z: Tensor, data: tuple[Any, Tensor | None]) -> Followed:
            actions = self._actions(z, box, data[0])
            if evaluate or hides_axis(batch, getattr(self.solver, "num_samples", 1)):  # a single candidate shows it
                cost, violation, path, _ = problem.outcome(data[0], actions, data[1], generator)
            if not evaluate:
                return Followed.not_at_all(actions, len(batch) + 1)
            states = path.states(0, None, len(batch) + particles)
            return Followed(actions, cost, violation, batch_first(states, len(batch), self.num_particles))

        def watched(z: Tensor, data: tuple[Any, Tensor | None], cut: Cut) -> Any:
            return reports.watched(lambda z: followed(z, data), z, data, len(batch), cut, generator)

        particles = self.num_particles > 1
        reports = Reports(int(Status.NONFINITE), work := Work())

        def alone() -> Followed:
            z = chosen(self.answer, solution, len(self.latent_shape)).unsqueeze(len(batch))
            judge = operator.attrgetter("cost" if evaluate else "actions")
            found = guarded(watched, z, (state, previous), len(batch), judge=judge, generator=generator)
            # Copied: what a model or a decoder returned it may fill again in the next plan.
            return map_tensors(lambda leaf: leaf.squeeze(len(batch)).clone(), found)

        answer = alone() if seen is None else seen.answer(alone, evaluate, generator)
        actions, cost, violation, states = answer
        reports.of_loss(cost if evaluate else actions, len(batch))
        finite = cost.isfinite() if evaluate else actions.isfinite().flatten(len(batch)).all(-1)
        reports.status = marked(solution.status, ~finite, int(Status.NONFINITE))
        return Plan(
            action=actions.select(len(batch), 0),
            actions=actions,
            states=map_tensors(lambda leaf: leaf.movedim(len(batch), 0), states) if particles else states,
            cost=cost,
            violation=violation,
            distribution=solution.distribution,
            status=reports.status,
            solution=solution,
        )._keeping(work)

    def decision(self, state: Any, before: tuple[Tensor, Tensor], *, noise: Tensor) -> tuple[Tensor, Tensor]:
        """What [`dcem.export`][] makes a program of: plan from `state` and from what this returned the time before.

        Returns:
            The actions `(*batch, H, *a)`, of which the first is to be applied, and the mean of the search,
            `(*batch, *latent)`. Where they are NaN, as they should be the first time, the search starts afresh.
        """
        return tuple(self.forward(state, warm_start=WarmStart(*before), noise=noise).warm_start)  # type: ignore[return-value]

    def _problem(self) -> Problem:
        rate = self.action_rate_cost if self._charges_rate() else None
        if rate is not None:  # which may have been learned, loaded or filled
            checked(self, "action_rate_cost", rate)
        return Problem(
            self.dynamics, self.cost, self.terminal_cost, self.discount, self.continues, rate, self.constraint,
            self.constraint_weight, self.num_particles, self.risk, len(self.action_shape),
            [False] if has_choices(self._family) else [],  # of a choice states are steps: there is no gradient to lose
        )  # fmt: skip

    def _actions(self, z: Tensor, box: Bounds | None, state: Any) -> Tensor:
        """The action sequences `(*batch, N, horizon, *a)` of candidates, inside the bounds."""
        if self.decoder is None:
            return z  # which the solver keeps inside
        seen = {}
        if takes(self.decoder, "state", 1):
            sample_dim = z.dim() - len(self.latent_shape) - 1

            def for_each(leaf: Tensor) -> Tensor:
                leaf = leaf.unsqueeze(sample_dim)
                return leaf.expand(*leaf.shape[:sample_dim], z.shape[sample_dim], *leaf.shape[sample_dim + 1 :])

            seen = {"state": map_tensors(for_each, state)}
        actions = decoded(
            self.decoder, z, self.latent_shape, self.actions_shape, "actions (*batch, N, horizon, *a)", **seen
        )
        return actions if box is None else box.clip(actions)

    def _proposed(
        self, state: Any, given: Tensor | None, batch: tuple[int, ...], generator: torch.Generator | None
    ) -> Tensor | None:
        """The candidates from outside, `(*batch, M, *latent)`, as constants."""
        if given is None and self.proposals is None:
            return None
        actions: Any = given
        if actions is None:
            assert self.proposals is not None
            actions = asked(self.proposals, state, self.horizon, self.num_proposals, generator)
        number = "M" if given is not None else self.num_proposals
        return proposed(actions, (*batch, number, *self.actions_shape), self.decoder)

    def _sees(self, like: Tensor) -> bool:
        """Whether the search sees where its answer leads. The mean is no candidate; particles are drawn afresh."""
        sampled = self.answer != "mean" and type(self.solver).step is SamplingSolver.step and self.num_particles == 1
        return sampled and self.shard is None and like.is_cpu and is_eager() and not may_have_gradient()

    def _start_shape(self, name: str) -> tuple[tuple[int, ...], str]:
        """What a tensor of the start, or the weights of the action rate, broadcast to."""
        if name == "action_rate_cost":
            return self.action_shape, "the action"
        return self.latent_shape, EVENT if self.decoder is None else "the latent"

    def _charges_rate(self) -> bool:
        """Whether the action rate costs anything, now; True where that cannot be known at once."""
        weight = self.action_rate_cost
        return weight.requires_grad or not all_true(weight == 0)
