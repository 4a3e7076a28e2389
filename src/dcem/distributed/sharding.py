"""One solve by several processes: its samples, or its problems, are divided among them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dcem._check import check_positive
from dcem._eager import in_forward_mode, is_eager
from dcem._given import came
from dcem._guard import Cut, WithData
from dcem._setup import Setup
from dcem._tree import leaves, map_tensors
from dcem.bounds import Bounds
from dcem.distributed.outside import Outside, OwnWork
from dcem.distributed.ranks import Gather, Ranks, Scatter, tied
from dcem.distributions import Distribution, WhiteNoise
from dcem.solution import Solution
from dcem.solvers import SamplingSolver, Solver

Minimize = Callable[..., Solution]


class _Shard:
    """What both ways have in common: a group, and the checks before a solve."""

    def __init__(self, group: Any = None, *, timeout: float = 600.0) -> None:
        check_positive("timeout", timeout)
        self.ranks = Ranks(group, timeout)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.copy(self)  # of a module that holds it; a group cannot be copied

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rank {self.ranks.rank} of {self.ranks.size})"

    def _agree(self, init: Distribution | Tensor, solver: Solver, options: dict[str, Any]) -> None:
        """Raise where the processes do not solve the same problem, or would draw other samples."""
        if not is_eager() or in_forward_mode():
            raise RuntimeError("shard: works outside torch.compile, torch.func transforms and forward mode")
        given = ("num_iterations", "event_dims", "bounds", "generator", "noise", "proposals")
        setup = Setup.of(init, solver, **{name: options[name] for name in given})  # says what is wrong here
        if solver.is_captured:
            raise ValueError("shard: expected a solver as it was before dcem.capture, got a captured one")
        start, gradient = leaves(setup.start), options["gradient"]
        numbers = [*start, *_numbers([solver, gradient, setup.bounds])]
        kind = (_kinds([solver, gradient]), solver.num_samples, options["num_iterations"], options["tolerance"])
        shapes = [(x.shape, x.dtype, x.requires_grad) for x in numbers]
        what = "the same solver, gradient mode, number of iterations and shapes"
        self.ranks.begin(what, kind, torch.is_grad_enabled(), shapes)
        self.ranks.agree_up_to_rounding("the same start, bounds and settings of the solver", numbers)
        noise, generator = options["noise"], options["generator"]
        if isinstance(noise, Tensor):
            self.ranks.agree("the same noise", noise)
        elif generator is not None:
            self.ranks.agree("a generator with the same seed", generator.get_state())
        else:
            device = start[0].device
            state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
            self.ranks.agree("the same torch.manual_seed, or a generator,", state)


def _parts(settings: Any) -> list[Any]:
    """All that settings are made of, themselves included."""
    inside = settings
    if isinstance(settings, torch.nn.Module) or hasattr(settings, "__dataclass_fields__"):
        inside = vars(settings)
    if isinstance(inside, dict):
        inside = [*inside.values()]
    parts = [x for part in inside for x in _parts(part)] if isinstance(inside, (list, tuple)) else []
    return [settings, *parts]


def _numbers(settings: Any) -> list[Tensor]:
    """The numbers and tensors among them."""
    found = [part for part in _parts(settings) if isinstance(part, (Tensor, int, float))]
    return [part if isinstance(part, Tensor) else torch.tensor(float(part)) for part in found]


def _kinds(settings: Any) -> list[str]:
    """Their types, and what is said in words."""
    return [part if isinstance(part, str) else type(part).__qualname__ for part in _parts(settings)]


class Samples(_Shard):
    """Minimise with several processes, each of which evaluates its share of the candidates.

    Give it to [`dcem.minimize`][], [`dcem.control.MPC`][] or [`dcem.energy.EnergyModel`][] as `shard`, and
    call them in every process with the same arguments. Each process gets the solution that one process would have
    found, up to rounding, and the gradient: the whole of it, not its part. An optimiser in every process takes the same
    step; under `DistributedDataParallel`, which averages equal gradients, too.

    Every process draws all of the noise and refits the distribution by itself: a generator draws as in one process, and
    explicit `noise` is that of the whole population. In an iteration only the `N` values travel. The backward pass
    exchanges the slopes at the candidates, and once a solve the gradient of each tensor that the objective uses.

    Args:
        group: a `torch.distributed.device_mesh.DeviceMesh` of one axis, a process group, or None for all
            processes. Those of another axis may solve other problems.
        timeout: seconds to wait for the other processes in one exchange, at most; with NCCL that of the group holds.

    Raises:
        ValueError: there is no process group, this process is not in it, or the mesh has several axes; in a solve, the
            number of samples is not a multiple of that of processes, the solver has no samples to share, or a process
            has another seed, noise, shape, objective (which each evaluates once more, at the initial mean, for this)
            or set of parameters.
        RuntimeError: in a solve, another process has ended, does not come in time, or has raised an error; or
            inside `torch.compile`, `torch.func` transforms and forward mode.

    The objective has to be deterministic: a process draws random numbers for its own candidates. A callback has to say
    the same in each process. Every process has to use the same parameters in the same order whatever its candidates
    are, with a factor of 0 those that these have nothing to do with (an expert that is asked about others). Parameters
    are told apart by their shapes and numbers. Hooks within the objective see the gradient of the own candidates: one
    that clips the gradient of a parameter clips each process's part of it. With fewer candidates than processes (the
    answer of a plan, [`dcem.Implicit`][]) each evaluates all of them.

    Example (`torchrun --nproc-per-node 4 script.py`)::

        torch.distributed.init_process_group()
        shard = dcem.distributed.Samples()
        solution = dcem.minimize(objective, init, dcem.CEM(1000, 100), shard=shard, generator=generator)

    Source: master and workers of population-based search, Salimans et al., "Evolution strategies as a scalable
    alternative to reinforcement learning", 2017, section 2.1: values travel, noise is drawn everywhere; the pairs of
    operators in forward and backward pass: Shoeybi et al., "Megatron-LM", 2019, section 3.
    """

    def solve(
        self, minimize: Minimize, objective: Callable[[Tensor], Tensor], init: Any, solver: Solver, **options: Any
    ) -> Solution:
        """`minimize(objective, init, solver, **options)` by all processes of the group."""
        self._agree(init, solver, options)
        if not isinstance(solver, SamplingSolver):
            raise ValueError(f"shard: expected a solver that selects among samples, or Problems(), got {solver}")
        if solver.num_samples % self.ranks.size:
            raise ValueError(
                f"shard: expected a number of samples that {self.ranks.size} processes can share evenly, "
                f"got num_samples={solver.num_samples}"
            )
        whole = WithData.of(objective)
        event_dims = options["event_dims"] if isinstance(init, Tensor) else init.event_dims
        mean = init if isinstance(init, Tensor) else init.mean
        dim, outside = mean.dim() - event_dims, Outside(self.ranks)
        self._same_objective(whole, mean, dim, options["bounds"])

        def shared(samples: Tensor, data: Any, cut: Cut) -> Tensor:
            num = samples.shape[dim]
            if num < self.ranks.size:
                return whole.function(samples, data, cut)
            rest = -num % self.ranks.size  # proposals, pruned or shrunk populations: the last one is evaluated again
            work = OwnWork(outside)

            def part(x: Tensor) -> Tensor:
                padded = torch.cat(
                    [x, x.narrow(dim, num - 1, 1).expand(*x.shape[:dim], rest, *x.shape[dim + 1 :])], dim
                )
                every = (padded if rest else x).movedim(dim, 0)
                return work.made(Scatter.apply(every, self.ranks)).movedim(0, dim)  # type: ignore[no-untyped-call]

            own = part(samples)
            failed = None if cut.failed is None else part(cut.failed)
            expected = tuple(own.shape[: dim + 1])
            try:
                with work:
                    values: Any = whole.function(own, data, Cut(failed))
                work.check(values)
                if not isinstance(values, Tensor) or tuple(values.shape) != expected:
                    raise ValueError(
                        f"objective: expected values of shape (*batch, N) = {expected} for candidates "
                        f"of shape (*batch, N, *event) = {tuple(own.shape)}, got {came(values, expected)}"
                    )
            except Exception:
                self.ranks.fail(own.new_empty(expected, dtype=torch.float64))
                raise
            outside.attached.append(values.requires_grad)
            attached = tied(own, *outside.shares()) if values.requires_grad else None
            # Of whatever dtype, it has the size that a process that fails knows.
            sent = values.to(torch.promote_types(values.dtype, torch.float64)).movedim(dim, 0)
            gathered: Tensor = Gather.apply(sent, self.ranks, None, attached)  # type: ignore[no-untyped-call]
            return gathered[:num].movedim(0, dim).to(values.dtype)

        solution = minimize(WithData(shared, whole.data), init, solver, **options)
        outside.agree()
        return solution

    def _same_objective(self, whole: WithData, mean: Tensor, dim: int, bounds: Any) -> None:
        box = Bounds.check(bounds, mean.shape[dim:], mean)
        mean = (mean if box is None else box.clip(mean)).detach()
        try:
            value: Any = whole(mean.unsqueeze(dim))  # as a solve calls it first: it may keep features, with a gradient
        except Exception:
            self.ranks.fail(mean.new_empty((1, mean.shape[:dim].numel()), dtype=torch.float64))
            raise
        if not isinstance(value, Tensor) or tuple(value.shape) != (*mean.shape[:dim], 1):
            return  # which the solve says better
        values = self.ranks.gathered(value.detach().double().reshape(1, -1))
        size = 1e-3 * values.abs().amax(0)
        others = ((values - values[0]).abs() > size).any(-1).nonzero().flatten().tolist()
        if others:
            raise ValueError(
                f"shard: expected the same objective on every rank, which draws no random numbers; at the initial mean "
                f"it has another value than on rank 0 on {others}"
            )


class Problems(_Shard):
    """Minimise a batch with several processes, each of which solves its share of the problems.

    Used like `Samples`: every process is given the whole batch, and gets the solution (and the gradient) of the
    whole batch. Nothing travels while the solve is going on. The first axis of the batch is divided. Each process draws
    the noise of the whole batch.

    A controller's state, and the input of an energy model, are divided with it. An objective of your own is called with
    the candidates of this process's problems: inside of it, take its part of other tensors of the batch by `own`.

    Args:
        group: as in `Samples`.
        timeout: likewise.

    Raises:
        ValueError: as in `Samples`; the first axis of the batch cannot be divided evenly.
        RuntimeError: as in `Samples`.

    `solution.history` and what a callback sees are of the own problems: of a loss of these, the gradient is the mean of
    those of all processes.

    Example (`torchrun --nproc-per-node 4 script.py`)::

        torch.distributed.init_process_group()
        shard = dcem.distributed.Problems()
        solution = dcem.minimize(lambda x: (x - shard.own(targets).unsqueeze(-2)).square().sum(-1), init, shard=shard)

    Source: data parallelism, Li et al., "PyTorch Distributed", VLDB 2020.
    """

    def own(self, x: Tensor) -> Tensor:
        """The part of `x`, `(batch, ...)`, that belongs to the problems of this process."""
        return self.ranks.own(x)

    def solve(
        self, minimize: Minimize, objective: Callable[[Tensor], Tensor], init: Any, solver: Solver, **options: Any
    ) -> Solution:
        """`minimize(objective, init, solver, **options)` by all processes of the group."""
        self._agree(init, solver, options)
        if getattr(options["gradient"], "unbiased", False):  # each would draw for its own problems, and others go on
            raise ValueError("shard: expected Samples() for Prune(unbiased=True), which draws for all, got Problems()")
        start: Distribution = solver.distribution(init, options["event_dims"]) if isinstance(init, Tensor) else init
        batch = start.batch_shape
        if not batch or batch[0] % self.ranks.size:
            raise ValueError(
                f"shard: expected a batch whose first axis {self.ranks.size} processes can share evenly, "
                f"got {tuple(batch)}"
            )
        whole, outside = WithData.of(objective), Outside(self.ranks)
        work, parts = OwnWork(outside), []

        def part(x: Tensor) -> Tensor:
            parts.append(work.made(Scatter.apply(x, self.ranks)))  # type: ignore[no-untyped-call]
            return parts[-1]

        noise, proposals = options["noise"], options["proposals"]
        if isinstance(noise, Tensor):
            options["noise"] = noise if noise.dim() < 2 else part(noise.movedim(1, 0)).movedim(0, 1)
        else:
            options["noise"] = _OwnNoise(WhiteNoise() if noise is None else noise, self.ranks)
        if isinstance(proposals, Tensor):
            options["proposals"] = part(proposals)
        own_start = map_tensors(part, start)
        own = WithData(whole.function, map_tensors(part, whole.data))
        options["event_dims"] = start.event_dims
        try:
            with work:
                solution = minimize(own, own_start, solver, **options)
            results = [solution.x, solution.best_x, solution.best_value, *leaves(solution.distribution)]
            work.check(results)
        except Exception:
            next_sent = start.mean.new_empty(1, dtype=torch.int64) if torch.is_grad_enabled() else self.own(start.mean)
            self.ranks.fail(next_sent)
            raise
        outside.attached += [x.requires_grad for x in results]
        outside.agree()
        attached = tied(*parts, *outside.shares())

        def joined(x: Tensor) -> Tensor:
            result: Tensor = Gather.apply(x, self.ranks, None, attached if x.requires_grad else None)  # type: ignore[no-untyped-call]
            return result

        return Solution(
            joined(solution.x), joined(solution.best_x), joined(solution.best_value),
            map_tensors(joined, solution.distribution), joined(solution.status), solution.history,
        )  # fmt: skip


class _OwnNoise:
    """A noise source that draws for the whole batch and gives the part of the own problems."""

    def __init__(self, source: Any, ranks: Ranks) -> None:
        self.source, self.ranks = source, ranks
        check = getattr(source, "check_event", None)
        if check is not None:
            self.check_event = check

    def __call__(self, shape: tuple[int, ...], **options: Any) -> Tensor:
        return self.ranks.own(self.source((shape[0] * self.ranks.size, *shape[1:]), **options))
