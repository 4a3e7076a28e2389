"""The plainest energy: a network on the input and a candidate together."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcem._eager import calls_only
from dcem._mlp import check_makes_modules, check_widths, mlp
from dcem.energy.base import Energy, flat


class MLPEnergy(Energy):
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
        super().__init__(feature_shape, event_shape)
        hidden = check_widths("hidden", hidden)
        check_makes_modules(activation)
        self.features = math.prod(self.feature_shape)
        self.first = nn.Linear(self.features + math.prod(self.event_shape), hidden[0])
        self.rest = nn.Sequential(activation(), *mlp([*hidden, 1], activation))

    def condition_on(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        if not calls_only(self.first, nn.Linear):  # a hook may make its weights: spectral_norm
            return functools.partial(self._called, flat(x, self.feature_shape).unsqueeze(-2))
        weight_x, weight_y = self.first.weight[:, : self.features], self.first.weight[:, self.features :]
        hidden_x = F.linear(flat(x, self.feature_shape), weight_x, self.first.bias).unsqueeze(-2)

        def energy(y: Tensor) -> Tensor:
            hidden_y = F.linear(flat(y, self.event_shape), weight_y)
            return self.rest(hidden_x + hidden_y).squeeze(-1)

        return energy

    def _called(self, x: Tensor, y: Tensor) -> Tensor:
        y = flat(y, self.event_shape)
        value: Tensor = self.rest(self.first(torch.cat([x.expand(*y.shape[:-1], -1), y], -1))).squeeze(-1)
        return value
