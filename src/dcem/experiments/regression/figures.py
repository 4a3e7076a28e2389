"""Figures of `dcem regression`."""

from __future__ import annotations

import torch
from torch import Tensor

from dcem import plotting
from dcem.energy import EnergyModel
from dcem.experiments.harness.run import Run
from dcem.experiments.regression.settings import LABELS, Config
from dcem.experiments.regression.task import data, errors, predictions


@torch.no_grad()
def surface(model: EnergyModel, config: Config, title: str) -> plotting.Surface:
    """The model's energy around the target curve."""
    x, target = data(config, next(model.parameters()).device)
    low, high = float(target.min()) - 3, float(target.max()) + 3
    y = torch.linspace(low, high, 160, device=x.device)
    energy = model.energy(x, y.view(1, -1, 1).expand(len(x), -1, 1))
    prediction = predictions(model, config, x)[config.num_iterations]
    tensors = (x[:, 0], y, energy, target[:, 0], prediction[:, 0])
    return plotting.Surface(title, *(t.cpu() for t in tensors))


def curves(model: EnergyModel, config: Config) -> dict[int, Tensor]:
    """Predicted curves for a few numbers of iterations."""
    x, _ = data(config, next(model.parameters()).device)
    return {
        t: y_hat[:, 0].cpu() for t, y_hat in predictions(model, config, x).items() if t >= config.num_iterations / 2
    }


def draw(model: EnergyModel, config: Config, run: Run) -> None:
    """The run's figures."""
    label = LABELS[config.solver.name]
    key = f"mse_{config.num_iterations}"
    x, y = data(config)
    run.figure("loss", plotting.loss_curves({label: [run.records()]}, key, "training mean squared error"))
    run.figure("energy", plotting.energy_surfaces([surface(model, config, label)]))
    run.figure("iterations", plotting.error_by_iterations({label: [errors(model, config)]}, config.num_iterations))
    by_iterations = {label: curves(model, config)}
    run.figure(
        "predictions", plotting.predictions_by_iterations(x[:, 0], y[:, 0], by_iterations, config.num_iterations)
    )
