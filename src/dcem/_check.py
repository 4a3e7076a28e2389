"""Checks of hyperparameters that several public classes share."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Generic, TypeVar, cast

from torch import Tensor

T = TypeVar("T")


class Fixed(Generic[T]):
    """A public attribute that is set once, by the constructor: others were derived from it. It refuses to be set."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> T:
        if instance is None:
            return cast(T, self)
        if self.name not in instance.__dict__:
            raise AttributeError(self.name)
        return cast(T, instance.__dict__[self.name])

    def __set__(self, instance: Any, value: T) -> None:
        if self.name in instance.__dict__:
            kind = type(instance).__name__
            raise AttributeError(f"{self.name}: expected to stay as constructed, {value!r} needs another {kind}")
        instance.__dict__[self.name] = value


def check_number(name: str, value: object) -> None:
    """A plain number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {value!r}")


def check_count(name: str, value: int) -> None:
    """A whole number of at least one."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")


def check_fraction(name: str, value: float | Tensor, *, below_one: bool = False) -> None:
    """A number in ``[0, 1]``, or in ``[0, 1)``; tensors are taken as they are."""
    if isinstance(value, Tensor):
        return
    check_number(name, value)
    if not 0 <= value <= 1 or (below_one and value == 1):
        raise ValueError(f"{name}: expected a number in [0, 1{')' if below_one else ']'}, got {value}")


def check_std(name: str, value: float | Tensor) -> None:
    """A finite number of at least zero; tensors are taken as they are."""
    if isinstance(value, Tensor):
        return
    check_number(name, value)
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name}: expected a finite number >= 0, got {value}")


def check_positive(name: str, value: float | Tensor) -> None:
    """A finite number above zero; tensors are taken as they are."""
    if isinstance(value, Tensor):
        return
    check_number(name, value)
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}: expected a finite number > 0, got {value}")


def as_shape(name: str, shape: int | Sequence[int]) -> tuple[int, ...]:
    """A shape as a tuple; an int is a shape of one axis."""
    try:
        sizes = tuple(operator.index(size) for size in ((shape,) if isinstance(shape, int) else shape))
    except TypeError:
        remedy = f"; its shape is {tuple(of)}" if isinstance(of := getattr(shape, "shape", None), tuple) else ""
        raise TypeError(f"{name}: expected an int or a sequence of ints, got {shape!r}{remedy}") from None
    if any(size < 1 for size in sizes):
        raise ValueError(f"{name}: expected positive sizes, got {sizes}")
    return sizes
