"""Candidates and answers inside a box: to the last digit, without a pull towards its middle, and on its edge."""

import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

import dcem
from dcem.bounds import Bounds, clip
from dcem.distributions.shifted import Shifted

NARROW = [torch.float16, torch.bfloat16, torch.float32]


def below(value: float, dtype: torch.dtype) -> float:
    """The largest number of `dtype` that is at most `value`."""
    exact = torch.tensor(value, dtype=torch.float64)
    number = exact.to(dtype)
    return torch.nextafter(number, torch.tensor(-math.inf, dtype=dtype)).item() if number > exact else number.item()


@pytest.mark.parametrize("dtype", NARROW)
def test_sides_are_rounded_towards_the_inside(dtype, generator):
    values = torch.randn(40, generator=generator, dtype=torch.float64).pow(9)
    values = [*values.tolist(), 0.0, 0.3, -0.1, 1.0, -4.0, 6e-8, 1e-50, -1e-50, 65504.0]
    for value in values:
        for side in (value, torch.tensor([value], dtype=torch.float64)):
            like, event = torch.zeros(1), torch.Size([1])
            high = Bounds.check((None, side), event, like, dtype).high
            low = Bounds.check((side, None), event, like, dtype).low
            assert float(high) == below(value, dtype)
            assert float(low) == -below(-value, dtype)


def test_a_side_beyond_the_largest_number_stays_finite_and_an_open_one_open():
    box = Bounds.check((-1e6, torch.tensor([1e6, math.inf])), torch.Size([2]), torch.zeros(2), torch.float16)
    assert box.low.tolist() == [-65504, -65504]
    assert box.high.tolist() == [65504, math.inf]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(
    "bounds",
    [
        (-0.1, 0.3),
        (torch.tensor([-0.1, -math.inf]), torch.tensor([0.3, 0.7])),
        (torch.tensor([-0.1, -0.7], dtype=torch.float64), torch.tensor([0.3, 0.7], dtype=torch.float64)),
        (None, 0.3),
        (torch.tensor(-0.1), None),
        (-0.1, torch.tensor([0.3, 0.7])),
    ],
)
@pytest.mark.parametrize(
    "solver", [dcem.CEM(20, 4, init_std=2.0), dcem.MPPI(20, init_std=2.0), dcem.GradientDescent(3.0)]
)
def test_candidates_and_answers_are_inside_in_every_dtype(solver, bounds, dtype):
    low = -math.inf if bounds[0] is None else torch.as_tensor(bounds[0], dtype=torch.float64)
    high = math.inf if bounds[1] is None else torch.as_tensor(bounds[1], dtype=torch.float64)

    def objective(x: Tensor) -> Tensor:
        assert x.dtype == dtype
        assert (x.double() >= low).all()
        assert (x.double() <= high).all()
        return (x - (5 if bounds[1] is not None else -5)).square().sum(-1)

    generator = torch.Generator().manual_seed(0)
    solution = dcem.minimize(
        objective, torch.zeros(2, dtype=dtype), solver, bounds=bounds, generator=generator, num_iterations=3
    )
    for x in (solution.x, solution.best_x):
        assert x.dtype == dtype
        assert (x.double() >= low).all()
        assert (x.double() <= high).all()


