"""Figures of the embedded control space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from dcem.plotting import COLOURS

Curve = Sequence[tuple[int, float]]
"""Updates and costs of a run."""
STYLES = ("-", "--", ":")


def convergence(
    panels: Mapping[str, Mapping[str, Sequence[Curve]]], expert: float, trajectories: int, *, rows: int = 1
) -> Figure:
    """The validation cost over the updates, of so many trajectories each: a panel a title, a line a label, the mean
    over its runs and a thin line a run.
    """
    columns = math.ceil(len(panels) / rows)
    figure = Figure(figsize=(3.6 * columns + 1.2, 2.9 * rows + 0.9), layout="constrained", dpi=150)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axis, (title, lines) in zip(axes.flat, panels.items(), strict=True):
        for i, (label, runs) in enumerate(lines.items()):
            steps = sorted(set.intersection(*({step for step, _ in run} for run in runs)))
            values = np.array([[dict(run)[step] for step in steps] for run in runs])
            style: Any = {"color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[i % len(STYLES)]}
            if len(runs) > 1:
                label = f"{label} (thin: {len(runs)} seeds)"
                axis.plot(steps, values.T, linewidth=0.6, alpha=0.7, **style)
            axis.plot(steps, values.mean(0), label=label, **style)
        axis.axhline(expert, color="black", linewidth=1, linestyle="-.", label="expert: CEM over the forces")
        axis.set(title=title)
        axis.grid(alpha=0.3)
    lowest = min(cost for lines in panels.values() for runs in lines.values() for run in runs for _, cost in run)
    axes[0, 0].set_ylim(min(lowest, expert) - 0.6, 0.5)
    for axis in axes[-1]:
        axis.set_xlabel(f"update of {trajectories} trajectories")
    figure.supylabel("mean cost of the validation states", fontsize="medium")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=2 if columns > 1 else 1, fontsize="small")
    return figure


class Landscape(NamedTuple):
    """The cost over a two-dimensional latent space, and where the search went."""

    title: str
    grid: Tensor
    """`(n,)`, of both axes."""
    cost: Tensor
    """`(n, n)`, the first axis being the first latent number."""
    means: Tensor
    """`(T + 1, 2)`: the search's mean at its start and after each iteration."""
    stds: Tensor
    """`(T + 1, 2)`"""


def landscapes(panels: Sequence[Landscape]) -> Figure:
    """Cost surfaces with the iterates of a search on them."""
    from matplotlib.patches import Ellipse

    figure = Figure(figsize=(3.4 * len(panels), 4.1), layout="constrained", dpi=100)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        grid = panel.grid.cpu().numpy()
        cost = panel.cost.cpu().numpy().T
        style: dict[str, Any] = {"cmap": "cividis", "shading": "gouraud", "rasterized": True}
        image = axis.pcolormesh(grid, grid, cost, vmin=cost.min(), vmax=cost.min() + 20, **style)
        means, stds = panel.means.cpu().numpy(), panel.stds.cpu().numpy()
        axis.plot(*means.T, color="white", linewidth=1.2)
        axis.plot(*means.T, "o", color=COLOURS[1], markersize=4, markeredgecolor="white", label="mean, each iteration")
        for t in sorted({0, min(3, len(means) - 1), min(6, len(means) - 1), len(means) - 1}):
            ring = Ellipse(tuple(means[t]), *(2 * stds[t]), fill=False, edgecolor="white", linestyle="--", linewidth=1)
            ring.set_label("one std, iterations 0, 3, 6 and the last" if t == 0 else "_")
            axis.add_patch(ring)
        axis.set(title=panel.title, xlabel="$z_1$", xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
        axis.title.set_fontsize("medium")
        figure.colorbar(image, ax=axis, location="bottom", shrink=0.9, extend="max").set_label("cost")
    axes[0].set_ylabel("$z_2$")
    handles, names = axes[0].get_legend_handles_labels()
    legend = figure.legend(handles, names, loc="outside upper center", ncols=2, fontsize="small")
    legend.get_frame().set_facecolor("0.55")
    return figure


def samples(
    rows: Mapping[str, Sequence[tuple[Tensor, Tensor]]], iterations: Sequence[int], ylabel: str, dt: float
) -> Figure:
    """Candidates of searches at some iterations: a row a search, of `(curves (n, H), best (H,))` an iteration."""
    figure = Figure(figsize=(3.1 * len(iterations), 2.5 * len(rows) + 0.5), layout="constrained", dpi=90)
    axes = figure.subplots(len(rows), len(iterations), sharex=True, sharey=True, squeeze=False)
    for of_row, (label, columns) in zip(axes, rows.items(), strict=True):
        for axis, t, (curves, best) in zip(of_row, iterations, columns, strict=True):
            time = dt * np.arange(curves.shape[-1])
            axis.plot(time, curves.cpu().numpy().T, color=COLOURS[0], alpha=0.18, linewidth=0.8)
            axis.plot([], [], color=COLOURS[0], linewidth=1.2, label="candidates")
            axis.plot(time, best.cpu().numpy(), color=COLOURS[1], linewidth=2, label="the best of them")
            axis.grid(alpha=0.3)
            if axis in axes[0]:
                axis.set_title(f"iteration {t}")
        of_row[0].set_ylabel(f"{label}\n{ylabel}")
    for axis in axes[-1]:
        axis.set_xlabel("time (s)")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=2, fontsize="small")
    return figure
