"""Figures of the experiments. They are drawn without pyplot, so a machine without a display does as well.

A *run* below is the list of a run's metric records; several runs under one label (seeds) become a mean and its 95 %
confidence band.
"""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from dcem.plotting.intervals import student

__all__ = [
    "COLOURS",
    "Panel",
    "Surface",
    "by_seconds",
    "correlations",
    "densities",
    "energy_surfaces",
    "error_by_iterations",
    "image_rows",
    "loss_curves",
    "predictions_by_iterations",
]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can tell apart."""
MARKERS = "osD^vPX"

Records = Sequence[Mapping[str, Any]]


class Surface(NamedTuple):
    """An energy over a grid, with the curve it should have its valley on.

    Attributes:
        title: of the panel.
        x: inputs, `(n,)`, increasing.
        y: candidates, `(m,)`, increasing.
        energy: `(n, m)`.
        target: the answer to each input, `(n,)`.
        prediction: likewise, of the model.
    """

    title: str
    x: Tensor
    y: Tensor
    energy: Tensor
    target: Tensor
    prediction: Tensor


def energy_surfaces(surfaces: Sequence[Surface]) -> Figure:
    """Energies side by side, each column above its own minimum, with the target and the predictions.

    Args:
        surfaces: a panel each, at least one.
    """
    figure, axes = _panels(len(surfaces))
    for axis, surface in zip(axes.flat, surfaces, strict=False):
        x, y, energy, target, prediction = map(_array, surface[1:])
        energy = np.where(np.isfinite(energy), energy, np.nan)  # what is not stays blank
        height = energy - np.nanmin(energy, 1, keepdims=True)
        scaled = np.sqrt(height / (np.nanmax(height) or 1.0)).T
        image = axis.pcolormesh(x, y, scaled, cmap="cividis", shading="gouraud", rasterized=True)
        axis.plot(x, target, color="white", linewidth=2.5, label="target")
        axis.plot(x, prediction, "--", color=COLOURS[1], linewidth=1.8, label="prediction")
        axis.set(title=textwrap.fill(surface.title, 42), xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
        axis.legend(loc="lower left", facecolor="0.35", labelcolor="white", framealpha=0.9)
        bar = figure.colorbar(image, ax=axis, pad=0.02)
        bar.set_label("√ of energy above its minimum over y")
    figure.supxlabel("x")
    figure.supylabel("y")
    return figure


def loss_curves(runs: Mapping[str, Sequence[Records]], key: str, ylabel: str) -> Figure:
    """A metric over the updates, on a logarithmic axis where all numbers are above 0.

    Args:
        runs: by label the runs of its seeds, each a list of metric records with a `"step"`; those without the metric
            are passed by.
        key: the metric.
        ylabel: of the axis.
    """
    figure, axis = _one(xlabel="update", ylabel=ylabel, yscale="log")
    for i, (label, seeds) in enumerate(runs.items()):
        measured = [{r["step"]: float(r[key]) for r in seed if key in r} for seed in seeds]
        steps = sorted(set.intersection(*map(set, measured)))
        values = [[seed[step] for step in steps] for seed in measured]
        if any(number <= 0 for of_seed in values for number in of_seed):  # a log-likelihood, a return
            axis.set_yscale("linear")
        _band(axis, steps, values, label, i, marker="")
    _legend_above(figure, list(runs), _note(runs))
    return figure


def by_seconds(runs: Mapping[str, Sequence[Records]], keys: Mapping[str, str]) -> Figure:
    """Metrics over processor seconds, a panel a metric, of the runs that have it.

    Args:
        runs: by label the runs of its seeds, each a list of metric records with a `"step"` and `"seconds"`; a step is
            drawn at the median of its seeds' seconds.
        keys: the metrics, each with the label of its axis.
    """
    figure = Figure(figsize=(4.3 * len(keys), 4.2), layout="constrained", dpi=150)
    axes = figure.subplots(1, len(keys), squeeze=False)[0]
    for axis, (key, ylabel) in zip(axes, keys.items(), strict=True):
        axis.set(xlabel="processor seconds", ylabel=ylabel, xscale="log", yscale="log")
        axis.grid(which="major", alpha=0.25)
        for i, (label, seeds) in enumerate(runs.items()):
            measured = [{r["step"]: r[key] for r in seed if r["step"] and key in r} for seed in seeds]
            steps = sorted(set.intersection(*(set(seed) for seed in measured)))
            spent = [{r["step"]: r["seconds"] for r in seed} for seed in seeds]
            seconds = [statistics.median(seed[step] for seed in spent) for step in steps]
            if not steps:
                continue
            marker = MARKERS[i % len(MARKERS)] if len(steps) == 1 else ""
            _band(axis, seconds, [[seed[step] for step in steps] for seed in measured], label, i, marker)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=2, title=_note(runs))
    return figure


def error_by_iterations(
    errors: Mapping[str, Sequence[Mapping[int, float]]],
    trained_at: int | Mapping[str, int],
    ylabel: str = "mean squared error",
) -> Figure:
    """The error of solves with other numbers of inner iterations than the energy was trained with.

    Args:
        errors: by label, of each seed the error by the number of inner iterations.
        trained_at: the number that they were trained with, of all labels or of each.
        ylabel: of the axis.
    """
    figure, axis = _one(xlabel="inner iterations at test time", ylabel=ylabel, yscale="log")
    own = trained_at if isinstance(trained_at, Mapping) else dict.fromkeys(errors, trained_at)
    differ = len(set(own.values())) > 1
    for number in set(own.values()):
        axis.axvline(number, color="0.6", linestyle=":", label=None if differ else f"trained with {number}")
    errors = {f"{label}, trained with {own[label]}" if differ else label: of for label, of in errors.items()}
    for i, (label, seeds) in enumerate(errors.items()):
        iterations = sorted(seeds[0])
        _band(axis, iterations, [[seed[t] for t in iterations] for seed in seeds], label, i, MARKERS[i % len(MARKERS)])
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_above(figure, list(errors), _note(errors))
    return figure


def predictions_by_iterations(
    x: Tensor, target: Tensor, predictions: Mapping[str, Mapping[int, Tensor]], trained_at: int | Mapping[str, int]
) -> Figure:
    """The predicted curves after different numbers of inner iterations, a panel a label.

    Args:
        x: inputs, `(n,)`.
        target: `(n,)`.
        predictions: by label, the curve `(n,)` by the number of inner iterations.
        trained_at: the number that they were trained with, of all labels or of each.
    """
    figure, axes = _panels(len(predictions))
    spread = float(target.max() - target.min())
    for axis, (label, curves) in zip(axes.flat, predictions.items(), strict=False):
        axis.plot(_array(x), _array(target), color="black", linewidth=4, alpha=0.25, label="target")
        styles = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
        for i, (iterations, curve) in enumerate(curves.items()):
            own = trained_at[label] if isinstance(trained_at, Mapping) else trained_at
            trained = " (trained)" if iterations == own else ""
            style: Any = {"color": COLOURS[i % 6], "linestyle": styles[i % 6]}
            axis.plot(_array(x), _array(curve), label=f"{iterations} iterations{trained}", **style)
        axis.set(title=textwrap.fill(label, 42), xlim=(float(x[0]), float(x[-1])))
        axis.set_ylim(float(target.min()) - 0.4 * spread, float(target.max()) + 0.4 * spread)
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.supxlabel("x")
    figure.supylabel("predicted y")
    return figure


def image_rows(rows: Mapping[str, Tensor], given_columns: int) -> Figure:
    """Images in rows with a label each; a line separates the columns that were given.

    Args:
        rows: by label, `(n, height, width)` with values in `[0, 1]`.
        given_columns: how many columns from the left were given.
    """
    shape = next(iter(rows.values())).shape
    figure = Figure(figsize=(2.6 + 0.75 * shape[0], 0.8 * len(rows) + 0.5), layout="constrained", dpi=150)
    axes = figure.subplots(len(rows), shape[0], squeeze=False)
    for of_row, (label, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(of_row, images, strict=True):
            axis.imshow(_array(image), cmap="gray_r", vmin=0, vmax=1)
            axis.axvline(given_columns - 0.5, color=COLOURS[1], linewidth=1)
            axis.set(xticks=[], yticks=[])
        of_row[0].set_ylabel(textwrap.fill(label, 20), rotation=0, ha="right", va="center")
    figure.supxlabel("left of the line given, right of it predicted", fontsize="medium")
    return figure


class Panel(NamedTuple):
    """A density over a grid, with the curves it should be high on and the points that were predicted.

    Attributes:
        title: of the panel.
        x: of the grid, `(n,)`, increasing.
        y: likewise, `(m,)`.
        density: `(n, m)`, at least 0.
        curves: lines, each `(any, 2)`.
        points: `(any, 2)`.
    """

    title: str
    x: Tensor
    y: Tensor
    density: Tensor
    curves: Sequence[Tensor]
    points: Tensor


def densities(panels: Sequence[Panel], xlabel: str, ylabel: str) -> Figure:
    """Densities, four in a row, on one scale of colours, on which the square root of the density is even.

    Args:
        panels: at least one.
        xlabel: of the common axis.
        ylabel: likewise.
    """
    columns = min(4, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.3 * columns, 3.4 * rows + 0.4), layout="constrained", dpi=150)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    scale = PowerNorm(0.5, vmin=0, vmax=max(float(panel.density.max()) for panel in panels))
    for axis, panel in zip(axes.flat, panels, strict=False):
        x, y, density = _array(panel.x), _array(panel.y), _array(panel.density)
        image = axis.pcolormesh(x, y, density.T, cmap="cividis", shading="gouraud", rasterized=True, norm=scale)
        for i, curve in enumerate(panel.curves):
            axis.plot(*_array(curve).T, color="white", linewidth=1, alpha=0.7, label=None if i else "answers")
        axis.plot(*_array(panel.points).T, "o", color=COLOURS[1], markersize=5, label="predictions", clip_on=False)
        axis.set(title=textwrap.fill(panel.title, 34), xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
        axis.title.set_fontsize("medium")
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=2, facecolor="0.35", labelcolor="white")
    figure.colorbar(image, ax=axes, shrink=0.9, pad=0.02).set_label("density")
    figure.supxlabel(xlabel)
    figure.supylabel(ylabel)
    return figure


def correlations(matrix: Tensor, name: str, of: str) -> Figure:
    """A symmetric matrix of numbers.

    Args:
        matrix: `(n, n)`, in `[-1, 1]`.
        name: of rows and columns.
        of: what the colours mean.
    """
    figure, axis = _one(xlabel=name, ylabel=name)
    image = axis.imshow(_array(matrix), cmap="PuOr", vmin=-1, vmax=1)
    axis.grid(visible=False)
    figure.colorbar(image, ax=axis).set_label(of)
    return figure


def _panels(count: int) -> tuple[Figure, Any]:
    """Up to three panels side by side, more in rows of two, on the same axes."""
    columns = count if count <= 3 else 2
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(5 * columns + 0.8, 3.8 * rows), layout="constrained", dpi=150 if rows == 1 else 100)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    return figure, axes


def _one(**settings: Any) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6, 4), layout="constrained", dpi=150)
    axis = figure.subplots()
    axis.set(**settings)
    axis.grid(which="both", alpha=0.25)
    return figure, axis


def _band(
    axis: Axes, x: Sequence[float], values: Sequence[Sequence[float]], label: str, i: int, marker: str = "o"
) -> None:
    """Mean and 95 % confidence band over seeds, in logarithms where the axis is logarithmic."""
    numbers, colour = np.asarray(values, dtype=float), COLOURS[i % len(COLOURS)]
    is_log = axis.get_yscale() == "log"
    scaled = np.log(np.maximum(numbers, 1e-30)) if is_log else numbers
    mean = scaled.mean(0)

    def shown(of: Any) -> Any:
        return np.exp(np.clip(of, -200, 200)) if is_log else of  # losses of 0 among others

    if len(values) > 1:
        half = student(len(values) - 1) * scaled.std(0, ddof=1) / math.sqrt(len(values))
        axis.fill_between(x, shown(mean - half), shown(mean + half), color=colour, alpha=0.2, linewidth=0)
    axis.plot(x, shown(mean), color=colour, linestyle="--" if i % 2 else "-", marker=marker, label=label)


def _legend_above(figure: Figure, labels: Sequence[str], title: str | None) -> None:
    """A legend above the panel, all of which the curves need."""
    columns = 2 if max(map(len, labels)) < 25 else 1
    figure.set_figheight(4 + 0.2 * (len(labels) + 2 if columns == 1 else 0))
    figure.legend(loc="outside upper center", ncols=columns, fontsize="small", title=title, title_fontsize="small")


def _note(runs: Mapping[str, Sequence[Any]]) -> str | None:
    """A legend's title: what the lines and bands are, where there are several seeds."""
    counts = sorted({len(seeds) for seeds in runs.values()})
    return None if counts[-1] == 1 else f"{' or '.join(map(str, counts))} seeds: mean and 95 % band"


def _array(tensor: Tensor) -> np.ndarray:
    """What matplotlib takes, from any device."""
    array: np.ndarray = tensor.detach().cpu().numpy()
    return array
