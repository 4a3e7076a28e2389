"""`dcem embed-synthetic`: the family and its minima, what is counted, and every method on a problem that it can solve."""

from __future__ import annotations

import math

import pytest
import torch

from dcem.embedding import LinearDecoder
from dcem.experiments import ConfigError
from dcem.experiments.embed_synthetic.counting import Counted, Outcome, expected_evaluations
from dcem.experiments.embed_synthetic.landscape import minima_along, minima_reached, over_surface
from dcem.experiments.embed_synthetic.methods import cosine_decoder, descend, evolution, restarted_descent, search
from dcem.experiments.embed_synthetic.report import UNTRAINED, Part, plain, summary, table
from dcem.experiments.embed_synthetic.settings import Config
from dcem.experiments.embed_synthetic.task import LENGTHS_ACROSS, OWN, RIPPLE_ACROSS, Problems, off

TARGET = 1e-3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(num: int = 4, size: int = 20, seed: int = 0) -> Problems:
    return Problems.draw(num, size, generator(seed))


class Bowls(Problems):
    """The same solutions, without ripples: what every method can solve."""

    calls = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        type(self).calls += x.shape[1]
        return (x - self.solution.unsqueeze(1)).square().mean(-1)

    def some(self, chosen: torch.Tensor) -> Bowls:
        return bowls(super().some(chosen))


def bowls(problems: Problems) -> Bowls:
    return Bowls(problems.hidden, problems.own, problems.along, problems.across, problems.basis)


class TestFamily:
    @pytest.mark.parametrize("size", [10, 11, 16, 50, 300])  # at 11 and 16 two of the waves look alike
    def test_is_0_at_the_solution_and_nowhere_else(self, size: int) -> None:
        problems = draw(6, size)
        x = problems.solution
        assert (x > 0).all()
        assert (x < 1).all()
        torch.testing.assert_close(problems(x.unsqueeze(1)), torch.zeros(6, 1), atol=1e-9, rtol=0)
        torch.testing.assert_close(problems.position(x), problems.hidden, atol=1e-5, rtol=0)
        elsewhere = torch.cat(
            [torch.rand(6, 50, size, generator=generator()), problems.solution.flip(0).unsqueeze(1)], 1
        )
        assert (problems(elsewhere) > 10 * TARGET).all()

    def test_the_surface_stays_in_the_box(self) -> None:
        line = torch.linspace(-1, 1, 41)
        surface = draw(1, 64).surface(torch.cartesian_prod(line, line))
        assert surface.min() > 4 * OWN
        assert surface.max() < 1 - 4 * OWN

    def test_has_many_minima_along_the_surface(self) -> None:
        problems = draw(4)
        assert (minima_along(problems) >= 5).all()
        values = over_surface(problems, 41)
        at = problems.hidden.add(1).mul(20).round().long()
        near = torch.stack(
            [values[i, max(0, a - 1) : a + 2, max(0, b - 1) : b + 2].min() for i, (a, b) in enumerate(at.tolist())]
        )
        torch.testing.assert_close(near, values.flatten(1).min(1).values)  # the lowest of them is at the solution

    def test_has_minima_across_it_in_every_number(self) -> None:
        """One of them lies about a wavelength off in that number, where it stays in place along the surface."""
        drawn = draw(3, 300)
        parts = (drawn.hidden, drawn.own, drawn.along, drawn.across, drawn.basis)
        problems = Problems(*(part.double() for part in parts))  # one number of 300 changes little
        length = 2 * math.pi / problems.across
        steps = torch.linspace(0.3, 1.3, 201)
        for number in (0, 137, 299):
            step = torch.zeros(3, 201, 300, dtype=torch.float64)
            step[:, :, number] = steps * length[:, number, None]
            x = problems.solution.unsqueeze(1) + off(step, problems.basis[:2])
            torch.testing.assert_close(problems.position(x[:, -1]), problems.hidden, atol=1e-5, rtol=0)
            values = problems(x)
            inner = values[:, 1:-1]
            assert ((inner < values[:, :-2]) & (inner < values[:, 2:])).any(1).all()

    def test_the_mean_over_problems_has_one_minimum_across_the_surface(self) -> None:
        error = torch.linspace(0.001, 1, 1000, dtype=torch.float64).unsqueeze(-1)
        frequency = 2 * math.pi / torch.linspace(*LENGTHS_ACROSS, 5001, dtype=torch.float64)
        slope = 2 * error.squeeze(-1) + RIPPLE_ACROSS * (frequency * (frequency * error).sin()).mean(-1)
        assert (slope > 0).all()
        ripples = 2 * error + RIPPLE_ACROSS * frequency * (frequency * error).sin()
        assert (ripples < 0).any(0).all()  # of a single problem it has more

    def test_gradient_descent_fails_from_random_starts_and_succeeds_from_the_surface(self) -> None:
        problems = draw(4, 30)
        own, solved = minima_reached(problems, generator(), TARGET, num_starts=8)
        assert own == 1
        assert solved == 0
        counted = Counted(problems, 80, TARGET)
        descend(counted, problems.surface(problems.hidden).unsqueeze(1), 0.01, 40)
        assert counted.solved.isfinite().all()

    def test_counts_a_minimum_once(self) -> None:
        own, solved = minima_reached(bowls(draw(2)), generator(), TARGET, num_starts=4)
        assert own == 0.25
        assert solved == 1

    def test_problems_of_a_batch_are_those_chosen(self) -> None:
        problems, x = draw(6), torch.rand(6, 7, 20, generator=generator())
        chosen = torch.tensor([4, 1])
        torch.testing.assert_close(problems.some(chosen)(x[chosen]), problems(x)[chosen])


