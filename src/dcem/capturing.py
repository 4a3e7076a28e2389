"""One iteration of a solve, compiled once and replayed."""

from __future__ import annotations

import contextlib
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor

from dcem._eager import in_forward_mode, is_eager
from dcem._given import brief
from dcem._tree import leaves
from dcem.solvers import Solver, Step
from dcem.solvers.base import Objective

AnySolver = TypeVar("AnySolver", bound=Solver)
NUM_VARIANTS = 64
"""How many times an iteration is compiled, at most."""


def capture(solver: AnySolver, *, backend: str | Callable[..., Any] = "inductor") -> AnySolver:
    """Solve many times where the objective is made of small operations: compile the iteration and replay it.

    An eager iteration pays for every operation that it starts; compiled by `torch.compile`, the objective, the
    selection and the refit are one function with few loops. One iteration is compiled, not the solve: it is used for
    any number of iterations, in [`dcem.minimize`][], [`dcem.Argmin`][], [`dcem.control.MPC`][],
    [`dcem.energy.EnergyModel`][] and the controllers of `dcem.rl`, and the gradient modes stand around it as they do
    around the solver.

    Args:
        solver: what is iterated. Its iterations have to be alike: a `population_decay` above 1 or a list of
            learning rates would have each of them compiled.
        backend: of `torch.compile`.

    Returns:
        A solver of the same class and settings, whose `step` is compiled when it is first made: for each shape, dtype
        and family, with and without gradients, and anew for another objective. A function that is made again by the
        same line of code, such as a lambda in a loop, is the same objective.

    Raises:
        TypeError: `solver` is no solver.
        ValueError: its iterations are not alike.
        RuntimeError: in a solve, the iteration cannot be compiled: the objective looks at values (`if x > 0`,
            `.item()`), leaves torch (NumPy, a simulator), or it would be for the 65th time: for new shapes, or for
            numbers that the objective closes over and that are no tensors. Or a gradient is differentiated again.

    Answers are those of the solver up to rounding. As nothing looks at values while it runs, no failure of a
    slope is reported in the status, and with gradients the objective is evaluated twice an iteration, the second time
    at what did not fail: captured gradients pay off for small operations alone. First derivatives are compiled; inside
    `torch.func` transforms, forward mode and an outer `torch.compile` the iteration is as it was.

    Example:
        >>> import torch, dcem
        >>> solver = dcem.capture(dcem.CEM(50, 5, dcem.HardTopK()), backend="eager")  # traced only
        >>> def nearest(goal):
        ...     return dcem.minimize(lambda x: (x - goal).square().sum(-1), torch.zeros(2), solver).x
        >>> with torch.no_grad():
        ...     answers = torch.stack([nearest(torch.full((2,), goal)) for goal in (1.0, 2.0)])  # captured once
        >>> bool((answers - torch.tensor([[1.0], [2.0]])).abs().max() < 0.3)
        True

    Source: Ansel et al., "PyTorch 2: faster machine learning through dynamic Python bytecode transformation and graph
    compilation", ASPLOS 2024.
    """
    if not isinstance(solver, Solver):
        raise TypeError(f"solver: expected a dcem solver such as dcem.CEM(), got {brief(solver)}")
    rates: Any = getattr(solver, "lr", None)
    if getattr(solver, "population_decay", 1) != 1 or (isinstance(rates, Tensor) and rates.dim()):
        raise ValueError(
            f"solver: expected iterations that are alike, of population_decay=1 and one lr, got {brief(solver)}"
        )
    kind = solver._kind if isinstance(solver, _Captured) else type(solver)
    # How often a function is compiled anew is counted, and limited, by its code: each captured solver has its own.
    own = types.FunctionType(_step.__code__.replace(), globals(), f"step_of_{kind.__name__}")
    compiled = _Compiled(torch.compile(own, backend=backend, dynamic=False, fullgraph=True))
    members = {"_kind": kind, "_backend": backend, "_compiled": staticmethod(compiled), "__doc__": kind.__doc__}
    return cast("AnySolver", _as(type(f"Captured{kind.__name__}", (_Captured, kind), members), solver))


_FAILURES: tuple[type[Exception], ...] = (
    torch._dynamo.exc.TorchDynamoException,
    torch._inductor.exc.InductorError,
    torch._dynamo.exc.FailOnRecompileLimitHit,  # which is no TorchDynamoException
)