@pytest.mark.parametrize("dtype", NARROW)
def test_actions_of_a_controller_are_inside_in_every_dtype(dtype):
    def cost(state, action):
        assert (action.double() <= 0.3).all()
        return (action - 1).square().sum(-1)

    class Wide(torch.nn.Module):
        latent_shape = (2,)

        def forward(self, z):  # from a layer under autocast, say
            return (z.float().exp() * 5).unsqueeze(-1).to(torch.bfloat16)

    for decoder in (None, Wide()):
        mpc = dcem.control.MPC(
            lambda x, u: x, cost, 2, 1, bounds=(-0.3, 0.3), solver=dcem.CEM(20, 4), decoder=decoder, num_iterations=2
        )
        plan = mpc(torch.zeros(3, 1, dtype=dtype), generator=torch.Generator().manual_seed(0))
        assert (plan.actions.double() <= 0.3).all()
        assert (plan.action.double() > 0.15).all()


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("value", [0.1, 0.3, -0.7, 1e-9])
def test_a_fixed_coordinate_that_the_dtype_does_not_have_is_the_nearest(value, dtype):
    fixed, wide = torch.tensor(value).to(dtype), torch.tensor([value, value], dtype=torch.float64)
    for bounds in ((value, value), (wide, wide), (wide, value)):
        x = dcem.minimize(lambda x: x.square().sum(-1), torch.zeros(2, dtype=dtype), bounds=bounds).x
        assert torch.equal(x, fixed.expand(2))
        mpc = dcem.control.MPC(lambda x, u: x + u, lambda x, u: x.square().sum(-1), 2, 2, bounds, num_iterations=1)
        assert torch.equal(mpc(torch.ones(2, dtype=dtype)).action, fixed.expand(2))


def test_one_dimension_that_holds_no_number_leaves_the_others_as_they_are():
    low, high = torch.tensor([0.1, 0.1], dtype=torch.float64), torch.tensor([0.1, 0.3], dtype=torch.float64)
    box = Bounds.check((low, high), torch.Size([2]), torch.zeros(2))
    assert box.low.tolist() == [torch.tensor(0.1).item(), -below(-0.1, torch.float32)]
    assert box.high.tolist() == [torch.tensor(0.1).item(), below(0.3, torch.float32)]


def test_targets_on_a_bound_are_inside_it_as_their_dtype_rounds_it():
    model = dcem.energy.EnergyModel(lambda x, y: y.square().sum(-1), 1, dcem.CEM(20, 4), bounds=(0.0, 0.3))
    x = torch.zeros(2, 1)
    dcem.energy.contrastive_loss(model, x, torch.tensor([[0.0], [0.3]]))
    with pytest.raises(ValueError, match="^y: expected targets inside"):
        dcem.energy.contrastive_loss(model, x, torch.tensor([[0.0], [0.3001]]))


def test_gradients_of_bounds_survive_their_rounding():
    high = torch.tensor([0.3, math.inf], dtype=torch.float64, requires_grad=True)
    x = dcem.minimize(lambda x: (x - 1).square().sum(-1), torch.zeros(2), bounds=(None, high), num_iterations=20).x
    assert torch.autograd.grad(x[0], high)[0].tolist() == [1, 0]


def test_bounds_of_another_dtype_inside_transforms():
    noise = torch.randn(4, 30, 2, generator=torch.Generator().manual_seed(0))
    lows = torch.tensor([[0.1, 0.5], [-1.0, -0.3]], dtype=torch.float64)

    def answer(low: Tensor) -> Tensor:
        return dcem.minimize(
            lambda x: x.square().sum(-1),
            torch.ones(2),
            dcem.CEM(30, 5),
            bounds=(low, 2.0),
            num_iterations=4,
            noise=noise,
        ).x

    torch.testing.assert_close(torch.func.vmap(answer)(lows), torch.stack([answer(low) for low in lows]))


SELECTIONS = [dcem.LML(1e6), dcem.ConstrainedSoftmax(1e6)]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("selection", SELECTIONS, ids=repr)
def test_values_that_say_nothing_do_not_pull_the_mean_into_the_box(selection, full, generator):
    """Nearly even weights, whatever the values: with one-sided room, the mean of clipped samples would be 0.43."""
    init = dcem.FullGaussian(torch.zeros(1), torch.ones(1, 1)) if full else dcem.Gaussian(torch.zeros(1), 1.0)
    noise = torch.randn(1, 10_000, 1, generator=generator)
    noise = torch.cat([noise, -noise], 1)  # of mean 0
    for bounds in ((-0.1, 2.0), (torch.tensor([-0.1]), None), (None, 0.1)):
        solution = dcem.minimize(
            lambda x: (x - 0.5).square().sum(-1), init, dcem.CEM(20_000, 10_000, selection), num_iterations=1,
            bounds=bounds, noise=noise,
        )  # fmt: skip
        assert solution.x.abs() < 0.01
        assert (solution.distribution.std - 1).abs() < 0.02  # 0.40 of clipped samples


