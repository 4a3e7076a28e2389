"""What the tests of experiments share."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

from dcem.experiments.harness import run


@pytest.fixture(autouse=True, scope="module")
def coarse_figures() -> Iterator[None]:
    """Runs draw in few pixels, without layout and ticks, each kind of a command once: half of a tiny run otherwise."""
    drawn: dict[tuple[str, ...], bytes] = {}

    def coarse(self: "run.Run", name: str, figure: "Figure", _save=run.Run.figure) -> Path:
        of_command = (name.partition("-")[0], *self.command.split()[1:2])
        if of_command not in drawn:
            figure.set_layout_engine(None)
            figure.set_dpi(20)
            for axes in figure.axes:
                axes.tick_params(which="both", bottom=False, left=False, labelbottom=False, labelleft=False)
            drawn[of_command] = _save(self, name, figure).read_bytes()
        path = self.folder / f"{name}.png"
        path.write_bytes(drawn[of_command])
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.Run, "figure", coarse)
        yield
