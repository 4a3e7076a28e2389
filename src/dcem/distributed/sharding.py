"""One solve by several processes: its samples, or its problems, are divided among them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from dcem._check import check_positive, is_true
from dcem._eager import in_forward_mode, is_eager
from dcem._guard import WithData
from dcem._setup import Setup
from dcem._tree import leaves, map_tensors
from dcem.bounds import Bounds
from dcem.distributed.candidates import SharedObjective
from dcem.distributed.outside import Outside, OwnWork
from dcem.distributed.ranks import Gather, Ranks, Scatter, tied
from dcem.distributions import Distribution
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

    def _agree(self, init: Distribution | Tensor, solver: Solver, options: dict[str, Any]) -> Setup:
        """Raise where the processes do not solve the same problem, or would draw other samples."""
        if not is_eager() or in_forward_mode():
            raise RuntimeError("shard: works outside torch.compile, torch.func transforms and forward mode")
        self.ranks.num_solves += 1
        given = ("num_iterations", "event_dims", "bounds", "generator", "noise", "proposals")
        gradient = options["gradient"]
        try:
            setup = Setup.of(init, solver, **{name: options[name] for name in given})  # says what is wrong here
            if solver.is_captured:
                raise ValueError("shard: expected a solver as it was before dcem.capture, got a captured one")
            start = leaves(setup.start)
            numbers = [*start, *_numbers([solver, gradient, setup.bounds])]
        except BaseException:
            self.ranks.fail_to_begin()
            raise
        kind = (type(self).__name__, _kinds([solver, gradient]), solver.num_samples, options["num_iterations"])
        shapes = [(x.shape, x.dtype, x.requires_grad) for x in numbers]
        what = "the same solver, gradient mode, number of iterations and shapes"
        self.ranks.begin(what, kind, options["tolerance"], torch.is_grad_enabled(), shapes)
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
        return setup


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
        RuntimeError: in a solve, another process has ended, does not come in time, has raised an error, or is in
            another solve, as after an interrupt or a wait in vain; or inside `torch.compile`, `torch.func` transforms
            and forward mode.

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
        event_dims = options["event_dims"] if isinstance(init, Tensor) else init.event_dims
        mean = init if isinstance(init, Tensor) else init.mean
        dim = mean.dim() - event_dims
        shared = SharedObjective(WithData.of(objective), dim, self.ranks)
        box = Bounds.check(options["bounds"], mean.shape[dim:], mean)
        shared.compare((mean if box is None else box.clip(mean)).detach())
        for name, meaning in (("callback", is_true), ("validate", _plain)):
            if options[name] is not None:
                options[name] = shared.heard(name, options[name], meaning)
        solution = minimize(WithData(shared, shared.whole.data), init, solver, **options)
        shared.outside.agree()
        return solution


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

    `solution.history`, what a callback sees, which it may stop, and what a backward pass writes into the status are of
    the own problems: of a loss of these, the gradient is the mean of those of all processes. A generator ends where it
    does in the process that has drawn most: with `tolerance` where it does in one process.

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
        setup = self._agree(init, solver, options)
        if getattr(options["gradient"], "unbiased", False):  # each would draw for its own problems, and others go on
            raise ValueError("shard: expected Samples() for Prune(unbiased=True), which draws for all, got Problems()")
        start: Distribution = solver.distribution(init, options["event_dims"]) if isinstance(init, Tensor) else init
        batch = start.batch_shape
        if not batch or batch[0] % self.ranks.size:
            raise ValueError(
                f"shard: expected a batch whose first axis {self.ranks.size} processes can share evenly, "
                f"got {tuple(batch)}"
            )
        whole, outside, own_noise = WithData.of(objective), Outside(self.ranks), _OwnNoise(setup, self.ranks)
        work, parts = OwnWork(outside), []

        def part(x: Tensor) -> Tensor:
            parts.append(work.made(Scatter.apply(x, self.ranks)))  # type: ignore[no-untyped-call]
            return parts[-1]

        own_start, noise, proposals = map_tensors(part, start), options["noise"], options["proposals"]
        options["noise"] = part(noise.movedim(1, 0)).movedim(0, 1) if isinstance(noise, Tensor) else own_noise
        if isinstance(proposals, Tensor):
            options["proposals"] = part(proposals)
        own = WithData(whole.function, map_tensors(part, whole.data))
        options["event_dims"] = start.event_dims
        try:
            with self.ranks.telling():
                with work:
                    solution = minimize(own, own_start, solver, **options)
                results = _results(solution)
                work.check(results)
            outside.attached += [x.requires_grad for x in results]
            own_noise.draw_up_to(outside.agree(own_noise.num_drawn))  # by others, whose problems took longer
        except BaseException:
            own_noise.draw_up_to(options["num_iterations"])  # of others it is not known how far they came
            raise
        return self._joined(solution, tied(*parts, *outside.shares()))

    def _joined(self, own: Solution, attached: Tensor) -> Solution:
        """The solution of all problems."""

        def joined(x: Tensor) -> Tensor:
            result: Tensor = Gather.apply(x, self.ranks, None, attached if x.requires_grad else None)  # type: ignore[no-untyped-call]
            return result

        whole = Solution(
            joined(own.x), joined(own.best_x), joined(own.best_value), map_tensors(joined, own.distribution),
            joined(own.status), own.history,
        )  # fmt: skip
        # Where the backward pass finds a slope that is not finite it writes into the own status, from here on a view.
        own.status.set_(self.ranks.own(whole.status))  # type: ignore[call-overload, unused-ignore]
        return whole._keeping(own)


def _plain(answer: Any) -> Any:
    """The numbers of a tensor; of what `validate` must not return, and the solve refuses, its type."""
    return answer.tolist() if isinstance(answer, Tensor) else type(answer).__qualname__


def _results(solution: Solution) -> list[Tensor]:
    """What of a solution may have a gradient."""
    return [solution.x, solution.best_x, solution.best_value, *leaves(solution.distribution)]


class _OwnNoise:
    """A noise source that draws for the whole batch and gives the part of the own problems."""

    def __init__(self, setup: Setup, ranks: Ranks) -> None:
        self.draw, self.ranks = setup.draw, ranks
        self.num_drawn = 0

    def __call__(self, shape: tuple[int, ...], **options: Any) -> Tensor:
        self.num_drawn += 1
        return self.ranks.own(self.draw(0))

    def draw_up_to(self, num: int) -> None:
        """Have the generator of every process end in the same place."""
        with suppress(Exception):  # of a source that fails: it is what has been raised
            while self.num_drawn < num:
                self(())
