"""Figures of records and grids that are not all there."""

import numpy as np
import torch

from dcem.plotting.figures import Surface, energy_surfaces, loss_curves


def test_records_without_the_metric_are_passed_by_and_negative_numbers_are_drawn():
    records = [{"step": 0, "other": 1.0}, {"step": 1, "loss": 1.0}, {"step": 2, "loss": -0.3}]
    figure = loss_curves({"a": [records]}, "loss", "loss")
    axis = figure.axes[0]
    assert axis.get_yscale() == "linear"
    assert axis.lines[0].get_ydata().tolist() == [1.0, -0.3]
    positive = [{"step": 1, "loss": torch.tensor(1.0)}, {"step": 2, "loss": 0.5}]
    assert loss_curves({"a": [positive]}, "loss", "loss").axes[0].get_yscale() == "log"


def test_what_is_not_finite_leaves_the_rest_of_a_panel():
    energy = torch.rand(4, 5)
    energy[1, 2], energy[2, 3] = torch.nan, torch.inf
    x, y = torch.linspace(0, 1, 4), torch.linspace(0, 1, 5)
    drawn = energy_surfaces([Surface("", x, y, energy, x, x)]).axes[0].collections[0].get_array()
    assert np.isfinite(np.ma.filled(drawn, np.nan)).sum() == 18
