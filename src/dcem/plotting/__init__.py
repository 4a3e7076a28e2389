"""Figures of the experiments and animations of systems: matplotlib without pyplot, so no display is needed."""

from dcem._extras import needs

with needs("dcem.plotting", "experiments"):
    from dcem.plotting.animation import frames, save_gif, trajectories
    from dcem.plotting.figures import (
        COLOURS,
        MARKERS,
        Panel,
        Surface,
        by_seconds,
        correlations,
        densities,
        energy_surfaces,
        error_by_iterations,
        image_rows,
        loss_curves,
        predictions_by_iterations,
    )

__all__ = [
    "COLOURS",
    "MARKERS",
    "Panel",
    "Surface",
    "by_seconds",
    "correlations",
    "densities",
    "energy_surfaces",
    "error_by_iterations",
    "frames",
    "image_rows",
    "loss_curves",
    "predictions_by_iterations",
    "save_gif",
    "trajectories",
]
