"""What an error says of what was given: never all the numbers of a tensor, and a remedy where one is likely."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

_MOST = 300
"""Characters that are shown of what is long."""


def brief(value: Any) -> str:
    """What came where something else was expected: of tensors and arrays the shape, of the rest the value."""
    text = _brief(value, 4)
    return text if len(text) <= _MOST else f"{text[:_MOST]}..."


def _brief(value: Any, depth: int) -> str:
    if isinstance(value, Tensor) or _is_array(value):
        return f"a{'' if isinstance(value, Tensor) else 'n'} {type(value).__name__} of shape {tuple(value.shape)}"
    if not _holds_numbers(value, depth):
        return repr(value)
    parts = f" of {', '.join(_brief(part, depth - 1) for part in _parts(value))}" if depth else ""
    return f"a {type(value).__name__}{parts}"


def _holds_numbers(value: Any, depth: int) -> bool:
    """Whether there are tensors or arrays in it, or in what it holds; what is nested deeper than `depth` may."""
    if isinstance(value, Tensor) or _is_array(value):
        return True
    parts = _parts(value)
    return any(_holds_numbers(part, depth - 1) for part in parts) if depth else bool(parts)


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
    """What a container shows of itself."""
    if isinstance(value, (tuple, list)):
        return list(value)
    if isinstance(value, dict):
        return list(value.values())
    if is_dataclass(value) and not isinstance(value, type) and type(value).__dataclass_params__.repr:  # type: ignore[attr-defined]
        return [getattr(value, field.name) for field in fields(value)]
    return []


def _is_array(value: Any) -> bool:
    """Whether this is an array of NumPy, which need not be installed."""
    return type(value).__module__ == "numpy" and type(value).__name__ == "ndarray"