class TestCounted:
    def test_keeps_the_lowest_cost_at_every_mark_and_when_a_problem_was_solved(self) -> None:
        problems = bowls(draw(2))
        counted = Counted(problems, 40, 0.02, num_marks=7)
        x = torch.rand(2, 45, 20, generator=generator())
        x[1, 16] = problems.solution[1]  # of the third call
        values = [counted(part, price) for part, price in ((x[:, :7], 1), (x[:, 7:14], 2), (x[:, 14:], 1))]
        order = torch.cat(values, 1)
        evaluations = torch.cat([torch.arange(1, 8), 7 + 2 * torch.arange(1, 8), 21 + torch.arange(1, 32)])
        assert counted.spent == 40
        outcome = counted.outcome()
        for mark, cost in zip(outcome.evaluations, outcome.costs.T, strict=True):
            torch.testing.assert_close(cost, order[:, evaluations <= mark].min(1).values.clamp_min(1e-6))
        assert outcome.solved.tolist() == [math.inf, 24.0]
        assert counted.done

    def test_what_comes_after_the_budget_does_not_count(self) -> None:
        problems = bowls(draw(2))
        counted = Counted(problems, 10, TARGET)
        counted(torch.rand(2, 9, 20, generator=generator()))
        before = counted.lowest
        counted(problems.solution.unsqueeze(1), price=2)
        assert torch.equal(counted.lowest, before)
        assert counted.done
        assert not counted.solved.isfinite().any()

    def test_ends_when_nothing_is_left_to_find(self) -> None:
        problems = draw(2)
        counted = Counted(problems, 1000, TARGET)
        counted(problems.solution.unsqueeze(1))
        assert counted.done
        assert counted.spent == 1
        assert (counted.outcome().costs == 1e-6).all()

    def test_what_a_problem_solved_takes(self) -> None:
        assert expected_evaluations(torch.tensor([100.0, math.inf]), 500) == 600
        assert expected_evaluations(torch.tensor([math.inf]), 500) == math.inf


