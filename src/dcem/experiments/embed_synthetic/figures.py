"""Figures of `dcem embed-synthetic`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

import dcem
from dcem.embedding import MLPDecoder, embed
from dcem.experiments.embed_synthetic.methods import Curve
from dcem.experiments.embed_synthetic.settings import BOX, LATENT_STD, Config
from dcem.experiments.embed_synthetic.task import Problems
from dcem.plotting import COLOURS
from dcem.plotting.figures import _band, _note, _one

LOWEST = 3e-5
"""Cost shown."""


def costs(curves: Mapping[int, Sequence[Mapping[str, Curve]]], labels: Mapping[str, str]) -> Figure:
    """Cost reached against evaluations, a panel for each size: means and a thin line a seed."""
    figure = Figure(figsize=(3.4 * len(curves) + 0.4, 4.4), layout="constrained", dpi=150)
    axes = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axis, (size, seeds) in zip(axes, curves.items(), strict=True):
        for i, (name, label) in enumerate(labels.items()):
            evaluations = [pair[0] for pair in seeds[0][name]]
            style: Any = {"color": COLOURS[i], "linestyle": "--" if i % 2 else "-"}
            values = torch.tensor([[max(pair[1], 1e-30) for pair in seed[name]] for seed in seeds])
            axis.plot(evaluations, values.T, linewidth=0.6, alpha=0.6, **style)
            axis.plot(evaluations, values.log().mean(0).exp(), label=label, **style)
        final = math.exp(sum(math.log(max(seed["cem"][-1][1], 1e-300)) for seed in seeds) / len(seeds))
        if final < LOWEST:
            text = f"full-space CEM\nends at {final:.0e}"
            axis.annotate(text, (0.98, 0.02), xycoords="axes fraction", ha="right", fontsize="small")
        axis.set(title=f"N = {size}", xscale="log", yscale="log", ylim=(LOWEST, 0.3))
        axis.grid(which="major", alpha=0.3)
    axes[0].set_ylabel("cost, mean over unseen problems")
    figure.supxlabel("evaluations of the objective a problem", fontsize="medium")
    handles, names = axes[0].get_legend_handles_labels()
    title = f"thick: means, thin: {len(next(iter(curves.values())))} seeds"
    figure.legend(handles, names, loc="outside upper center", ncols=min(len(labels), len(curves)), title=title)
    return figure


def factors(savings: Mapping[int, Sequence[Mapping[str, Any]]]) -> Figure:
    """How many times fewer evaluations the learned embedding needs than full CEM, against the size."""
    figure, axis = _one(
        xlabel="size N of the problem", ylabel="evaluations: full CEM / learned embedding", xscale="log", yscale="log"
    )
    lines = (("factor_at_own_cost", "to the embedding's final cost"), ("factor", "to full CEM's final cost"))
    for i, (key, label) in enumerate(lines):
        sizes = [size for size, seeds in savings.items() if all(seed[key] is not None for seed in seeds)]
        if sizes:
            _band(axis, sizes, [[seed[key] for seed in of] for of in zip(*(savings[n] for n in sizes), strict=True)],
                  label, i, "os"[i])  # fmt: skip
    unreached = [size for size, seeds in savings.items() if not all(seed["rival_gets_there"] for seed in seeds)]
    for size in unreached:
        axis.annotate(
            "CEM does not get there:\na lower bound", (size, savings[size][0]["factor_at_own_cost"]), (-6, -110),
            textcoords="offset points", ha="right", fontsize="small", arrowprops={"arrowstyle": "->", "shrinkB": 8},
        )  # fmt: skip
    axis.set_xticks(list(savings))
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.minorticks_off()
    axis.legend(title=_note({"": list(next(iter(savings.values())))}))
    return figure


@torch.no_grad()
def latent(config: Config, decoder: MLPDecoder, problems: Problems) -> Figure:
    """One unseen problem's cost over a slice of the latent space, what lies along it, and the answers compared."""
    one = problems.some(torch.zeros(1, dtype=torch.long, device=problems.solution.device))
    generator = torch.Generator(one.solution.device).manual_seed(0)
    settings = config.latent
    solver = dcem.CEM(settings.num_samples, settings.num_elites, dcem.HardTopK(), init_std=LATENT_STD)
    solution = dcem.minimize(
        embed(one, decoder), one.solution.new_zeros(1, config.latent_size), solver,
        num_iterations=settings.num_iterations, bounds=BOX, generator=generator, record=True,
    )  # fmt: skip
    figure = Figure(figsize=(13.5, 4.2), layout="constrained", dpi=150)
    surface, along, answers = figure.subplots(1, 3)
    steps = torch.linspace(*BOX, 101, device=one.solution.device)
    first = min(1, config.latent_size - 1)
    grid = solution.x[0].expand(101, 101, -1).clone()
    grid[..., 0], grid[..., first] = steps[None, :], steps[:, None]
    values = embed(one, decoder)(grid.reshape(1, -1, config.latent_size)).reshape(101, 101)
    image = surface.pcolormesh(
        steps.cpu().numpy(),
        steps.cpu().numpy(),
        values.log10().cpu().numpy(),
        cmap="cividis",
        shading="gouraud",
        rasterized=True,
    )
    figure.colorbar(image, ax=surface).set_label("log₁₀ of the cost")
    for i, (t, marker) in enumerate(((0, "o"), (2, "^"), (4, "s"))):
        if t < len(solution.history):
            points = solution.history[t].samples[0].cpu().numpy()
            style: Any = {"color": ("white", COLOURS[5], COLOURS[1])[i], "linestyle": "", "markersize": 4}
            style |= {"markeredgecolor": "0.2", "markeredgewidth": 0.4, "label": f"{t + 1}"}
            surface.plot(points[:, 0], points[:, first], marker, **style)
    surface.legend(title="samples of iteration", ncols=3, fontsize="small", loc="lower left")
    surface.set_xticks(torch.linspace(*BOX, 5).tolist())
    surface.set(title="cost over two latent numbers", xlabel="z₁", ylabel="z₂", xlim=BOX, ylim=BOX)
    position = torch.linspace(0, 1, problems.solution.shape[1]).numpy()
    for k, value in enumerate(torch.linspace(*BOX, 6)):
        z = solution.x[0].clone()
        z[0] = value
        along.plot(position, decoder(z).cpu().numpy(), color=_colour(k / 5), label=f"{float(value):.1f}")
    along.legend(title="z₁", fontsize="small", ncols=2)
    along.set(title="decoded along z₁ through the answer", xlabel="position i / N", ylabel="x", ylim=(-0.03, 1.03))
    budget = settings.num_samples * settings.num_iterations
    few = max(1, budget // config.full.num_samples)
    full = dcem.CEM(config.full.num_samples, config.full.num_elites, dcem.HardTopK(), init_std=config.full_std)
    x = dcem.minimize(
        one, torch.full_like(one.solution, 0.5), full, num_iterations=few, bounds=(0, 1), generator=generator
    ).x[0]
    answers.plot(position, x.cpu().numpy(), color="0.65", linewidth=0.8,
                 label=f"full CEM, {few * config.full.num_samples} evaluations")  # fmt: skip
    answers.plot(position, one.solution[0].cpu().numpy(), color="black", linewidth=4, alpha=0.3, label="true solution")
    answers.plot(position, decoder(solution.x[0]).cpu().numpy(), color=COLOURS[1], linewidth=1.5, linestyle="--",
                 label=f"learned embedding, {budget} evaluations")  # fmt: skip
    answers.set(title="answers to an unseen problem", xlabel="position i / N", ylabel="x", ylim=(-0.03, 1.3))
    answers.legend(fontsize="small", loc="upper right")
    return figure


def _colour(fraction: float) -> tuple[float, ...]:
    """A colour of an ordered scale that colour-blind readers can follow."""
    from matplotlib import colormaps

    return tuple(colormaps["viridis"](0.92 * fraction))
