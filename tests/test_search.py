"""`dcem.Search`: the loop of `minimize` by ask and tell, saved and resumed."""

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor

import dcem
from dcem._tree import leaves

T = 3
MEANS = torch.tensor([[0.5, -1.0], [2.0, 0.0], [-0.5, 1.5]])


def objective(x: Tensor) -> Tensor:
    """With failures: NaN where the first coordinate is large, infinite in one corner."""
    values = (x - MEANS.to(x.dtype).unsqueeze(-2)).square().sum(-1).cos() + x.square().sum(-1)
    values = torch.where(x[..., 0] > 1.5, torch.nan, values)
    return torch.where(x.amin(-1) < -1.5, -torch.inf, values)


def finish(search: dcem.Search, iterations: int = T) -> dcem.Solution:
    for _ in range(iterations):
        search.tell(objective(search.ask()))
    return search.solution


def assert_same(ours: dcem.Solution, theirs: dcem.Solution) -> None:
    for name in ("x", "best_x", "best_value", "status"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert type(ours.distribution) is type(theirs.distribution)
    assert torch.equal(ours.distribution.mean, theirs.distribution.mean)


class Sharper(dcem.CEM):
    """A subclass with a step in its selection of its own."""

    def weigh(self, values: Tensor) -> tuple[Tensor, Tensor | None]:
        return super().weigh(2 * values)


SOLVERS = {
    "dcem": dcem.CEM(30, 5, dcem.LML(0.5)),
    "iCEM": dcem.CEM(30, 5, dcem.HardTopK(), keep_elites=0.5, population_decay=1.3, smoothing=0.1),
    "mppi": dcem.MPPI(30, 0.5),
    "subclass": Sharper(30, 5, dcem.ConstrainedSoftmax(0.5)),
}
STARTS = {
    "means": torch.zeros(3, 2),
    "double": torch.zeros(3, 2, dtype=torch.float64),
    "half": torch.zeros(3, 2, dtype=torch.bfloat16),
    "full": dcem.FullGaussian(torch.zeros(3, 2), torch.eye(2)),
    "mixture": dcem.Mixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).expand(3, 2, 2), 1.0),
}
OPTIONS = {
    "free": {},
    "bounds": {"bounds": (-1.0, torch.tensor([1.2, 0.8]))},
    "proposals": {"proposals": torch.tensor([0.4, -0.9]).expand(3, 1, 2), "bounds": (None, 1.0)},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", SOLVERS)
def test_finds_what_minimize_finds_bit_by_bit(name, start, option):
    solver, init = SOLVERS[name], STARTS[start]
    options = OPTIONS[option]
    noise = torch.randn(T, 3, solver.num_samples, 2, generator=torch.Generator().manual_seed(1))
    if isinstance(init, Tensor) and init.dtype == torch.float64:
        noise = noise.double()
    whole = dcem.minimize(objective, init, solver, num_iterations=T, noise=noise, **options)
    assert_same(finish(dcem.Search(init, solver, noise=noise, **options)), whole)
    drawn = dcem.minimize(
        objective, init, solver, num_iterations=T, generator=torch.Generator().manual_seed(2),
        gradient=dcem.Detach(), **options,
    )  # fmt: skip
    assert_same(finish(dcem.Search(init, solver, generator=torch.Generator().manual_seed(2), **options)), drawn)


def test_statuses_are_those_of_minimize():
    def values(x: Tensor) -> Tensor:
        each = x.square().sum(-1)
        return torch.stack([each[0], torch.full_like(each[1], torch.nan), torch.ones_like(each[2]), 0 * each[3]])

    init = dcem.Gaussian(torch.zeros(4, 2), torch.tensor([1.0, 1.0, 1.0, 0.0]).reshape(4, 1))
    search = dcem.Search(init, generator=torch.Generator().manual_seed(0))
    before = search.solution
    assert before.status.tolist()[:3] == [dcem.Status.OK] * 3
    assert before.best_value.isinf().all()
    for _ in range(3):
        search.tell(values(search.ask()))
    whole = dcem.minimize(values, init, num_iterations=3, generator=torch.Generator().manual_seed(0))
    assert_same(search.solution, whole)
    assert whole.status.tolist() == [dcem.Status.OK, dcem.Status.NONFINITE, dcem.Status.FLAT, dcem.Status.COLLAPSED]


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", SOLVERS)
def test_resumes_from_a_file_as_if_it_had_not_stopped(name, start, asked):
    def new() -> dcem.Search:
        return dcem.Search(STARTS[start], SOLVERS[name], generator=torch.Generator().manual_seed(3), bounds=(-1.0, 1.0))

    whole, stopped = new(), new()
    finish(stopped, 2)
    if asked:
        stopped.ask()
    file = io.BytesIO()
    torch.save(stopped.state_dict(), file)
    file.seek(0)
    resumed = new()
    resumed.ask()  # what it did before is forgotten
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert_same(resumed.solution, finish(whole, 2))
    assert torch.equal(resumed.ask(), stopped.ask())
    assert_same(finish(resumed, 2), finish(whole, 2))


def test_a_saved_state_is_a_copy(generator):
    search = dcem.Search(torch.zeros(3, 2), generator=generator)
    finish(search, 1)
    saved = search.state_dict()
    before = search.solution
    finish(search, 2)
    assert not torch.equal(search.solution.x, before.x)
    search.load_state_dict(saved)
    assert_same(search.solution, before)
    finish(search, 1)
    again = dcem.Search(torch.zeros(3, 2), generator=generator)
    again.load_state_dict(saved)
    assert_same(again.solution, before)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda search: pickle.loads(pickle.dumps(search))])
