"""The evolution strategy of the guide "Extend", beside the package `cma`: the same samples, the same update."""

import doctest
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import dcem

GUIDE = Path(__file__).parents[2] / "docs/guides/extending.md"


@pytest.fixture(scope="module")
def guide() -> dict:
    """What the guide defines for it."""
    names: dict = {"__name__": "extending"}
    needed = ("import", "from", "def seeded", "def rosenbrock")
    for example in doctest.DocTestParser().get_examples(GUIDE.read_text("utf-8")):
        if (
            example.source.startswith(needed)
            or "class Evolution(" in example.source
            or "class CMAES(" in example.source
        ):
            exec(example.source, names)
    return names


@pytest.mark.cpu
def test_it_updates_as_cma_does(guide: dict) -> None:
    cma = pytest.importorskip("cma", reason="nothing to compare with: it needs cma")
    start = torch.linspace(-1, 1, 4, dtype=torch.float64)
    options = {"popsize": 12, "CMA_active": False, "updatecovwait": 0, "verbose": -9, "seed": 1}
    peer = cma.CMAEvolutionStrategy(start.numpy(), 0.01, options)
    solver = guide["CMAES"](12, 0.01)
    init = replace(solver.distribution(start, 1), covariance=torch.from_numpy(peer.sm.C.copy()))  # nearly the identity
    search = dcem.Search(init, solver, generator=guide["seeded"]())
    mu, csa = peer.sp.weights.mueff, peer.adapt_sigma.initialize(peer)
    csa.cs = (mu + 2) / (4 + mu + 5)  # as in the tutorial; newer versions forget faster
    csa.damps = 1 + csa.cs
    waits = 0
    for _ in range(60):
        samples, before = search.ask(), search._progress.state.distribution
        values = guide["rosenbrock"](samples)
        search.tell(values)
        peer.ask()
        peer.tell(list(samples.numpy()), values.tolist(), check_points=False)
        after = search._progress.state.distribution
        np.testing.assert_allclose(after.mean, peer.mean, rtol=1e-8)
        np.testing.assert_allclose(after.step_size.item(), peer.sigma, rtol=1e-8)
        np.testing.assert_allclose(after.covariance, peer.sm.C, rtol=1e-7, atol=1e-9)
        waits += torch.allclose(after.path, (1 - peer.sp.cc) * before.path)
    assert 0 < waits < 60  # the path has waited and gone on


@pytest.mark.cpu
def test_each_problem_is_solved_as_by_itself(guide: dict) -> None:
    noise = torch.randn(30, 2, 12, 3, dtype=torch.float64, generator=guide["seeded"]())
    starts = torch.tensor([[0.0, 0.5, 0.2], [0.3, -0.4, 0.0]], dtype=torch.float64)

    def partly(x: torch.Tensor) -> torch.Tensor:  # fails on one side
        return torch.where(x[..., 1] > 0.4, torch.nan, (x * torch.tensor([1.0, 3.0, 9.0])).square().sum(-1))

    solver, options = guide["CMAES"](12, 0.2), {"num_iterations": 30}
    both = dcem.minimize(partly, starts, solver, noise=noise, **options, record=True)
    assert any(it.values.isnan().any() for it in both.history)
    for i in range(2):
        alone = dcem.minimize(partly, starts[i], solver, noise=noise[:, i], **options)
        torch.testing.assert_close(both.x[i], alone.x, rtol=1e-6, atol=1e-9)
    assert both.x.abs().max() < 0.02
    assert (both.status == dcem.Status.OK).all()
