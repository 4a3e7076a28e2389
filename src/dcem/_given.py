"""What an error says of what was given: never all the numbers of a tensor, and a remedy where one is likely."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def brief(value: Any) -> str:
    """What came where something else was expected: of tensors and arrays the shape, of the rest the value."""
    if isinstance(value, Tensor) or _is_array(value):
        return f"a{'' if isinstance(value, Tensor) else 'n'} {type(value).__name__} of shape {tuple(value.shape)}"
    if any(isinstance(part, Tensor) or _is_array(part) for part in _parts(value)):
        return f"a {type(value).__name__} of {', '.join(map(brief, _parts(value)))}"
    return repr(value)


def kind(value: Any) -> str:
    """The type of what came where a Tensor was expected, and how to make one of an array."""
    return type(value).__name__ + from_numpy(value)


def came(value: Any, expected: tuple[int, ...] | None = None) -> str:
    """What came where a Tensor was expected, of that shape: its shape, or what it is instead."""
    if not isinstance(value, Tensor):
        return kind(value)
    shape = tuple(value.shape)
    return f"{shape}; append .squeeze(-1)" if expected is not None and shape == (*expected, 1) else str(shape)


def from_numpy(value: Any) -> str:
    """The remedy for an array, or for a container of arrays; empty for the rest."""
    has_array = _is_array(value) or any(map(_is_array, _parts(value)))
    return "; make a Tensor of an array with torch.from_numpy(...)" if has_array else ""


def _parts(value: Any) -> list[Any]:
    return list(value.values() if type(value) is dict else value) if type(value) in (tuple, list, dict) else []


def _is_array(value: Any) -> bool:
    """Whether this is an array of NumPy, which need not be installed."""
    return type(value).__module__ == "numpy" and type(value).__name__ == "ndarray"
