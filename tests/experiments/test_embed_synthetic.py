"""`dcem embed-synthetic`: the family, what is counted as saved, and a tiny run that leaves everything and resumes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import dcem
from dcem.embedding import LinearDecoder
from dcem.experiments import ConfigError
from dcem.experiments.embed_synthetic import training
from dcem.experiments.embed_synthetic.methods import needed, saved, search
from dcem.experiments.embed_synthetic.settings import Config
from dcem.experiments.embed_synthetic.task import Problems
from dcem.experiments.harness.command import main
from dcem.experiments.harness.run import Interrupted, Run
from dcem.experiments.harness.settings import Search

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:hydra.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*"),
]

SMALL = {
    "sizes": [5, 9], "num_train": 12, "num_test": 3, "hidden": [8], "num_updates": 6, "batch_size": 4, "num_samples": 10,
    "num_elites": 2, "num_iterations": 2, "checkpoint_every": 2, "num_seeds": 2, "full": Search(20, 4, 3),
    "icem": Search(10, 4, 3), "latent": Search(10, 2, 3),
}  # fmt: skip
TINY = ["sizes=[5,9]", "num_train=12", "num_test=3", "hidden=[8]", "num_updates=6", "batch_size=4", "num_samples=10"]
TINY += ["num_elites=2", "num_iterations=2", "checkpoint_every=2", "num_seeds=2", "full.num_samples=20"]
TINY += ["full.num_elites=4", "full.num_iterations=3", "icem.num_samples=10", "icem.num_elites=4"]
TINY += ["icem.num_iterations=3", "latent.num_samples=10", "latent.num_elites=2", "latent.num_iterations=3"]


def draw(size: int = 20, num: int = 6, **options: float) -> Problems:
    return Problems.draw(Config(**options), num, size, torch.Generator().manual_seed(0))


class TestFamily:
    def test_is_lowest_at_the_solution_and_nowhere_else(self) -> None:
        problems = draw()
        assert (problems(problems.solution.unsqueeze(1)) == 0).all()
        elsewhere = torch.rand(6, 50, 20)
        assert (problems(elsewhere) > 0).all()
        assert problems(elsewhere).shape == (6, 50)
        assert (problems.solution >= 0).all()
        assert (problems.solution <= 1).all()

    def test_is_not_convex(self) -> None:
        problems = draw(coupling=0.0, wavelength=0.25)
        ends = torch.stack([problems.solution, problems.solution + 0.25], 1)
        assert (problems(ends.mean(1, keepdim=True))[:, 0] > problems(ends).mean(1)).all()

    def test_solutions_lie_near_a_surface_of_two_dimensions(self) -> None:
        """Neighbours differ in two directions; what is a problem's own moves it off by about `own`."""
        with_own, without = draw(50, 20_000), draw(50, 20_000, own=0.0)
        torch.testing.assert_close(with_own.hidden, without.hidden)
        off = (with_own.solution - without.solution).square().mean().sqrt()
        assert 0.005 < off < 0.02
        near = (without.hidden - 0.5).norm(dim=-1).topk(20, largest=False).indices
        waves = without.solution[near].double()
        scale = torch.linalg.svdvals(waves - waves.mean(0))
        assert scale[1] > 0.1 * scale[0]
        assert scale[2] < 0.2 * scale[1]  # what is left is curvature

    def test_problems_of_a_batch_are_those_chosen(self) -> None:
        problems, x = draw(), torch.rand(6, 7, 20)
        chosen = torch.tensor([4, 1])
        torch.testing.assert_close(problems.some(chosen)(x[chosen]), problems(x)[chosen])


