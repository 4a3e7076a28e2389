"""The energy, the data, and how well the one fits the other."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

import dcem
from dcem.energy import EnergyModel, MLPEnergy
from dcem.experiments.harness.processes import shard
from dcem.experiments.regression.settings import DCEM, GD, Config

EVALUATION_SEED = 0
"""Evaluations of all runs draw the same candidates."""


def build(config: Config) -> EnergyModel:
    """The model that the config describes."""
    energy, solver = MLPEnergy(1, 1, config.hidden), config.solver
    std = getattr(solver, "init_std", None)
    return EnergyModel(energy, 1, solver.solver(), num_iterations=config.num_iterations, init_std=std, shard=shard())


def deployed(model: EnergyModel, config: Config) -> tuple[EnergyModel, Config]:
    """The model as it is compared with others, and its settings: whichever DCEM has learned the energy, the paper's
    searches it. Gradient descent has learned for itself alone.
    """
    if isinstance(config.solver, GD):
        return model, config
    config = dataclasses.replace(config, solver=DCEM(), num_iterations=Config.num_iterations)
    searched = build(config).to(next(model.parameters()).device)
    searched.energy = model.energy
    return searched, config


def data(config: Config, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """The training points: `x` on a grid over `[0, 2π]` and `y = x sin x`, both `(num_points, 1)`."""
    x = torch.linspace(0, 2 * math.pi, config.num_points, device=device).unsqueeze(-1)
    return x, x * x.sin()


@torch.no_grad()
def predictions(model: EnergyModel, config: Config, x: Tensor, *, trained_only: bool = False) -> dict[int, Tensor]:
    """`ŷ` after each of the numbers of iterations, or as trained only: one solve passes through all of them."""
    wanted = sorted({config.num_iterations, *(() if trained_only else config.test_iterations)})
    generator = torch.Generator(x.device).manual_seed(EVALUATION_SEED)
    solution = model.solve(x, num_iterations=wanted[-1], generator=generator, record=True, gradient=dcem.Detach())
    return {t: solution.history[t - 1].distribution.mean for t in wanted}


def errors(model: EnergyModel, config: Config, *, trained_only: bool = False) -> dict[int, float]:
    """Mean squared error on the grid after each of the numbers of iterations, or as trained only."""
    x, y = data(config, next(model.parameters()).device)
    by_iterations = predictions(model, config, x, trained_only=trained_only)
    return {t: float((y_hat - y).square().mean()) for t, y_hat in by_iterations.items()}


@torch.no_grad()
def minima(model: EnergyModel, config: Config, num: int = 801) -> tuple[Tensor, Tensor]:
    """How far, at each point of the grid, the lowest energy lies from the target, and the prediction from the nearest
    local minimum of the energy; `(num_points,)` each. Minima are those of a grid of `num` values of y, each refined by
    the parabola through its neighbours; where the energy falls to the grid's edge there is a minimum there.
    """
    x, target = data(config, next(model.parameters()).device)
    y = torch.linspace(float(target.min()) - 8, float(target.max()) + 8, num, device=x.device)
    energy = model.energy(x, y.view(1, -1, 1).expand(len(x), -1, 1))
    prediction = predictions(model, config, x, trained_only=True)[config.num_iterations]
    below, here, above = energy[:, :-2], energy[:, 1:-1], energy[:, 2:]
    inside = (here <= below) & (here <= above)
    curvature = (below + above - 2 * here).clamp_min(torch.finfo(energy.dtype).tiny)
    shift = ((below - above) / (2 * curvature)).clamp(-1, 1) * inside
    refined = y + (y[1] - y[0]) * torch.nn.functional.pad(shift, (1, 1))
    edges = [energy[:, :1] <= energy[:, 1:2], energy[:, -1:] <= energy[:, -2:-1]]
    lowest = torch.cat([edges[0], inside, edges[1]], -1)
    distance = (prediction - refined).abs().masked_fill(~lowest, torch.inf).amin(-1)
    valley = refined.take_along_dim(energy.argmin(-1, keepdim=True), -1) - target
    return valley[:, 0].abs(), distance
