"""`dcem embed-synthetic`: the family, what is counted as saved, and a tiny run that leaves everything and resumes."""

from __future__ import annotations

import pytest
import torch

import dcem
from dcem.embedding import LinearDecoder
from dcem.experiments import ConfigError
from dcem.experiments.embed_synthetic.methods import needed, saved, search
from dcem.experiments.embed_synthetic.settings import Config
from dcem.experiments.embed_synthetic.task import Problems
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
