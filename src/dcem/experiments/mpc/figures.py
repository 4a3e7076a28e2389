"""Bars of the results, and films."""

from __future__ import annotations

import statistics

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dcem import plotting
from dcem.control import tasks
from dcem.control.systems import Pendulum
from dcem.experiments.harness.run import Run
from dcem.experiments.mpc import methods
from dcem.experiments.mpc.benchmark import Benchmark
from dcem.experiments.mpc.report import Results


def bars(results: Results, key: str, xlabel: str) -> Figure:
    """A panel a task, a bar a method: the mean, and the starts as dots; a single number is written.

    No interval: that of a mean of few starts leaves what an episode can return. Those of the differences from the same
    starts, which say which method is better, are in the table.
    """
    names = [method for method in methods.LABELS if any(method in of_task for of_task in results.values())]
    figure = Figure(figsize=(2.4 + 2.3 * len(results), 1.4 + 0.3 * len(names)), layout="constrained", dpi=150)
    axes = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for axis, (task, of_task) in zip(axes, results.items(), strict=True):
        for place, method in enumerate(names):
            if method not in of_task:
                continue
            value = of_task[method][key]
            seeds = value if isinstance(value, list) else [value]
            axis.barh(
                place, statistics.fmean(seeds), color=plotting.COLOURS[1 if method in methods.RIVALS else 0], alpha=0.75
            )
            if isinstance(value, float):
                axis.annotate(f" {value:.1f}", (value, place), va="center", fontsize="small")
            elif len(seeds) > 1:
                axis.plot(seeds, [place] * len(seeds), ".", color="0.25", markersize=4, clip_on=False)
        axis.margins(x=0.25 if key == "milliseconds" else 0.05)
        axis.set_title(tasks.LABELS[task], fontsize="medium")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(names)), [methods.LABELS[name] for name in names])
    axes[0].invert_yaxis()
    if any(name in methods.RIVALS for name in names):
        handles = [
            Patch(color=plotting.COLOURS[i], alpha=0.75, label=of) for i, of in enumerate(("dcem", "other packages"))
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize="small")
    figure.supxlabel(xlabel, fontsize="medium")
    return figure


def film(benchmark: Benchmark, run: Run) -> None:
    """An episode of each task under iCEM, as `<task>.gif`."""
    for task in benchmark.config.tasks:
        path = run.folder / f"{task}.gif"
        torch.manual_seed(run.seed)
        if task == "pendulum":
            states = benchmark.episodes(task, "icem", 1, record=True).states[:, 0]
            system = Pendulum()
            plotting.save_gif(path, plotting.frames(system, states), 1 / system.dt)
        else:
            episode = benchmark.episodes(task, "icem", 1, video=True)
            assert episode.frames is not None  # with video=True
            plotting.save_gif(path, episode.frames, 1 / episode.dt)
        run.say(f"video {path}")
