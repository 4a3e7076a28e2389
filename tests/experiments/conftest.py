"""What the tests of experiments share."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

from dcem.experiments import run


@pytest.fixture(autouse=True, scope="module")
def coarse_figures() -> Iterator[None]:
    """Runs draw and save their figures in few pixels and without a layout, which would take a third of a tiny run."""

    def coarse(self: "run.Run", name: str, figure: "Figure", _save=run.Run.figure) -> Path:
        figure.set_layout_engine("none")
        figure.set_dpi(20)
        return _save(self, name, figure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.Run, "figure", coarse)
        yield
