"""Settings of an experiment: each says beside its default what it may be, and is checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any

import torch

from dcem.experiments import ConfigError

MOST_THREADS = 1024
"""Of the processor; torch ends the process where the system has not as many."""


@dataclass(frozen=True)
class Limits:
    """What a setting, or each entry of a list, may be.

    Attributes:
        at_least: the least value.
        above: what it has to exceed.
        at_most: the greatest value, or the name of the setting beside it that is.
        below: what it has to stay under.
        among: the values that there are.
        may_be_empty: of a list.
        distinct: no entry of a list comes twice: each is a run, or a row of a table.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | str | None = None
    below: float | None = None
    among: tuple[Any, ...] = ()
    may_be_empty: bool = False
    distinct: bool = False

    def hold(self, value: Any, most: float | None) -> bool:
        """Whether a value is within them."""
        if self.among:
            return value in self.among
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (most is None or value <= most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.among:
            return ("one of " if len(self.among) > 1 else "") + ", ".join(map(str, self.among))
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least:g} to {self.at_most}"
        if self.above == 0 and self.at_most is None and self.below is None:
            return "a positive number"
        named = {"above": self.above, "at least": self.at_least, "at most": self.at_most, "below": self.below}
        return " and ".join(f"{name} {limit}" for name, limit in named.items() if limit is not None)


def setting(default: Any, **limits: Any) -> Any:
    """A setting with its default and its `Limits`, for the body of a dataclass."""
    metadata = {"limits": Limits(**limits)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def count(default: Any) -> Any:
    """A number of something, or a list of such, of at least 1."""
    return setting(default, at_least=1)


def positive(default: float) -> Any:
    """A number above 0."""
    return setting(default, above=0)


def some_of(default: Sequence[Any], among: Sequence[Any], *, may_be_empty: bool = False) -> Any:
    """A list of names, none of them twice."""
    return setting(list(default), among=tuple(among), distinct=True, may_be_empty=may_be_empty)


def require(condition: bool, key: str, expected: object, came: object) -> None:
    """Refuse a setting in one line."""
    if not condition:
        raise ConfigError(f"{key}: expected {expected}; got {came}")


def check_limits(config: Any, prefix: str = "") -> None:
    """Refuse the first setting of a dataclass, or of one in it, that is not within its limits."""
    for of in sorted(fields(config), key=_is_relative):  # first those that others are limited by
        value, key, limits = getattr(config, of.name), f"{prefix}{of.name}", of.metadata.get("limits")
        if is_dataclass(value):
            check_limits(value, f"{key}.")
        entries, default = value if isinstance(value, list) else [value], of.default
        is_finite = all(math.isfinite(entry) for entry in entries if isinstance(entry, float))
        may_be_infinite = isinstance(default, float) and math.isinf(default)
        require(is_finite or may_be_infinite, key, "a finite number", value)
        if limits is None:
            continue
        most = getattr(config, limits.at_most) if isinstance(limits.at_most, str) else limits.at_most
        if not isinstance(value, list):
            require(limits.hold(value, most), key, limits, value)
            continue
        expected = f"some of {', '.join(map(str, limits.among))}" if limits.among else f"numbers, {limits}"
        require(limits.may_be_empty or bool(value), key, expected, value)
        is_flat = all(isinstance(entry, (int, float, str)) for entry in value)
        require(is_flat and all(limits.hold(entry, most) for entry in value), key, expected, value)
        require(not limits.distinct or len(set(value)) == len(value), key, "no entry twice", value)


def _is_relative(of: Field[Any]) -> bool:
    """Whether the setting is limited by another."""
    return isinstance(getattr(of.metadata.get("limits"), "at_most", None), str)


@dataclass
class Settings:
    """What every experiment can be told; a subclass is the `Config` of one."""

    seed: int = setting(0, at_least=0, below=2**63)
    device: str = "cpu"
    threads: int = setting(1, at_least=1, at_most=MOST_THREADS)

    def check(self) -> None:
        """Refuse what cannot be run; a subclass adds what involves several settings at once."""
        check_limits(self)
        try:
            device = choose_device(self.device)
        except RuntimeError:
            require(False, "device", "auto, or a device of torch", self.device)
        require(_is_here(device), "device", "auto, or a device that is here", self.device)


def _is_here(device: torch.device) -> bool:
    """Whether a tensor can be made on it, and read."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return False
    try:
        return torch.ones((), device=device).item() == 1
    except Exception:  # each backend raises its own
        return False


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


@dataclass
class Search:
    """A cross-entropy search: how many samples, how many of them are chosen, how often."""

    num_samples: int = count(100)
    num_elites: int = setting(10, at_least=1, at_most="num_samples")
    num_iterations: int = count(10)

    @property
    def num_trajectories(self) -> int:
        """Candidates of a solve."""
        return self.num_samples * self.num_iterations
