"""The optimal-control problem that a controller solves: what a sequence of actions costs from a state."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dcem._check import magnitude
from dcem._eager import is_eager, is_unchecked, may_look, widest
from dcem._given import came
from dcem._guard import beside
from dcem._no_gradient import depend, refuse_simulated
from dcem._replay import forgotten, randomness, replayed
from dcem._tree import leaves, map_tensors
from dcem._unchanged import Versions
from dcem.control.rollout import Dynamics, Path, any_beyond, follow, follow_until, knows_time

_ROUNDING = 1e-4  # by which a probability may be outside of [0, 1]


class Outcome(NamedTuple):
    """What came of `n` action sequences: total costs and worst violations `(*batch, n)`; the path, of states
    `([P,] *batch, n, *s)`; and those of its states in which there was an action, with time as the first axis.
    """

    cost: Tensor
    violation: Tensor
    path: Path
    visited: Any


@dataclass(frozen=True, eq=False)
class Problem:
    """Total cost `Σ_t γ^t Π_{s<=t} p(x_s) C(x_t, u_t) + γ^H Π_{s<=H} p(x_s) C_T(x_H) + ...` of action sequences;
    the fields are `MPC`'s arguments, but for `simulates`: whether states depend on actions and autograd does not see
    it, once that has been found out in a solve.

    What cannot be followed to its end costs NaN: a sequence with an action, a cost or a state `x_1 ... x_H` that is
    not finite, as long as the episode goes on, whether or not the cost looks at it; and one that a simulator has lost,
    whatever `continues` says of its states: a comparison with NaN is false.
    """

    dynamics: Dynamics
    cost: Callable[..., Tensor]
    terminal_cost: Callable[[Any], Tensor] | None
    discount: float
    continues: Callable[[Any], Tensor] | None
    action_rate_cost: Tensor | None
    constraint: Callable[[Any], Tensor] | None
    constraint_weight: float | Tensor
    num_particles: int
    risk: Callable[[Tensor], Tensor]
    action_dims: int
    simulates: list[bool] = field(default_factory=list)

    def costs(
        self,
        state: Any,
        actions: Tensor,
        previous: Tensor | None,
        chunk_size: int | None,
        generator: torch.Generator | None = None,
        note: Callable[[Tensor, Outcome], None] | None = None,
    ) -> Tensor:
        """The total cost of `actions` `(*batch, n, H, *a)` from `state` `(*batch, *s)`: `(*batch, n)`.

        `previous` is the action before the first, `(*batch, *a)`, NaN where there was none. Beyond `chunk_size`
        sequences are followed in chunks, each once more in the backward pass, so that memory stays that of one; torch's
        randomness and that of `generator` are replayed. `note` is told what came of them.
        """
        sample_dim = actions.dim() - self.action_dims - 2

        def chunk_costs(chunk: Tensor) -> Tensor:
            outcome = self.outcome(state, chunk, previous, generator)
            if note is not None:
                note(chunk, outcome)
            return outcome.cost

        if chunk_size is None or actions.shape[sample_dim] <= chunk_size:
            return chunk_costs(actions)

        def kept(chunk: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                return chunk_costs(chunk)
            costs: Tensor = forgotten(chunk_costs, chunk, values_of=lambda costs: costs, generator=generator)
            return costs

        return torch.cat([kept(chunk) for chunk in torch.split(actions, chunk_size, sample_dim)], -1)

    def outcome(
        self, state: Any, actions: Tensor, previous: Tensor | None, generator: torch.Generator | None = None
    ) -> Outcome:
        """Follow `n` sequences and add up what they cost; what comes after the end of an episode has no gradient.

        Weight 0 is not enough for that: a slope after the end may be NaN, and `0 * NaN` is NaN, in every parameter.
        Where an episode ends, all is done a second time, with stand-ins after the end and with the same randomness.
        """
        batch_dims = actions.dim() - self.action_dims - 2
        num = actions.shape[batch_dims]
        lead = (*actions.shape[:batch_dims], num)  # (*batch, n)
        particles = () if self.num_particles == 1 else (self.num_particles,)
        controls = actions.movedim(batch_dims + 1, 0).contiguous()  # (H, *batch, n, *a)
        horizon, action = controls.shape[0], controls.shape[1 + len(lead) :]
        followed = controls
        if particles:
            followed = controls.unsqueeze(1).expand(horizon, *particles, *lead, *action)

        def spread(leaf: Tensor) -> Tensor:  # cloned: whatever the dynamics do, the caller's state stays as it is
            return leaf.unsqueeze(batch_dims).expand(*particles, *lead, *leaf.shape[batch_dims:]).clone()

        start = map_tensors(spread, state)
        # The actions are copied where NumPy can write to their memory: torch counts writes of its own only.
        given = followed.clone() if followed.is_cpu and is_eager() else followed
        guards = self.continues is not None and torch.is_grad_enabled() and not is_unchecked()
        put_back = randomness(controls.device, generator) if guards and is_eager() else None
        path = follow(self.dynamics, start, given, len(particles) + len(lead), generator)
        outcome, ended = self._judged(path, controls, followed, previous, None)
        if self._is_simulated(path, start, given, generator):
            cost, violation = (refuse_simulated(of, given) if of.requires_grad else of for of in outcome[:2])
            return outcome._replace(cost=cost, violation=violation)
        if not guards or ended is None or not _ends_with_gradient(ended, outcome):
            return outcome
        with nullcontext() if put_back is None else replayed(put_back, controls.device, generator):
            alive, until = follow_until(self.dynamics, start, given, ended, path, generator)
            again, _ = self._judged(alive, controls, until, previous, ended)
        cost = torch.where(outcome.cost.isnan(), torch.nan, again.cost)  # of what was lost, too
        whole = path.until(ended, alive)
        return Outcome(cost, again.violation, whole, whole.states(0, horizon))

    def _is_simulated(self, path: Path, start: Any, actions: Tensor, generator: torch.Generator | None) -> bool:
        """Whether `actions` carry a gradient that the states have lost.

        Dynamics may leave actions alone, as where a decision has no consequence but its cost. So where no state has a
        path to them, two other rollouts with the same randomness show whether the actions matter: once a solve.
        """
        if not torch.is_grad_enabled() or not actions.requires_grad or not may_look(actions):
            return False
        if not self.simulates:
            self.simulates.append(not depend(leaves(path.last()), actions) and self._moves(start, actions, generator))
        return self.simulates[0]

    @torch.no_grad()
    def _moves(self, start: Any, actions: Tensor, generator: torch.Generator | None) -> bool:
        """Whether other actions lead elsewhere: those of the next candidate; of one alone others, in another order."""
        dims = actions.dim() - self.action_dims - 1
        each = actions.detach().flatten(1, dims) if dims else actions.detach().unsqueeze(1)
        others = each.roll(1, 1) if each.shape[1] > 1 else torch.where(each == 0, 1e-3, 0.5 * each).flip(0)
        put_back, ends = randomness(actions.device, generator), []
        for given in (each, others):
            path = follow(self.dynamics, start, given.reshape(actions.shape).clone(), dims, generator)
            ends.append(leaves(path.states(1, None)))
            put_back()
        numbers = [(x != y) & ~x.isnan() & ~y.isnan() for x, y in zip(*ends, strict=True)]  # a lost one shows nothing
        return any(bool(differ.any()) for differ in numbers)

    def _judged(
        self, path: Path, controls: Tensor, followed: Tensor, previous: Tensor | None, ended: Tensor | None
    ) -> tuple[Outcome, Tensor | None]:
        """What a path costs, and when its episodes have ended, as in `_weights`; `ended` if that is known."""
        horizon, particles = controls.shape[0], self.num_particles > 1
        shape = tuple(followed.shape[1 : followed.dim() - self.action_dims])  # ([P,] *batch, n)
        states, last = path.states(0, horizon), path.last()
        time = {"t": torch.arange(horizon, device=controls.device)} if knows_time(self.cost) else {}
        costs = _floating("cost", unchanging("cost", self.cost, states, followed, **time), (horizon, *shape))
        weights, ended = self._weights(path, horizon, shape, costs, ended)
        total = _charged(costs, weights, ended, slice(horizon)).sum(0)
        if self.terminal_cost is not None:
            at_end = _floating("terminal_cost", unchanging("terminal_cost", self.terminal_cost, last), shape)
            total = total + _charged(at_end, weights, ended, horizon)
        violation = total.new_zeros(shape[particles:])
        if self.constraint is not None:
            excess = self._excess(path.states(1, None), (horizon, *shape))  # (H, [P,] *batch, n, m)
            charged = _charged(excess, weights, ended, slice(1, None))
            excess = _charged(excess, None, ended, slice(1, None))  # as it is, until the end
            total = total + magnitude(self.constraint_weight) * charged.sum((0, -1))
            violation = excess.amax((0, 1, -1) if particles else (0, -1))
        if path.lost is not None or not (_all_finite(states) and _all_finite(last) and _all_finite(controls)):
            total = torch.where(self._failed(path, controls, ended, len(shape)), torch.nan, total)
        if particles:
            total = _floating("risk", self.risk(total), shape[1:])
        if self.action_rate_cost is not None:
            total = total + self._rate(controls, previous)
        return Outcome(total, violation, path, states), ended

    @torch.no_grad()
    def _failed(self, path: Path, controls: Tensor, ended: Tensor | None, dims: int) -> Tensor:
        """Which sequences meet, before their episode ends, what is not finite: `([P,] *batch, n)`.

        A number of the state that was not finite to begin with, such as a deadline at infinity, may stay so. A state
        that ends the episode may be infinite, but not NaN: of that comparisons are false, and say nothing.
        """
        lost: Any = any_beyond(~controls.isfinite(), dims - (self.num_particles > 1) + 1).any(0)
        for before, after in zip(leaves(path.states(0, 1)), leaves(path.states(1, None)), strict=True):
            new = any_beyond(~after.isfinite() & before.isfinite(), dims + 1)
            if ended is not None:
                unknown = any_beyond(after.isnan() & before.isfinite(), dims + 1)
                new = torch.where(ended[1:], unknown & ~ended[:-1], new)
            lost = lost | new.any(0)
        return lost if path.lost is None else lost | path.lost

    def _weights(
        self, path: Path, horizon: int, shape: tuple[int, ...], like: Tensor, ended: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """`γ^t Π_{s<=t} p(x_s)`, how much step `t` counts, None where all do; and whether the episode has ended at step
        `t`, None where none does: `(H + 1, [P,] *batch, n)`.

        A weight may be too small for its dtype though the episode goes on. It has ended where a probability is 0.
        """
        if self.continues is None and self.discount == 1:
            return None, None
        steps = torch.arange(horizon + 1, dtype=widest(like.device), device=like.device)
        weights = (self.discount**steps).to(like.dtype).reshape(horizon + 1, *(1,) * len(shape))
        if self.continues is None:
            return weights.expand(horizon + 1, *shape), None
        alive = unchanging("continues", self.continues, path.states(1, None))
        alive = _shaped("continues", alive, (horizon, *shape))
        if is_eager() and alive.is_cpu and bool(((alive < -_ROUNDING) | (alive > 1 + _ROUNDING)).any()):
            low, high = alive.detach().aminmax()
            raise ValueError(f"continues: expected probabilities in [0, 1], got numbers from {low:.4g} to {high:.4g}")
        if ended is None:
            zero = torch.cat([torch.zeros_like(alive[:1], dtype=torch.bool), alive == 0])
            ended = zero.cumsum(0) > 0
        alive = torch.where(ended[1:], 0.0, alive)  # whatever it would be, even NaN
        return weights * torch.cat([torch.ones_like(alive[:1]), alive.cumprod(0)]), ended

    def _excess(self, states: Any, shape: tuple[int, ...]) -> Tensor:
        """`max(g, 0)`, with an axis for the constraints."""
        assert self.constraint is not None
        value = unchanging("constraint", self.constraint, states)
        if not isinstance(value, Tensor) or tuple(value.shape[: len(shape)]) != shape or value.dim() > len(shape) + 1:
            raise ValueError(f"constraint: expected values (...,) = {shape} or (..., m), got {came(value)}")
        return (value if value.dim() > len(shape) else value.unsqueeze(-1)).relu()

    def _rate(self, controls: Tensor, previous: Tensor | None) -> Tensor:
        """`Σ_t |u_t - u_{t-1}|²` in the weights of the actions: `(*batch, n)`."""
        assert self.action_rate_cost is not None
        change = controls[1:] - controls[:-1]
        if previous is not None:
            before = previous.unsqueeze(previous.dim() - self.action_dims)
            first = controls[:1] - torch.where(before.isnan(), controls[0], before)
            change = torch.cat([first, change])
        squares = self.action_rate_cost.to(change) * change.square()
        return (squares.flatten(squares.dim() - self.action_dims).sum(-1) if self.action_dims else squares).sum(0)


def _charged(costs: Tensor, weights: Tensor | None, ended: Tensor | None, steps: int | slice) -> Tensor:
    """Costs of some steps as far as they count: after the end nothing does, whatever it would cost."""
    if ended is not None:
        costs = torch.where(beside(ended[steps], costs), 0.0, costs)
    return costs if weights is None else costs * beside(weights[steps], costs)


def _ends_with_gradient(ended: Tensor, outcome: Outcome) -> bool:
    """Whether an episode ends and what came of it has a gradient, as far as that can be known."""
    results = [outcome.cost, outcome.violation, *leaves(outcome.path.last())]
    return not may_look(ended) or (any(leaf.requires_grad for leaf in results) and bool(ended.any()))


def _all_finite(tree: Any) -> bool:
    """Whether every number of a tree is finite, where that can be known at little cost; otherwise False."""
    return is_eager() and all(
        not leaf.is_floating_point() or (leaf.is_cpu and math.isfinite(leaf.detach().sum())) for leaf in leaves(tree)
    )


def unchanging(name: str, fn: Callable[..., Any], *given: Any, **options: Any) -> Any:
    """What a function of the user's says, which is to leave what it is given as it is."""
    noted = Versions(*given)
    value = fn(*given, **options)
    if noted.changed():
        raise ValueError(f"{name}: expected to leave states and actions as they are, got them changed in place")
    return value


def _floating(name: str, values: Any, expected: tuple[int, ...]) -> Tensor:
    values = _shaped(name, values, expected)
    if not values.is_floating_point():
        raise TypeError(f"{name}: expected floating-point values, got {values.dtype}")
    return values


def _shaped(name: str, values: Any, expected: tuple[int, ...]) -> Tensor:
    if not isinstance(values, Tensor) or tuple(values.shape) != expected:
        raise ValueError(
            f"{name}: expected values of the leading axes {expected} (time first where there is one, then particles, "
            f"batch, candidates), got {came(values, expected)}"
        )
    return values
