"""Energy functions `E_θ(x, y)`: how badly a candidate `y` fits an input `x`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class MLPEnergy(nn.Module):
    """A fully connected network on the input and a candidate together, which has one number to say about
    them.

    The first layer is linear in `(x, y)`, so the input's share is computed once and not for every candidate.

    Args:
        feature_shape: Shape of one input; an int is `(int,)`.
        event_shape: Shape of one candidate; an int is `(int,)`.
        hidden: Widths of the hidden layers.
        activation: Makes the module between two layers. A smooth one gives gradient solvers something to
        follow.

    Shapes: `x` `(*batch, *feature)`, `y` `(*batch, N, *event)` -> `(*batch, N)`.

    Raises:
        ValueError: a width is not positive; in `forward`, `x` or `y` does not end in its shape or their
        batches differ.

    >>> import torch
    >>> energy = MLPEnergy(3, 2)
    >>> energy(torch.zeros(5, 3), torch.zeros(5, 100, 2)).shape
    torch.Size([5, 100])
    """

    def __init__(
        self,
        feature_shape: int | Sequence[int],
        event_shape: int | Sequence[int],
        hidden: Sequence[int] = (128, 128, 128),
        activation: Callable[[], nn.Module] = nn.Softplus,
    ) -> None:
        super().__init__()
        self.feature_shape, self.event_shape = _shape(feature_shape), _shape(event_shape)
        if not hidden or any(width < 1 for width in hidden):
            raise ValueError(f"hidden: expected at least one positive width, got {tuple(hidden)}")
        self.features = math.prod(self.feature_shape)
        self.first = nn.Linear(self.features + math.prod(self.event_shape), hidden[0])
        layers: list[nn.Module] = []
        for width, next_width in pairwise([*hidden, 1]):
            layers += [activation(), nn.Linear(width, next_width)]
        self.rest = nn.Sequential(*layers)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        check_pair(x, y, self.feature_shape, self.event_shape)
        weight_x, weight_y = self.first.weight[:, : self.features], self.first.weight[:, self.features :]
        of_x = F.linear(_flat(x, self.feature_shape), weight_x, self.first.bias)
        of_y = F.linear(_flat(y, self.event_shape), weight_y)
        energy: Tensor = self.rest(of_x.unsqueeze(-2) + of_y)
        return energy.squeeze(-1)


def check_pair(x: Tensor, y: Tensor, feature_shape: tuple[int, ...], event_shape: tuple[int, ...]) -> None:
    """Check that `x` is `(*batch, *feature)` and `y` `(*batch, N, *event)`, with one batch."""
    batch = tuple(x.shape[: x.ndim - len(feature_shape)])
    if tuple(x.shape) != (*batch, *feature_shape) or x.ndim < len(feature_shape):
        raise ValueError(f"x: expected (*batch, *feature) with feature {feature_shape}, got {tuple(x.shape)}")
    samples = tuple(y.shape[len(batch) : len(batch) + 1])
    if not samples or tuple(y.shape) != (*batch, *samples, *event_shape):
        raise ValueError(
            f"y: expected (*batch, N, *event) with batch {batch} (that of x) and event {event_shape}, "
            f"got {tuple(y.shape)}"
        )


def _shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    return (shape,) if isinstance(shape, int) else tuple(shape)


def _flat(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    return tensor.reshape(*tensor.shape[: tensor.ndim - len(shape)], math.prod(shape))