def test_a_copy_of_a_search_goes_on_by_itself(duplicate, generator):
    search = dcem.Search(torch.zeros(3, 2), generator=generator)
    finish(search, 1)
    other = duplicate(search)
    assert_same(finish(other, 2), finish(search, 2))  # its draws are its own
    assert torch.equal(other.state_dict()["generator"], search.state_dict()["generator"])
    assert torch.equal(other.ask(), search.ask())


def test_what_is_asked_stays_until_it_is_told(generator):
    search = dcem.Search(torch.zeros(3, 2), generator=generator)
    asked = search.ask()
    asked.zero_()  # the caller's copy
    assert not torch.equal(search.ask(), asked)
    values = objective(search.ask())
    search.tell(values)
    values.zero_()  # a simulator may fill one tensor again and again
    with pytest.raises(RuntimeError, match="tell: expected ask"):
        search.tell(values)
    whole = dcem.minimize(objective, torch.zeros(3, 2), num_iterations=1, generator=torch.Generator().manual_seed(0))
    assert_same(search.solution, whole)


def test_nothing_is_differentiated_and_autocast_does_not_reach_it():
    weight = torch.ones(2, requires_grad=True)
    search = dcem.Search(torch.zeros(2), noise=torch.randn(1, 100, 2, generator=torch.Generator().manual_seed(0)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = search.ask()
        search.tell((x * weight).square().sum(-1))
    assert not search.solution.x.requires_grad
    assert search.solution.x.dtype == torch.float32
    again = dcem.Search(torch.zeros(2), noise=torch.randn(1, 100, 2, generator=torch.Generator().manual_seed(0)))
    again.tell((again.ask()).square().sum(-1))
    assert torch.equal(again.solution.x, search.solution.x)
    with pytest.raises(ValueError, match="noise: expected draws for more than 1"):
        search.ask()


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (torch.zeros(3, 99), ValueError, r"values: expected values of shape \(\*batch, N\) = \(3, 100\)"),
        (torch.zeros(100), ValueError, r"got \(100,\)"),
        (torch.zeros(3, 100, dtype=torch.int64), TypeError, "values: expected floating-point"),
        ([0.0] * 100, TypeError, "values: expected a Tensor"),
        (torch.zeros(3, 100, device="meta"), ValueError, "values: expected values on cpu"),
    ],
)
def test_wrong_values_are_named(values, error, message):
    search = dcem.Search(torch.zeros(3, 2))
    search.ask()
    with pytest.raises(error, match=message):
        search.tell(values)
    search.tell(objective(search.ask()))  # and told of after all


class OwnStep(dcem.CEM):
    def step(self, objective, state, noise, clip):
        return super().step(objective, state, noise, clip)


@pytest.mark.parametrize("solver", [dcem.GradientDescent(), OwnStep(), None])
def test_a_solver_that_cannot_be_cut_in_two_is_refused(solver):
    with pytest.raises(TypeError, match="solver: expected one"):
        dcem.Search(torch.zeros(2), solver)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"init": torch.zeros(4, 2)}, r"state_dict\.state\.distribution\.mean: expected shape \(4, 2\), got \(3, 2\)"),
        ({"init": dcem.FullGaussian(torch.zeros(3, 2), torch.eye(2))}, "scale_tril"),
        (
            {"init": torch.zeros(3, 2), "generator": None},
            "of a search without a generator, as this one is, got one with: make this Search with gen",
        ),
    ],
)
def test_the_state_of_another_search_is_refused(other, message):
    saved = dcem.Search(torch.zeros(3, 2), generator=torch.Generator()).state_dict()
    search = dcem.Search(**{"generator": torch.Generator(), **other})
    before = search.ask()
    with pytest.raises(ValueError, match=message):
        search.load_state_dict(saved)
    assert torch.equal(search.ask(), before)


