"""JSON of numbers that need not be finite: JSON has none for them, and most readers take no other."""

from __future__ import annotations

import json
import math
from typing import Any

_NAMES = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def to_json(value: Any, **style: Any) -> str:
    """As `json.dumps`, with `"Infinity"`, `"-Infinity"` and `"NaN"` for what is not finite."""
    return json.dumps(_named(value), allow_nan=False, **style)


def from_json(text: str | bytes) -> Any:
    """What `to_json` was given, with lists for tuples."""
    return _numbers(json.loads(text))


def _named(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(float(value))
    if isinstance(value, dict):
        return {key: _named(entry) for key, entry in value.items()}
    return [_named(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _numbers(value: Any) -> Any:
    if isinstance(value, str):
        return _NAMES.get(value, value)
    if isinstance(value, dict):
        return {key: _numbers(entry) for key, entry in value.items()}
    return [_numbers(entry) for entry in value] if isinstance(value, list) else value
