"""Finished regressions compared."""

import json
import shutil

import pytest
import torch

import dcem
from dcem.energy import EnergyModel
from dcem.experiments import ConfigError
from dcem.experiments.harness import training as harness
from dcem.experiments.harness.command import main
from dcem.experiments.harness.reading import experiment_of
from dcem.experiments.harness.run import Run
from dcem.experiments.regression import settings, study, task, training


class Known(torch.nn.Module):
    """An energy that is a function of `y` and the target, with a parameter as a learned one has."""

    def __init__(self, function):
        super().__init__()
        self.function, self.scale = function, torch.nn.Parameter(torch.ones(()))

    def forward(self, x, y):
        return self.scale * self.function(y[..., 0], (x * x.sin()).expand(y.shape[:-1]))


TINY = ["num_updates=4", "hidden=[8]", "num_points=6", "batch_size=2", "eval_every=2", "test_iterations=[1,2,4]"]


def test_a_study_has_a_row_for_each_solver_over_its_seeds(tmp_path):
    for solver in ("dcem", "gd"):
        first, second = (tmp_path / "runs" / f"{solver}-{seed}" for seed in (0, 1))
        assert main(["regression", f"solver={solver}", "num_iterations=2", f"hydra.run.dir={first}", *TINY]) == 0
        shutil.copytree(first, second)
    (tmp_path / "runs" / "gd-1" / "summary.json").unlink()  # not finished
    assert main(["regression-study", f"runs={tmp_path}/runs", f"hydra.run.dir={tmp_path}/study"]) == 0
    table = (tmp_path / "study" / "table.md").read_text()
    assert table.startswith("`dcem regression-study runs=")
    assert "| DCEM, batches of 2, cosine decay | 2 | 4 |" in table
    assert "| unrolled gradient descent, batches of 2, cosine decay | 1 | 4 |" in table
    assert "MSE at 4" in table
    for figure in ("seconds", "iterations", "energy", "predictions"):
        assert (tmp_path / "study" / f"{figure}.png").stat().st_size > 1000
    config = tmp_path / "runs" / "dcem-1" / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 1"))
    assert {label: len(of) for label, of in study.load_all(f"{tmp_path}/runs").items()} == {
        "DCEM, batches of 2, cosine decay": 2,
        "unrolled gradient descent, batches of 2, cosine decay": 1,
    }
    text = config.read_text()
    config.write_text(text.replace("decay: cosine", "decay: linear"))  # what is to be compared is no mistake
    assert {label: len(of) for label, of in study.load_all(f"{tmp_path}/runs").items()} == {
        "DCEM, batches of 2, cosine decay": 1,
        "DCEM, batches of 2, linear decay": 1,
        "unrolled gradient descent, batches of 2, cosine decay": 1,
    }
    config.write_text(text)
    config.write_text(config.read_text().replace("lr: 0.003", "lr: 0.1"))  # no row of means over two settings
    with pytest.raises(
        ConfigError, match="runs of DCEM, batches of 2, cosine decay that differ in their seed alone; got .*dcem-1"
    ):
        study.load_all(f"{tmp_path}/runs")


def test_a_folder_without_runs_is_named(tmp_path, capsys):
    assert main(["regression-study", f"runs={tmp_path}/none"]) == 2
    assert "runs: expected a folder of run folders" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("regression-study runs={}", "runs: expected runs of regression; got one of digits, {}/run"),
        ("mismatch-study runs={}", "runs: expected runs of mismatch; got one of digits, {}/run"),
        ("cartpole-embed-study runs={}", "runs: expected runs of cartpole-embed; got one of digits, {}/run"),
        ("planet-study runs=[{}/run]", "runs: expected runs of planet; got one of digits, {}/run"),
        ("planet-study evaluations=[{}/run]", "evaluations: expected runs of planet-evaluate; got one of digits, {}/"),
        ("planet-study runs=[{}/nameless]", "runs: expected folders of dcem planet; got {}/nameless"),
        ("planet-evaluate checkpoint={}/run/checkpoint.pt", "checkpoint: expected a file that dcem planet has written"),
        ("planet-evaluate checkpoint={}/garbage.pt", "checkpoint: expected a file that dcem planet has written; got"),
        ("planet phase=tune start={}/garbage.pt", "start: expected a file that dcem planet has written; got {}/garb"),
        ("planet phase=embed start={}/run", "start: expected a file that dcem planet has written; got {}/run/contr"),
        ("planet phase=embed start={}", "start: expected the folder of a run of dcem planet, with its checkpoint.pt"),
        ("cartpole-embed-evaluate decoders=[{}/garbage.pt]", "decoders: expected weights of a cartpole's decoder; "),
    ],
)
def test_what_another_experiment_has_left_is_refused_by_name(command, says, tmp_path, capsys):
    with Run(tmp_path / "run", {"seed": 0}, seed=0, quiet=True, command="dcem digits models=[icnn]") as run:
        run.track()
        run.checkpoint()
        run.finish(mse=1.0)
    (tmp_path / "run" / "config.yaml").write_text("seed: 0")
    (tmp_path / "garbage.pt").write_bytes(b"garbage")
    nameless = tmp_path / "nameless"
    nameless.mkdir()
    (nameless / "metrics.jsonl").touch()
    (nameless / "config.yaml").write_text("seed: 0")
    assert main(command.format(tmp_path).split()) == 2
    error = capsys.readouterr().err
    assert says.format(tmp_path) in error
    assert error.count("\n") == 1


