"""A diagnosis as a figure: not among the plots, which draw controllers, and these can be diagnosed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from dcem.diagnosis import Diagnosis


def draw(diagnosis: Diagnosis) -> Figure:
    """Four panels over the iterations: best value, std, effective elites, gradient norm."""
    figure = Figure(figsize=(9.0, 4.8), layout="constrained")
    iterations = range(1, len(diagnosis.rows) + 1)
    panels = {
        "best": "best value so far",
        "std": "std of the samples",
        "effective_elites": "effective elites",
        "gradient_norm": "norm of the gradient",
    }
    for axis, (key, label) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        axis.plot(iterations, [getattr(row, key) for row in diagnosis.rows], "o-", color="#0072B2", markersize=3)
        axis.set(xlabel="iteration", ylabel=label)
        axis.grid(alpha=0.3)
        if key in ("std", "gradient_norm") and any(getattr(row, key) > 0 for row in diagnosis.rows):
            axis.set_yscale("log")
    figure.suptitle("\n".join(diagnosis.advice) or "nothing to change", fontsize=9, wrap=True)
    return figure
