"""Solver diagnostics as scalars, for TensorBoard, Weights & Biases, or a line of progress."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dcem.solution import Iteration


class Scalars:
    """Write what each iteration of a solve looks like to any logger: give it as `callback` to [`dcem.minimize`][].

    The scalars, each the mean over the problems: `best` (the lowest value so far in this solve), `std`,
    `effective_elites`, `drift` and `gradient_norm` as in [`dcem.Iteration`][], and `failed`, the fraction of
    candidates whose value was not finite. Gradient norms are known after the backward pass: they are written when the
    next solve begins, or by `flush`. What is NaN is not written.

    Args:
        add_scalar: `(name, value, step) -> None`: `SummaryWriter(...).add_scalar` of TensorBoard, or
            `lambda name, value, step: wandb.log({name: value}, step=step)`.
        prefix: before each name, `"solve"` for `solve/std`.

    Raises:
        TypeError: `add_scalar` is not callable, or `prefix` no string.

    Steps count the iterations of all solves, from 0. Call `begin` before each solve that is not to be taken for
    the one before gone on with; an iteration's gradients are then written, and `best` starts anew.

    Example:
        >>> import torch, dcem
        >>> seen = {}
        >>> scalars = dcem.Scalars(lambda name, value, step: seen.setdefault(name, []).append((step, value)))
        >>> theta = torch.tensor([1.0, -2.0], requires_grad=True)
        >>> for _ in range(2):
        ...     scalars.begin()
        ...     solution = dcem.minimize(lambda x: (x - theta).square().sum(-1), torch.zeros(2), callback=scalars)
        ...     solution.x.sum().backward()
        >>> scalars.flush()
        >>> sorted(seen)
        ['solve/best', 'solve/drift', 'solve/effective_elites', 'solve/failed', 'solve/gradient_norm', 'solve/std']
        >>> [step for step, _ in seen["solve/std"]] == list(range(20))
        True
    """

    def __init__(self, add_scalar: Callable[[str, float, int], object], prefix: str = "solve") -> None:
        if not callable(add_scalar):
            raise TypeError(f"add_scalar: expected a callable (name, value, step), got {add_scalar!r}")
        if not isinstance(prefix, str):
            raise TypeError(f"prefix: expected a string, got {prefix!r}")
        self.add_scalar, self.prefix, self.step = add_scalar, prefix, 0
        self._best: Tensor | None = None
        self._norms: list[tuple[int, Tensor]] = []

    def begin(self) -> None:
        """A new solve begins: write the gradient norms of the one before."""
        self.flush()
        self._best = None

    def flush(self) -> None:
        """Write the gradient norms that backward passes have left since."""
        norms, self._norms = self._norms, []
        for step, norm in norms:
            self._write("gradient_norm", norm, step)

    @torch.no_grad()
    def __call__(self, iteration: Iteration) -> None:
        """One iteration; the solve goes on."""
        values = iteration.values.detach()
        finite = values.isfinite()
        lowest = torch.where(finite, values, torch.inf).amin(-1)
        self._best = lowest if self._best is None else torch.minimum(self._best, lowest)
        self._write("best", self._best, self.step)
        self._write("failed", (~finite).to(values.dtype), self.step)
        for name in ("std", "effective_elites", "drift"):
            self._write(name, getattr(iteration, name), self.step)
        self._norms.append((self.step, iteration.gradient_norm))
        self.step += 1

    def _write(self, name: str, value: Tensor, step: int) -> None:
        known = value[value.isfinite()]
        if known.numel():
            self.add_scalar(f"{self.prefix}/{name}", known.mean().item(), step)