def _without(saved, name):
    return {key: value for key, value in saved.items() if key != name}


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda saved: [saved], TypeError, r"state_dict: expected what state_dict\(\) returned, got list"),
        (lambda saved: {}, ValueError, "state_dict: expected"),
        (lambda saved: {**saved, "asked": _without(saved["asked"], "drawn")}, ValueError, r"state_dict\.asked"),
        (lambda saved: {**saved, "asked": {"drawn": torch.zeros(3), "samples": torch.zeros(3)}}, ValueError, r"asked"),
        *(
            (
                lambda saved, state=state: {**saved, "generator": state},
                ValueError,
                "state_dict: expected the state of a g",
            )
            for state in ("x", torch.zeros(3, dtype=torch.uint8), torch.zeros(5056))
        ),
        *(
            (lambda saved, sides=sides: {**saved, "bounds": sides}, ValueError, r"state_dict\.bounds: expected")
            for sides in (3, [None, None], [torch.zeros(3), torch.zeros(3)])
        ),
    ],
)
def test_a_damaged_state_is_refused(damage, error, message):
    search = dcem.Search(torch.zeros(3, 2), generator=torch.Generator().manual_seed(0))
    before, stood = search.ask(), search.state_dict()["generator"]
    with pytest.raises(error, match=message):
        search.load_state_dict(damage(search.state_dict()))
    assert torch.equal(search.ask(), before)
    assert torch.equal(search.state_dict()["generator"], stood)


def test_a_noise_source_that_raises_once_changes_nothing():
    fails = [True, False, True]

    def noise(shape, *, dtype, device, generator):
        drawn = torch.randn(shape, dtype=dtype, device=device, generator=generator)
        if fails and fails.pop():
            raise ArithmeticError
        return drawn

    def search():
        return dcem.Search(MEANS, dcem.CEM(30, 4), generator=torch.Generator().manual_seed(0), noise=noise)

    failing = search()
    with pytest.raises(ArithmeticError):
        failing.ask()
    failing.tell(objective(failing.ask()))
    with pytest.raises(ArithmeticError):
        failing.ask()
    assert_same(finish(failing), finish(search(), T + 1))


def test_the_state_of_a_search_by_another_solver_is_refused():
    asked = dcem.Search(torch.zeros(3, 2), dcem.CEM(20, 4))
    asked.ask()
    with pytest.raises(ValueError, match=r"asked\.drawn: expected shape \(3, 30, 2\), got \(3, 20, 2\)"):
        dcem.Search(torch.zeros(3, 2), dcem.CEM(30, 4)).load_state_dict(asked.state_dict())
    kept = dcem.Search(torch.zeros(3, 2), dcem.CEM(50, 20, dcem.HardTopK(), keep_elites=1.0))
    finish(kept, 1)
    with pytest.raises(ValueError, match="state of a search by CEM"):  # more elites than it has candidates
        dcem.Search(torch.zeros(3, 2), dcem.CEM(10, 4)).load_state_dict(kept.state_dict())


def test_a_search_shows_how_far_it_has_come(generator):
    search = dcem.Search(torch.zeros(2), dcem.CEM(20, 4), generator=generator)
    assert repr(search).startswith("Search(CEM(num_samples=20")
    assert ": 0 iterations; Solution(x=" in repr(search)
    search.tell(search.ask().square().sum(-1))
    search.ask()
    assert ": 1 iterations, candidates asked for; Solution(x=" in repr(search)


def test_what_is_written_to_a_solution_does_not_reach_the_search():
    def search():
        return dcem.Search(MEANS, dcem.CEM(20, 5, keep_elites=0.5), generator=torch.Generator().manual_seed(0))

    plain, written = search(), search()
    for _ in range(T):
        for each in (plain, written):
            each.tell(objective(each.ask()))
        solution = written.solution
        for tensor in (solution.x, solution.best_x, solution.best_value, solution.distribution.mean):
            tensor.add_(1.0)
        solution.status.fill_(3)
    assert_same(plain.solution, written.solution)