@pytest.mark.parametrize("num_dims", [1, 10])
@pytest.mark.parametrize("selection", [dcem.HardTopK(), dcem.LML(0.1), dcem.LML(1.0)], ids=repr)
@pytest.mark.parametrize("std", [0.5, 3.0])
def test_minima_on_a_bound_and_inside_are_found(selection, num_dims, std):
    """On the bound by slope, beyond it, exactly on it, and inside; with a std that exceeds the box, too."""
    init = dcem.Gaussian(torch.zeros(8, num_dims), std)
    for objective, minimum, precision in (
        (lambda x: x.sum(-1), -1.0, 1e-2),
        (lambda x: (x - 1.5).square().sum(-1), 1.0, 1e-2),
        (lambda x: (x - 1.0).square().sum(-1), 1.0, 2e-2),
        (lambda x: (x - 0.3).square().sum(-1), 0.3, 2e-2),
    ):
        solution = dcem.minimize(
            objective, init, dcem.CEM(200, 30, selection), num_iterations=30, bounds=(-1.0, 1.0),
            generator=torch.Generator().manual_seed(0), gradient=dcem.Detach(),
        )  # fmt: skip
        assert (solution.x - minimum).abs().mean() < precision


def test_a_minimum_on_a_bound_is_met_exactly():
    """The mean of clipped samples only approaches it."""
    solution = dcem.minimize(
        lambda x: (x - 1.5).square().sum(-1), torch.zeros(16, 2), dcem.CEM(100, 10, dcem.LML(1.0), init_std=0.5),
        num_iterations=20, bounds=(None, torch.tensor([0.25, 1.0])), generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert torch.equal(solution.x, torch.tensor([0.25, 1.0]).expand(16, 2))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("solver", [dcem.CEM(40, 10, dcem.LML(0.5), smoothing=0.3), dcem.MPPI(40, 0.5)], ids=repr)
def test_gradients_with_bounds_are_those_of_finite_differences(solver, full, generator):
    """One coordinate ends on a bound, one inside, one has an open side; samples of all three are clipped."""
    noise = torch.randn(3, 40, 3, dtype=torch.float64, generator=generator)
    inf = math.inf
    low = torch.tensor([-0.2, -inf, -1.0], dtype=torch.float64)
    high = torch.tensor([0.6, 0.05, inf], dtype=torch.float64)

    def answer(theta: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        init = dcem.FullGaussian(mean, (torch.diag(std) + 0.1).tril()) if full else dcem.Gaussian(mean, std)
        return dcem.minimize(
            lambda x: (x - theta).square().sum(-1) + x.prod(-1), init, solver, num_iterations=3, noise=noise,
            bounds=(low, high),
        ).x  # fmt: skip

    inputs = [
        torch.tensor(values, dtype=torch.float64, requires_grad=True)
        for values in ([0.1, 0.9, 0.4], [0.1, -0.2, 0.3], [0.25, 0.5, 0.8])
    ]
    assert answer(*inputs)[1] == 0.05
    assert torch.autograd.gradcheck(answer, inputs)


@pytest.mark.parametrize(
    "init",
    [
        dcem.Gaussian(torch.zeros(3), 9.0), dcem.FullGaussian(torch.zeros(3), 9 * torch.eye(3)),
        dcem.Product((dcem.Gaussian(torch.zeros(1), 9.0), dcem.Gaussian(torch.zeros(2), 9.0))),
        dcem.Mixture(torch.zeros(2, 3), 9.0), Shifted(dcem.Gaussian(torch.ones(3), 9.0), torch.zeros(3)),
    ],
    ids=lambda init: type(init).__name__,
)  # fmt: skip
def test_the_std_is_at_most_half_the_box_at_the_start(init):
    low, high = torch.tensor([-1.0, -math.inf, 0.2]), torch.tensor([2.0, 1.0, 0.2])
    for bounds, expected in (((low, high), [1.5, 9.0, 1e-6]), ((None, high), [9.0] * 3), ((-1.0, 1.0), [1.0] * 3)):
        box = Bounds.check(bounds, init.event_shape, init.mean)
        torch.testing.assert_close(init.narrow(box).std, torch.tensor(expected), atol=1e-6, rtol=1e-6)
        if isinstance(init, dcem.Gaussian | dcem.FullGaussian):  # of which MPPI leaves the std as it is
            solution = dcem.minimize(lambda x: x.square().sum(-1), init, dcem.MPPI(20), num_iterations=1, bounds=bounds)
            torch.testing.assert_close(solution.distribution.std, torch.tensor(expected), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("full", [False, True])
def test_the_std_of_a_refit_is_that_of_what_was_selected_and_has_its_gradient(full):
    """Also where it is more than half the box: a limit would have no gradient."""
    noise = torch.tensor([-3.0, -0.1, 0.2, 2.5], dtype=torch.float64).reshape(1, 4, 1)

    def std(start: Tensor) -> Tensor:
        init = dcem.FullGaussian(torch.zeros(1).double(), start.reshape(1, 1)) if full else dcem.Gaussian(
            torch.zeros(1).double(), start
        )  # fmt: skip
        return dcem.minimize(
            lambda x: -x.abs().sum(-1), init, dcem.CEM(4, 2, dcem.LML(0.1)), num_iterations=1, noise=noise, bounds=(-1.0, 1.0)
        ).distribution.std  # fmt: skip

    start = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    assert std(start) > 2
    assert torch.autograd.gradcheck(std, start)


def test_kept_elites_are_kept_as_they_were_drawn():
    """A kept elite outside the box counts as outside again, and is the same candidate."""
    solution = dcem.minimize(
        lambda x: (x - 2).square().sum(-1), torch.zeros(1), dcem.CEM(50, 10, dcem.HardTopK(), keep_elites=0.5),
        num_iterations=2, bounds=(None, 0.5), generator=torch.Generator().manual_seed(0), record=True,
    )  # fmt: skip
    assert (solution.history[1].samples[-5:] == 0.5).all()
    assert solution.x == 0.5


@pytest.mark.parametrize(("num_elites", "keep"), [(1, 0.5), (2.5, 0.1), (1.5, 0.3), (3, 1.0)])
def test_keeping_elites_keeps_at_least_one(num_elites, keep):
    solver = dcem.CEM(10, num_elites, dcem.LML(0.1), keep_elites=keep)
    history = dcem.minimize(
        lambda x: x.square().sum(-1), torch.ones(2), solver, num_iterations=3, record=True,
        generator=torch.Generator().manual_seed(0),
    ).history  # fmt: skip
    num_kept = max(1, round(keep * num_elites))
    for before, after in pairwise(history):
        assert len(after.samples) == 10
        best = before.samples[before.values.argsort()[:num_kept]]
        assert torch.equal(after.samples[-num_kept:], best)
    with pytest.raises(ValueError, match="^keep_elites: expected 0 where num_samples is 1"):
        dcem.CEM(1, 1, keep_elites=0.5)


class Box:
    low, high = np.array([-0.3, -1.0]), np.array([0.1, np.inf], dtype=np.float32)


@pytest.mark.parametrize(
    "bounds",
    [
        (np.array([-0.3, -1.0]), [0.1, math.inf]),
        [(-0.3, -1.0), np.array([0.1, np.inf])],
        (torch.tensor([-0.3, -1.0], dtype=torch.float64), np.array([0.1, np.inf])),
        Box(),
    ],
    ids=["array", "list", "mixed", "box"],
)
def test_sides_may_be_arrays_lists_and_those_of_a_box(bounds):
    given = (torch.tensor([-0.3, -1.0], dtype=torch.float64), torch.tensor([0.1, math.inf], dtype=torch.float64))
    mean = torch.zeros(3, 2)
    answers = [
        dcem.minimize(
            lambda x: -x.sum(-1), mean, bounds=b, num_iterations=5, generator=torch.Generator().manual_seed(0)
        ).x
        for b in (bounds, given)
    ]
    torch.testing.assert_close(*answers)
    assert (answers[0][:, 0] <= 0.1).all()
    mpc = dcem.control.MPC(lambda s, u: s + u, lambda s, u: -u.sum(-1), 3, 2, bounds)
    plan = mpc(torch.zeros(2), generator=torch.Generator().manual_seed(0))
    assert (plan.actions[:, 0] <= torch.tensor(0.1)).all()  # which the box holds in float32, above 0.1
    decoder = dcem.embedding.MLPDecoder(2, 2, bounds=bounds)
    torch.testing.assert_close(decoder.high, torch.tensor([0.1, math.inf]))


@pytest.mark.parametrize("low", [np.float32(-0.25), np.float64(-0.25), np.array(-0.25), np.int64(-1)])
def test_sides_may_be_numbers_of_numpy(low):
    x = dcem.minimize(
        lambda x: x.sum(-1), torch.zeros(2), bounds=(low, None), generator=torch.Generator().manual_seed(0)
    ).x
    torch.testing.assert_close(x, torch.full((2,), float(low)))


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("bounds", "error", "message"),
    [
        (
            (np.zeros(3), None),
            ValueError,
            r"bounds\[0\]: expected a shape that broadcasts to the event \(2,\), got \(3,\)",
        ),
        (([0.0, "x"], None), TypeError, r"bounds\[0\]: expected numbers, got"),
        ((None, [math.nan, 1.0]), ValueError, r"bounds\[1\]: expected numbers, got NaN"),
        ((np.array([1.0, 0.0]), [0.0, 0.0]), ValueError, "bounds: expected low <= high"),
        ((math.inf, math.inf), ValueError, r"bounds\[0\]: expected a finite number or -inf, got inf"),
        ((None, -np.inf), ValueError, r"bounds\[1\]: expected a finite number or inf, got -inf"),
        (
            (torch.tensor([0.0, math.inf]), None),
            ValueError,
            r"bounds\[0\]: expected finite numbers or -inf, got inf among",
        ),
        ((-math.inf, [-math.inf, 1.0]), ValueError, r"bounds\[1\]: expected finite numbers or inf, got -inf among 2"),
        (np.zeros((2, 2)), TypeError, r"bounds: expected a pair \(low, high\)"),
        ((True, None), TypeError, r"bounds\[0\]: expected None, a number or a Tensor, got bool"),
    ],
)
def test_sides_that_are_none_are_named(bounds, error, message):
    with pytest.raises(error, match=message):
        dcem.minimize(lambda x: x.sum(-1), torch.zeros(2), bounds=bounds)


def test_sides_the_wrong_way_round_are_seen_before_they_go_to_another_device():
    """There a look would have to wait, or fail."""
    init, one = torch.zeros(2, device="meta"), torch.ones(2, device="cpu")
    for bounds in ((one, -one), ([1.0, 1.0], [2.0, 0.0]), (one, 0.0)):
        with pytest.raises(ValueError, match="bounds: expected low <= high"):
            dcem.minimize(lambda x: x.sum(-1), init, bounds=bounds)


PAIRS = r"; bounds are \(lower, upper\), not a pair for each coordinate: write tuple\(zip\(\*bounds\)\)"


@pytest.mark.parametrize(
    ("pairs", "size", "error"),
    [
        ([(-1.0, 1.0)] * 3, 3, TypeError),
        (np.array([(-1.0, 1.0)] * 3), 3, TypeError),
        ([(-1.0, 1.0)], 1, TypeError),
        ([(None, 1.0), (0.0, None), (0.0, 1.0)], 3, TypeError),
        ([(-1, 1), (-2, 2)], 2, ValueError),
        (((-1, 1), [-1, 1]), 2, ValueError),
    ],
)
def test_pairs_for_each_coordinate_are_told_from_sides(pairs, size, error):
    with pytest.raises(error, match=f"(?s)^bounds: expected .*{PAIRS}"):
        dcem.minimize(lambda x: x.sum(-1), torch.zeros(size), bounds=pairs)


@pytest.mark.parametrize(
    "rows", [torch.tensor([[-1.0, -1.0], [0.5, 0.5]]), np.array([[-1.0, -1.0, 0.0], [1.0, 1.0, 1.0]])]
)
def test_rows_lower_and_upper_are_no_pairs(rows):
    with pytest.raises(
        TypeError, match=r"got an? \w+ of shape \(2, \d\); of rows lower and upper give tuple\(bounds\)$"
    ):
        dcem.minimize(lambda x: x.sum(-1), torch.zeros(rows.shape[1]), bounds=rows)
    dcem.minimize(lambda x: x.sum(-1), torch.zeros(rows.shape[1]), bounds=tuple(rows))


def test_pairs_in_a_square_tensor_are_pairs():
    with pytest.raises(TypeError, match=PAIRS):
        dcem.minimize(lambda x: x.sum(-1), torch.zeros(2), bounds=torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]))


