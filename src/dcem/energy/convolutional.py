"""An energy for images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dcem._mlp import check_makes_modules, check_widths, mlp
from dcem.energy.base import Energy


class ConvEnergy(Energy):
    """A convolutional network on an image that the input and a candidate make together.

    The two are put together along `axis`: as channels of one image (`axis=0`), one above the other (`1`) or side by
    side (`2`); the last two are for images of which a part is missing.

    Args:
        feature_shape: `(channels, height, width)` of one input.
        event_shape: `(channels, height, width)` of one candidate.
        axis: Along which of the three they are put together; the other two have to agree.
        channels: Of the 3x3 convolutions; each but the first halves height and width.
        hidden: Widths of the fully connected layers behind them.
        activation: Makes the module between two layers.

    Shapes: `x` `(*batch, *feature)`, `y` `(*batch, N, *event)` -> `(*batch, N)`.

    Raises:
        ValueError: the shapes have other than three axes or do not agree; a width is not positive; in `forward`, `x`
        or `y` does not end in its shape or their batches differ.

    >>> energy = ConvEnergy((1, 8, 4), (1, 8, 4), axis=2)      # the left half of a digit and the right
    >>> energy(torch.zeros(5, 1, 8, 4), torch.zeros(5, 100, 1, 8, 4)).shape
    torch.Size([5, 100])
    """

    def __init__(
        self,
        feature_shape: Sequence[int],
        event_shape: Sequence[int],
        *,
        axis: int = 0,
        channels: Sequence[int] = (16, 32),
        hidden: Sequence[int] = (64,),
        activation: Callable[[], nn.Module] = nn.Softplus,
    ) -> None:
        super().__init__(feature_shape, event_shape)
        channels = check_widths("channels", channels)
        hidden = check_widths("hidden", hidden, empty=True)
        check_makes_modules(activation)
        if axis not in (0, 1, 2):
            raise ValueError(f"axis: expected 0 (channels), 1 (height) or 2 (width), got {axis}")
        for name, shape in (("feature_shape", self.feature_shape), ("event_shape", self.event_shape)):
            if len(shape) != 3:
                raise ValueError(f"{name}: expected (channels, height, width), got {shape}")
        whole = list(self.feature_shape)
        whole[axis] += self.event_shape[axis]
        expected = tuple(self.event_shape[i] if i == axis else whole[i] for i in range(3))
        if self.event_shape != expected:
            raise ValueError(
                f"event_shape: expected {expected} beside feature_shape {self.feature_shape} along axis {axis}, "
                f"got {self.event_shape}"
            )
        self.axis = axis
        layers: list[nn.Module] = []
        (before, height, width) = whole
        for i, after in enumerate(channels):
            stride = 2 if i else 1
            layers += [nn.Conv2d(before, after, 3, stride=stride, padding=1), activation()]
            before, height, width = after, (height - 1) // stride + 1, (width - 1) // stride + 1
        layers += [nn.Flatten(), mlp([before * height * width, *hidden, 1], activation)]
        self.network = nn.Sequential(*layers)

    def condition_on(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        x = x.unsqueeze(-4)

        def energy(y: Tensor) -> Tensor:
            leading = y.shape[:-3]
            both = torch.cat([x.expand(*leading, *self.feature_shape), y], self.axis - 3)
            return self.network(both.reshape(-1, *both.shape[-3:])).reshape(leading)

        return energy
