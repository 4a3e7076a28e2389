"""Pictures of systems in motion: frames, GIFs, and paths between obstacles in one still."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle as Disc
from matplotlib.patches import Rectangle as Box
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dcem._given import brief, kind
from dcem.control.systems import System
from dcem.control.systems.drawing import Circle, Line, Role, Shape
from dcem.plotting.figures import COLOURS

Frames = NDArray[np.uint8]
"""`(num_frames, height, width, 3)`."""

_ROLES: dict[Role, str] = {
    "ground": "0.75",
    "body": COLOURS[0],
    "link": COLOURS[1],
    "joint": "0.15",
    "goal": COLOURS[2],
    "obstacle": "0.55",
}
_DPI = 100
_MOST_FPS = 50
_NUM_COLOURS = 128


def frames(system: System, states: Tensor, *, height: int = 200) -> Frames:
    """Draw a trajectory, a picture a state, with the time in a corner.

    Args:
        system: whose `view` and `shapes` are drawn.
        states: `(num_frames, *state_shape)`, `system.dt` apart.
        height: of a picture, pixels; the width follows from the view.

    Returns:
        `(num_frames, height, width, 3)`, uint8.

    Raises:
        TypeError: `system` is none, or `states` are no tensor.
        ValueError: `states` is not one trajectory of the system, or `height` is below 1.

    Example:
        >>> import torch
        >>> from dcem.control.systems import Pendulum
        >>> frames(Pendulum(), torch.tensor([[1.0, 0.0, 0.0]]), height=100).shape
        (1, 100, 100, 3)
    """
    _check_system(system)
    _check_states("states", states)
    if states.shape[1:] != system.state_shape:
        expected = ("num_frames", *system.state_shape)
        raise ValueError(f"states: expected shape ({', '.join(map(str, expected))}), got {tuple(states.shape)}")
    if height < 1:
        raise ValueError(f"height: expected pixels, at least 1, got {height}")
    view = system.view
    width = round(height * (view.right - view.left) / (view.top - view.bottom))
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    canvas = FigureCanvasAgg(figure)
    axis = figure.add_axes((0, 0, 1, 1))
    drawn = np.empty((len(states), height, width, 3), dtype=np.uint8)
    for i, state in enumerate(states.detach().cpu()):
        axis.clear()
        axis.set_axis_off()
        axis.set(xlim=(view.left, view.right), ylim=(view.bottom, view.top))
        for shape in system.shapes(state):
            _draw(axis, shape, points_per_metre=height / _DPI * 72 / (view.top - view.bottom))
        axis.text(0.02, 0.98, f"{i * system.dt:.1f} s", va="top", color="0.3", fontsize=8, transform=axis.transAxes)
        canvas.draw()  # type: ignore[no-untyped-call]
        drawn[i] = np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
    return drawn


def save_gif(path: str | Path, frames: Frames | Tensor, fps: float) -> None:
    """Write pictures as a GIF that repeats for ever, in 128 colours, so that it stays small.

    Args:
        path: of the file; its folder exists.
        frames: `(num_frames, height, width, 3)`, uint8.
        fps: pictures a second. The format counts in hundredths of a second, and most viewers show at most 50: of
            more, every second is written, every third, ..., so that time runs as it did.

    Raises:
        ValueError: `frames` are not pictures, there are none, or `fps` is not a finite number above 0.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        expected = "shape (num_frames, height, width, 3), none of them 0, in uint8"
        raise ValueError(f"frames: expected {expected}, got {frames.shape} in {frames.dtype}")
    if not 0 < fps < math.inf:
        raise ValueError(f"fps: expected pictures a second, a finite number above 0, got {fps}")
    every = max(1, math.ceil(fps / _MOST_FPS - 1e-6))
    palette, pictures = _quantize(frames[::every])
    first, *others = (Image.fromarray(picture) for picture in pictures)
    for picture in (first, *others):
        picture.putpalette(palette.tobytes())
    milliseconds = 10 * round(100 * every / fps)
    first.save(path, save_all=True, append_images=others, duration=milliseconds, loop=0, optimize=True)


