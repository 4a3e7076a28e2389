"""A solve by ask and tell: the loop is the user's."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from dcem._eager import is_under_autocast
from dcem._evaluate import as_values
from dcem._given import brief, kind
from dcem._progress import Progress
from dcem._setup import NoiseSource, Setup
from dcem._tree import difference, map_tensors, plain, restored
from dcem.bounds import Bounds, BoundsLike
from dcem.distributions import Distribution
from dcem.solution import Solution
from dcem.solvers import CEM, Candidates, SamplingSolver, Solver

_DEFAULT_SOLVER = CEM()


class Search:
    """Minimise what only your own loop can evaluate: a simulator farm, a laboratory, a training run a candidate.

    `ask` gives candidates, `tell` takes their values, as often as you like; `solution` is the answer so far. It is
    the loop of `dcem.minimize` cut in two: for the same noise both find the same, bit for bit. Nothing is
    differentiated: values are taken as numbers, as with `gradient=dcem.Detach()`.

    Args:
        init: Where to start: a distribution, or a Tensor of means `(*batch, *event)`.
        solver: One that samples: `dcem.CEM` (the default, `CEM(100, 10, LML(1.0))`), `dcem.MPPI` or your own.
        event_dims: How many trailing axes of a Tensor `init` are one candidate; a distribution knows its own.
        bounds: `(low, high)`, each None, a number, or a tensor that broadcasts to `event`.
        generator: Source of randomness, which is saved with the search.
        noise: Instead of drawing: standard normal draws `(T, *batch, N, *event)`, for at most `T` iterations; or a
            source of them such as `dcem.ColoredNoise`.
        proposals: Candidates from outside, `(*batch, M, *event)`, that come beside the `N` samples in every iteration.

    Raises:
        TypeError: An argument is of the wrong type, or the solver is one that needs slopes, such as
            `dcem.GradientDescent`.
        ValueError: An argument has the wrong shape or range.

    >>> import dcem
    >>> search = dcem.Search(torch.zeros(2), dcem.CEM(50, 5, dcem.LML(0.1)), bounds=(-4.0, 4.0),
    ...                      generator=torch.Generator().manual_seed(0))
    >>> for _ in range(20):
    ...     x = search.ask()                                        # (50, 2)
    ...     search.tell(torch.stack([(each - 1.0).square().sum() for each in x]))
    >>> search.solution.x
    tensor([1.0000, 1.0000])

    Source: ask and tell, Collette et al., "On object-oriented programming of optimizers", 2010.
    """

    # No other attributes: bounds that were set later would be ignored.
    __slots__ = ("__weakref__", "_asked", "_generator", "_progress", "_setup", "_solver")

    def __init__(
        self,
        init: Distribution | Tensor,
        solver: Solver = _DEFAULT_SOLVER,
        *,
        event_dims: int = 1,
        bounds: BoundsLike | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | NoiseSource | None = None,
        proposals: Tensor | None = None,
    ) -> None:
        if not isinstance(solver, SamplingSolver):
            raise TypeError(f"solver: expected one that samples, such as dcem.CEM(), got {brief(solver)}")
        if type(solver).step is not SamplingSolver.step:
            raise TypeError(f"solver: expected one whose step is ask and tell, {type(solver).__name__} has its own")
        with torch.no_grad():
            # Copies: between its calls what the user gave may be written to.
            noise = noise.clone() if isinstance(noise, Tensor) else noise
            setup = Setup.of(
                init, solver, num_iterations=None, event_dims=event_dims, bounds=bounds, generator=generator,
                noise=noise, proposals=proposals,
            )  # fmt: skip
            self._setup = dataclasses.replace(setup, bounds=map_tensors(Tensor.clone, setup.bounds))
        self._solver, self._generator = solver, generator
        self._progress = Progress.start(self._setup)
        self._asked: Any = None

    def ask(self) -> Tensor:
        """The candidates `(*batch, N, *event)` to evaluate next; until they are told of, the same again."""
        if self._asked is None:
            before = None if self._generator is None else self._generator.get_state()
            try:
                noise = self._setup.draw(self._progress.iteration)
                self._asked = self._quietly(self._solver.ask, self._progress.state, noise, self._setup.clip)
            except BaseException:  # of a noise source, say: it is as if nobody had asked
                if self._generator is not None and before is not None:
                    self._generator.set_state(before)
                raise
        return self._asked.samples.to(self._setup.dtype, copy=True)

    def tell(self, values: Tensor) -> None:
        """Take the values `(*batch, N)` of the candidates last asked for. One that is not finite is a failed sample.

        Raises:
            RuntimeError: No candidates were asked for since the last call.
            TypeError: The values are no floating-point Tensor.
            ValueError: They are of another shape or on another device than the candidates.
        """
        if self._asked is None:
            raise RuntimeError("tell: expected ask() to be called before, got values of no candidates")
        state, samples = self._progress.state, self._asked.samples
        expected = (*self._progress.failed.shape, samples.shape[state.distribution.sample_dim])
        values = as_values("values", values, expected, samples)
        given = values.detach().to(samples.dtype, copy=True)
        step = self._quietly(self._solver.tell, state, self._asked, given, self._setup.clip)
        self._progress = self._progress.after(self._setup.settle(step, state, values.dtype))
        self._asked = None

    def __repr__(self) -> str:
        """How far it has come."""
        asked = "" if self._asked is None else ", candidates asked for"
        return f"Search({self._solver!r}: {self._progress.iteration} iterations{asked}; {self.solution!r})"

    @property
    def solution(self) -> Solution:
        """The answer so far, as `dcem.minimize` gives it, of its own numbers; its history is empty."""
        return copy.deepcopy(self._progress.solution(self._setup, self._progress.state.distribution.mean))

    def state_dict(self) -> dict[str, Any]:
        """All that changes, in plain containers: `torch.load(..., weights_only=True)` reads what was saved of it.

        With candidates that were asked for and not yet told of, and where the generator stands. What the search was
        made of (solver, noise, proposals) is not in it; its bounds are there to be compared.
        """
        generator = None if self._generator is None else self._generator.get_state()
        progress = self._progress._replace(best=self._progress.best.compared())
        saved = {"progress": plain(progress), "asked": plain(self._asked), "generator": generator}
        return {**saved, "bounds": list(self._sides())}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from where a search of the same arguments was saved.

        Raises:
            TypeError: `state_dict` is no mapping.
            ValueError: It was saved of another one: other shapes, another family, with or without a generator, with
                bounds that reach beyond those of this one. The search then stays as it was.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict: expected what state_dict() returned, got {type(state_dict).__name__}")
        if not state_dict.keys() >= {"progress", "asked", "generator"}:
            raise ValueError(f"state_dict: expected what state_dict() returned, got the keys {[*state_dict]}")
        generator = state_dict.get("generator")
        if (generator is None) != (self._generator is None):
            has, had = ("without" if one is None else "with" for one in (self._generator, generator))
            raise ValueError(
                f"state_dict: expected the state of a search {has} a generator, as this one is, got one {had}: make "
                f"this Search {had} generator= to go on from it"
            )
        progress = restored(Progress.start(self._setup), state_dict.get("progress"), "state_dict")
        mean = progress.state.distribution.mean  # elites, of which a new search has none, are of its dtype, too
        progress = progress._replace(state=map_tensors(lambda leaf: _like(leaf, mean), progress.state))
        asked = self._restored(state_dict.get("asked"), progress.state)
        self._check_bounds(state_dict.get("bounds"))
        if self._generator is not None:
            try:
                self._generator.set_state(generator.cpu())  # type: ignore[union-attr]
            except (AttributeError, TypeError, RuntimeError) as error:
                expected = "the state of a generator on the same kind of device"
                raise ValueError(f"state_dict: expected {expected}, got {kind(generator)}: {error}") from error
        self._progress, self._asked = progress, asked

    def _restored(self, asked: Any, state: Any) -> Candidates | None:
        """The candidates that were asked for, as they would be in this state."""
        mean = state.distribution.mean
        batch_dims = len(state.distribution.batch_shape)
        shape = (*mean.shape[:batch_dims], self._solver.num_samples, *mean.shape[batch_dims:])
        try:
            like = self._quietly(self._solver.ask, state, mean.new_zeros(shape), self._setup.clip)
        except RuntimeError as error:
            raise ValueError(f"state_dict: expected the state of a search by {self._solver}, got another's") from error
        if asked is None:
            return None
        candidates: Candidates = restored(like, asked, "state_dict.asked")
        return candidates

    def _sides(self) -> tuple[Tensor, Tensor]:
        """The bounds as two tensors like a candidate, infinite where they are open."""
        box, shape = self._setup.bounds or Bounds(), self._progress.state.distribution.event_shape
        low, high = (open_ if side is None else side for side, open_ in ((box.low, -torch.inf), (box.high, torch.inf)))
        both = [torch.as_tensor(side, dtype=torch.float64, device="cpu").expand(shape) for side in (low, high)]
        return both[0].detach().clone(), both[1].detach().clone()

    def _check_bounds(self, saved: Any) -> None:
        """A search that goes on inside narrower bounds would answer with what lies outside them."""
        if saved is None:  # by an earlier version
            return
        if (found := difference([*self._sides()], saved)) is not None:
            raise ValueError(f"state_dict.bounds: expected {found}")
        (low, high), (lowest, highest) = self._sides(), (side.cpu() for side in saved)
        rounding = 2 * max(torch.finfo(self._setup.dtype).eps, torch.finfo(torch.float32).eps)
        if (lowest < low - rounding * low.abs()).any() or (highest > high + rounding * high.abs()).any():
            raise ValueError(
                f"state_dict: expected the state of a search inside these bounds, in all {low.min():g} to "
                f"{high.max():g}, got one with bounds that reach beyond them, in all {lowest.min():g} to "
                f"{highest.max():g}; Search(solution.distribution, ...) goes on from its answer inside others"
            )

    def _quietly(self, call: Callable[..., Any], *given: Any) -> Any:
        """Without a gradient, and in the precision of the search whatever the caller's autocast says."""
        device = self._progress.failed.device.type
        full = torch.autocast(device, enabled=False) if is_under_autocast(device) else nullcontext()
        with torch.no_grad(), full:
            return call(*given)


def _like(leaf: Tensor, mean: Tensor) -> Tensor:
    return leaf.to(mean) if leaf.is_floating_point() else leaf.to(mean.device)
