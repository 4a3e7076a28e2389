"""The boundary to the user's objective: its output is checked, and what fails is guarded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dcem._eager import is_eager, may_have_gradient
from dcem._given import came, kind
from dcem._guard import Cut, Reports, WithData, find_failed, guarded, stand_ins, uncut
from dcem._no_gradient import refuse_outside
from dcem._replay import randomness
from dcem._unchanged import Versions, is_changed


@dataclass(frozen=True, eq=False)
class Evaluation:
    """An objective as a solver sees it: candidates `(*batch, N, *event)` in, values `(*batch, N)` out, of at least
    single precision, checked and guarded.

    Attributes:
        objective: of the user.
        batch_shape: the leading axes.
        event_dims: number of axes of one candidate.
        dtype: that the user's candidates shall have.
        generator: that the solve was given.
        reports: where slopes that are not finite are noted in the backward pass; None to leave them as they are.
        returned: the last values with a gradient, and their version: autograd would not let them be copied for nothing.
        coarse: the dtype of what the objective returned last, where that is coarser than the candidates'.
        lost: whether values have a gradient and none of their candidates, once that was found out.
    """

    objective: WithData
    batch_shape: torch.Size
    event_dims: int
    dtype: torch.dtype
    generator: torch.Generator | None = None
    reports: Reports | None = None
    returned: list[tuple[Tensor, int]] = field(default_factory=list)
    coarse: list[torch.dtype] = field(default_factory=list)
    lost: list[bool] = field(default_factory=list)

    def __call__(self, samples: Tensor) -> Tensor:
        """The values of candidates."""
        if not may_have_gradient():
            return self._values(samples, self.objective.data, uncut)
        values: Tensor = guarded(
            self._watched, samples, self.objective.data, len(self.batch_shape), generator=self.generator
        )
        return values if self.reports is None else refuse_outside(values, samples, self.lost)

    def _watched(self, samples: Tensor, data: Any, cut: Cut) -> Tensor:
        if self.reports is None:
            return self._values(samples, data, cut)
        values: Tensor = self.reports.watched(
            lambda samples: self._values(samples, data, cut), samples, data, len(self.batch_shape), cut, self.generator
        )
        return values

    def measured(self, measure: Callable[[Callable[[Tensor], Tensor], Tensor], Any], samples: Tensor) -> Any:
        """`measure(objective, samples)`, a tree of tensors `(*batch, N, ...)`, guarded."""

        def evaluate(samples: Tensor, data: Any, cut: Cut) -> Any:
            return measure(lambda given: self._values(given, data, cut), samples)

        batch_dims = len(self.batch_shape)
        return guarded(evaluate, samples, self.objective.data, batch_dims, generator=self.generator)

    def sound(self, x: Tensor) -> tuple[Evaluation, Tensor, Tensor]:
        """To be differentiated twice at `x` `(*batch, *event)`: this objective and `x`, and which problems have a
        value, a slope or a curvature that is not finite, `(*batch,)`. In the place of these stand others.
        """
        batch_dims = len(self.batch_shape)
        samples = x.detach().unsqueeze(batch_dims)
        with torch.enable_grad():
            point = samples.clone().requires_grad_()
            derivatives = [self._values(point, self.objective.data, uncut)]
            # The value, the slope, and the sums of the Hessian's rows: what is not finite shows in a sum.
            for _ in range(2):
                latest = derivatives[-1]
                if not latest.requires_grad:
                    break
                (slope,) = torch.autograd.grad(latest.sum(), point, create_graph=True, allow_unused=True)
                if slope is None:
                    break
                derivatives.append(slope)
        failed = find_failed(derivatives, batch_dims)
        evaluation = self
        if failed.any() and not failed.all():
            samples, data = stand_ins(samples, self.objective.data, failed, batch_dims)
            evaluation = replace(self, objective=WithData(self.objective.function, data))
        return evaluation, samples.squeeze(batch_dims), failed.squeeze(-1)

    def _values(self, samples: Tensor, data: Any, cut: Cut) -> Tensor:
        eager = is_eager()
        # A copy where NumPy can write to the memory: torch counts writes of its own only.
        given = samples.to(self.dtype, copy=eager and samples.is_cpu)
        noted = Versions(given)
        values = (self._called if eager else self.objective.function)(given, data, cut)
        check_left(noted)
        expected = (*self.batch_shape, samples.shape[samples.dim() - self.event_dims - 1])
        values = as_values("objective", values, expected, samples)
        if torch.finfo(values.dtype).eps > torch.finfo(samples.dtype).eps:
            self.coarse[:] = [values.dtype]
        # A simulator may fill one tensor again and again: what is kept of it is a copy.
        if not values.requires_grad:
            return values.to(samples.dtype, copy=True)
        if eager:
            if any(is_changed(earlier, version) for earlier, version in self.returned):
                raise ValueError(
                    "objective: expected to leave values that it has returned as they are, got them filled again"
                )
            self.returned[:] = [(values.detach(), values._version)]  # which shares the version, and not the graph
        return values.to(samples.dtype)

    def _called(self, given: Tensor, data: Any, cut: Cut) -> Any:
        """What the objective returns; what a solve keeps for the backward pass is for its gradient mode to say."""
        try:
            return self.objective.function(given, data, cut)
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(
                f"objective: out of memory for {tuple(given.shape)} candidates: gradient=dcem.Checkpoint() keeps one "
                "iteration for the backward pass, dcem.Prune() the graph of a part of the samples, dcem.Detach() "
                f"nothing; MPC(chunk_size=...) follows a part of the candidates at a time. {error}"
            ) from error


def check_left(candidates: Versions) -> None:
    """Refuse an objective that has written to its candidates since they were noted."""
    if candidates.changed():
        raise ValueError("objective: expected to leave its candidates as they are, got them changed in place")


def hides_axis(batch_shape: Sequence[int], num_samples: int) -> bool:
    """Whether data `(*batch, ...)` without an axis for the candidates broadcast against them, so that no shape shows
    it: with as many problems as candidates, the data of problem `i` meet candidate `i` of every problem.
    """
    return is_eager() and bool(batch_shape) and batch_shape[-1] == num_samples > 1


def check_axis(
    name: str,
    objective: Callable[[Tensor], Any],
    one: Tensor,
    batch_shape: Sequence[int],
    generator: torch.Generator | None = None,
) -> None:
    """Refuse data that lack the axis where that is hidden: `one` candidate of each problem, `(*batch, 1, *event)`,
    shows it.
    """
    put_back = randomness(one.device, generator)
    try:
        values = objective(one)  # as a solve would call it first: it may keep features, with a gradient
    except Exception:  # it needs more candidates than one: what is wrong with it shows in the solve
        return
    finally:
        put_back()
    if isinstance(values, Tensor) and tuple(values.shape) == (*batch_shape, batch_shape[-1]):
        raise ValueError(
            f"{name}: expected values (*batch, N) = {(*batch_shape, 1)} for one candidate each, (*batch, N, *event) = "
            f"{tuple(one.shape)}, got {tuple(values.shape)}: the data of the problems lack the axis of the candidates, "
            f"insert it with .unsqueeze({len(batch_shape)})"
        )


def as_values(name: str, values: Any, expected: tuple[int, ...], samples: Tensor) -> Tensor:
    """Check that these are values of the shape `expected`, `(*batch, N)`, of candidates `samples`."""
    if not isinstance(values, Tensor):
        raise TypeError(f"{name}: expected a Tensor of values of shape {expected}, got {kind(values)}")
    if tuple(values.shape) != expected:
        raise ValueError(
            f"{name}: expected values of shape (*batch, N) = {expected} for candidates of shape "
            f"(*batch, N, *event) = {tuple(samples.shape)}, got {came(values, expected)}"
        )
    if not values.is_floating_point():
        raise TypeError(f"{name}: expected floating-point values, got {values.dtype}")
    if values.device != samples.device:
        raise ValueError(f"{name}: expected values on {samples.device} like the candidates, got {values.device}")
    return values
