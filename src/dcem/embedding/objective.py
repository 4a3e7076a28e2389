"""An objective over the latent variable."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dcem._given import brief
from dcem._latent import behind, decoded


def embed(objective: Callable[[Tensor], Tensor], decoder: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Turn an objective over `x` into one over `z`, `f(dec(z))`, to be minimised in the smaller space.

    Args:
        objective: `(*batch, N, *event) -> (*batch, N)`.
        decoder: `(*batch, N, *latent) -> (*batch, N, *event)`, a callable or module; its parameters receive
            gradients through the value and through the solve. If it says its `latent_shape` and `event_shape`, as
            those of `dcem.embedding` do, what it returns is held to that.

    Returns:
        An objective `(*batch, N, *latent) -> (*batch, N)`.

    Raises:
        TypeError: an argument is not callable.
        ValueError: when called, the decoder returns another shape than it says.

    Example:
        >>> import torch, dcem
        >>> decoder = torch.nn.Linear(2, 50)
        >>> objective = dcem.embed(lambda x: x.square().sum(-1), decoder)
        >>> dcem.minimize(objective, torch.zeros(2)).x.shape
        torch.Size([2])

    Source: Amos & Yarats, ICML 2020, section 4.2, "embedded control space".
    """
    if not callable(objective):
        raise TypeError(f"objective: expected a callable, got {brief(objective)}")
    if not callable(decoder):
        raise TypeError(f"decoder: expected a callable, got {brief(decoder)}")

    return behind(objective, lambda z: decode(decoder, z))


def decode(decoder: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """`dec(z)`, of the shape that the decoder says, if it says one."""
    return decoded(decoder, z, getattr(decoder, "latent_shape", None), getattr(decoder, "event_shape", None))
