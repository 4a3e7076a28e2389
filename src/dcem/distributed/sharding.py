"""One solve by several processes: its samples, or its problems, are divided among them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dcem._check import check_positive, is_true
from dcem._eager import in_forward_mode, is_eager
from dcem._guard import WithData
from dcem._replay import randomness
from dcem._setup import Setup
from dcem._tree import leaves, map_tensors
from dcem.bounds import Bounds
from dcem.distributed.candidates import SharedObjective
from dcem.distributed.outside import Outside, OwnWork, is_within
from dcem.distributed.ranks import Gather, Ranks, Scatter, digest, tied
from dcem.distributions import Distribution
from dcem.loop import check_options
from dcem.solution import Solution, Status
from dcem.solvers import SamplingSolver, Solver

Minimize = Callable[..., Solution]


class _Shard:
    """What both ways have in common: a group, and the checks before a solve."""

    _heard: tuple[str, ...] = ()  # functions that all processes have to give, or none

    def __init__(self, group: Any = None, *, timeout: float = 600.0) -> None:
        check_positive("timeout", timeout)
        self.ranks = Ranks(group, timeout)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.copy(self)  # of a module that holds it; a group cannot be copied

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rank {self.ranks.rank} of {self.ranks.size})"

    @contextmanager
    def _begun(self, objective: object, init: Any, solver: Solver, options: dict[str, Any]) -> Iterator[Setup]:
        """Around a solve: raise where the processes do not solve the same problem, or would draw other samples."""
        only = "shard: works outside torch.compile, torch.func transforms and forward mode"
        if torch.compiler.is_compiling():
            raise RuntimeError(only)
        if is_within():
            raise RuntimeError("shard: expected no shard of a solve within the objective of another that has one")
        self.ranks.num_solves += 1
        gradient, generator = options["gradient"], options["generator"]
        try:  # what is wrong here
            if not is_eager() or in_forward_mode():
                raise RuntimeError(only)
            checked = ("num_iterations", "gradient", "tolerance", "validate", "callback", "record")
            num_iterations, _ = check_options(objective, **{name: options[name] for name in checked})
            given = ("event_dims", "bounds", "generator", "noise", "proposals")
            setup = Setup.of(init, solver, num_iterations=num_iterations, **{name: options[name] for name in given})
            if solver.is_captured:
                raise ValueError("shard: expected a solver as it was before dcem.capture, got a captured one")
            numbers = [*leaves(setup.start), *_numbers([solver, gradient, setup.bounds])]
            kind = (type(self).__name__, _kinds([solver, gradient]), solver.num_samples, num_iterations)
            heard = [options[name] is None for name in self._heard]
            shapes = [(x.shape, x.dtype, x.requires_grad) for x in numbers]
            facts = digest(kind, heard, shapes, options["tolerance"], torch.is_grad_enabled())
            device = numbers[0].device
            put_back = randomness(device, generator)
        except BaseException:
            self.ranks.fail_to_begin()
            raise
        uses = "".join(f"use of {name}, " for name in self._heard)
        try:
            with self.ranks.telling():
                self.ranks.begin(f"the same solver, gradient mode, {uses}number of iterations and shapes", facts)
                self.ranks.agree_up_to_rounding("the same start, bounds and settings of the solver", numbers)
                self._agree_on_draws(options["noise"], generator, device)
            yield setup
        except BaseException:  # one process may have drawn more than another
            put_back()
            self.ranks.abandon()
            raise

    def _agree_on_draws(self, noise: object, generator: torch.Generator | None, device: torch.device) -> None:
        if isinstance(noise, Tensor):
            self.ranks.agree("the same noise", noise)
        elif generator is not None:
            self.ranks.agree("a generator with the same seed", generator.get_state())
        else:
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
        RuntimeError: in a solve, another process has ended, does not come in time, has raised an error, or is in
            another solve, as after an interrupt or a wait in vain; or inside `torch.compile`, `torch.func` transforms
            and forward mode.

    The objective has to be deterministic: a process draws random numbers for its own candidates. A callback, and
    `validate`, have to say the same in each process. Every process has to use the same parameters in the same order
    whatever its candidates are, with a factor of 0 those that these have nothing to do with (an expert that is asked
    about others). Parameters are told apart by their shapes and numbers. Hooks within the objective see the gradient of
    the own candidates: one that clips the gradient of a parameter clips each process's part of it. With fewer
    candidates than processes (the answer of a plan, [`dcem.Implicit`][]) each evaluates all of them.

    Example (`torchrun --nproc-per-node 4 script.py`)::

        torch.distributed.init_process_group()
        shard = dcem.distributed.Samples()
        solution = dcem.minimize(objective, init, dcem.CEM(1000, 100), shard=shard, generator=generator)

    Source: master and workers of population-based search, Salimans et al., "Evolution strategies as a scalable
    alternative to reinforcement learning", 2017, section 2.1: values travel, noise is drawn everywhere; the pairs of
    operators in forward and backward pass: Shoeybi et al., "Megatron-LM", 2019, section 3.
    """

    _heard = ("callback", "validate")

    def solve(
        self, minimize: Minimize, objective: Callable[[Tensor], Tensor], init: Any, solver: Solver, **options: Any
    ) -> Solution:
        """`minimize(objective, init, solver, **options)` by all processes of the group."""
        with self._begun(objective, init, solver, options):
            with self.ranks.telling():
                shared = self._shared(objective, init, solver, options)
                if options["callback"] is not None:
                    options["callback"] = self._agreed(options["callback"])
                solution = minimize(WithData(shared, shared.whole.data), init, solver, **options)
                if options["validate"] is not None:
                    self.ranks.agree("the same answer of validate", solution.status.eq(Status.INVALID).tolist())
            shared.outside.agree()
        return solution

    def _shared(
        self, objective: Callable[[Tensor], Tensor], init: Any, solver: Solver, options: dict[str, Any]
    ) -> SharedObjective:
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
        return shared

    def _agreed(self, callback: Callable[[Any], object]) -> Callable[[Any], object]:
        """A callback that stops the solve in all processes or in none."""

        def call(iteration: Any) -> object:
            answer = callback(iteration)
            self.ranks.agree("the same answer of callback", is_true(answer))
            return answer

        return call


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
    does in the process that has drawn most: with `tolerance` where it does in one process; after an error where it was.

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
        with self._begun(objective, init, solver, options) as setup:
            outside, own_noise, parts = Outside(self.ranks), _OwnNoise(setup, self.ranks), list[Tensor]()
            with self.ranks.telling():
                work = OwnWork(outside)

                def part(x: Tensor) -> Tensor:
                    parts.append(work.made(Scatter.apply(x, self.ranks)))  # type: ignore[no-untyped-call]
                    return parts[-1]

                start = self._start(init, solver, options)
                noise, proposals, whole = options["noise"], options["proposals"], WithData.of(objective)
                options["noise"] = part(noise.movedim(1, 0)).movedim(0, 1) if isinstance(noise, Tensor) else own_noise
                if isinstance(proposals, Tensor):
                    options["proposals"] = part(proposals)
                options["event_dims"] = start.event_dims
                own, own_start = WithData(whole.function, map_tensors(part, whole.data)), map_tensors(part, start)
                with work:
                    solution = minimize(own, own_start, solver, **options)
                results = _results(solution)
                work.check(results)
                outside.attached += [x.requires_grad for x in results]
                own_noise.draw_up_to(outside.agree(own_noise.num_drawn))  # by others, whose problems took longer
            return self._joined(solution, tied(*parts, *outside.shares()))

    def _start(self, init: Any, solver: Solver, options: dict[str, Any]) -> Distribution:
        if getattr(options["gradient"], "unbiased", False):  # each would draw for its own problems, and others go on
            raise ValueError("shard: expected Samples() for Prune(unbiased=True), which draws for all, got Problems()")
        start: Distribution = solver.distribution(init, options["event_dims"]) if isinstance(init, Tensor) else init
        batch = start.batch_shape
        if not batch or batch[0] % self.ranks.size:
            raise ValueError(
                f"shard: expected a batch whose first axis {self.ranks.size} processes can share evenly, "
                f"got {tuple(batch)}"
            )
        return start

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
        while self.num_drawn < num:
            self(())
