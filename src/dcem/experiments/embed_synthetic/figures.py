"""Figures of `dcem embed-synthetic`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

import dcem
from dcem.embedding import MLPDecoder, embed
from dcem.experiments.embed_synthetic.counting import FLOOR, Counted
from dcem.experiments.embed_synthetic.landscape import is_minimum, over_surface
from dcem.experiments.embed_synthetic.methods import LABELS, POLISH, descend
from dcem.experiments.embed_synthetic.settings import BOX, Config
from dcem.experiments.embed_synthetic.task import Problems
from dcem.plotting import COLOURS
from dcem.plotting.figures import MARKERS

_STYLES: dict[str, dict[str, Any]] = {
    "cem": {"color": COLOURS[5]},
    "icem": {"color": COLOURS[0]},
    "cma": {"color": COLOURS[2]},
    "adam": {"color": COLOURS[4]},
    "random": {"color": "0.6"},
    "cosine": {"color": COLOURS[3]},
    "pca": {"color": COLOURS[6], "linestyle": "--"},
    "learned": {"color": COLOURS[1]},
}


def courses(curves: Mapping[str, Any]) -> Figure:
    """What each method has reached by evaluations, a column for each size: the cost above, problems solved below.

    Args:
        curves: as `curves.json` has them.
    """
    sizes, evaluations = curves["sizes"], curves["evaluations"]
    figure = Figure(figsize=(3.4 * len(sizes) + 0.6, 6.2), layout="constrained", dpi=150)
    axes = figure.subplots(2, len(sizes), sharex=True, sharey="row", squeeze=False)
    for column, (size, methods) in enumerate(sizes.items()):
        upper, lower = axes[:, column]
        for name in methods:
            cost, share = (torch.tensor(methods[name][key], dtype=torch.float64) for key in ("cost", "share"))
            cost = cost.clamp_min(FLOOR)
            for axis, seeds, mean in (
                (upper, cost, cost.log().mean(0).exp()),
                (lower, 100 * share, 100 * share.mean(0)),
            ):
                axis.plot(evaluations, seeds.T.numpy(), linewidth=0.5, alpha=0.5, **_STYLES[name])
                axis.plot(evaluations, mean.numpy(), linewidth=1.8, label=LABELS[name], **_STYLES[name])
        upper.set(title=f"N = {int(size):,}", xscale="log", yscale="log", ylim=(FLOOR / 1.5, 1))
        lower.set(ylim=(-3, 103))
        for axis in (upper, lower):
            axis.grid(which="major", alpha=0.3)
    axes[0, 0].set_ylabel("lowest cost so far")
    axes[1, 0].set_ylabel("problems solved, %")
    figure.supxlabel("evaluations a problem, a gradient counts as one more", fontsize="medium")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=min(4, max(1, 2 * len(sizes) - 1)))
    return figure


def evaluations(metrics: Mapping[str, Any]) -> Figure:
    """Evaluations for a problem solved, by size; methods that solve none of a size have no point there."""
    figure = Figure(figsize=(7, 4.4), layout="constrained", dpi=150)
    axis = figure.subplots()
    sizes = metrics["sizes"]
    for i, name in enumerate(next(iter(sizes.values()))["methods"]):
        of = {int(size): one["methods"][name] for size, one in sizes.items()}
        there = {size: one for size, one in of.items() if one["evaluations_a_problem_solved"] is not None}
        label = LABELS[name] + ("" if there else ": solves none")
        values = [one["evaluations_a_problem_solved"] for one in there.values()]
        style = {"marker": MARKERS[i % len(MARKERS)], "markersize": 6, **_STYLES[name]}
        axis.plot(list(there), values, label=label, **style)
        for size, one in there.items():
            seeds = [value for value in one["of_each_seed"] if value is not None]
            axis.plot([size] * len(seeds), seeds, linestyle="", marker="_", markersize=8, color=_STYLES[name]["color"])
    axis.set(xscale="log", yscale="log", xlabel="size N of the problem", ylabel="evaluations for a problem solved")
    axis.set_xticks([int(size) for size in sizes], [f"{int(size):,}" for size in sizes])
    axis.xaxis.minorticks_off()
    if all(of["evaluations_a_problem_solved"] is None for one in sizes.values() for of in one["methods"].values()):
        axis.set_ylim(1, 10)  # a logarithm needs something to scale by
    axis.grid(which="major", alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small", title="dashes: seeds")
    return figure


@torch.no_grad()
def latent(config: Config, decoder: MLPDecoder, problems: Problems, chosen: Mapping[str, Any]) -> Figure:
    """The problem nearest the surface's middle: its minima there, its cost over the latent, the answers compared."""
    one = problems.some(problems.hidden.norm(dim=-1).argmin(0, keepdim=True))
    generator = torch.Generator(one.own.device).manual_seed(0)
    settings = chosen["learned"]
    solver = dcem.CEM(settings["num_samples"], settings["num_elites"], dcem.HardTopK(), init_std=settings["std"])
    solution = dcem.minimize(
        embed(one, decoder), one.own.new_zeros(1, config.latent_size), solver,
        num_iterations=settings["num_iterations"], bounds=BOX, generator=generator, record=True,
    )  # fmt: skip
    figure = Figure(figsize=(13.5, 4.2), layout="constrained", dpi=150)
    along, surface, answers = figure.subplots(1, 3)
    values, line = over_surface(one), torch.linspace(-1, 1, 201)
    _heights(figure, along, values[0].T, (-1.0, 1.0))  # rows of a picture go with the second coordinate
    a, b = is_minimum(values)[0].nonzero().T.cpu()
    style: Any = {"linestyle": "", "markeredgecolor": "0.2", "markeredgewidth": 0.4}
    along.plot(line[a].numpy(), line[b].numpy(), "o", color="white", markersize=4, label="minima", **style)
    hidden = one.hidden[0].tolist()
    along.plot(
        *([value] for value in hidden), "*", color=COLOURS[1], markersize=13, markeredgecolor="white", label="solution"
    )
    along.set(title="cost along the surface of solutions", xlabel="a₁", ylabel="a₂")
    along.legend(loc="lower left", fontsize="small")
    line, second = torch.linspace(*BOX, 101, device=one.own.device), min(1, config.latent_size - 1)
    grid = solution.x[0].expand(101, 101, -1).clone()
    grid[..., 0], grid[..., second] = line[None, :], line[:, None]
    _heights(figure, surface, embed(one, decoder)(grid.reshape(1, -1, config.latent_size)).reshape(101, 101), BOX)
    for i, (t, marker) in enumerate(((0, "o"), (2, "^"), (4, "s"))):
        if t < len(solution.history):
            points = solution.history[t].samples[0].cpu()
            colour, x, y = ("white", COLOURS[5], COLOURS[1])[i], points[:, 0].numpy(), points[:, second].numpy()
            surface.plot(x, y, marker, color=colour, markersize=4, label=f"{t + 1}", **style)
    surface.legend(title="samples of iteration", ncols=3, fontsize="small", loc="lower left")
    surface.set(title="cost over two numbers of the latent", xlabel="z₁", ylabel="z₂", xlim=BOX, ylim=BOX)
    position = torch.linspace(0, 1, problems.size).numpy()
    start = torch.rand(one.own.shape, generator=generator, device=one.own.device).unsqueeze(1)
    decoded = decoder(solution.x).unsqueeze(1)
    with torch.enable_grad():
        unlimited = Counted(one, 10**9, config.target)
        fallen, polished = (descend(unlimited, x, *POLISH) for x in (start, decoded))
    answers.plot(
        position, fallen[0, 0].cpu().numpy(), ".", color="0.7", markersize=4, label="gradient descent, random start"
    )
    answers.plot(position, one.solution[0].cpu().numpy(), color="black", linewidth=4, alpha=0.3, label="solution")
    answers.plot(position, decoded[0, 0].cpu().numpy(), color=COLOURS[0], linewidth=1, label="learned embedding")
    answers.plot(
        position,
        polished[0, 0].cpu().numpy(),
        "--",
        color=COLOURS[1],
        linewidth=1.3,
        label="and gradient descent from it",
    )
    answers.set(title="answers to an unseen problem", xlabel="position i / N", ylabel="x", ylim=(-0.03, 1.6))
    answers.set_yticks([0, 0.25, 0.5, 0.75, 1])
    answers.legend(fontsize="small", loc="upper right")
    return figure


def _heights(figure: Figure, axis: Axes, values: torch.Tensor, box: tuple[float, float]) -> None:
    """Costs over a square box."""
    extent = (*box, *box)
    image = axis.imshow(values.sqrt().cpu().numpy(), origin="lower", extent=extent, cmap="cividis", aspect="auto")
    figure.colorbar(image, ax=axis).set_label("√ of the cost")
    for side in (axis.xaxis, axis.yaxis):
        side.set_ticks([box[0], (box[0] + box[1]) / 2, box[1]])
        side.set_major_formatter(ScalarFormatter())