@pytest.mark.cpu
def test_sides_that_cross_are_named_without_the_others():
    with pytest.raises(ValueError, match="got low=2.0, high=1.0 among 50 numbers$"):
        dcem.minimize(lambda x: x.sum(-1), torch.zeros(50), bounds=(torch.eye(50)[7] * 2, 1.0))


def test_what_the_error_about_pairs_says_is_taken():
    pairs = [(-1.0, 1.0), (-2.0, 0.5), (0.0, 3.0)]
    box = Bounds.check(tuple(zip(*pairs, strict=True)), torch.Size([3]), torch.zeros(3))
    assert (box.low.tolist(), box.high.tolist()) == ([-1.0, -2.0, 0.0], [1.0, 0.5, 3.0])


@pytest.mark.parametrize("shape", [(1,), (3, 2), (1, 2), (2, 1)])
def test_a_space_of_another_shape_is_not_broadcast(shape):
    class Space:
        low, high = np.full(shape, -1.0), np.full(shape, 1.0)

    says = r"^bounds: expected a space of the shape of the event {}, .* got one of shape {}"
    came = re.escape(str(shape))
    with pytest.raises(ValueError, match=says.format(r"\(2,\)", came)):
        dcem.minimize(lambda x: x.sum(-1), torch.zeros(2), bounds=Space())
    with pytest.raises(ValueError, match=says.format(r"\(2,\)", came)):
        dcem.energy.EnergyModel(lambda x, y: y.sum(-1), 2, dcem.CEM(), bounds=Space())
    with pytest.raises(ValueError, match=says.format(r"\(5, 2\)", came)):
        dcem.control.MPC(lambda x, u: x, lambda x, u: u.sum(-1), 5, 2, bounds=Space())


