"""Fully connected networks, which energies and decoders are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from dcem._check import check_int
from dcem._given import brief


def check_widths(name: str, widths: Sequence[int], *, empty: bool = False) -> list[int]:
    """The widths of hidden layers, checked."""
    given: Any = widths
    if not isinstance(given, Sequence):
        raise TypeError(f"{name}: expected a sequence of ints, got {brief(given)}")
    plain = [check_int(name, width) for width in widths]
    if not (plain or empty) or any(width < 1 for width in plain):
        raise ValueError(f"{name}: expected {'' if empty else 'at least one '}positive width, got {tuple(plain)}")
    return plain


def check_makes_modules(activation: Any) -> None:
    """Check that `activation` is what makes a module, as `nn.ReLU` is, and neither its name nor a module."""
    if not callable(activation) or isinstance(activation, nn.Module):
        raise TypeError(f"activation: expected what makes a module, such as torch.nn.ReLU, got {activation!r}")


def mlp(widths: Sequence[int], activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Linear layers between these widths, an activation between each two."""
    layers: list[nn.Module] = [nn.Linear(widths[0], widths[1])]
    for width, next_width in pairwise(widths[1:]):
        layers += [activation(), nn.Linear(width, next_width)]
    return nn.Sequential(*layers)
