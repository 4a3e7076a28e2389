"""The decoder for sequences that unrolls a latent over time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dcem._mlp import check_widths
from dcem.bounds import BoundsLike
from dcem.embedding.decoder import Decoder, as_sequence


class RecurrentDecoder(Decoder):
    """A gated recurrent network (GRU) that unrolls a latent into a sequence, with the same weights at every step.

    The latent sets the first hidden state and is the input of every step. The number of weights does not grow with
    the horizon, and neighbouring steps are alike by construction; an `MLPDecoder` is faster where the horizon
    is short.

    Args:
        latent_shape: shape of `z`; an int is `(int,)`.
        event_shape: `(horizon, *action)`; an int is a sequence of numbers.
        hidden: width of the hidden state.
        bounds: the box of `x`, as in `MLPDecoder`.

    Shapes: `z` `(..., *latent)` -> `x` `(..., horizon, *action)`.

    Raises:
        ValueError: a shape or width is not positive, or `bounds` do not fit `event`; when called, `z` does not
            end in `latent`.

    Example:
        >>> import torch
        >>> from dcem.embedding import RecurrentDecoder
        >>> decoder = RecurrentDecoder(2, (20, 1), bounds=(-1.0, 1.0))
        >>> decoder(torch.zeros(100, 2)).shape
        torch.Size([100, 20, 1])

    Source: the unit is that of Cho et al., "Learning phrase representations using RNN encoder-decoder", EMNLP 2014.
    """

    def __init__(
        self,
        latent_shape: int | Sequence[int],
        event_shape: int | Sequence[int],
        hidden: int = 64,
        *,
        bounds: BoundsLike | None = None,
    ) -> None:
        super().__init__(latent_shape, as_sequence(event_shape), bounds=bounds)
        (hidden,) = check_widths("hidden", [hidden])
        latent = math.prod(self.latent_shape)
        self.first = nn.Linear(latent, hidden)
        self.unit = nn.GRU(latent, hidden, batch_first=True)
        self.read = nn.Linear(hidden, math.prod(self.event_shape[1:]))

    def decode(self, z: Tensor) -> Tensor:
        leading, horizon = z.shape[: z.dim() - len(self.latent_shape)], self.event_shape[0]
        rows = z.reshape(-1, math.prod(self.latent_shape))
        states, _ = self.unit(rows.unsqueeze(1).expand(-1, horizon, -1), torch.tanh(self.first(rows)).unsqueeze(0))
        return self.squash(self.read(states).reshape(*leading, *self.event_shape))
