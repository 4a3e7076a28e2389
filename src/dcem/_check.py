"""Checks of hyperparameters that several public classes share. They return the plain value of what they were given."""

from __future__ import annotations

import numbers
import operator
from typing import TYPE_CHECKING, Any, Generic, SupportsIndex, TypeVar, cast

import torch
from torch import Tensor

from dcem._eager import is_eager
from dcem._given import brief, kind

if TYPE_CHECKING:
    from typing_extensions import TypeIs

T = TypeVar("T")
_OR_TENSOR = "a number or a Tensor"


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


def check_number(name: str, value: object, expected: str = "a number") -> float:
    """A plain number, also one of NumPy's: as an int or a float."""
    if type(value) is int or type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected {expected}, got {brief(value)}")
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def check_tensor(name: str, value: object, what: str) -> None:
    """A Tensor, and nothing that could be made one."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a Tensor {what}, got {kind(value)}")


def check_int(name: str, value: SupportsIndex) -> int:
    """A whole number, of Python, NumPy or torch, but no boolean."""
    if not _is_boolean(value):
        try:  # torch.compile of torch 2.9 does not know contextlib.suppress
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name}: expected an int, got {brief(value)}{as_int(value)}")


def as_int(value: object) -> str:
    """The int that a whole number was meant to be, to end an error with."""
    is_whole = isinstance(value, numbers.Real) and not _is_boolean(value) and float(value).is_integer()
    return f"; {int(value)} would do" if is_whole else ""  # type: ignore[call-overload]


def check_count(name: str, value: SupportsIndex) -> int:
    """A whole number of at least one."""
    count = check_int(name, value)
    if count < 1:
        raise ValueError(f"{name}: expected at least 1, got {count}")
    return count


def check_dims(name: str, value: SupportsIndex) -> int:
    """A number of axes: a whole number of at least zero."""
    dims = check_int(name, value)
    if dims < 0:
        raise ValueError(f"{name}: expected at least 0, got {dims}")
    return dims


def is_true(value: object) -> bool:
    """Whether this is the true of Python, NumPy or torch; any other thing is not."""
    return _is_boolean(value) and bool(value)


def _is_boolean(value: object) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")


def check_flag(name: str, value: object) -> bool:
    """True or False, of Python, NumPy or torch."""
    if not _is_boolean(value):
        raise TypeError(f"{name}: expected True or False, got {brief(value)}")
    return bool(value)


def check_fraction(name: str, value: float | Tensor, *, below_one: bool = False) -> None:
    """A number in `[0, 1]`, or in `[0, 1)`; or a tensor of one."""
    check_scalar(name, value)
    expected = f"in [0, 1{')' if below_one else ']'}"
    if _is_real(value, name):
        _check_all(name, value, ((value >= 0) & (value < 1 if below_one else value <= 1)), expected)
        return
    check_number(name, value, _OR_TENSOR)
    if not 0 <= value <= 1 or (below_one and value == 1):
        raise ValueError(f"{name}: expected a number {expected}, got {value}")


def check_scalar(name: str, value: float | Tensor) -> None:
    """No number for each of something, of which it would not be known what."""
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"{name}: expected a number or a tensor of one, got shape {tuple(value.shape)}")


def check_std(name: str, value: float | Tensor) -> None:
    """A finite number of at least zero; or a tensor of such numbers."""
    if _is_real(value, name):
        _check_all(name, value, (value >= 0) & value.isfinite(), ">= 0 and finite")
        return
    check_number(name, value, _OR_TENSOR)
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name}: expected a finite number >= 0, got {value}")


def as_floating(x: Tensor) -> Tensor:
    """Whole numbers in the default precision."""
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())


def as_scalar(value: float | Tensor) -> float | Tensor:
    """What `check_scalar` let pass, as a number or a tensor without axes: those would be axes of the result."""
    return value.reshape(()) if isinstance(value, Tensor) else value


def magnitude(weight: float | Tensor) -> float | Tensor:
    """A weight that `check_weight` let pass; of one that is learned the magnitude counts."""
    if not isinstance(weight, Tensor):
        return weight
    weight = weight.reshape(())
    return torch.where(weight < 0, -weight, weight)  # at 0, too, it has a slope to leave it by


def check_weight(name: str, value: float | Tensor) -> float | Tensor:
    """A finite number of at least zero, or a tensor of one, which may be learned."""
    check_std(name, value)
    check_scalar(name, value)
    return value if isinstance(value, Tensor) else check_number(name, value)


def check_positive(name: str, value: float | Tensor) -> None:
    """A finite number above zero; or a tensor of such numbers."""
    if _is_real(value, name):
        _check_all(name, value, (value > 0) & value.isfinite(), "> 0 and finite")
        return
    check_number(name, value, _OR_TENSOR)
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}: expected a finite number > 0, got {value}")


def _is_real(value: object, name: str) -> TypeIs[Tensor]:
    """Whether this is a Tensor, of numbers that can be compared."""
    if isinstance(value, Tensor) and value.is_complex():
        raise TypeError(f"{name}: expected real numbers, got {value.dtype}")
    return isinstance(value, Tensor)


def _check_all(name: str, value: Tensor, holds: Tensor, expected: str) -> None:
    """Tensors are looked at where that costs no wait and where they hold numbers."""
    if is_eager() and holds.device.type == "cpu" and not holds.all():
        wrong = value.detach()[~holds]
        among = f" among {value.numel()} numbers" if value.numel() > 1 else ""
        raise ValueError(f"{name}: expected numbers {expected}, got {wrong[0].item():g}{among}")


_CHOICES = ("Discrete", "OneHot", "Categorical", "Binary")


def for_choices(space: object) -> str:
    """What to use for a space of discrete actions, of Gymnasium or TorchRL; empty for any other thing."""
    if not any(name in kind.__name__ for kind in type(space).__mro__ for name in _CHOICES):
        return ""
    return (
        '; discrete actions are planned as one-hot vectors of C choices: MPC(..., action_shape=C, answer="best", '
        "init=dcem.Categorical(torch.zeros(horizon, C), event_dims=2))"
    )


def _is_size(size: object) -> bool:
    if getattr(size, "shape", ()) or (isinstance(size, Tensor) and size.is_floating_point()):
        return False
    return hasattr(size, "__index__") and not _is_boolean(size)


def _shape_of(name: str, given: object) -> str:
    """The shape that is meant by what has one, to end an error with."""
    shape = getattr(given, "shape", None)
    if name == "batch_shape" and isinstance(given, Tensor):
        return "; of inputs x (*batch, n) it is x.shape[:-1]"
    return f"; its shape is {tuple(shape)}" if isinstance(shape, tuple) else ""


def as_shape(name: str, shape: Any) -> tuple[int, ...]:
    """A shape as a tuple; an int is a shape of one axis."""
    try:
        given = (shape,) if isinstance(shape, int) else tuple(shape)  # torch 2.9 does not trace tuple(3)
    except TypeError:
        given = (shape,)
    choices = "" if isinstance(shape, (int, tuple, list)) else for_choices(shape)  # of which some are empty sequences
    if choices or not all(map(_is_size, given)):
        remedy = choices or _shape_of(name, shape) or as_int(shape)
        raise TypeError(f"{name}: expected an int or a sequence of ints, got {brief(shape)}{remedy}")
    sizes = tuple(check_int(name, size) for size in given)
    if any(size < 1 for size in sizes):
        raise ValueError(f"{name}: expected positive sizes, got {sizes}")
    return sizes