def test_a_run_says_of_which_experiment_it_is(tmp_path):
    """Hydra's settings of it, or else its summary: one that is not finished has none, one that is committed may."""
    assert experiment_of(tmp_path) is None
    for command, experiment in (("dcem digits a=1", "digits"), ("dcem", None), ("python -m pytest", None)):
        (tmp_path / "summary.json").write_text(json.dumps({"command": command, "metrics": {}}))
        assert experiment_of(tmp_path) == experiment
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "hydra.yaml").write_text("hydra: {job: {name: regression}}")
    assert experiment_of(tmp_path) == "regression"


def test_a_minimum_is_found_between_the_grid_s_points():
    config = settings.Config(solver=settings.GD(), num_points=5)
    model = EnergyModel(Known(lambda y, target: (y - target - 0.3).square()), 1, dcem.GradientDescent(0.5))
    valley, distance = task.minima(model, config, num=50)
    assert valley.tolist() == pytest.approx([0.3] * 5, abs=1e-3)
    assert distance.tolist() == pytest.approx([0.0] * 5, abs=1e-3)


def test_at_the_edge_of_the_grid_there_is_a_minimum_if_the_energy_falls_to_it():
    config = settings.Config(solver=settings.GD(), num_points=3)
    model = EnergyModel(Known(lambda y, target: y), 1, dcem.GradientDescent(1e-9))
    _, y = task.data(config)
    valley, distance = task.minima(model, config, num=50)
    lowest = float(y.min()) - 8
    assert valley.tolist() == pytest.approx((y[:, 0] - lowest).tolist(), abs=1e-4)
    assert distance.tolist() == pytest.approx([-lowest] * 3, abs=1e-4)


def test_an_energy_that_light_solves_have_learned_is_deployed_with_the_paper_s_solver():
    config = settings.Config(solver=settings.Light(), num_iterations=5)
    model = task.build(config)
    searched, found = task.deployed(model, config)
    assert searched.energy is model.energy
    assert (searched.solver.num_samples, searched.num_iterations, found.num_iterations) == (100, 10, 10)
    of_gd = settings.Config(solver=settings.GD(), num_iterations=5)
    assert task.deployed(model, of_gd) == (model, of_gd)


def test_seconds_are_those_that_a_run_has_measured_from_its_first_update_on(tmp_path, monkeypatch):
    def update(*arguments):
        clock[0] += 1000 if clock[0] < 1000 else 1  # the first is slow, evaluations take no time
        return real(*arguments)

    clock, real = [0.0], training.update
    monkeypatch.setattr(harness.time, "process_time", lambda: clock[0])
    monkeypatch.setattr(training, "update", update)
    assert main(["regression", "solver=gd", f"hydra.run.dir={tmp_path}/runs/0", *TINY]) == 0
    assert main(["regression-study", f"runs={tmp_path}/runs", f"hydra.run.dir={tmp_path}/study"]) == 0
    (row,) = json.loads((tmp_path / "study" / "summary.json").read_text())["metrics"].values()
    assert row["seconds"] == [1003]
    assert row["seconds_to_reach"] == [None]


def test_the_table_names_what_a_seed_reached_and_what_half_of_them_did_not():
    row = {"seeds": 2, "updates": 10, "seconds": [1.0, 1.4], "seconds_to_reach": [0.5, 0.7], "mse": {"2": [1, 3]}}
    row |= {"mse_deployed": [1, 3], "valley_to_target": [0.1, 0.3], "prediction_to_minimum": [0.0, 0.0]}
    short = row | {"seconds_to_reach": [0.5, None], "mse": {"4": [1, 3]}}
    text = study.table({"a": row, "b": short}).splitlines()
    assert text[-2] == "| a | 2 | 10 | 1 | 1 | 2.0e+00 |  | 3.0e+00 | 0.200 | 0.000 |"
    assert text[-1] == "| b | 2 | 10 | 1 | not reached |  | 2.0e+00 | 3.0e+00 | 0.200 | 0.000 |"
