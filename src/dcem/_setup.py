"""A solve before it runs: what the user gave, checked and brought to one form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dcem._check import check_int
from dcem._eager import all_true, is_eager
from dcem._given import brief, came, kind
from dcem._tree import map_tensors
from dcem.bounds import Bounds, BoundsLike
from dcem.distributions import Distribution, WhiteNoise
from dcem.distributions.noise import check_noise_source
from dcem.solvers import SamplingSolver, Solver, Step
from dcem.solvers.base import SamplingState
from dcem.solvers.scores import coarse

NoiseSource = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class Setup:
    """What stays the same from one iteration to the next.

    Attributes:
        solver: what is iterated.
        start: its state before the first iteration.
        bounds: the box that candidates and means are kept in, or None.
        dtype: what the user's candidates and answers shall have; the solve itself has at least single precision.
        draw: from the number of an iteration to its standard normal draws `(*batch, num_samples, *event)`.
    """

    solver: Solver
    start: Any
    bounds: Bounds | None
    dtype: torch.dtype
    draw: Callable[[int], Tensor]

    @classmethod
    def of(
        cls,
        init: Distribution | Tensor,
        solver: Solver,
        *,
        num_iterations: int | None,
        event_dims: int,
        bounds: BoundsLike | None,
        generator: torch.Generator | None,
        noise: Tensor | NoiseSource | None,
        proposals: Tensor | None,
    ) -> Setup:
        """Check the arguments of [`dcem.minimize`][]; `num_iterations` is None where it is not known before."""
        if not isinstance(solver, Solver):
            raise TypeError(f"solver: expected a dcem solver such as dcem.CEM(), got {brief(solver)}")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator: expected a torch.Generator or None, got {brief(generator)}")
        distribution, dtype = _initial_distribution(init, solver, event_dims)
        batch_shape, event_shape, mean = distribution.batch_shape, distribution.event_shape, distribution.mean
        box = Bounds.check(bounds, event_shape, mean, dtype)
        shape = (*batch_shape, solver.num_samples, *event_shape)
        draw = _draws(noise, num_iterations, shape, event_shape, mean, generator)
        state = solver.init(distribution if box is None else distribution.clip(box).narrow(box))
        if proposals is not None:
            state = _with_proposals(state, proposals, solver)
        # Copies: what the user gave has a life beside it. Objectives write candidates into the weights that a search
        # starts from, and a solve looks at the slopes of its states.
        state = map_tensors(Tensor.clone, state)
        return cls(solver, state, box, dtype, draw)

    def clip(self, x: Tensor) -> Tensor:
        """Candidates brought inside the bounds."""
        return x if self.bounds is None else self.bounds.clip(x)

    def settle(self, step: Step, before: Any, returned: torch.dtype | None = None) -> Step:
        """A solver's step as it counts: its mean inside the bounds, and its state the one before where it failed.

        `returned` is the dtype of the values as they came, where that is not the solve's.
        """
        if returned is not None and isinstance(self.solver, SamplingSolver):
            step = step.without(coarse(step.values, returned))
        state = step.state
        if self.bounds is not None:
            state = state._replace(distribution=state.distribution.clip(self.bounds))
        if step.valid is not None and not all_true(step.valid):
            found = state
            state = where(step.valid, state, before)
            if isinstance(found, SamplingState):  # the best that failed iterations find gather, until there are enough
                state = state._replace(elites=found.elites)
        return step._replace(state=state)


def where(mask: Tensor, new: Any, old: Any) -> Any:
    """The new state for the problems of `mask` `(*batch,)`, the old one for the others."""

    def choose(after: Tensor, before: Tensor | None) -> Tensor:
        if before is None or before.shape != after.shape:  # elites, which there were none of
            return after
        return torch.where(mask.reshape(mask.shape + (1,) * (after.dim() - mask.dim())), after, before)

    return map_tensors(choose, new, old)


def _with_proposals(state: Any, proposals: object, solver: Solver) -> Any:
    """The first state with the candidates that take part in every iteration."""
    if not isinstance(solver, SamplingSolver):
        raise ValueError(f"proposals: expected None for a solver that selects among no samples, got {brief(solver)}")
    if not isinstance(proposals, Tensor) or not proposals.is_floating_point():
        came = proposals.dtype if isinstance(proposals, Tensor) else kind(proposals)
        raise TypeError(f"proposals: expected a floating-point Tensor (*batch, M, *event) or None, got {came}")
    distribution = state.distribution
    mean = distribution.mean.unsqueeze(distribution.sample_dim)
    dim = proposals.dim() + distribution.sample_dim
    shape = tuple(proposals.shape)
    if dim < 0 or (*shape[:dim], 1, *shape[dim + 1 :]) != tuple(mean.shape):
        raise ValueError(
            f"proposals: expected shape (*batch, M, *event) with batch {tuple(distribution.batch_shape)} and event "
            f"{tuple(distribution.event_shape)}, got {shape}"
        )
    given = proposals.to(mean)
    finite = given.isfinite().flatten(dim + 1).all(-1) if distribution.event_dims else given.isfinite()
    finite = finite.reshape(finite.shape + (1,) * distribution.event_dims)
    return state._replace(proposals=torch.where(finite, given, mean))


def _initial_distribution(
    init: Distribution | Tensor, solver: Solver, event_dims: int
) -> tuple[Distribution, torch.dtype]:
    """The first `g_φ` with at least single precision, and the dtype that candidates shall have."""
    if isinstance(init, Tensor):
        if not init.is_floating_point():
            raise TypeError(f"init: expected a floating-point tensor, got {init.dtype}")
        event_dims = check_int("event_dims", event_dims)
        if not 0 <= event_dims <= init.dim():
            raise ValueError(
                f"event_dims: expected an int from 0 to {init.dim()} for init of shape {tuple(init.shape)}, "
                f"got {event_dims!r}" + ("; to search for one number give event_dims=0" if init.dim() == 0 else "")
            )
        dtype = init.dtype
        distribution = solver.distribution(_single(init), event_dims)
    elif isinstance(init, Distribution):
        dtype = init.mean.dtype
        distribution = map_tensors(_single, init)
    else:
        raise TypeError(f"init: expected a Tensor of means or a dcem distribution, got {kind(init)}")
    mean = distribution.mean
    if mean.numel() == 0:
        raise ValueError(f"init: expected at least one element, got shape {tuple(mean.shape)}")
    if is_eager() and mean.device.type == "cpu":
        distribution.check()
    return distribution, dtype


def _single(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _draws(
    noise: Tensor | NoiseSource | None,
    num_iterations: int | None,
    shape: tuple[int, ...],
    event_shape: torch.Size,
    like: Tensor,
    generator: torch.Generator | None,
) -> Given | Drawn:
    """From the iteration's number to its standard normal draws."""
    if isinstance(noise, Tensor):
        expected = (num_iterations, *shape)
        if noise.dim() != len(expected) or any(expected[i] not in (None, n) for i, n in enumerate(noise.shape)):
            wanted = str(expected).replace("None", "T")
            raise ValueError(
                f"noise: expected (num_iterations, *batch, num_samples, *event) = {wanted}, got {tuple(noise.shape)}"
            )
        if not noise.is_floating_point():
            raise TypeError(f"noise: expected floating-point draws, got {noise.dtype}")
        return Given(noise.to(like))
    if noise is not None and not callable(noise):
        raise TypeError(f"noise: expected a Tensor, a noise source or None, got {brief(noise)}")
    source = WhiteNoise() if noise is None else noise
    check_noise_source(source, event_shape)
    return Drawn(source, shape, like.dtype, like.device, generator)


# No closures: a search that is copied or pickled takes its draws, and its generator, with it.


@dataclass(frozen=True, eq=False)
class Given:
    """The draws of all iterations, `(T, *batch, num_samples, *event)`."""

    noise: Tensor

    def __call__(self, t: int) -> Tensor:
        """Those of iteration `t`."""
        if t >= len(self.noise):
            raise ValueError(f"noise: expected draws for more than {t} iterations, got {len(self.noise)}")
        return self.noise[t]


@dataclass(frozen=True, eq=False)
class Drawn:
    """Draws that are made when they are asked for, in the order of the iterations."""

    source: NoiseSource
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    generator: torch.Generator | None

    def __call__(self, t: int) -> Tensor:
        """The next."""
        drawn: Any = self.source(self.shape, dtype=self.dtype, device=self.device, generator=self.generator)
        if not isinstance(drawn, Tensor) or tuple(drawn.shape) != self.shape:
            raise ValueError(f"noise: expected the source to return {self.shape}, got {came(drawn)}")
        if not drawn.is_floating_point():
            raise TypeError(f"noise: expected the source to return floating-point draws, got {drawn.dtype}")
        return drawn.to(self.device, self.dtype)
