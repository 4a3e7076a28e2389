"""The one loop: minimise an objective with any solver, and differentiate the answer in any gradient mode."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dcem._check import check_count, check_flag, check_int, is_true
from dcem._eager import all_true, is_eager
from dcem._evaluate import Evaluation
from dcem._guard import Cut, Reports, WithData
from dcem._tree import leaves, map_tensors
from dcem.bounds import Bounds, BoundsLike
from dcem.distributions import Distribution, WhiteNoise
from dcem.distributions.noise import check_noise_source
from dcem.gradients import GradientMode, Unroll
from dcem.solution import Iteration, Solution, Status
from dcem.solvers import CEM, SamplingSolver, Solver, Step

NoiseSource = Callable[..., Tensor]
_MOST_KEPT = 1 << 18  # numbers of samples that wait to be compared
_DEFAULT_SOLVER = CEM()
_DEFAULT_GRADIENT = Unroll()


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
    callback: Callable[[Iteration], object] | None = None,
    record: bool = False,
) -> Solution:
    """Minimise ``f_θ(x)`` over ``x`` for a batch of problems, and differentiate the answer with respect to ``θ``.

    Args:
        objective: ``(*batch, N, *event) -> (*batch, N)``, the values of ``N`` candidates a problem. Any callable; what
            it closes over receives gradients. A value that is not finite is a failed sample.
        init: where to start: a distribution, or a Tensor of means ``(*batch, *event)`` around which the solver spreads
            its ``init_std``.
        solver: :class:`dcem.CEM` (the default, ``CEM(100, 10, LML(1.0))``), :class:`dcem.MPPI`,
            :class:`dcem.GradientDescent` or your own.
        num_iterations: ``T >= 1``.
        gradient: how to differentiate: :class:`dcem.Unroll` (the default), :class:`dcem.Checkpoint`,
            :class:`dcem.Truncate`, :class:`dcem.Prune`, :class:`dcem.Implicit` or :class:`dcem.Detach`.
        event_dims: how many trailing axes of a Tensor ``init`` are one candidate; a distribution knows its own.
        bounds: ``(low, high)``, each None, a number, or a tensor that broadcasts to ``event``. Samples and answers
            respect them.
        generator: source of randomness, so that a solve can be replayed.
        noise: instead of drawing: standard normal draws ``(T, *batch, N, *event)``; or a source of them such as
            :class:`dcem.ColoredNoise`.
        proposals: candidates from outside, ``(*batch, M, *event)``, that are evaluated and selected among in every
            iteration, beside the ``N`` samples: the guesses of a policy, or known good answers. Inside the bounds they
            are clipped like samples; one that is not finite counts as the initial mean.
        callback: called after each iteration with its :class:`dcem.Iteration`; return True (Python's, NumPy's or
            torch's) to stop.
        record: keep every :class:`dcem.Iteration` in ``solution.history``.

    Returns:
        The solution; its ``x`` is the mean of the final distribution, differentiable as ``gradient``
        says.

    Raises:
        TypeError: an argument is of the wrong type, or the objective returns something other than floating-point
            values.
        ValueError: an argument has the wrong shape or range, the objective returns the wrong shape or device, or a
            gradient is asked for that the mode cannot give.

    Example:
        >>> import torch, dcem
        >>> theta = torch.tensor([1.0, -2.0], requires_grad=True)
        >>> solution = dcem.minimize(lambda x: (x - theta).square().sum(-1), torch.zeros(2),
        ...                          generator=torch.Generator().manual_seed(0))
        >>> torch.autograd.grad(solution.x.sum(), theta)[0].shape
        torch.Size([2])

    Source: Amos & Yarats, "The Differentiable Cross-Entropy Method", ICML 2020, algorithm 1.
    """
    num_iterations = check_count("num_iterations", num_iterations)
    record = check_flag("record", record)
    _check_arguments(objective, solver, gradient, generator, callback)
    distribution, dtype = _initial_distribution(init, solver, event_dims)
    device = distribution.mean.device.type
    if torch.is_autocast_enabled(device):  # for the objective alone: the solve keeps its precision
        objective = _under_autocast(objective, device)
        with torch.autocast(device, enabled=False):
            return minimize(
                objective, init, solver, num_iterations=num_iterations, gradient=gradient, event_dims=event_dims,
                bounds=bounds, generator=generator, noise=noise, proposals=proposals, callback=callback, record=record,
            )  # fmt: skip
    event_dims, event_shape, batch_shape = (
        distribution.event_dims,
        distribution.event_shape,
        distribution.batch_shape,
    )
    box = Bounds.check(bounds, event_shape, distribution.mean, dtype)
    noise_shape = (*batch_shape, solver.num_samples, *event_shape)
    draw = _noise_source(noise, (num_iterations, *noise_shape), event_shape, distribution.mean, generator)

    clip = _unbounded if box is None else box.clip
    if box is not None:
        distribution = distribution.clip(box)
    state = solver.init(distribution)
    if proposals is not None:
        state = _with_proposals(state, proposals, solver)
    if (
        torch.is_grad_enabled()
        and not gradient.keeps_init(num_iterations)
        and any(leaf.requires_grad for leaf in leaves(state))
    ):
        raise ValueError(
            f"gradient: {gradient} cannot give a gradient to the initial distribution, whose tensors require one: "
            "use Unroll() or Checkpoint(), or detach init"
        )
    if torch.is_grad_enabled() and not gradient.keeps_hyperparameters and _asks_for_gradient(solver):
        raise ValueError(
            f"gradient: {gradient} cannot give a gradient to the solver's hyperparameters, of which one requires it: "
            "use Unroll() or Checkpoint(), or detach it"
        )
    evaluate = Evaluation(WithData.of(objective), batch_shape, event_dims, dtype, generator)
    reports = Reports(int(Status.NONFINITE))
    weigh = solver.weigh if isinstance(solver, SamplingSolver) else None
    evaluate_for_solver = gradient.evaluation(dataclasses.replace(evaluate, reports=reports), weigh, generator)

    def iterate(state: Any, noise: Tensor) -> Step:
        step = solver.step(evaluate_for_solver, state, noise, clip)
        new = step.state
        if box is not None:
            new = new._replace(distribution=new.distribution.clip(box))
        if step.valid is not None and not all_true(step.valid):
            new = _keep_where(step.valid, new, state)
        return step._replace(state=new)

    seen = _start_of(distribution)
    sample_dim = distribution.sample_dim
    failed = torch.zeros(batch_shape, dtype=torch.bool, device=distribution.mean.device)
    flat: Tensor | None = ~failed  # in every iteration so far
    history: list[Iteration] = []
    is_watched = not torch.is_grad_enabled()
    for t in range(num_iterations):
        step = gradient.iterate(iterate, state, draw(t), num_iterations - t, generator)
        state = step.state
        if not is_watched and t + 1 < num_iterations and any(leaf.requires_grad for leaf in leaves(state)):
            reports.watch(state, len(batch_shape))  # the slopes of all later iterations come back to it
            is_watched = True
        seen = _see(seen, step, sample_dim)
        if step.valid is not None:
            failed = failed | (~step.valid if step.flat is None else ~step.valid & ~step.flat)
        flat = None if flat is None or step.flat is None else flat & step.flat
        if record or callback is not None:
            iteration = Iteration.of(step)
            if record:
                history.append(iteration)
            if callback is not None and is_true(callback(iteration)):
                break

    x, not_stationary = gradient.finish(evaluate, state.distribution.mean, event_dims, box)
    best = _best_of(seen, sample_dim)
    best_x, best_value = best.samples[0].squeeze(sample_dim), best.values[0].squeeze(-1)
    status = torch.full_like(failed, int(Status.OK), dtype=torch.int64)
    if flat is not None:
        status = torch.where(flat, int(Status.FLAT), status)
    status = torch.where(solver.is_collapsed(state), int(Status.COLLAPSED), status)
    if not_stationary is not None:
        status = torch.where(not_stationary, int(Status.NOT_STATIONARY), status)
    status = torch.where(failed, int(Status.NONFINITE), status)
    reports.status = status
    reports.of_loss(x, len(batch_shape))
    return Solution(x.to(dtype), best_x.to(dtype), best_value, state.distribution, status, history)


class _Seen(NamedTuple):
    """Samples, their values, and how many numbers that are: of the best so far and what came since."""

    samples: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    size: int


def _start_of(distribution: Distribution) -> _Seen:
    mean = distribution.mean.detach().unsqueeze(distribution.sample_dim)
    return _Seen((mean,), (mean.new_full((*distribution.batch_shape, 1), torch.inf),), 0)


def _see(seen: _Seen, step: Step, sample_dim: int) -> _Seen:
    """Samples are compared many at a time: one comparison an iteration would cost more."""
    samples = (*seen.samples, step.samples.detach())
    seen = _Seen(samples, (*seen.values, step.values.detach()), seen.size + step.samples.numel())
    return _best_of(seen, sample_dim) if seen.size > _MOST_KEPT else seen


def _best_of(seen: _Seen, sample_dim: int) -> _Seen:
    values = torch.cat(seen.values, -1).nan_to_num(torch.inf, torch.inf, torch.inf)
    lowest, index = values.min(-1, keepdim=True)
    index = index.reshape(index.shape + (1,) * (-1 - sample_dim))
    sample = torch.take_along_dim(torch.cat(seen.samples, sample_dim), index, sample_dim)
    return _Seen((sample,), (lowest,), 0)


def _with_proposals(state: Any, proposals: object, solver: Solver) -> Any:
    """The first state with the candidates that take part in every iteration."""
    if not isinstance(solver, SamplingSolver):
        raise ValueError(f"proposals: expected None for a solver that selects among no samples, {solver}")
    if not isinstance(proposals, Tensor) or not proposals.is_floating_point():
        came = proposals.dtype if isinstance(proposals, Tensor) else type(proposals).__name__
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
        with torch.autocast(device, dtype=dtype):
            return whole.function(x, data, cut)

    return WithData(call, whole.data)


def _unbounded(x: Tensor) -> Tensor:
    return x


def _keep_where(valid: Tensor, new: Any, old: Any) -> Any:
    """The new state where the iteration succeeded, the old one elsewhere."""

    def choose(after: Tensor, before: Tensor | None) -> Tensor:
        if before is None or before.shape != after.shape:  # elites of a first iteration: any will do
            return after
        mask = valid.reshape(valid.shape + (1,) * (after.dim() - valid.dim()))
        return torch.where(mask, after, before)

    return map_tensors(choose, new, old)


def _check_arguments(objective: object, solver: object, gradient: object, generator: object, callback: object) -> None:
    if not callable(objective):
        raise TypeError(f"objective: expected a callable (*batch, N, *event) -> (*batch, N), got {objective!r}")
    if not isinstance(solver, Solver):
        raise TypeError(f"solver: expected a dcem solver such as dcem.CEM(), got {solver!r}")
    if not isinstance(gradient, GradientMode):
        raise TypeError(f"gradient: expected a gradient mode such as dcem.Unroll(), got {gradient!r}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: expected a torch.Generator or None, got {generator!r}")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback: expected a callable or None, got {callback!r}")


def _initial_distribution(
    init: Distribution | Tensor, solver: Solver, event_dims: int
) -> tuple[Distribution, torch.dtype]:
    """The first ``g_φ`` with at least single precision, and the dtype that candidates shall have."""
    if isinstance(init, Tensor):
        if not init.is_floating_point():
            raise TypeError(f"init: expected a floating-point tensor, got {init.dtype}")
        event_dims = check_int("event_dims", event_dims)
        if not 0 <= event_dims <= init.dim():
            raise ValueError(
                f"event_dims: expected an int from 0 to {init.dim()} for init of shape {tuple(init.shape)}, "
                f"got {event_dims!r}"
            )
        dtype = init.dtype
        distribution = solver.distribution(_single(init), event_dims)
    elif isinstance(init, Distribution):
        dtype = init.mean.dtype
        distribution = map_tensors(_single, init)
    else:
        raise TypeError(f"init: expected a Tensor of means or a dcem distribution, got {type(init).__name__}")
    mean = distribution.mean
    if mean.numel() == 0:
        raise ValueError(f"init: expected at least one element, got shape {tuple(mean.shape)}")
    if is_eager() and mean.device.type == "cpu":
        distribution.check()
    return distribution, dtype


def _single(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _noise_source(
    noise: Tensor | NoiseSource | None,
    shape: tuple[int, ...],
    event_shape: torch.Size,
    like: Tensor,
    generator: torch.Generator | None,
) -> Callable[[int], Tensor]:
    """A function from the iteration's number to its standard normal draws."""
    if isinstance(noise, Tensor):
        if tuple(noise.shape) != shape:
            raise ValueError(
                f"noise: expected (num_iterations, *batch, num_samples, *event) = {shape}, got {tuple(noise.shape)}"
            )
        if not noise.is_floating_point():
            raise TypeError(f"noise: expected floating-point draws, got {noise.dtype}")
        given = noise.to(like)
        return lambda t: given[t]
    if noise is not None and not callable(noise):
        raise TypeError(f"noise: expected a Tensor, a noise source or None, got {noise!r}")
    source = WhiteNoise() if noise is None else noise
    check_noise_source(source, event_shape)

    def draw(t: int) -> Tensor:
        drawn: Any = source(shape[1:], dtype=like.dtype, device=like.device, generator=generator)
        if not isinstance(drawn, Tensor) or tuple(drawn.shape) != shape[1:]:
            came = tuple(drawn.shape) if isinstance(drawn, Tensor) else type(drawn).__name__
            raise ValueError(f"noise: expected the source to return {shape[1:]}, got {came}")
        return drawn

    return draw
