"""The truncated normal against scipy's, in sampling, moments and gradients."""

import pytest
import torch

from dcem.rl import TruncatedNormal

stats = pytest.importorskip("scipy.stats")

CASES = [(0.0, 0.3, -1.0, 1.0), (1.0, 0.1, -1.0, 1.0), (-2.0, 5.0, -2.0, 2.0), (0.5, 0.2, 0.0, float("inf")),
         (3.0, 1.0, -float("inf"), float("inf"))]  # fmt: skip


def both(loc: float, std: float, low: float, high: float) -> tuple[TruncatedNormal, object]:
    of = [torch.tensor([value], dtype=torch.float64) for value in (loc, std, low, high)]
    return TruncatedNormal(*of), stats.truncnorm((low - loc) / std, (high - loc) / std, loc, std)


@pytest.mark.parametrize("case", CASES)
def test_density_and_moments_are_those_of_scipy(case):
    ours, theirs = both(*case)
    x = torch.linspace(max(case[2], -6.0) + 0.01, min(case[3], 6.0) - 0.01, 7, dtype=torch.float64)
    torch.testing.assert_close(ours.log_prob(x[:, None]), torch.from_numpy(theirs.logpdf(x.numpy())))
    assert ours.mean.item() == pytest.approx(theirs.mean(), rel=1e-10, abs=1e-12)
    assert ours.variance.item() == pytest.approx(theirs.var(), rel=1e-8)
    grid = torch.linspace(max(case[2], -12.0), min(case[3], 12.0), 400001, dtype=torch.float64)
    density = ours.log_prob(grid[:, None])
    entropy = -torch.trapezoid(density.exp() * density, grid)
    assert ours.entropy().item() == pytest.approx(entropy.item(), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_draws_are_of_that_density(case):
    ours, theirs = both(*case)
    drawn = ours.sample((4000,)).flatten()
    assert bool(((drawn >= case[2]) & (drawn <= case[3])).all())
    assert stats.kstest(drawn.numpy(), theirs.cdf).pvalue > 1e-4


@pytest.mark.parametrize("case", CASES)
def test_the_median_is_that_of_scipy(case):
    ours, theirs = both(*case)
    assert ours.median.item() == pytest.approx(theirs.median(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_that_of_single_rounded_once(dtype):
    loc, scale = torch.tensor([[0.5, -0.75, 1.0]], dtype=dtype), torch.tensor(0.3, dtype=dtype)
    low, high, x = torch.tensor(-1.0), torch.tensor(1.0), torch.tensor([[0.4, 0.3, 0.7]], dtype=dtype)
    half, single = TruncatedNormal(loc, scale, low, high), TruncatedNormal(loc.float(), scale.float(), low, high)
    for ours, theirs in (
        (half.log_prob(x), single.log_prob(x.float())), (half.entropy(), single.entropy()), (half.mean, single.mean),
        (half.variance, single.variance), (half.median, single.median), (half.mode, single.mode),
    ):  # fmt: skip
        assert torch.equal(ours, theirs.to(dtype))
    drawn = half.rsample((2000,))
    assert drawn.dtype == dtype
    assert bool((drawn.abs() <= 1).all())
    assert len(drawn[..., 0].unique()) > 300  # of shares in half precision there are 256


def test_each_result_has_a_graph_of_its_own():
    loc, scale = torch.tensor([0.9], requires_grad=True), torch.tensor([0.3], requires_grad=True)
    of = TruncatedNormal(loc, scale, torch.tensor(-1.0), torch.tensor(1.0))
    for result in (of.log_prob(torch.tensor([0.5])), of.entropy(), of.mean, of.variance, of.rsample(), of.median):
        result.sum().backward()
    assert loc.grad.isfinite().all()


def test_no_mass_is_left_outside():
    ours, _ = both(1.9, 0.3, -2.0, 2.0)
    assert ours.log_prob(torch.tensor([2.1], dtype=torch.float64)) == -torch.inf
    grid = torch.linspace(-2, 2, 20001, dtype=torch.float64)
    assert torch.trapezoid(ours.log_prob(grid[:, None]).exp(), grid).item() == pytest.approx(1, abs=1e-6)


def test_gradients_are_those_of_finite_differences():
    loc, std = (torch.tensor(values, dtype=torch.float64, requires_grad=True) for values in ([0.9, -0.2], [0.2, 0.5]))
    low, high = torch.tensor(-1.0), torch.tensor(1.0)
    value = torch.tensor([0.7, 0.1], dtype=torch.float64)

    def functions(loc, std):
        of = TruncatedNormal(loc, std, low, high)
        torch.manual_seed(3)
        return of.log_prob(value), of.entropy(), of.mean, of.rsample((2,))

    assert torch.autograd.gradcheck(functions, (loc, std))


@pytest.mark.parametrize("bounds", [(-torch.inf, torch.inf), (-torch.inf, 1.0), (0.0, torch.inf)])
def test_open_bounds_have_gradients_too(bounds):
    low, high = (torch.tensor(side, dtype=torch.float64) for side in bounds)
    loc, std = (torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (0.4, 0.3))
    value = torch.tensor([0.6], dtype=torch.float64)

    def functions(loc, std):
        of = TruncatedNormal(loc, std, low, high)
        torch.manual_seed(3)
        return of.log_prob(value), of.entropy(), of.mean, of.variance, of.rsample((2,))

    assert torch.autograd.gradcheck(functions, (loc, std))


def test_a_dimension_that_its_bounds_hold_is_no_random_variable():
    loc, std = (torch.tensor(values, requires_grad=True) for values in ([0.3, 0.5], [0.2, 0.2]))
    low, high = torch.tensor([-1.0, 0.5]), torch.tensor([1.0, 0.5])
    held, free = TruncatedNormal(loc, std, low, high), TruncatedNormal(loc[:1], std[:1], low[:1], high[:1])
    x = held.rsample((5,))
    assert bool((x[:, 1] == 0.5).all())
    torch.testing.assert_close(held.log_prob(x), free.log_prob(x[:, :1]))
    torch.testing.assert_close(held.entropy(), free.entropy())
    assert held.mean[1] == 0.5
    assert held.variance[1] == 0
    slopes = torch.autograd.grad(held.log_prob(x).sum() + held.entropy() + held.mean.sum() + x.sum(), (loc, std))
    assert all(bool(slope.isfinite().all()) for slope in slopes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes_stay_finite(dtype):
    low, high = torch.tensor(-1.0), torch.tensor(1.0)
    for std in (1e-6, 1e-3, 1e3):
        loc = torch.tensor([-1.0, 0.0, 1.0], dtype=dtype, requires_grad=True)
        scale = torch.full((3,), std, dtype=dtype, requires_grad=True)
        of = TruncatedNormal(loc, scale, low, high)
        x = of.rsample((200,))
        assert bool((x.abs() <= 1).all())
        (of.log_prob(x).sum() + of.entropy()).backward()
        assert bool(loc.grad.isfinite().all() and scale.grad.isfinite().all())
        assert bool((of.variance >= 0).all())


def test_without_exploration_the_planned_action_is_taken_and_events_of_any_rank_count_as_one():
    loc = torch.full((5, 2, 3), 1.0)
    of = TruncatedNormal(loc, torch.tensor(0.1), torch.tensor(-1.0), torch.tensor(1.0), event_dims=2)
    assert torch.equal(of.deterministic_sample, loc)
    assert bool((of.mean < loc).all())
    assert of.log_prob(of.sample()).shape == of.entropy().shape == (5,)
    scalar = TruncatedNormal(torch.zeros(4), torch.tensor(0.1), torch.tensor(-1.0), torch.tensor(1.0), event_dims=0)
    assert scalar.log_prob(scalar.sample()).shape == (4,)


@pytest.mark.parametrize("std", [1e3, 1e4, 1e6])
def test_a_wide_normal_in_a_narrow_box_has_the_moments_of_a_uniform_variable(std):
    of = TruncatedNormal(torch.tensor([0.9]), torch.tensor([std]), torch.tensor(-1.0), torch.tensor(1.0))
    assert of.mean.item() == pytest.approx(0.0, abs=1e-3)
    assert of.variance.item() == pytest.approx(1 / 3, rel=1e-2)