def bounded(bounds, dtype=torch.float32, **options) -> dcem.Search:
    solver = dcem.CEM(20, 4, dcem.LML(0.1), **options)
    return dcem.Search(
        torch.full((3, 2), 0.25, dtype=dtype), solver, bounds=bounds, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("asked", [False, True])
def test_a_search_goes_on_inside_bounds_that_hold_its_own(asked):
    saved = bounded((-2.0, torch.tensor([0.3, 3.0])))
    finish(saved, 2)
    _ = saved.ask() if asked else None
    for bounds in ((-2.0, 3.0), (None, 3.0), None, (torch.tensor([-2.0, -3.0]), 3.0), (-2.0, torch.tensor([0.3, 3.0]))):
        bounded(bounds).load_state_dict(saved.state_dict())
    for bounds in ((-1.0, 3.0), (-2.0, 0.29), (-2.0, torch.tensor([3.0, 0.3])), (0.0, None)):
        narrow = bounded(bounds)
        before = narrow.ask()
        with pytest.raises(ValueError, match="state_dict: expected the state of a search inside these bounds"):
            narrow.load_state_dict(saved.state_dict())
        assert torch.equal(narrow.ask(), before)
    unbounded = bounded(None)
    finish(unbounded, 1)
    with pytest.raises(ValueError, match="in all -1 to 1, got one with .* in all -inf to inf"):
        bounded((-1.0, 1.0)).load_state_dict(unbounded.state_dict())
    of_an_earlier_version = {key: value for key, value in saved.state_dict().items() if key != "bounds"}
    bounded((-2.0, 3.0)).load_state_dict(of_an_earlier_version)


@pytest.mark.parametrize(
    ("before", "after"),
    [(torch.float64, torch.float32), (torch.float32, torch.float64), (torch.float32, torch.float16), (torch.float16, torch.float32), (torch.float64, torch.bfloat16)],
)  # fmt: skip
@pytest.mark.parametrize("of_numbers", [False, True])
def test_a_search_goes_on_in_another_precision(before, after, of_numbers):
    """Its bounds are rounded to the inside of another grid, and its elites are brought to the new one."""
    sides = (-0.7, 0.3) if of_numbers else (torch.tensor([-0.7, -0.7]), torch.tensor([0.3, 0.3]))
    saved, goes_on = bounded(sides, before, keep_elites=0.5), bounded((-0.7, 0.3), after, keep_elites=0.5)
    finish(saved, 2)
    goes_on.load_state_dict(saved.state_dict())
    state = leaves(goes_on.state_dict()["progress"]["state"])  # at least in single precision, elites included
    wanted = torch.promote_types(after, torch.float32)
    assert len(state) > 2
    assert {leaf.dtype for leaf in state if leaf.is_floating_point()} == {wanted}
    assert finish(goes_on, 2).x.dtype == after
    assert (finish(goes_on, 1).x.double() <= 0.3).all()


def test_a_failed_candidate_does_not_lose_what_was_saved():
    noise = torch.randn(3, 3, 20, 2, generator=torch.Generator().manual_seed(0))
    noise[1, :, 3] = torch.nan
    made = [dcem.Search(torch.zeros(3, 2), dcem.CEM(20, 4), bounds=(-1.0, 1.0), noise=noise) for _ in range(2)]
    finish(made[0], 1)
    made[0].ask()
    made[1].load_state_dict(made[0].state_dict())
    theirs, ours = (finish(each, 1) for each in made)
    torch.testing.assert_close(ours.x, theirs.x, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(ours.best_x, theirs.best_x)
    assert ours.status.tolist() == theirs.status.tolist() == [dcem.Status.NONFINITE] * 3


def test_bounds_that_are_learned_are_saved_as_numbers():
    high = torch.full((2,), 2.0, requires_grad=True)
    assert not any(side.requires_grad for side in bounded((-2.0, high)).state_dict()["bounds"])


@pytest.mark.parametrize("solver", [dcem.CEM(20, 5, dcem.LML(0.5), smoothing=0.5), dcem.MPPI(20, 0.3, smoothing=0.5)])
def test_an_objective_may_write_into_what_the_search_starts_from(solver):
    """As who evaluates a candidate by making it the weights of a model, at whose weights the search began."""
    noise, target = torch.randn(T, 20, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, -2.0, 0.5])
    options = {"num_iterations": T, "noise": noise, "gradient": dcem.Detach()}
    expected = dcem.minimize(lambda x: (x - target).square().sum(-1), torch.zeros(3), solver, **options)
    weights = torch.zeros(3)

    def evaluate(x: Tensor) -> Tensor:
        values = torch.stack([(weights.copy_(each) - target).square().sum() for each in x])
        assert not torch.equal(weights, torch.zeros(3))
        return values

    assert_same(dcem.minimize(evaluate, weights, solver, **options), expected)
    search = dcem.Search(weights.zero_(), solver, noise=noise)
    for _ in range(T):
        search.tell(evaluate(search.ask()))
    assert_same(search.solution, expected)


def test_what_a_search_was_given_may_be_written_to():
    init, noise = torch.zeros(3, 2, dtype=torch.float64), torch.randn(T, 3, 30, 2, dtype=torch.float64)
    bounds = (torch.full((2,), -1.0, dtype=torch.float64), torch.full((2,), 1.5, dtype=torch.float64))
    expected = finish(dcem.Search(init, SOLVERS["dcem"], noise=noise, bounds=bounds))
    search = dcem.Search(init, SOLVERS["dcem"], noise=noise, bounds=bounds)
    for given in (init, noise, *bounds):
        given.fill_(0.1)
    assert_same(finish(search), expected)