@pytest.mark.parametrize("shape", [(), (2,), (5, 2)])
def test_a_space_bounds_the_event_or_its_last_axes(shape):
    class Space:
        low, high = np.full(shape, -1.0), np.full(shape, 0.5)

    def planned(bounds):
        mpc = dcem.control.MPC(lambda x, u: x, lambda x, u: -u.sum(-1), 5, 2, bounds, num_iterations=2)
        return mpc(torch.zeros(1), generator=torch.Generator().manual_seed(0)).actions

    assert torch.equal(planned(Space()), planned((-1.0, 0.5)))


BEYOND = [(-2.0, 1.0), (None, 1.0), (-2.0, None)]
"""Sides, of which the numbers -3, -2, 0, 1 and 2 are beyond, on, inside, on, and beyond."""


@pytest.mark.parametrize("kind", [float, torch.tensor])
@pytest.mark.parametrize(("low", "high"), BEYOND)
def test_the_derivative_on_a_side_is_that_of_the_inside(kind, low, high):
    # That of torch.clamp is 1, 0.5 or 0 there, by the version of torch and whether a side is a number or a tensor.
    x = torch.tensor([-3.0, -2.0, 0.0, 1.0, 2.0], requires_grad=True)
    sides = [None if side is None else kind(side) for side in (low, high)]
    expected = torch.tensor([float(low is None), 1.0, 1.0, 1.0, float(high is None)])
    box = Bounds.check(sides, x.shape, x)
    for function in (lambda x: clip(x, *sides), box.clip):
        assert torch.equal(function(x), x.clamp(*sides))
        (reverse,) = torch.autograd.grad(function(x).sum(), x)
        tangent = torch.func.jvp(function, (x.detach(),), (torch.ones(5),))[1]
        for found in (reverse, tangent, torch.func.vmap(torch.func.grad(function))(x.detach())):
            assert torch.equal(found, expected)


