"""Plain geometry that a system is drawn with. It knows no plotting library; `dcem.plotting` draws it."""

from __future__ import annotations

from typing import Literal, NamedTuple

Point = tuple[float, float]
"""Metres, to the right and up."""
Role = Literal["ground", "body", "link", "joint", "goal", "obstacle"]
"""What a shape stands for, which decides its colour."""


class Line(NamedTuple):
    """A line through points."""

    role: Role
    points: tuple[Point, ...]
    width: float
    """Metres."""


class Circle(NamedTuple):
    """A disc."""

    role: Role
    centre: Point
    radius: float
    """Metres."""


class Rectangle(NamedTuple):
    """A box with edges along the axes."""

    role: Role
    centre: Point
    width: float
    """Metres."""
    height: float
    """Metres."""


Shape = Line | Circle | Rectangle


class View(NamedTuple):
    """The part of the plane to show, in metres."""

    left: float
    right: float
    bottom: float
    top: float
