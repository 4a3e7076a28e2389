"""The minimiser of an objective as a layer: a module that holds all that a solve needs but the objective."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dcem._check import Fixed, as_shape, check_count, check_number, check_std
from dcem._given import brief
from dcem._latent import behind, decoded, latent_shape_of
from dcem._tree import leaves, map_tensors, named_leaves
from dcem.bounds import Bounds, BoundsLike
from dcem.diagnosis import Diagnosis, Searched, diagnosed
from dcem.distributions import Distribution, Gaussian
from dcem.gradients import GradientMode, Unroll
from dcem.loop import Shard, minimize
from dcem.solution import Solution
from dcem.solvers import CEM, Solver


class Argmin(nn.Module):
    """Minimise whatever objective it is given, `x̂ = argmin_x f(x)`, in the same way: a layer to build models from.

    It holds the solver, where it starts, the bounds, how the answer is differentiated and, if the search is for a
    latent, the decoder. What of these, bounds apart, is an `nn.Parameter` or a module is the layer's own:
    `layer.parameters()` trains it, `layer.to(...)` moves it, `layer.state_dict()` saves it. `dcem.energy.EnergyModel`
    and `dcem.control.MPC` are such layers with an objective of their own.

    Args:
        event_shape: Shape of one candidate; an int is `(int,)`.
        solver: What minimises: `dcem.CEM(...)` (the default, `CEM(100, 10, LML(1.0))`), `dcem.GradientDescent(...)`.
        num_iterations: Of the solver, unless a call says otherwise.
        gradient: How the answer is differentiated, `dcem.Unroll()` by default.
        bounds: `(low, high)` of what is searched, each None, a number, or a tensor that broadcasts to `event`
            (to `latent` with a decoder).
        init: Where a search starts: a number or a tensor of means that broadcasts to `event` (or `latent`); a pair
            `(mean, std)` of such; or a distribution of one problem. A std of None is the solver's `init_std`. Of a std
            that is a parameter the magnitude counts, so that no optimiser can make it negative.
        decoder: Search a latent `z` in place of `x`: maps `(*batch, N, *latent)` to `(*batch, N, *event)`.
        latent_shape: Shape of `z`; by default the decoder's own `latent_shape`, or else `event_shape`.
        shard: Divide each solve among processes: `dcem.distributed.Samples()` or `Problems()`.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: `bounds` or `init` does not fit, `latent_shape` is given without a decoder or is another than the
            decoder's; in a call, the decoder returns another shape, or what `dcem.minimize` raises.

    >>> import dcem
    >>> nearest = dcem.Argmin(2, dcem.GradientDescent(lr=0.5), bounds=(0.0, None))       # the nearest point x >= 0
    >>> target = torch.tensor([[1.0, -2.0], [0.5, 3.0]], requires_grad=True)
    >>> solution = nearest(lambda x: (x - target.unsqueeze(-2)).square().sum(-1), batch_shape=(2,))
    >>> solution.x.detach()
    tensor([[1.0000, 0.0000],
            [0.5000, 3.0000]])
    >>> torch.autograd.grad(solution.x.sum(), target)[0]
    tensor([[1., 0.],
            [1., 1.]])

    Source: Amos & Yarats, "The Differentiable Cross-Entropy Method", ICML 2020; layers that are argmins: Gould et al.,
    "Deep Declarative Networks", 2019.
    """

    event_shape = Fixed[tuple[int, ...]]()
    latent_shape = Fixed[tuple[int, ...]]()
    _event_name = "event"  # what errors call a candidate
    _start_names: tuple[str, ...] = ()  # of what is held of the start
    _searches: list[Searched] | None = None  # where a diagnosis finds those that a call has made

    def __init__(
        self,
        event_shape: int | Sequence[int],
        solver: Solver | None = None,
        *,
        num_iterations: int = 10,
        gradient: GradientMode | None = None,
        bounds: BoundsLike | None = None,
        init: float | Tensor | tuple[float | Tensor, float | Tensor | None] | Distribution = 0.0,
        decoder: Callable[[Tensor], Tensor] | None = None,
        latent_shape: int | Sequence[int] | None = None,
        shard: Shard | None = None,
    ) -> None:
        super().__init__()
        self.shard = shard
        self.event_shape = as_shape("event_shape", event_shape)
        self.latent_shape = latent_shape_of(decoder, latent_shape, self.event_shape, self._event_name)
        self.decoder, self.bounds = decoder, bounds
        Bounds.check(bounds, torch.Size(self.latent_shape), torch.zeros(()))
        self.solver = CEM() if solver is None else solver
        self.num_iterations = check_count("num_iterations", num_iterations)
        self.gradient = Unroll() if gradient is None else gradient
        if not isinstance(self.gradient, GradientMode):
            raise TypeError(f"gradient: expected a gradient mode such as dcem.Unroll(), got {brief(gradient)}")
        self._hold_start(init)

    def forward(
        self,
        objective: Callable[[Tensor], Tensor],
        batch_shape: int | Sequence[int] = (),
        *,
        init: Distribution | Tensor | None = None,
        num_iterations: int | None = None,
        **options: Any,
    ) -> Solution:
        """Minimise `objective`, which maps candidates `(*batch, N, *event)` to values `(*batch, N)`.

        Args:
            objective: As in `dcem.minimize`.
            batch_shape: The leading axes, one problem each; an int is `(int,)`.
            init: Instead of the layer's own start, say `solution.distribution` of an earlier solve.
            num_iterations: Instead of the layer's own.
            **options: Of `dcem.minimize`: `generator`, `noise`, `record`, `gradient`, ...

        Returns:
            The solution. With a decoder its `x` and `best_x` are decoded, its distribution and history are of the
            latent.
        """
        start = self.initial(as_shape("batch_shape", batch_shape)) if init is None else init
        if self.decoder is None:
            return self.search(objective, start, num_iterations=num_iterations, **options)
        if options.get("validate") is not None:
            options["validate"] = self._of_latents(options["validate"])
        solution = self.search(behind(objective, self.decode), start, num_iterations=num_iterations, **options)
        dim = solution.x.dim() - len(self.latent_shape)
        both = self.decode(torch.stack([solution.x, solution.best_x], dim)).unbind(dim)
        return dataclasses.replace(solution, x=both[0], best_x=both[1].detach())._keeping(solution)

    def search(
        self,
        objective: Callable[[Tensor], Tensor],
        init: Distribution | Tensor,
        *,
        num_iterations: int | None = None,
        gradient: GradientMode | None = None,
        **options: Any,
    ) -> Solution:
        """The same for an objective over the latent `(*batch, N, *latent)`, and with nothing decoded."""
        options = {"bounds": self.bounds, "shard": self.shard, **options}
        solution = minimize(
            objective,
            init,
            self.solver,
            num_iterations=self.num_iterations if num_iterations is None else num_iterations,
            gradient=self.gradient if gradient is None else gradient,
            event_dims=len(self.latent_shape),
            **options,
        )
        if self._searches is not None:
            self._searches.append(Searched(solution, init, options["bounds"]))
        return solution

    def diagnose(
        self,
        *given: Any,
        parameters: Iterable[Tensor] | None = None,
        num_seeds: int = 5,
        seed: int = 0,
        gradient: GradientMode | None = None,
        **options: Any,
    ) -> Diagnosis:
        """Find out whether this layer is set up well: [`dcem.diagnose`][] of the solve that a call makes.

        Args:
            *given: What the call takes: objective and batch shape here, the state for a `dcem.control.MPC`, the input
                for a `dcem.energy.EnergyModel`.
            parameters: The tensors whose gradient to check; None for all leaves that the answer depends on.
            num_seeds: How many calls to compare, at least 2.
            seed: Of the first.
            gradient: Instead of the layer's own.
            **options: What the call takes by name, such as `num_iterations` or a controller's `warm_start`; not
                `generator`, `record` and drawn `noise`.

        Returns:
            What was found. Of a layer with a decoder it is about the latent.

        Raises:
            TypeError: As a call, or an option is one that a diagnosis has of its own.
            ValueError: As a call, or `num_seeds` is below 2.

        >>> import dcem
        >>> layer = dcem.Argmin(2, dcem.CEM(100, 10, dcem.LML(0.1), init_std=0.1))
        >>> found = layer.diagnose(lambda x: (x - 3.0).square().sum(-1))
        >>> found.advice[0].partition(":")[0]
        'init_std'
        """
        for name in ("generator", "record"):
            if name in options:
                raise TypeError(f"{name}: expected none, as each call of a diagnosis has its own")
        if isinstance(options.get("noise"), Tensor):
            raise TypeError("noise: expected a source of noise or None, of which each seed draws another, got a Tensor")
        held = [*leaves(list(given)), *self.parameters(), *self.buffers()]
        device = held[0].device if held else "cpu"
        watched, searches = copy.copy(self), list[Searched]()
        watched.__dict__["_searches"] = searches

        def solve(mode: GradientMode, seed: int, record: bool) -> Searched:
            searches.clear()
            generator = torch.Generator(device).manual_seed(seed)
            watched(*given, gradient=mode, generator=generator, record=record, **options)
            return searches[-1]

        mode = self.gradient if gradient is None else gradient
        return diagnosed(solve, self.solver, len(self.latent_shape), mode, parameters, num_seeds, seed)

    def decode(self, z: Tensor) -> Tensor:
        """Candidates `(*batch, N, *event)` of latents `(*batch, N, *latent)`, which they are without a decoder."""
        return z if self.decoder is None else decoded(self.decoder, z, self.latent_shape, self.event_shape)

    def _of_latents(self, validate: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """A check of answers as one of the latents that they are decoded from."""

        def check(z: Tensor) -> Tensor:
            dim = z.dim() - len(self.latent_shape)
            return validate(self.decode(z.unsqueeze(dim)).squeeze(dim))

        return check

    def initial(self, batch_shape: Sequence[int] = (), like: Tensor | None = None) -> Distribution | Tensor:
        """Where the search starts: a distribution of this batch, or the means alone where the solver's std shall hold.

        Of the dtype and on the device of `like`, where that is a floating-point tensor.
        """

        def now(name: str) -> Tensor:
            leaf: Tensor = getattr(self, f"init_{name}")
            return leaf.to(like) if like is not None and like.is_floating_point() else leaf

        family = self._held_family(now)
        if family is not None:
            return family.expand(batch_shape)
        mean = now("mean").expand((*batch_shape, *self.latent_shape))
        if self.init_std is None:
            return mean
        std = now("std")
        return Gaussian(mean, std.abs().to(mean).expand(mean.shape), len(self.latent_shape))

    @property
    def start_dtype(self) -> torch.dtype:
        """The precision of what a search starts from, which it is made in."""
        return leaves(self.init_mean if self._family is None else self._held_family())[0].dtype

    def _held_family(self, now: Callable[[str], Tensor] | None = None) -> Distribution | None:
        """The distribution to start from, of the tensors that the layer holds; None where it starts from a mean."""
        if self._family is None:
            return None
        names = iter(name for name, _ in named_leaves(self._family))
        of = now or (lambda name: getattr(self, f"init_{name}"))
        family: Distribution = map_tensors(lambda _: of(next(names)), self._family)
        return family

    @property
    def solver(self) -> Solver:
        """What minimises, with what the layer holds of it now: moved, loaded, or put there by `functional_call`."""
        held = {
            name: (value, getattr(self, f"solver_{name}"))
            for name, value in vars(self._solver).items()
            if isinstance(value, (Tensor, nn.Module))
        }
        changed = {name: now for name, (value, now) in held.items() if now is not value}
        return dataclasses.replace(self._solver, **changed) if changed else self._solver  # type: ignore[type-var]

    @solver.setter
    def solver(self, solver: Solver) -> None:
        if not isinstance(solver, Solver):
            raise TypeError(f"solver: expected a dcem solver such as dcem.CEM(), got {brief(solver)}")
        self._drop([f"solver_{name}" for name in vars(getattr(self, "_solver", None) or solver)])
        self._solver = solver
        for name, value in vars(solver).items():
            if isinstance(value, (Tensor, nn.Module)):
                self._hold(f"solver_{name}", value)

    def _hold_start(self, init: Any) -> None:
        """Keep the start's tensors as `init_<name>`, and the family of a distribution."""
        what = self._event_name if self.decoder is None else "latent"
        self._drop(self._start_names)
        self._start_names = ()
        self._family = init if isinstance(init, Distribution) else None
        if self._family is not None:
            batch, event = tuple(self._family.batch_shape), tuple(self._family.event_shape)
            if batch or event != self.latent_shape:
                raise ValueError(
                    f"init: expected a distribution of one problem over {what} {self.latent_shape}, "
                    f"got the batch {batch} and events {event}"
                )
            for name, leaf in named_leaves(self._family):
                if _is_broadcast(leaf):
                    raise ValueError(
                        f"init: expected parameters in the full shape, {tuple(leaf.shape)} of {name}, got one that was "
                        "broadcast to it, of which no optimiser would know"
                    )
                self._hold_as_start(name, _own(leaf))
            return
        if isinstance(init, (tuple, list)) and len(init) != 2:
            raise ValueError(f"init: expected a pair (mean, std), got {len(init)} of them")
        paired = isinstance(init, (tuple, list))
        mean, std = init if paired else (init, None)
        self._hold_as_start("mean", broadcastable("init_mean" if paired else "init", mean, self.latent_shape, what))
        if std is not None:
            std = broadcastable("init_std", std, self.latent_shape, what)
            if not std.requires_grad:
                check_std("init_std", std)
        self._hold_as_start("std", std)

    def _hold_as_start(self, name: str, value: Tensor | None) -> None:
        self._hold(f"init_{name}", value)
        self._start_names += (f"init_{name}",)

    def _drop(self, names: Iterable[str]) -> None:
        """Hold these no more."""
        for held in (self._parameters, self._buffers, self._modules):
            for name in names:
                held.pop(name, None)

    def _hold(self, name: str, value: Any) -> None:
        """Register a parameter, a tensor (or the place of one) or a module; of the rest, nothing is held."""
        if isinstance(value, nn.Parameter):
            self.register_parameter(name, value)
        elif isinstance(value, Tensor) or value is None:
            self.register_buffer(name, value)
        elif isinstance(value, nn.Module):
            self.add_module(name, value)