SEARCH = {"num_samples": 20, "num_elites": 4, "num_iterations": 6, "std": 0.3}
METHODS = {
    "cem": (search, SEARCH),
    "icem": (search, SEARCH | {"keep": 0.3, "colour": 1.0}),
    "adam": (restarted_descent, {"rate": 0.03, "num_steps": 60}),
    "cosine": (search, SEARCH | {"decoder": cosine_decoder(10, 10), "latent_size": 10}),
    "cma": (evolution, {"std": 0.3, "population": 1}),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_solves_what_has_one_minimum_and_counts_all_it_evaluates(name: str) -> None:
    if name == "cma":
        pytest.importorskip("cma", reason="needs cma")
    solve, settings = METHODS[name]
    counted = Counted(bowls(draw(1, 10)), 1500, TARGET)
    Bowls.calls = 0
    outcome = solve(counted, generator(), **settings)
    assert outcome.solved.isfinite().all()
    assert (outcome.costs.diff(dim=1) <= 0).all()
    if name == "adam":  # ten starts in each of the steps; a gradient costs as much as a value
        assert Bowls.calls * 2 == counted.spent
    elif name != "cma":
        descents = math.ceil(counted.spent / (6 * 21 + 2 * 100))
        assert Bowls.calls < counted.spent <= Bowls.calls + descents * 100


def test_a_search_over_samples_counts_all_of_them_and_the_means(monkeypatch: pytest.MonkeyPatch) -> None:
    problems, spent = bowls(draw(2)), 2 * (6 * 21 + 2 * 100)
    Bowls.calls = 0
    counted = Counted(problems, spent, TARGET)
    monkeypatch.setattr("dcem.experiments.embed_synthetic.counting.FLOOR", -1.0)  # never at an end before the budget
    search(counted, generator(), **SEARCH)
    assert counted.spent == spent
    assert Bowls.calls == 2 * (6 * 21 + 100)


def test_the_true_surface_as_a_decoder_finds_what_gradient_descent_does_not() -> None:
    problems = draw(6, 40)
    decoder = lambda z: problems.surface(z)  # noqa: E731
    settings = {"num_samples": 100, "num_elites": 10, "num_iterations": 6, "std": 0.5}
    known = search(Counted(problems, 1700, TARGET), generator(), decoder, latent_size=2, **settings)
    descent = restarted_descent(Counted(problems, 1700, TARGET), generator(), 0.01, 100)
    assert known.solved.isfinite().float().mean() >= 5 / 6
    assert not descent.solved.isfinite().any()


def test_principal_components_of_a_plane_are_the_plane() -> None:
    plane = 0.5 + 0.05 * torch.randn(30, 2, generator=generator()) @ torch.randn(2, 8, generator=generator(1))
    decode = LinearDecoder.principal_components(plane, 4, bounds=(0, 1))
    mean, moved = (
        decode(torch.zeros(4)),
        decode(0.1 * torch.randn(20, 4, generator=generator())) - decode(torch.zeros(4)),
    )
    torch.testing.assert_close(mean, plane.mean(0))
    assert torch.linalg.matrix_rank(moved, atol=1e-3) <= 3


class TestReport:
    def part(self, **needed: float) -> Part:
        names = (*UNTRAINED, "pca", "learned")
        outcomes = {
            name: Outcome(
                torch.tensor([10, 100]), torch.full((2, 2), 0.5), torch.tensor([needed.get(name, math.inf)] * 2)
            )
            for name in names
        }
        return Part({name: {} for name in names}, {name: plain(of) for name, of in outcomes.items()}, 1.0, None)  # type: ignore[arg-type]

    def summed(self, **needed: float) -> dict:
        config = Config(
            sizes=[10],
            num_seeds=1,
            num_test=2,
            num_updates=10,
            batch_size=2,
            num_samples=4,
            num_iterations=3,
            budget=100,
        )
        landscape = {"minima_along": 20.0, "minima_of_their_own": 1.0, "solved": 0.0}
        metrics = summary(config, {10: [self.part(**needed)]}, {10: landscape})
        assert "learned embedding" in table(config, metrics)
        return metrics

    def test_training_is_paid_back_by_the_strongest_rival_without_any(self) -> None:
        metrics = self.summed(cosine=60.0, cem=90.0, pca=20.0, learned=50.0)
        assert metrics["training_evaluations"] == 10 * 2 * 2 * (4 * 3 + 1)
        of = metrics["sizes"][10]
        assert of["strongest_untrained"] == "cosine"
        assert of["price"] == {"learned": 520, "pca": 64 * 60}
        assert of["paid_back_after"] == {"learned": 520 / 10, "pca": 64 * 60 / 40}

    def test_it_is_not_paid_back_where_a_rival_needs_less_or_none_solves_any(self) -> None:
        never = {"learned": None, "pca": None}
        assert self.summed(cosine=40.0, learned=50.0)["sizes"][10]["paid_back_after"] == never
        assert self.summed(cem=50.0, learned=50.0)["sizes"][10]["paid_back_after"] == never
        none = self.summed(learned=50.0)["sizes"][10]
        assert none["strongest_untrained"] is None
        assert none["price"]["pca"] is None
        assert none["paid_back_after"] == never


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": [30, 10]}, "sizes: expected rising"),
        ({"sizes": [9]}, "sizes: expected numbers, at least 10"),
        ({"num_test": 0}, "num_test: expected at least 1"),
        ({"batch_size": 5000}, "batch_size: expected 1 to num_train"),
        ({"temperature": 0.0}, "temperature: expected a positive number"),
        ({"target": 0.0}, "target: expected a positive number"),
        ({"num_elites": 60}, "num_elites: expected 1 to num_samples"),
        ({"budget": 5}, "budget: expected at least 10"),
    ],
)
def test_refuses_settings_that_make_no_sense(change: dict, message: str) -> None:
    Config().check()
    with pytest.raises(ConfigError, match=message):
        Config(**change).check()
