"""Finished regressions compared."""

import pytest

from dcem.experiments.cli import main

TINY = ["num_updates=4", "hidden=[8]", "num_points=6", "batch_size=2", "eval_every=2", "test_iterations=[1,2,4]"]


@pytest.fixture
def folder(tmp_path, capsys):
    """Two seeds of each solver."""
    for solver in ("dcem", "gd"):
        for seed in (0, 1):
            place = f"hydra.run.dir={tmp_path}/runs/{solver}-{seed}"
            assert main(["regression", f"solver={solver}", f"seed={seed}", "num_iterations=2", place, *TINY]) == 0
    capsys.readouterr()
    return tmp_path


def test_a_study_has_a_row_for_each_solver_over_its_seeds(folder, capsys):
    assert main(["regression-study", f"runs={folder}/runs", f"hydra.run.dir={folder}/study"]) == 0
    table = (folder / "study" / "table.md").read_text()
    assert "| DCEM, batches of 2 | 2 | 4 |" in table
    assert "| unrolled gradient descent, batches of 2 | 2 | 4 |" in table
    assert "MSE at 4" in table
    for figure in ("loss", "iterations", "energy", "predictions"):
        assert (folder / "study" / f"{figure}.png").stat().st_size > 1000


def test_a_folder_without_runs_is_named(tmp_path, capsys):
    assert main(["regression-study", f"runs={tmp_path}/none"]) == 2
    assert "runs: expected a folder of run folders" in capsys.readouterr().err