def broadcastable(name: str, value: Any, shape: tuple[int, ...], what: str) -> Tensor:
    """A number or a tensor that broadcasts to `shape`, as a tensor.

    A number keeps its digits, for a solve in double precision; but a mean says in which precision a layer solves. One
    without a gradient is copied: layers that were made of the same tensor do not share it.
    """
    dtype = torch.get_default_dtype() if name in ("init", "init_mean") else torch.float64
    try:
        tensor = value if isinstance(value, Tensor) else torch.tensor(float(check_number(name, value)), dtype=dtype)
    except TypeError:
        raise TypeError(f"{name}: expected a number or a tensor, got {brief(value)}") from None
    try:
        tensor.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"{name}: expected a number or a tensor that broadcasts to {what} {shape}, got {tuple(tensor.shape)}"
        ) from None
    return _own(tensor)


def _own(tensor: Tensor) -> Tensor:
    """A parameter, or what has a gradient, as it is; a copy of the rest, which several layers may be made of."""
    return tensor if isinstance(tensor, nn.Parameter) or tensor.requires_grad else tensor.clone()


def _is_broadcast(tensor: Tensor) -> bool:
    """Whether this is a parameter in another shape or dtype, and nothing besides."""
    node: Any = tensor.grad_fn
    while type(node).__name__ in ("ExpandBackward0", "ViewBackward0", "ToCopyBackward0"):
        node = node.next_functions[0][0]
    return isinstance(getattr(node, "variable", None), nn.Parameter)
