"""Structured prediction energy networks: what each output wants alone, and what all want together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dcem._check import check_flag, check_weight, magnitude
from dcem._mlp import check_makes_modules, check_widths, mlp
from dcem.energy.base import Energy, flat, hold


class SPEN(Energy):
    """A structured prediction energy network: `E(x, y) = -Σ_i y_i b_iᵀF(x) + g(y, F(x)) - ε Σ_i H(y_i)`.

    The local term scores each of the `L` outputs by the features `F(x)` and is linear in `y`; the global network `g`
    measures `y` as a whole, and thereby learns which outputs go together. Candidates are meant to be in `[0, 1]^L`:
    give the model `bounds=(0, 1)`, or search the logits with `decoder=nn.Sigmoid()`.

    Args:
        feature_shape: Shape of one input; an int is `(int,)`.
        event_shape: Shape of one candidate; an int is `(int,)`.
        hidden: Widths of the feature network `F`; the last is the number of features.
        global_hidden: Widths of the global network's hidden layers.
        conditional: Whether the global network also sees `F(x)`; without, it knows `y` alone.
        entropy: `ε >= 0`, the weight of the entropy `H(y) = -y log y - (1-y) log(1-y)`, which pulls the minimiser
        from the corners of the box into its inside. An `nn.Parameter` is learned, of which the
        magnitude counts.
        activation: Makes the module between two layers.

    Shapes: `x` `(*batch, *feature)`, `y` `(*batch, N, *event)` -> `(*batch, N)`.

    Raises:
        ValueError: a width is not positive or `entropy` negative; in `forward`, `x` or `y` does not end in its shape
        or their batches differ.

    Source: Belanger & McCallum, "Structured Prediction Energy Networks", ICML 2016, section 3; global terms that see
    the features, and the entropy, as in Belanger, Yang & McCallum, ICML 2017.

    >>> import dcem
    >>> model = dcem.energy.EnergyModel(SPEN(8, 50), 50, dcem.GradientDescent(0.1), init_mean=0.5, bounds=(0, 1))
    >>> model(torch.zeros(16, 8)).shape
    torch.Size([16, 50])
    """

    entropy: float | Tensor

    def __init__(
        self,
        feature_shape: int | Sequence[int],
        event_shape: int | Sequence[int],
        hidden: Sequence[int] = (128, 128),
        global_hidden: Sequence[int] = (64,),
        *,
        conditional: bool = False,
        entropy: float | Tensor = 0.0,
        activation: Callable[[], nn.Module] = nn.Softplus,
    ) -> None:
        super().__init__(feature_shape, event_shape)
        hidden = check_widths("hidden", hidden)
        global_hidden = check_widths("global_hidden", global_hidden)
        check_makes_modules(activation)
        entropy, conditional = check_weight("entropy", entropy), check_flag("conditional", conditional)
        outputs = math.prod(self.event_shape)
        hold(self, "entropy", entropy)
        self.conditional = conditional
        self.features = nn.Sequential(mlp([math.prod(self.feature_shape), *hidden], activation), activation())
        self.local = nn.Linear(hidden[-1], outputs)
        self.from_y = nn.Linear(outputs, global_hidden[0])
        self.from_x = nn.Linear(hidden[-1], global_hidden[0], bias=False) if conditional else None
        self.rest = nn.Sequential(activation(), mlp([*global_hidden, 1], activation))

    def condition_on(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        features = self.features(flat(x, self.feature_shape))
        local = self.local(features).unsqueeze(-2)
        shift = None if self.from_x is None else self.from_x(features).unsqueeze(-2)

        def energy(y: Tensor) -> Tensor:
            y = flat(y, self.event_shape)
            hidden = self.from_y(y)
            whole = self.rest(hidden if shift is None else hidden + shift).squeeze(-1)
            value = whole - (local * y).sum(-1)
            if not isinstance(self.entropy, Tensor) and self.entropy == 0:
                return value
            return value - magnitude(self.entropy) * binary_entropy(y).sum(-1)

        return energy


def binary_entropy(y: Tensor) -> Tensor:
    """`-y log y - (1-y) log(1-y)`, that of the nearest point inside `(0, 1)`: it and its gradient stay finite."""
    margin = 10 * torch.finfo(y.dtype).eps
    inside = y.clamp(margin, 1 - margin)
    return -(inside * inside.log() + (1 - inside) * torch.log1p(-inside))