class TestSearch:
    def test_counts_every_evaluation(self) -> None:
        problems, counted = draw(), 0
        solver = dcem.CEM(10, 4, dcem.HardTopK(), keep_elites=0.5)

        class Counting(Problems):
            def __call__(self, x: torch.Tensor) -> torch.Tensor:
                nonlocal counted
                counted += x.shape[1] if x.shape[1] > 1 else 0  # those of the mean are for the curve alone
                return super().__call__(x)

        counting = Counting(problems.config, problems.hidden, problems.solution)
        curve, x = search(counting, solver, Search(10, 4, 5), torch.Generator().manual_seed(0))
        assert curve[-1][0] == counted == 50
        assert curve[-1][1] == pytest.approx(float(problems(x.unsqueeze(1)).mean()))

    def test_principal_components_of_a_plane_are_the_plane(self) -> None:
        plane = 0.5 + 0.05 * torch.randn(30, 2) @ torch.randn(2, 8)
        decode = LinearDecoder.principal_components(plane.clamp(0, 1), 4, bounds=(0, 1))
        mean, moved = decode(torch.zeros(4)), decode(0.1 * torch.randn(20, 4)) - decode(torch.zeros(4))
        torch.testing.assert_close(mean, plane.clamp(0, 1).mean(0))
        assert torch.linalg.matrix_rank(moved, atol=1e-3) <= 3

    def test_what_is_saved(self) -> None:
        cem, learned = [[100, 0.5], [200, 0.1], [300, 0.0999]], [[10, 0.3], [20, 0.08], [30, 0.05]]
        assert needed(cem, 0.1) == 200
        assert needed(cem, 0.01) is None
        found = saved({"cem": cem, "learned": learned}, "cem")
        assert found["rival_evaluations"] == 200
        assert found["evaluations"] == 20
        assert found["factor"] == 10
        assert found["factor_at_own_cost"] == 10  # a bound: the rival's 300 over 30
        assert found["rival_gets_there"] == 0
        worse = saved({"cem": learned, "learned": cem}, "cem")
        assert worse["factor"] is None
        assert worse["factor_at_own_cost"] == pytest.approx(20 / 200)
        assert worse["rival_gets_there"] == 1


def test_a_tiny_run_leaves_everything_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed-synthetic", *TINY, f"hydra.run.dir={tmp_path}"]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    metrics = summary["metrics"]
    assert metrics["training_evaluations"] == 6 * 4 * (10 * 2 + 1)
    assert metrics["sizes"].keys() == {"5", "9"}
    for of_size in metrics["sizes"].values():
        assert of_size["evaluations"] == {"cem": 60, "icem": 30, "random": 30, "pca": 30, "learned": 30}
        assert all(len(costs) == 2 for costs in of_size["final_cost"].values())
        assert all(seconds > 0 for seconds in of_size["training_seconds"])
    assert {path.name for path in tmp_path.glob("*.png")} == {"cost.png", "saved.png", "latent.png"}
    assert (tmp_path / "table.md").read_text().startswith("`dcem embed-synthetic sizes=")
    shutil.rmtree(tmp_path / "9-1")  # as if stopped before the last part
    capsys.readouterr()
    assert main(["embed-synthetic", f"resume={tmp_path}"]) == 0
    again = json.loads((tmp_path / "summary.json").read_text())["metrics"]
    for size in ("5", "9"):
        assert again["sizes"][size]["final_cost"] == metrics["sizes"][size]["final_cost"]
        assert again["sizes"][size]["vs_cem"] == metrics["sizes"][size]["vs_cem"]


def test_a_stopped_training_resumes_to_the_same_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, calls = Config(**SMALL), 0
    step = training.decoder_step

    def stopping(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == 4:  # after the checkpoint of the second update
            raise Interrupted(143)
        return step(*arguments, **options)

    def make(folder: str, resume: bool):
        with Run(tmp_path / folder, {}, seed=0, command="", resume=resume, quiet=True) as run:
            return training.train(config, 5, 0, run)[0].state_dict(), run.records()

    whole = make("whole", False)
    monkeypatch.setattr(training, "decoder_step", stopping)
    with pytest.raises(Interrupted):
        make("stopped", False)
    resumed = make("stopped", True)
    torch.testing.assert_close(whole, resumed, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": [30, 10]}, "sizes: expected rising"),
        ({"num_test": 0}, "num_test: expected at least 1"),
        ({"batch_size": 1000}, "batch_size: expected 1 to num_train"),
        ({"temperature": 0.0}, "temperature: expected a positive number"),
        ({"own": -1.0}, "own: expected at least 0"),
        ({"num_elites": 60}, "num_elites: expected 1 to num_samples"),
        ({"full": Search(10, 20, 5)}, r"full.num_elites: expected"),
        ({"latent": Search(10, 5, 0)}, "latent.num_iterations: expected at least 1"),
    ],
)
def test_refuses_settings_that_make_no_sense(change: dict, message: str) -> None:
    Config().check()
    with pytest.raises(ConfigError, match=message):
        Config(**change).check()