def test_a_compiled_function_has_that_derivative_too():
    x = torch.tensor([-2.0, 0.0, 1.0], requires_grad=True)
    compiled = torch.compile(lambda x: clip(x, -2.0, 0.5), backend="eager", fullgraph=True)
    assert torch.autograd.grad(compiled(x).sum(), x)[0].tolist() == [1.0, 1.0, 0.0]


def test_clipping_with_and_without_a_gradient_is_the_same(generator):
    for dtype in (*NARROW, torch.float64):
        x = torch.randn(1000, generator=generator, dtype=torch.float64).mul(4).round().div(4).to(dtype)
        x[:3] = torch.tensor([math.nan, math.inf, -math.inf])
        for sides in ((-0.5, 0.75), (torch.tensor(-0.5, dtype=dtype), None), (1.0, -1.0)):
            with torch.no_grad():
                plain = clip(x, *sides)
            found = clip(x.requires_grad_(), *sides)
            assert found.dtype == dtype
            assert torch.equal(plain.nan_to_num(9.0), found.nan_to_num(9.0))


def test_a_side_that_learns_has_the_gradient_of_what_it_holds():
    high = torch.tensor([1.0, 1.0, 1.0], requires_grad=True)
    clip(torch.tensor([0.0, 1.0, 2.0]), None, high).sum().backward()
    assert high.grad.tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda std: dcem.Gaussian(std.new_zeros(2), std),
        lambda std: dcem.FullGaussian(std.new_zeros(2), scale_tril=std * torch.eye(2)),
        lambda std: dcem.Mixture(std.new_tensor([[-0.5, 0.0], [0.5, 0.0]]), std),
    ],
)
def test_a_std_of_half_the_width_of_the_box_learns(make):
    std = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    narrowed = make(std).narrow(Bounds.check((-2.0, 2.0), torch.Size([2]), std))
    noise = torch.ones(4, 2, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(narrowed.rsample(noise).sum(), std)
    assert gradient == noise.sum()


def test_arrays_of_any_strides_are_sides():
    low, high = np.array([-2.0, -1.0])[::-1], np.array([2.0, 1.0])[::-1]
    box = Bounds.check((low, high), torch.Size([2]), torch.zeros(()))
    assert box.low.tolist() == [-1.0, -2.0]
    assert box.high.tolist() == [1.0, 2.0]
