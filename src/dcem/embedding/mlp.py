"""The decoder for any candidate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from dcem._mlp import check_makes_modules, check_widths, mlp
from dcem.bounds import BoundsLike
from dcem.embedding.decoder import Decoder


class MLPDecoder(Decoder):
    """A fully connected network from a latent to a candidate of any shape, inside a box.

    Args:
        latent_shape: shape of `z`; an int is `(int,)`.
        event_shape: shape of `x`; an int is `(int,)`.
        hidden: widths of the hidden layers; none of them for a linear map.
        bounds: the box of `x`, `(low, high)`: each None, a number, or a tensor that broadcasts to `event`. The
            output is squashed into it, by a sigmoid between two sides and a softplus from a single one.
        activation: makes the module between two layers.

    Shapes: `z` `(..., *latent)` -> `x` `(..., *event)`.

    Raises:
        ValueError: a shape or width is not positive, or `bounds` do not fit `event`; when called, `z` does not
            end in `latent`.

    Example:
        >>> import torch
        >>> from dcem.embedding import MLPDecoder
        >>> decoder = MLPDecoder(2, (20, 1), bounds=(-1.0, 1.0))
        >>> decoder(torch.zeros(100, 2)).shape
        torch.Size([100, 20, 1])

    Source: Amos & Yarats, ICML 2020, section 5.2.
    """

    def __init__(
        self,
        latent_shape: int | Sequence[int],
        event_shape: int | Sequence[int],
        hidden: Sequence[int] = (256, 256, 256),
        *,
        bounds: BoundsLike | None = None,
        activation: Callable[[], nn.Module] = nn.ELU,
    ) -> None:
        super().__init__(latent_shape, event_shape, bounds=bounds)
        hidden = check_widths("hidden", hidden, empty=True)
        check_makes_modules(activation)
        self.layers = mlp([math.prod(self.latent_shape), *hidden, math.prod(self.event_shape)], activation)

    def decode(self, z: Tensor) -> Tensor:
        leading = z.shape[: z.dim() - len(self.latent_shape)]
        x = self.layers(z.reshape(*leading, math.prod(self.latent_shape)))
        return self.squash(x.reshape(*leading, *self.event_shape))