def trajectories(system: System, paths: Mapping[str, Tensor]) -> Figure:
    """The ways that a system took through its plane, with its obstacles and its goal.

    Args:
        system: one whose state begins with a position, such as `PointMass` or `Quadrotor`.
        paths: under each label, trajectories `(T, *state_shape)` or `(num, T, *state_shape)`.

    Raises:
        TypeError: `system` is none, or `paths` are not tensors under labels.
        ValueError: there are none.
    """
    _check_system(system)
    if not isinstance(paths, Mapping):
        raise TypeError(
            f'paths: expected trajectories under labels, such as {{"plan": plan.states}}, got {brief(paths)}'
        )
    if not paths:
        raise ValueError("paths: expected at least one trajectory, got none")
    for label, states in paths.items():
        _check_states(f"paths[{label!r}]", states)
    view = system.view
    size = (view.right - view.left, view.top - view.bottom)
    figure = Figure(figsize=(6, 0.9 + 5.2 * size[1] / size[0]), layout="constrained", dpi=150)
    axis = figure.subplots()
    axis.set(xlabel="x, m", ylabel="y, m", xlim=(view.left, view.right), ylim=(view.bottom, view.top))
    axis.set_aspect("equal")
    axis.grid(alpha=0.25)
    any_path = next(iter(paths.values()))
    for shape in system.shapes(any_path.reshape(-1, *system.state_shape)[0].detach().cpu()):
        if shape.role in ("ground", "obstacle", "goal"):
            _draw(axis, shape, points_per_metre=5.2 * 72 / size[0])
    styles = ("-", "--", "-.", ":")
    for i, (label, states) in enumerate(paths.items()):
        for j, path in enumerate(states.detach().cpu().reshape(-1, *states.shape[-2:])):
            x, y = path[:, :2].numpy().T
            style = styles[i % len(styles)]
            # green and the greys are the goal's and the obstacles'
            colour = (COLOURS[0], COLOURS[1], COLOURS[3], COLOURS[4], COLOURS[5])[i % 5]
            axis.plot(x, y, style, color=colour, linewidth=1.5, label=None if j else label)
            axis.plot(x[0], y[0], "o", color=colour, markersize=4)
    figure.legend(loc="outside upper center", ncols=min(3, len(paths)), fontsize="small")
    return figure


def _check_system(system: object) -> None:
    if not all(hasattr(system, of) for of in ("state_shape", "view", "shapes")):
        raise TypeError(f"system: expected one of dcem.control.systems, or a System of yours, got {brief(system)}")


def _check_states(name: str, states: object) -> None:
    if not isinstance(states, Tensor):
        remedy = "; give its .states" if hasattr(states, "states") else ""
        raise TypeError(f"{name}: expected a Tensor of states, got {kind(states)}{remedy}")


def _draw(axis: Axes, shape: Shape, points_per_metre: float) -> None:
    colour = _ROLES[shape.role]
    if isinstance(shape, Line):
        width = shape.width * points_per_metre
        axis.plot(*zip(*shape.points, strict=True), color=colour, linewidth=width, solid_capstyle="round")
    elif isinstance(shape, Circle):
        axis.add_patch(Disc(shape.centre, shape.radius, color=colour, linewidth=0, zorder=2))
    else:
        corner = shape.centre[0] - shape.width / 2, shape.centre[1] - shape.height / 2
        axis.add_patch(Box(corner, shape.width, shape.height, color=colour, linewidth=0, zorder=2))


def _quantize(frames: Frames) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A palette `(n, 3)` of at most 128 colours and the pictures in it, `(num_frames, height, width)`.

    Pillow's own loses flat colours (white becomes grey). Here each next colour of the palette is the one whose pixels
    have the largest squared error in total so far, the first the commonest.
    """
    levels = (frames.astype(np.uint32) * 63 + 127) // 255  # six bits a channel, 0 and 255 exactly
    packed = levels @ np.array([1 << 12, 1 << 6, 1], dtype=np.uint32)
    counts = np.bincount(packed.ravel(), minlength=1 << 18)
    present = counts.nonzero()[0]
    colours = np.stack([present >> 12, present >> 6 & 63, present & 63], -1)
    chosen = [int(counts[present].argmax())]
    error = np.square(colours - colours[chosen[0]]).sum(-1)
    nearest = np.zeros(len(present), dtype=np.uint8)
    while len(chosen) < min(_NUM_COLOURS, len(present)):
        worst = int((counts[present] * error).argmax())
        other = np.square(colours - colours[worst]).sum(-1)
        nearest[other < error] = len(chosen)
        error = np.minimum(error, other)
        chosen.append(worst)
    index = np.empty(1 << 18, dtype=np.uint8)
    index[present] = nearest
    return (colours[chosen] * 255 / 63).round().astype(np.uint8), index[packed]
