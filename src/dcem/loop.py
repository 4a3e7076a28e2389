"""The one loop: minimise an objective with any solver, and differentiate the answer in any gradient mode."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from dcem._check import check_count, check_flag, check_positive, check_scalar, is_true
from dcem._eager import all_true, is_under_autocast
from dcem._evaluate import Evaluation, check_axis, hides_axis
from dcem._given import brief
from dcem._guard import Cut, Reports, WithData, Work
from dcem._progress import Progress
from dcem._setup import NoiseSource, Setup
from dcem._tree import leaves
from dcem._unchanged import Versions
from dcem.bounds import BoundsLike
from dcem.distributions import Distribution
from dcem.gradients import GradientMode, Unroll
from dcem.solution import Iteration, Solution, Status
from dcem.solvers import CEM, SamplingSolver, Solver, Step

_DEFAULT_SOLVER = CEM()
_DEFAULT_GRADIENT = Unroll()


class Shard(Protocol):
    """Who solves it instead of this process alone."""

    def solve(
        self,
        minimize: Callable[..., Solution],
        objective: Callable[[Tensor], Tensor],
        init: Distribution | Tensor,
        solver: Solver,
        **options: Any,
    ) -> Solution:
        """`minimize(objective, init, solver, **options)`, divided among processes."""


def minimize(
    objective: Callable[[Tensor], Tensor],
    init: Distribution | Tensor,
    solver: Solver = _DEFAULT_SOLVER,
    *,
    num_iterations: int = 10,
    gradient: GradientMode = _DEFAULT_GRADIENT,
    event_dims: int = 1,
    bounds: BoundsLike | None = None,
    generator: torch.Generator | None = None,
    noise: Tensor | NoiseSource | None = None,
    proposals: Tensor | None = None,
    tolerance: float | None = None,
    validate: Callable[[Tensor], Tensor] | None = None,
    callback: Callable[[Iteration], object] | None = None,
    record: bool = False,
    shard: Shard | None = None,
) -> Solution:
    """Minimise `f_θ(x)` over `x` for a batch of problems, and differentiate the answer with respect to `θ`.

    Args:
        objective: `(*batch, N, *event) -> (*batch, N)`, the values of `N` candidates a problem. Any callable; what
            it closes over receives gradients. A value that is not finite is a failed sample.
        init: where to start: a distribution, or a Tensor of means `(*batch, *event)` around which the solver spreads
            its `init_std`.
        solver: [`dcem.CEM`][] (the default, `CEM(100, 10, LML(1.0))`), [`dcem.MPPI`][],
            [`dcem.GradientDescent`][] or your own.
        num_iterations: `T >= 1`.
        gradient: how to differentiate: [`dcem.Unroll`][] (the default), [`dcem.Checkpoint`][],
            [`dcem.Truncate`][], [`dcem.Prune`][], [`dcem.Implicit`][] or [`dcem.Detach`][].
        event_dims: how many trailing axes of a Tensor `init` are one candidate; a distribution knows its own.
        bounds: `(low, high)`, each None, a number, or a tensor that broadcasts to `event`. Samples and answers
            respect them.
        generator: source of randomness, so that a solve can be replayed.
        noise: instead of drawing: standard normal draws `(T, *batch, N, *event)`; or a source of them such as
            [`dcem.ColoredNoise`][].
        proposals: candidates from outside, `(*batch, M, *event)`, that are evaluated and selected among in every
            iteration, beside the `N` samples: the guesses of a policy, or known good answers. Inside the bounds they
            are clipped like samples; one that is not finite counts as the initial mean.
        tolerance: a problem stops once it has come to rest, and the loop when all have: with [`dcem.CEM`][] where
            the std is `tolerance` at most in every dimension, with other solvers where an iteration moves the mean
            by no more in any. None to make all iterations.
        validate: a check of the answers `(*batch, *event)` that returns booleans `(*batch,)`: a problem whose
            answer does not pass has the status `INVALID`.
        callback: called after each iteration with its [`dcem.Iteration`][], of which the tensors are the solve's own:
            clone what is to be written to. Return True (Python's, NumPy's or torch's) to stop; not with `Truncate`
            while gradients are enabled, as the last iterations would carry them.
        record: keep every [`dcem.Iteration`][] in `solution.history`.
        shard: divide the work among processes: `dcem.distributed.Samples()` or `Problems()`.

    Returns:
        The solution; its `x` is the mean of the final distribution, differentiable as `gradient`
        says.

    Raises:
        TypeError: an argument is of the wrong type, or the objective returns something other than floating-point
            values.
        RuntimeError: in the backward pass, a gradient is asked for through a selection, or the values of an objective,
            that have none.
        ValueError: an argument has the wrong shape or range, the objective returns the wrong shape or device, a
            gradient is asked for that the mode cannot give, or a callback changes what it is shown or stops too early.

    Example:
        >>> import torch, dcem
        >>> theta = torch.tensor([1.0, -2.0], requires_grad=True)
        >>> solution = dcem.minimize(lambda x: (x - theta).square().sum(-1), torch.zeros(2),
        ...                          generator=torch.Generator().manual_seed(0))
        >>> torch.autograd.grad(solution.x.sum(), theta)[0].shape
        torch.Size([2])

    Source: Amos & Yarats, "The Differentiable Cross-Entropy Method", ICML 2020, algorithm 1.
    """
    if shard is not None:
        if not hasattr(shard, "solve"):
            raise TypeError(f"shard: expected dcem.distributed.Samples(), Problems() or None, got {brief(shard)}")
        # Nothing is checked before: what is wrong here the other processes have to be told.
        return shard.solve(
            minimize, objective, init, solver, num_iterations=num_iterations, gradient=gradient, event_dims=event_dims,
            bounds=bounds, generator=generator, noise=noise, proposals=proposals, tolerance=tolerance,
            validate=validate, callback=callback, record=record,
        )  # fmt: skip
    num_iterations, record = check_options(
        objective, num_iterations=num_iterations, gradient=gradient, tolerance=tolerance, validate=validate,
        callback=callback, record=record,
    )  # fmt: skip
    setup = Setup.of(
        init, solver, num_iterations=num_iterations, event_dims=event_dims, bounds=bounds, generator=generator,
        noise=noise, proposals=proposals,
    )  # fmt: skip
    start: Distribution = setup.start.distribution
    _check_axes(objective, start, getattr(solver, "num_samples", 1), setup.dtype, generator)
    device = start.mean.device.type
    if is_under_autocast(device):  # for the objective alone: the solve keeps its precision
        objective = _under_autocast(objective, device)
        with torch.autocast(device, enabled=False):
            return minimize(
                objective, init, solver, num_iterations=num_iterations, gradient=gradient, event_dims=event_dims,
                bounds=bounds, generator=generator, noise=noise, proposals=proposals, tolerance=tolerance,
                validate=validate, callback=callback, record=record,
            )  # fmt: skip
    _check_gradient(gradient, setup, noise, num_iterations, tolerance)
    batch_dims, event_dims = len(start.batch_shape), start.event_dims
    evaluate = Evaluation(WithData.of(objective), start.batch_shape, event_dims, setup.dtype, generator)
    work = Work()
    reports = Reports(int(Status.NONFINITE), work)
    weigh = solver.weigh if isinstance(solver, SamplingSolver) else None

    def iterate(state: Any, noise: Tensor) -> Step:
        # Its notes are its own: a compiled checkpoint lets nothing else be written to.
        noted = dataclasses.replace(evaluate, reports=reports, coarse=[])
        step = solver.step(gradient.evaluation(noted, weigh, generator), state, noise, setup.clip)
        return setup.settle(step, state, *noted.coarse)

    progress = Progress.start(setup)
    history: list[Iteration] = []
    is_watched = not torch.is_grad_enabled()
    for t in range(num_iterations):
        before = progress
        step = gradient.iterate(iterate, before.state, setup.draw(t), num_iterations - t, generator)
        step = before.held(step)
        if not is_watched and t + 1 < num_iterations and any(leaf.requires_grad for leaf in leaves(step.state)):
            reports.watch(step.state, batch_dims)  # the slopes of all later iterations come back to it
            is_watched = True
        progress = before.after(step)
        if tolerance is not None:
            progress = progress.settled(before, step, setup, tolerance)
        if record or callback is not None:
            iteration = Iteration.of(step, start)
            if record:
                history.append(iteration)
            if callback is not None and is_true(_shown_to(callback, iteration)):
                _check_stop(gradient, t + 1, num_iterations)
                break
        if progress.done is not None and all_true(progress.done):
            break

    x, not_stationary = gradient.finish(evaluate, progress.state.distribution.mean, event_dims, setup.bounds)
    solution = progress.solution(setup, x, not_stationary, validate, history)
    reports.status = solution.status
    reports.of_loss(x, batch_dims)
    return solution._keeping(work)


def _shown_to(callback: Callable[[Iteration], object], iteration: Iteration) -> object:
    """What a callback returns. The solve goes on from what it is shown, which is no copy."""
    noted = Versions(iteration.samples, iteration.values, iteration.weights, iteration.distribution)
    answer = callback(iteration)
    if noted.changed():
        raise ValueError("callback: expected to leave its iteration as it is, got it changed in place")
    return answer


def _check_stop(gradient: GradientMode, made: int, num_iterations: int) -> None:
    """Refuse to stop before iterations that a mode has kept the gradient for."""
    if gradient.counts_back and torch.is_grad_enabled() and made < num_iterations:
        raise ValueError(
            f"callback: expected no stop with {gradient}, which has to know which iterations are the last, got one "
            f"after {made} of {num_iterations}: use Unroll() or Implicit(), or torch.no_grad() for no gradient"
        )


def check_options(
    objective: object, *, num_iterations: int, gradient: object, tolerance: float | None, validate: object,
    callback: object, record: bool,
) -> tuple[int, bool]:  # fmt: skip
    """Check the arguments of `minimize` that `Setup` does not know; returns `num_iterations` and `record`."""
    num_iterations, record = check_count("num_iterations", num_iterations), check_flag("record", record)
    if tolerance is not None:
        check_scalar("tolerance", tolerance)
        check_positive("tolerance", tolerance)
    if not callable(objective):
        raise TypeError(f"objective: expected a callable (*batch, N, *event) -> (*batch, N), got {brief(objective)}")
    if not isinstance(gradient, GradientMode):
        raise TypeError(f"gradient: expected a gradient mode such as dcem.Unroll(), got {brief(gradient)}")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback: expected a callable or None, got {brief(callback)}")
    if validate is not None and not callable(validate):
        raise TypeError(f"validate: expected a callable (*batch, *event) -> (*batch,) or None, got {brief(validate)}")
    return num_iterations, record


def _check_axes(
    objective: object, start: Distribution, num_samples: int, dtype: torch.dtype, generator: torch.Generator | None
) -> None:
    """Refuse data that lack the axis of the candidates; an objective that holds data of its own checks these itself."""
    checks_itself = isinstance(objective, WithData) and objective.data is not None
    if not checks_itself and hides_axis(start.batch_shape, num_samples):
        one = start.mean.detach().unsqueeze(start.sample_dim).to(dtype).clone()
        check_axis("objective", objective, one, start.batch_shape, generator)  # type: ignore[arg-type]


def _check_gradient(
    gradient: GradientMode, setup: Setup, noise: Any, num_iterations: int, tolerance: float | None
) -> None:
    """Refuse a mode that loses a gradient that is asked for."""
    if not torch.is_grad_enabled():
        return
    if tolerance is not None and gradient.counts_back:
        raise ValueError(
            f"tolerance: expected None with {gradient}, which has to know which iterations are the last: use Unroll() "
            "or Implicit()"
        )
    if not gradient.keeps_init(num_iterations) and any(leaf.requires_grad for leaf in leaves(setup.start)):
        box = setup.bounds  # to which the start was clipped
        if box is not None and any(isinstance(side, Tensor) and side.requires_grad for side in (box.low, box.high)):
            raise ValueError(
                f"gradient: {gradient} cannot give a gradient to the bounds, of which one requires it: use Unroll() or "
                "Checkpoint(), or detach them"
            )
        raise ValueError(
            f"gradient: {gradient} cannot give a gradient to the initial distribution, whose tensors require one: "
            "use Unroll() or Checkpoint(), or detach init"
        )
    if not gradient.keeps_init(num_iterations) and isinstance(noise, Tensor) and noise.requires_grad:
        raise ValueError(
            f"gradient: {gradient} cannot give a gradient to the noise of all iterations, which requires one: use "
            "Unroll() or Checkpoint(), or detach it"
        )
    if not gradient.keeps_hyperparameters and _asks_for_gradient(setup.solver):
        raise ValueError(
            f"gradient: {gradient} cannot give a gradient to the solver's hyperparameters, of which one requires it: "
            "use Unroll() or Checkpoint(), or detach it"
        )


def _asks_for_gradient(solver: Solver) -> bool:
    """Whether a tensor among the solver's hyperparameters, or those of its selection, requires a gradient."""
    values = [*vars(solver).values()]
    for module in [value for value in values if isinstance(value, torch.nn.Module)]:
        values += [*module.parameters(), *module.buffers(), *vars(module).values()]
    return any(isinstance(value, Tensor) and value.requires_grad for value in values)


def _under_autocast(objective: Callable[[Tensor], Tensor], device: str) -> WithData:
    """The objective as it would be called here, wherever it is called."""
    dtype, whole = torch.get_autocast_dtype(device), WithData.of(objective)

    def call(x: Tensor, data: Any, cut: Cut) -> Tensor:
        # Without gradients no cast weights are kept: torch 2.9 gives those to who asks for gradients later.
        with torch.autocast(device, dtype=dtype, cache_enabled=torch.is_grad_enabled()):
            return whole.function(x, data, cut)

    return WithData(call, whole.data)
