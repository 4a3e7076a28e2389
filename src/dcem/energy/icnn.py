"""Input-convex networks: energies with one valley, whatever they have learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcem._check import check_weight, magnitude
from dcem._mlp import check_makes_modules, check_widths
from dcem.energy.base import Energy, flat, hold


class ICNN(Energy):
    """A partially input-convex network: convex in `y`, arbitrary in `x`.

    Each layer adds up convex functions of `y` with weights that are never negative, and applies an activation that is
    convex and non-decreasing. The weights are the softplus of free parameters, so there is no point that an optimiser
    can reach where the energy is not convex, and nothing has to be projected. Local minima are global ones: gradient
    descent finds them, and `gradient=dcem.Implicit()` differentiates them.

    Args:
        feature_shape: Shape of one input; an int is `(int,)`.
        event_shape: Shape of one candidate; an int is `(int,)`.
        hidden: Widths of the hidden layers, in the path of `x` and in that of `y`.
        strong_convexity: `μ >= 0`: `μ/2 ‖y‖²` is added, which makes the minimiser exist and unique, and its
        derivative bounded by `1/μ`. An `nn.Parameter` is learned, of which the
        magnitude counts.
        activation: Makes the function between two layers of the path of `y`: convex and non-decreasing, such as
        `nn.Softplus`, `nn.ReLU`, `nn.ELU`.

    Shapes: `x` `(*batch, *feature)`, `y` `(*batch, N, *event)` -> `(*batch, N)`.

    Raises:
        ValueError: `activation` decreases, is not convex, has parameters or is not elementwise; a width is not
        positive; `strong_convexity` is negative; in `forward`, `x` or `y` does not end in its shape or their batches
        differ.

    Source: Amos, Xu & Kolter, "Input Convex Neural Networks", ICML 2017, section 3.2.

    >>> import dcem
    >>> model = dcem.energy.EnergyModel(ICNN(3, 2), 2, dcem.GradientDescent(0.3), num_iterations=100,
    ...                                 gradient=dcem.Implicit())
    >>> bool((model.solve(torch.ones(5, 3)).status == dcem.Status.OK).all())
    True
    >>> ICNN(3, 2, activation=nn.Tanh)
    Traceback (most recent call last):
    ValueError: activation: expected a convex, non-decreasing function, got Tanh(), which is not convex near 0.0...
    """

    strong_convexity: float | Tensor

    def __init__(
        self,
        feature_shape: int | Sequence[int],
        event_shape: int | Sequence[int],
        hidden: Sequence[int] = (64, 64),
        *,
        strong_convexity: float | Tensor = 0.1,
        activation: Callable[[], nn.Module] = nn.Softplus,
    ) -> None:
        super().__init__(feature_shape, event_shape)
        hidden = check_widths("hidden", hidden)
        check_makes_modules(activation)
        hold(self, "strong_convexity", check_weight("strong_convexity", strong_convexity))
        self.activation = activation()
        check_activation(self.activation)
        inputs, outputs = math.prod(self.feature_shape), math.prod(self.event_shape)
        widths_x = [inputs, *hidden]  # the widths of the path of x: u_0 = x, u_1, ...
        widths_z = [0, *hidden, 1]  # those of the path of y: z_0 is nothing, the last is the energy
        layers = range(len(hidden) + 1)
        self.path = nn.ModuleList(nn.Linear(widths_x[i], widths_x[i + 1]) for i in range(len(hidden)))
        self.bias = nn.ModuleList(nn.Linear(widths_x[i], widths_z[i + 1]) for i in layers)
        self.gate_y = nn.ModuleList(nn.Linear(widths_x[i], outputs) for i in layers)
        self.from_y = nn.ModuleList(nn.Linear(outputs, widths_z[i + 1], bias=False) for i in layers)
        self.gate_z = nn.ModuleList(nn.Linear(widths_x[i], widths_z[i]) for i in layers[1:])
        self.free = nn.ParameterList(_nearly_mean(widths_z[i], widths_z[i + 1]) for i in layers[1:])
        for gate in (*self.gate_y, *self.gate_z):
            nn.init.ones_(gate.bias)

    def condition_on(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        u = flat(x, self.feature_shape)
        given = []
        for i, bias in enumerate(self.bias):
            gate_z = F.softplus(self.gate_z[i - 1](u)).unsqueeze(-2) if i else None
            given.append((bias(u).unsqueeze(-2), self.gate_y[i](u).unsqueeze(-2), gate_z))
            if i < len(self.path):
                u = F.softplus(self.path[i](u))
        positive = [F.softplus(free) for free in self.free]

        def energy(y: Tensor) -> Tensor:
            y = flat(y, self.event_shape)
            z = y
            for i, (bias, gate_y, gate_z) in enumerate(given):
                value = self.from_y[i](y * gate_y) + bias
                if gate_z is not None:
                    value = value + F.linear(z * gate_z, positive[i - 1])
                z = self.activation(value) if i < len(self.path) else value
            return z.squeeze(-1) + 0.5 * magnitude(self.strong_convexity) * y.square().sum(-1)

        return energy


def _nearly_mean(inputs: int, outputs: int) -> nn.Parameter:
    """Free parameters whose softplus is about one over the number of inputs: layers start as averages."""
    return nn.Parameter(torch.randn(outputs, inputs) * 0.5 + math.log(math.expm1(1 / inputs)))


def check_activation(activation: nn.Module) -> None:
    """Refuse an activation under which a network with non-negative weights would not be convex.

    The function is evaluated on grids of `[-100, 100]`, coarse and fine.
    """
    wanted = f"activation: expected a convex, non-decreasing function, got {activation}"
    if any(True for _ in activation.parameters()):
        raise ValueError(f"{wanted}, whose parameters an optimiser could move out of those")
    for reach in (3.0, 100.0):
        grid = torch.linspace(-reach, reach, 1200, dtype=torch.float64, device="cpu")
        with torch.no_grad():
            value = activation(grid)
            parts = torch.cat([activation(part) for part in grid.view(-1, 3).unbind()])
            if value.shape != grid.shape or not torch.allclose(parts, value):
                raise ValueError(f"{wanted}, which is not elementwise")
        rounding = 1e-8 * (1 + value[1:].abs())  # that of nn.Softplus where it becomes linear is 2e-9
        for change, what in ((value.diff(), "decreases"), (value.diff().diff(), "is not convex")):
            bad = ~(change >= -rounding[: len(change)])
            if bad.any():
                raise ValueError(f"{wanted}, which {what} near {float(grid[1:][bad.nonzero()[0, 0]]):.3g}")