class _Compiled:
    """A function that is compiled for more variants than torch allows for: the first iteration and the others, playing
    and training, shapes.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.needs_more = function, False

    def __call__(self, *arguments: Any) -> Any:
        if not self.needs_more:
            try:
                return self.function(*arguments)
            except torch._dynamo.exc.FailOnRecompileLimitHit:
                self.needs_more = True  # torch logs that, once: setting its limit takes longer than a small iteration
        with torch._dynamo.config.patch(recompile_limit=NUM_VARIANTS):
            return self.function(*arguments)


class _Captured(Solver):
    """A solver with its step compiled; mixed into the solver's own class."""

    is_captured = True
    _kind: ClassVar[type[Solver]]
    _backend: ClassVar[Any]
    _compiled: ClassVar[Callable[..., tuple[tuple[Any, ...], tuple[Any, ...]]]]

    def step(self, objective: Objective, state: Any, noise: Tensor, clip: Callable[[Tensor], Tensor]) -> Step:
        plain = self._kind.step
        if not is_eager() or in_forward_mode():
            return plain(self, objective, state, noise, clip)
        counts = "iteration" in getattr(state, "_fields", ())
        any_state = state._replace(iteration=_any) if counts else state
        try:
            with _no_warning_of_slopes(state):
                of_state, of_step = self._compiled(plain, self, objective, any_state, noise, clip)
        except _FAILURES as error:
            plain(self, objective, state, noise, clip)  # whatever is wrong with it beside says so by itself
            raise RuntimeError(
                f"capture: expected an iteration that torch.compile can trace, got {type(error).__name__} "
                f"({str(error).splitlines()[0]}): write the objective in operations of torch that look at no values, "
                "with tensors for numbers that change, for few shapes; or leave the solver as it is. Not captured are "
                "Checkpoint around a GradientDescent and Prune(unbiased=True) with a generator"
            ) from error
        _let_second_derivatives_say_so([*leaves(of_state), *leaves(of_step)])
        new = type(state)(*of_state)
        return Step(new._replace(iteration=state.iteration + 1) if counts else new, *of_step)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (_as(self._kind, self), self._backend)


class _FirstDerivative(torch.autograd.Function):
    """The slope that a compiled function gave: its own slope is what `torch.compile` has not."""

    @staticmethod
    def forward(ctx: Any, slope: Tensor) -> Tensor:
        return slope.view_as(slope)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            "capture: expected first derivatives alone, which torch.compile has, got a second one: leave the solver "
            "as it is where a gradient is differentiated again"
        )


def _let_second_derivatives_say_so(outputs: list[Tensor]) -> None:
    nodes: set[Any] = {output.grad_fn for output in outputs}
    for node in nodes:
        if type(node).__name__ == "CompiledFunctionBackward":  # there is none of a backend that compiles no derivative
            node.register_hook(lambda slopes, _: tuple(map(_watched, slopes)))


def _watched(slope: Tensor | None) -> Tensor | None:
    if slope is None or not slope.requires_grad:
        return slope
    return cast("Tensor", _FirstDerivative.apply(slope))  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _no_warning_of_slopes(state: Any) -> Iterator[None]:
    """Where a state has a gradient `torch.compile` looks at its `grad`, which warns."""
    if not any(leaf.requires_grad for leaf in leaves(state)):
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        yield


class _AnyIteration:
    """The number of an iteration where it must not count."""

    def __add__(self, other: int) -> _AnyIteration:
        return self


_any: Any = _AnyIteration()


def _step(
    plain: Callable[..., Step], solver: Solver, objective: Objective, state: Any, noise: Tensor, clip: Any
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The step and its state as plain tuples: `torch.compile` of 2.9 to 2.11 returns no NamedTuple."""
    step = plain(solver, objective, state, noise, clip)
    return tuple(step.state), tuple(step)[1:]


def _as(kind: type[Solver], solver: Solver) -> Solver:
    """The same settings in another class."""
    new: Solver = object.__new__(kind)
    vars(new).update(vars(solver))
    return new


def _restored(solver: Solver, backend: Any) -> Solver:
    return capture(solver, backend=backend)
