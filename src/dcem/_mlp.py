"""Fully connected networks, which energies and decoders are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn


def check_widths(name: str, widths: Sequence[int], *, empty: bool = False) -> None:
    """Check the widths of hidden layers."""
    if not (widths or empty) or any(width < 1 for width in widths):
        raise ValueError(f"{name}: expected {'' if empty else 'at least one '}positive width, got {tuple(widths)}")


def mlp(widths: Sequence[int], activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Linear layers between these widths, an activation between each two."""
    layers: list[nn.Module] = [nn.Linear(widths[0], widths[1])]
    for width, next_width in pairwise(widths[1:]):
        layers += [activation(), nn.Linear(width, next_width)]
    return nn.Sequential(*layers)
