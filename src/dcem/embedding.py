"""Optimise over a small latent variable and decode it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def embed(objective: Callable[[Tensor], Tensor], decoder: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Turn an objective over ``x`` into one over ``z``, ``f(dec(z))``, to be minimised in the smaller space.

    Args:
        objective: ``(*batch, N, *event) -> (*batch, N)``.
        decoder: ``(*batch, N, *latent) -> (*batch, N, *event)``, a callable or module; its parameters receive
            gradients through the value and through the solve.

    Returns:
        An objective ``(*batch, N, *latent) -> (*batch, N)``.

    Raises:
        TypeError: an argument is not callable.

    Example:
        >>> import torch, dcem
        >>> decoder = torch.nn.Linear(2, 50)
        >>> objective = dcem.embed(lambda x: x.square().sum(-1), decoder)
        >>> dcem.minimize(objective, torch.zeros(2)).x.shape
        torch.Size([2])

    Source: Amos & Yarats, ICML 2020, section 4.2, "embedded control space".
    """
    if not callable(objective):
        raise TypeError(f"objective: expected a callable, got {objective!r}")
    if not callable(decoder):
        raise TypeError(f"decoder: expected a callable, got {decoder!r}")
    return lambda z: objective(decoder(z))
