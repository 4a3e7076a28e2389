"""What the experiments share: the run's folder, schedules, figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dcem import plotting
from dcem.experiments import ConfigError
from dcem.experiments.harness.run import Run
from dcem.experiments.harness.training import Schedule


def parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.zeros(1))]


def test_a_checkpoint_of_other_things_is_refused(tmp_path: Path) -> None:
    with Run(tmp_path, {}, seed=0, quiet=True) as run:
        run.track(model=torch.nn.Linear(1, 1))
        run.checkpoint()
    with pytest.raises(ConfigError, match=r"expected the state of \['net'\], got \['model'\]"):
        Run(tmp_path, {}, seed=0, resume=True, quiet=True).track(net=torch.nn.Linear(1, 1))
    with pytest.raises(FileExistsError, match="holds a run"):
        Run(tmp_path, {}, seed=0, quiet=True)


def test_global_generators_continue(tmp_path: Path) -> None:
    with Run(tmp_path, {}, seed=3, quiet=True) as run:
        generator = torch.Generator().manual_seed(1)
        run.track(generator=generator)
        torch.rand(5)
        torch.rand(5, generator=generator)
        run.checkpoint()
        expected = torch.rand(5), torch.rand(5, generator=generator)
    with Run(tmp_path, {}, seed=3, resume=True, quiet=True) as run:
        generator = torch.Generator()
        run.track(generator=generator)
        assert torch.equal(torch.rand(5), expected[0])
        assert torch.equal(torch.rand(5, generator=generator), expected[1])


def test_lines_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    with Run(tmp_path, {}, seed=0, quiet=True) as run:
        run.track()
        for step in run.steps(3, checkpoint_every=2):
            run.log(step, loss=float(step))
        (tmp_path / "checkpoint.pt").unlink()
    with Run(tmp_path, {}, seed=0, resume=True, quiet=True) as run:
        run.track()
        assert run.records() == []
        assert list(run.steps(2, checkpoint_every=1)) == [1, 2]
        summary = run.finish(loss=1.0)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_schedules() -> None:
    cosine = Schedule(torch.optim.SGD(parameters(), lr=1.0), 100)
    rates = []
    for _ in range(100):
        rates.append(cosine.lr)
        cosine.optimizer.step()
        cosine.step()
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[-1] < 1e-3
    plateau = Schedule(torch.optim.SGD(parameters(), lr=1.0), 100, "plateau", 2)
    for _ in range(4):
        plateau.evaluated(1.0)
    assert plateau.lr == 0.5


def test_figures_have_labelled_axes_and_a_band_for_seeds(tmp_path: Path) -> None:
    seeds = [[{"step": s, "loss": 10.0**-s * (1 + i)} for s in range(4)] for i in range(3)]
    x = torch.linspace(0, 1, 5)
    figures = [
        plotting.loss_curves({"a": seeds, "b": seeds[:1]}, "loss", "loss"),
        plotting.by_seconds({"a": seeds, "b": seeds}, {"loss": "loss"}, {"a": 0.1, "b": 0.2}),
        plotting.error_by_iterations({"a": [{1: 1.0, 10: 0.1}, {1: 2.0, 10: 0.3}]}, 10),
        plotting.predictions_by_iterations(x, x, {"a": {1: x, 10: x}}, 10),
        plotting.energy_surfaces([plotting.Surface("a", x, x, x[:, None] * x, x, x)] * 2),
    ]
    for i, figure in enumerate(figures):
        axis = figure.axes[0]
        assert axis.get_xlabel() or figure.get_supxlabel()
        assert axis.get_ylabel() or figure.get_supylabel()
        assert axis.get_legend() or figure.legends
        figure.savefig(tmp_path / f"{i}.png", dpi=20)
    assert figures[0].axes[0].get_legend().get_title().get_text() == "1 or 3 seeds: mean and 95 % band"
    ends = [line.get_xdata()[-1] for line in figures[1].axes[0].get_lines()]
    assert ends == pytest.approx([0.3, 0.6])
