"""The gradient of a solve against finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from dcem._eager import next_node
from dcem._given import brief

STEPS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Of the finite differences, in units of the parameters; the pair that agrees best counts."""


class Comparison(NamedTuple):
    """A derivative of the answer along a random direction: as the gradient mode gives it, and by finite differences.

    Attributes:
        given: by the gradient mode.
        expected: by central differences with the same noise.
        uncertainty: of `expected`, by how much two step sizes differ, and rounding.
    """

    given: float
    expected: float
    uncertainty: float

    @property
    def size(self) -> float:
        """Of the larger of the two."""
        return max(abs(self.given), abs(self.expected))

    @property
    def is_open(self) -> bool:
        """Whether the finite differences tell too little of a derivative that is not 0."""
        return 1e-3 * self.uncertainty < self.size < 2 * self.uncertainty

    @property
    def error(self) -> float:
        """Relative to their size, without what the finite differences leave open; 0 where both vanish, infinite where
        what is given is no number.
        """
        if not math.isfinite(self.given):
            return math.inf
        scale = self.size
        return max(0.0, abs(self.given - self.expected) - self.uncertainty) / scale if scale > 0 else 0.0


def direction(x: Tensor) -> Tensor:
    """A fixed direction of length one, in which no symmetry of a problem hides."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(x.shape, dtype=torch.float64, generator=generator).to(x)
    return direction / direction.norm()


def checked(parameters: Iterable[Tensor]) -> list[Tensor]:
    if isinstance(parameters, Tensor):
        raise TypeError("parameters: expected an iterable of tensors, got a Tensor: give it in a list")
    given: list[Any] = list(parameters)
    for parameter in given:
        if not isinstance(parameter, Tensor) or not parameter.requires_grad:
            came = "one without" if isinstance(parameter, Tensor) else brief(parameter)
            raise TypeError(f"parameters: expected tensors that require a gradient, got {came}")
    return given


class Inside(TorchFunctionMode):
    """Notes what a solve makes, to tell it from what the solve is given."""

    def __init__(self) -> None:
        super().__init__()
        self._made: Any = WeakIdKeyDictionary()
        self._start = next_node()

    def __torch_function__(self, fn: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = fn(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.grad_fn is None and not result.requires_grad:
            self._made[result] = True  # which may become a leaf
        return result

    def leaves(self, x: Tensor, asked: list[Tensor] | None) -> tuple[list[Tensor], bool]:
        """Those of `asked`, or all that `x` depends on, that can be moved, and the answer with them.

        A leaf from which something was computed before the solve cannot: what was computed would stay as it is.
        Whether there are such is the second that is returned.
        """
        given: dict[int, Tensor] = {}
        before: set[int] = set()
        seen, waiting = set[Any](), [(x.grad_fn, False)]
        while waiting:
            node, is_before = waiting.pop()
            if node is None or (node, is_before) in seen:
                continue
            seen.add((node, is_before))
            if hasattr(node, "variable"):
                given[id(node.variable)] = node.variable
                before |= {id(node.variable)} if is_before else set()
                continue
            is_before = is_before or node._sequence_nr() < self._start
            waiting += [(parent, is_before) for parent, _ in node.next_functions]
        if asked is None:
            movable = [leaf for key, leaf in given.items() if key not in before and leaf not in self._made]
            return movable, bool(before)
        for parameter in asked:
            if id(parameter) in before:
                raise ValueError(
                    "parameters: expected tensors that the objective uses itself, got one from which something was "
                    f"computed before the solve, of shape {tuple(parameter.shape)}"
                )
        return asked, bool(before)


def compare(solve: Callable[[], Tensor], x: Tensor, weights: Tensor, leaves: list[Tensor]) -> Comparison:
    """Of the answer `x`; where it depends on nothing, autograd's derivative is 0."""
    gradients: Sequence[Tensor | None] = [None] * len(leaves)
    if x.requires_grad:
        gradients = torch.autograd.grad((x * weights).sum(), leaves, retain_graph=True, allow_unused=True)
    ways = [direction(leaf) for leaf in leaves]
    given = 0.0
    for gradient, way in zip(gradients, ways, strict=True):
        given += 0.0 if gradient is None else float((gradient * way).sum())
    size = max(1e-3, max(float(leaf.detach().abs().max()) for leaf in leaves))
    rounding = torch.finfo(x.dtype).eps * float((x.detach().double() * weights).abs().sum())

    def moved(step: float) -> float:
        """The answer, summed in double precision, with the parameters moved along the direction."""
        before = [leaf.detach().clone() for leaf in leaves]
        try:
            for leaf, way in zip(leaves, ways, strict=True):
                leaf.data.add_(way, alpha=step)  # unnoticed by graphs that hold it: it is put back
            with torch.no_grad():
                return float((solve().double() * weights).sum())
        finally:
            for leaf, value in zip(leaves, before, strict=True):
                leaf.data.copy_(value)

    estimates = [(moved(size * step) - moved(-size * step)) / (2 * size * step) for step in STEPS]
    uncertain = [
        abs(one - other) + rounding / (size * step)
        for (one, other), step in zip(pairwise(estimates), STEPS[1:], strict=True)
    ]
    best = min(range(len(uncertain)), key=uncertain.__getitem__)
    return Comparison(given, (estimates[best] + estimates[best + 1]) / 2, uncertain[best])
