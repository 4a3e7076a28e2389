"""The doctor names what is wrong, and nothing where nothing is."""

import dataclasses
import inspect
import re

import pytest
import torch

import dcem

GOOD = dcem.CEM(200, 20, dcem.LML(0.1), init_std=2.0)


def target(*numbers, dtype=torch.float64):
    return torch.tensor(numbers, dtype=dtype, requires_grad=True)


def test_a_good_solve_is_left_alone_and_its_gradient_confirmed():
    theta = target(1.0, -1.0)
    found = dcem.diagnose(
        lambda x: (x - theta).square().sum(-1), torch.zeros(2, dtype=torch.float64), GOOD, num_iterations=8
    )
    assert found.advice == []
    assert found.comparison.error < 1e-3
    assert found.comparison.expected == pytest.approx(found.comparison.given, rel=1e-2)
    assert len(found.rows) == 8
    assert found.rows[-1].std < 0.1 * found.rows[0].std
    assert all(row.gradient_norm > 0 for row in found.rows)
    assert "nothing to change" in str(found)
    torch.testing.assert_close(theta.detach(), torch.tensor([1.0, -1.0], dtype=torch.float64))


@pytest.mark.parametrize("mode", [dcem.Unroll(), dcem.Checkpoint()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_is_right_in_full_modes(mode, dtype):
    theta = target(0.5, -0.5, dtype=dtype)
    found = dcem.diagnose(
        lambda x: (x - theta).square().sum(-1), torch.zeros(3, 2, dtype=dtype), GOOD, num_iterations=4, gradient=mode, parameters=[theta]
    )  # fmt: skip
    assert found.comparison.error < 0.02
    assert not any(sentence.startswith("gradient") for sentence in found.advice)


def test_a_gradient_that_is_wrong_is_called_wrong():
    theta = target(1.0, -1.0)

    def objective(x):  # half of what theta does is hidden
        return (x - 0.5 * theta - 0.5 * theta.detach()).square().sum(-1)

    found = dcem.diagnose(objective, torch.zeros(2, dtype=torch.float64), GOOD)
    assert found.comparison.error == pytest.approx(0.5, abs=0.05)
    assert any(sentence.startswith("gradient: it is") for sentence in found.advice)


def test_a_gradient_of_nothing_is_said():
    """Differences smaller than a step of the objective agree with it."""
    theta = target(0.5, -0.5)
    stepped = lambda x: torch.floor(5 * (x - theta)).square().sum(-1)  # noqa: E731
    for parameters in (None, [theta]):
        found = dcem.diagnose(stepped, torch.zeros(2, dtype=torch.float64), GOOD, parameters=parameters)
        assert any(sentence.startswith("gradient: it is exactly 0") for sentence in found.advice)


@pytest.mark.parametrize(
    ("solver", "iterations", "says"),
    [
        (dcem.CEM(200, 20, dcem.LML(0.1), init_std=0.05), 8, "init_std: the answer lies"),
        (dcem.CEM(200, 20, dcem.LML(0.1), init_std=0.0), 8, "init_std: the search starts with the least std"),
        (dcem.CEM(200, 5, dcem.LML(3.0), init_std=2.0), 8, "temperature: "),
        (GOOD, 2, "num_iterations: the std is still"),
        (GOOD, 60, "num_iterations: nothing moves after"),
        (dcem.CEM(4, 2, dcem.HardTopK(), init_std=2.0), 8, "num_samples: answers of different noise"),
    ],
)
def test_the_setting_at_fault_is_named(solver, iterations, says):
    goal = torch.tensor([1.5, -1.5])
    found = dcem.diagnose(lambda x: (x - goal).square().sum(-1), torch.zeros(2), solver, num_iterations=iterations)
    assert any(sentence.startswith(says) for sentence in found.advice), found.advice
    assert found.comparison is None
    assert says in str(found)


def test_failing_samples_and_a_hard_selection_are_named():
    theta = target(1.0, -1.0)

    def fails(x):
        return torch.where(x[..., 0] > 0, torch.nan, (x - theta).square().sum(-1))

    found = dcem.diagnose(fails, torch.zeros(2, dtype=torch.float64), GOOD)
    assert any(sentence.startswith("objective: up to") for sentence in found.advice)
    hard = dcem.CEM(100, 10, dcem.HardTopK())
    found = dcem.diagnose(lambda x: (x - theta).square().sum(-1), torch.zeros(2, dtype=torch.float64), hard)
    assert any(sentence.startswith("there is no gradient") for sentence in found.advice)
    with pytest.raises(ValueError, match="num_seeds: expected at least 2"):
        dcem.diagnose(lambda x: x.sum(-1), torch.zeros(2), num_seeds=1)
    with pytest.raises(ValueError, match="objective: expected values"):
        dcem.diagnose(lambda x: x, torch.zeros(2))


def test_a_diagnosis_is_drawn():
    pytest.importorskip("matplotlib")
    theta = target(1.0, -1.0)
    found = dcem.diagnose(lambda x: (x - theta).square().sum(-1), torch.zeros(2, dtype=torch.float64), GOOD)
    assert len(found.figure().axes) == 4


def away_from(theta):
    return lambda x: (x - theta).square().sum(-1)


@pytest.mark.cpu
@pytest.mark.parametrize("name", ["descent", "implicit", "start computed before", "part computed before", "no grad"])
def test_no_gradient_that_is_right_is_called_wrong(name):
    """Leaves that the solve makes, and leaves from which something was computed before it, cannot be moved."""
    theta, earlier = target(0.5, -0.5), target(0.3, 0.4)
    init, objective, solver = torch.zeros(2, dtype=torch.float64), away_from(theta), GOOD
    options = {"num_iterations": 4}
    if name == "descent":
        solver = dcem.GradientDescent(0.1)
    elif name == "implicit":
        options = {"gradient": dcem.Implicit(), "num_iterations": 30}
    elif name == "start computed before":
        init = 0.5 * earlier
    elif name == "part computed before":
        feature = 0.5 * earlier
        objective = lambda x: away_from(theta)(x - feature)  # noqa: E731
    with torch.set_grad_enabled(name != "no grad"):
        found = dcem.diagnose(objective, init, solver, **options)
    assert found.comparison.error < 1e-3
    assert abs(found.comparison.given) > 0.1
    assert not any("gradient" in sentence for sentence in found.advice)


def test_what_was_computed_before_is_not_checked_unless_it_is_asked_for():
    earlier = target(0.3, 0.4)
    feature = 2 * earlier
    found = dcem.diagnose(away_from(feature), torch.zeros(2, dtype=torch.float64), GOOD)
    assert found.comparison is None
    assert any(sentence.startswith("gradient: not checked") for sentence in found.advice)
    found = dcem.diagnose(away_from(feature), torch.zeros(2, dtype=torch.float64), GOOD, parameters=[feature])
    assert found.comparison.error < 1e-3
    assert abs(found.comparison.given) > 0.1
    feature.sum().backward()  # graphs that hold it have not noticed
    with pytest.raises(ValueError, match="parameters: expected tensors that the objective uses itself"):
        dcem.diagnose(away_from(2 * earlier), torch.zeros(2, dtype=torch.float64), GOOD, parameters=[earlier])


@pytest.mark.parametrize(("start", "theta"), [(0.0, 1.0), (1e4, 1e-4)])
def test_rounding_is_not_taken_for_a_wrong_gradient(start, theta):
    """In low precision, or with a parameter far smaller than the answer, finite differences are 0."""
    dtype = torch.bfloat16 if start == 0 else torch.float32
    theta = target(theta, theta, dtype=torch.float32)
    found = dcem.diagnose(lambda x: (x - start - theta).square().sum(-1), torch.full((2,), start, dtype=dtype), GOOD)
    assert not any(sentence.startswith("gradient: it is") for sentence in found.advice)
    assert any(sentence.startswith("gradient: finite differences") for sentence in found.advice)


def test_a_gradient_of_nothing_is_not_called_wrong():
    theta = target(2.0)
    cost = torch.arange(3.0, dtype=torch.float64)
    init = dcem.Categorical(torch.zeros(4, 3, dtype=torch.float64), 2)
    found = dcem.diagnose(lambda x: (x * cost).sum((-1, -2)) * theta, init, dcem.CEM(100, 10))  # only scales the values
    assert abs(found.comparison.given) < 1e-6
    assert not any("gradient" in sentence for sentence in found.advice)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"init": [0.0]}, TypeError, "init: expected a Tensor of means or a dcem distribution, got list"),
        ({"noise": torch.zeros(10, 100, 2)}, TypeError, "noise: expected a source of noise or None"),
        ({"parameters": torch.zeros(2, requires_grad=True)}, TypeError, "parameters: expected an iterable of tensors"),
        ({"parameters": [torch.zeros(2)]}, TypeError, "parameters: expected tensors that require a gradient"),
        ({"num_seeds": 1}, ValueError, "num_seeds: expected at least 2"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        dcem.diagnose(**{"objective": away_from(torch.ones(2)), "init": torch.zeros(2)} | options)


def test_a_gradient_that_is_not_there_is_shown_as_none():
    lines = str(dcem.diagnose(lambda x: x.square().sum(-1), torch.zeros(2), num_iterations=2)).splitlines()
    assert [line.split()[-1] for line in lines[1:3]] == ["-", "-"]


@pytest.mark.cpu
def test_a_mode_that_is_full_already_is_not_advised_where_an_objective_leaves_autograd():
    theta = target(1.0, -1.0)

    def half_numpy(x):
        away = (x - 3 * theta).detach().numpy()
        return (x - theta).square().sum(-1) + torch.from_numpy((away**2).sum(-1))

    for mode, says in ((dcem.Unroll(), "leaves autograd"), (dcem.Truncate(1), "with Unroll()")):
        found = dcem.diagnose(half_numpy, torch.zeros(2, dtype=torch.float64), GOOD, gradient=mode)
        advice = [sentence for sentence in found.advice if sentence.startswith("gradient")]
        assert len(advice) == 1, found.advice
        assert says in advice[0]
        assert ("with Unroll()" in advice[0]) == (mode == dcem.Truncate(1))


def test_descent_has_no_std_to_wait_for():
    found = dcem.diagnose(away_from(target(1.0, -1.0)), torch.zeros(2, dtype=torch.float64), dcem.GradientDescent(0.1))
    assert not any("std is still" in sentence for sentence in found.advice)


@pytest.mark.parametrize(
    ("bounds", "share"),
    [((-1.0, 0.5), 0.5), ((None, 0.5), 0.5), ((-4.0, 4.0), 0.0), (None, 0.0), ((torch.tensor([-3.0, 0.3]), 0.7), 1.0)],
)
def test_what_lies_on_a_bound_is_counted(bounds, share):
    goal = torch.tensor([1.0, 0.2])
    found = dcem.diagnose(away_from(goal), torch.zeros(2), GOOD, bounds=bounds, num_iterations=12)
    assert found.at_bounds == share
    assert ("lie on a bound" in str(found)) == bool(share)


class Twice(torch.nn.Module):
    latent_shape, event_shape = (1,), (2,)

    def forward(self, z):
        return torch.cat([z, z], -1)


@pytest.mark.parametrize("decoder", [None, Twice()])
def test_a_layer_diagnoses_the_solve_that_a_call_makes(decoder):
    theta = target(1.0, 1.5)
    layer = dcem.Argmin(2, GOOD, num_iterations=8, decoder=decoder, init=torch.zeros(1, dtype=torch.float64))
    found = layer.diagnose(away_from(theta), (3,), gradient=dcem.Checkpoint())
    solution = layer(
        away_from(theta), (3,), gradient=dcem.Checkpoint(), generator=torch.Generator().manual_seed(0), record=True
    )
    assert found.solution.x.shape == (3, 2 if decoder is None else 1)
    assert torch.equal(layer.decode(found.solution.x.unsqueeze(1)).squeeze(1), solution.x)
    assert found.comparison.error < 1e-3
    assert not any(sentence.startswith("gradient") for sentence in found.advice)
    assert layer.diagnose(away_from(theta), (3,), num_iterations=2).rows[2:] == []
    if decoder is None:
        alone = dcem.diagnose(away_from(theta), torch.zeros(3, 2, dtype=torch.float64), GOOD, num_iterations=8)
        assert str(alone) == str(found)


def test_an_energy_model_and_a_controller_diagnose_themselves():
    scale = target(1.0)
    model = dcem.energy.EnergyModel(
        lambda x, y: (y - scale * x.unsqueeze(-2)).square().sum(-1), 2, GOOD, num_iterations=8
    )
    found = model.diagnose(torch.tensor([[1.0, 0.5]], dtype=torch.float64), parameters=[scale])
    assert found.comparison.error < 1e-3
    assert abs(found.comparison.given) > 0.1
    mpc = dcem.control.MPC(
        lambda x, u: x + scale * u, lambda x, u: x.square().sum(-1) + u.square().sum(-1), 3, 1, (-1.0, 1.0), GOOD, num_iterations=8
    )  # fmt: skip
    state = torch.tensor([[0.5], [4.0]], dtype=torch.float64)
    found = mpc.diagnose(state)
    assert found.solution.x.shape == (2, 3, 1)
    assert found.comparison.error < 1e-3
    assert 0 < found.at_bounds < 1
    later = mpc.diagnose(state, warm_start=mpc(state, generator=torch.Generator().manual_seed(1)), num_iterations=3)
    assert later.rows[0].best < found.rows[0].best


class Conditioned(torch.nn.Module):
    """What it makes of its input it makes once for a solve, of its parameters."""

    def __init__(self, *, hides=False):
        super().__init__()
        self.scale, self.hides = torch.nn.Parameter(torch.tensor(1.5, dtype=torch.float64)), hides

    def forward(self, x, y):
        return self.condition_on(x)(y)

    def condition_on(self, x):
        center = ((self.scale.detach() if self.hides else self.scale) * x).unsqueeze(-2)
        return lambda y: (y - center).square().sum(-1)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("hides", [True, False])
def test_what_an_energy_makes_of_its_input_is_a_part_of_the_solve(hides, asked, enabled):
    model = dcem.energy.EnergyModel(Conditioned(hides=hides), 2, GOOD, num_iterations=8)
    x = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    with torch.set_grad_enabled(enabled):
        found = model.diagnose(x, parameters=model.parameters() if asked else None)
    if hides and not asked:  # of nothing that is not given it is known that it should matter
        assert found.comparison is None
        return
    assert abs(found.comparison.expected) > 0.1
    assert (found.comparison.given == 0) == hides
    assert any("leaves autograd" in sentence for sentence in found.advice) == hides


def test_a_learned_start_is_moved_with_the_rest():
    for init in ((torch.nn.Parameter(torch.zeros(2)), None), (0.0, torch.nn.Parameter(torch.full((2,), 2.0)))):
        layer = dcem.Argmin(2, dcem.CEM(100, 10, dcem.LML(1.0)), init=init, num_iterations=2)
        found = layer.diagnose(away_from(torch.tensor([1.0, -0.5])), parameters=layer.parameters())
        assert found.comparison.error < 0.02
        assert abs(found.comparison.given) > 1e-3
        assert not any(sentence.startswith("gradient") for sentence in found.advice)


def test_measures_are_in_the_std_that_the_search_has_inside_its_bounds():
    inside = dcem.diagnose(
        lambda x: 1e4 * away_from(torch.tensor([1e-3, 2e-3]))(x), torch.zeros(2), dcem.CEM(200, 20, dcem.LML(0.1)), bounds=(-0.01, 0.01)
    )  # fmt: skip
    assert inside.at_bounds == 0
    assert 0.1 < inside.travelled < 0.3
    outside = dcem.diagnose(away_from(torch.tensor([0.9])), torch.full((1,), -1000.0), GOOD, bounds=(-1.0, 1.0))
    assert outside.travelled < 2.5


def test_a_gradient_that_is_no_number_is_called_wrong():
    theta = target(1.0, -1.0)
    found = dcem.diagnose(
        lambda x: away_from(theta)(x) + (theta[0] - theta[0]).sqrt(), torch.zeros(2, dtype=torch.float64), GOOD
    )
    assert any(sentence.startswith("gradient: it is nan") for sentence in found.advice)


def test_a_call_is_diagnosed_with_all_that_it_is_given_by_name():
    mpc = dcem.control.MPC(
        lambda x, u: x + 0.1 * u, lambda x, u: (u - 0.8).square().sum(-1), 3, 1, solver=GOOD, init_std=0.1
    )
    state = torch.zeros(1, 1)
    assert mpc.diagnose(state).travelled > 5
    warm = mpc(state).warm_start._replace(actions=torch.full((1, 3, 1), 0.8))
    assert mpc.diagnose(state=state, warm_start=warm).travelled < 0.5
    layer, goal = dcem.Argmin(2, GOOD), away_from(torch.tensor([1.0, -1.0]))
    assert layer.diagnose(goal, batch_shape=(2,)).solution.x.shape == (2, 2)
    assert layer.diagnose(goal, init=torch.full((2,), 30.0)).travelled > 3
    assert layer.diagnose(goal, bounds=(-0.1, 0.1)).at_bounds == 1
    decoded = dcem.Argmin(2, GOOD, decoder=Twice())
    valid = decoded.diagnose(goal, validate=lambda x: torch.tensor(x.shape == (2,)))
    assert valid.status == dcem.Status.OK
    for name, value in {"generator": torch.Generator(), "record": True, "noise": torch.zeros(10, 200, 2)}.items():
        with pytest.raises(TypeError, match=f"{name}: expected"):
            layer.diagnose(goal, **{name: value})
    assert layer._searches is None


class Goal(dcem.control.MPC):
    def forward(self, state, goal, **options):
        return super().forward(state - goal, **options)


def test_a_layer_of_ones_own_is_diagnosed_by_its_own_call():
    theta = target(0.5)
    mpc = Goal(
        lambda x, u: x + theta * u, lambda x, u: x.square().sum(-1) + u.square().sum(-1), 3, 1, (-1.0, 1.0), GOOD
    )
    found = mpc.diagnose(torch.ones(2, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    assert found.comparison.error < 1e-3


def test_a_gradient_that_a_call_refuses_is_advice():
    mpc = dcem.control.MPC(
        lambda x, u: x + u,
        lambda x, u: x.square().sum(-1),
        3,
        1,
        (-1.0, 1.0),
        GOOD,
        gradient=dcem.Implicit(),
        answer="best",
    )
    with torch.no_grad():
        found = mpc.diagnose(torch.ones(2, 1))
    assert any("Implicit differentiates the mean" in sentence for sentence in found.advice)
    with pytest.raises(ValueError, match="state: expected"):
        dcem.control.MPC(dcem.control.systems.Pendulum(), lambda x, u: x.sum(-1), 3, 1, (-1.0, 1.0), GOOD).diagnose(
            torch.ones(2, 1)
        )


def test_a_leaf_of_no_numbers_is_no_parameter():
    empty = torch.zeros(0, requires_grad=True)
    found = dcem.diagnose(lambda x: x.square().sum(-1) + empty.sum(), torch.ones(2), GOOD)
    assert found.comparison is None


@pytest.mark.parametrize(
    "solver", [dcem.CEM(), dcem.CEM(100, 10, dcem.LML(0.3)), dcem.CEM(100, 10, dcem.LML(0.1), init_std=3.0)]
)
def test_what_does_no_harm_is_left_alone(solver):
    """Many samples share the weight of a soft selection; where it converges all the same, nothing is to be changed."""
    found = dcem.diagnose(away_from(target(1.0, -1.0)), torch.zeros(2, dtype=torch.float64), solver)
    assert found.advice == []


def test_a_flat_valley_is_no_lack_of_samples():
    """Answers along it differ from seed to seed, and none is worse than another."""
    found = dcem.diagnose(
        lambda x: x[..., 0].square(), torch.zeros(2), dcem.CEM(100, 10, dcem.LML(0.1)), num_iterations=12
    )
    assert found.spread > 0.1
    assert not any(sentence.startswith("num_samples") for sentence in found.advice)


ENDLESS = "objective: it seems to have no minimum: is it a reward (minimise its negative)? or give bounds"


@pytest.mark.parametrize(
    ("solver", "bounds"),
    [
        (dcem.CEM(), None),
        (dcem.CEM(), (None, 50.0)),
        pytest.param(dcem.MPPI(), None, marks=pytest.mark.cpu),
        (dcem.GradientDescent(), None),
    ],
)
def test_an_objective_without_a_minimum_is_named(solver, bounds):
    found = dcem.diagnose(lambda x: -(x - 0.3).square().sum(-1), torch.zeros(2), solver, bounds=bounds)
    assert [sentence.partition(";")[0] for sentence in found.advice] == [ENDLESS]


@pytest.mark.parametrize(
    ("objective", "solver", "bounds"),
    [
        (lambda x: -x.square().sum(-1), dcem.CEM(), (-50.0, 50.0)),
        (lambda x: (x - 30.0).square().sum(-1), dcem.CEM(), None),
        (lambda x: (x - 30.0).square().sum(-1), dcem.MPPI(), None),
        (lambda x: (x - 30.0).square().sum(-1), dcem.GradientDescent(0.01), None),
        (
            lambda x: x.cos().sum(-1),
            dcem.CEM(100, 10, dcem.LML(0.1), init_std=0.01),
            None,
        ),  # it grows until it is there
    ],
)
def test_a_minimum_that_is_far_away_is_one(objective, solver, bounds):
    found = dcem.diagnose(objective, torch.zeros(2), solver, bounds=bounds)
    assert not any(sentence.startswith(ENDLESS) for sentence in found.advice)


def test_a_slope_of_zero_is_named():
    slope = "objective: its slope is zero where the search starts"
    start, descent = torch.full((2,), 0.7), dcem.GradientDescent()
    found = dcem.diagnose(lambda x: x.round().square().sum(-1), start, descent)
    assert [sentence.partition(",")[0] for sentence in found.advice] == [slope]
    held = dcem.diagnose(lambda x: x.sum(-1), start, descent, bounds=(0.7, 2.0))  # by a bound, not by a slope of zero
    assert not any(sentence.startswith(slope) for sentence in held.advice)


def test_a_share_of_elites_is_named() -> None:
    advice = dcem.diagnose(lambda x: (x - 1).square().sum(-1), torch.zeros(2), dcem.CEM(100, 0.1)).advice
    assert any(says.startswith("num_elites: 0.1 is a count") and says.endswith("num_elites=10") for says in advice)
    plain = dcem.diagnose(lambda x: (x - 1).square().sum(-1), torch.zeros(2), dcem.CEM(100, 10)).advice
    assert not any("is a count" in says for says in plain)


def test_a_search_of_one_iteration_is_diagnosed():
    goal, solver = away_from(torch.ones(2)), dcem.CEM(100, 10)
    mpc = dcem.control.MPC(lambda x, u: x + u, lambda x, u: x.square().sum(-1), 3, 1, (-1.0, 1.0), num_iterations=1)
    energy = dcem.energy.EnergyModel(lambda x, y: (y - x.unsqueeze(-2)).square().sum(-1), 2, solver, num_iterations=1)
    for found in (
        dcem.diagnose(goal, torch.zeros(2), solver, num_iterations=1),
        mpc.diagnose(torch.ones(2, 1)),
        energy.diagnose(torch.ones(3, 2)),
    ):
        assert len(found.rows) == 1
        assert str(found)


SETTINGS = {
    *inspect.signature(dcem.minimize).parameters,
    *(name for solver in (dcem.CEM, dcem.MPPI, dcem.GradientDescent) for name in inspect.signature(solver).parameters),
    "temperature",
}
SOLVERS = [
    *(dcem.CEM(n, k, selection, init_std=std) for n, k in ((4, 2), (100, 10)) for std in (0.05, 3.0)
      for selection in (dcem.HardTopK(), dcem.LML(0.01), dcem.LML(5.0))),
    *(dcem.MPPI(n, tau, init_std=std) for n in (4, 100) for tau in (0.01, 5.0) for std in (0.05, 3.0)),
    *(dcem.GradientDescent(lr) for lr in (1e-3, 0.1, 3.0)),
]  # fmt: skip


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_advice_names_settings_that_are_there(solver):
    theta = target(1.5, -1.5)
    has = {field.name for field in dataclasses.fields(solver)} | {*inspect.signature(dcem.diagnose).parameters}
    has |= {"temperature"} if hasattr(getattr(solver, "selection", None), "temperature") else set()
    objectives = [
        away_from(100 * theta),
        lambda x: -away_from(theta)(x),
        lambda x: 1e-3 * away_from(theta)(x) + 1e8,
        lambda x: torch.where(x[..., 0] > 0.5, torch.nan, away_from(theta)(x).cos()),
    ]
    for objective in objectives:
        for iterations in (2, 12):
            start = torch.zeros(2, dtype=torch.float64)
            found = dcem.diagnose(objective, start, solver, num_iterations=iterations, num_seeds=2)
            for says in found.advice:
                assert {*re.findall(r"\w+", says)} & SETTINGS <= has, says


def test_a_slow_descent_is_told_what_it_can_change():
    slow = dcem.diagnose(away_from(100.0), torch.zeros(2), dcem.GradientDescent(0.01), num_iterations=30)
    assert [says.partition(":")[0] for says in slow.advice] == ["num_iterations"]
    fast = dcem.diagnose(away_from(1.0), torch.zeros(2), dcem.GradientDescent(3.0), num_iterations=5)
    assert [says.partition(":")[0] for says in fast.advice] == ["lr"]
    right = dcem.diagnose(away_from(100.0), torch.zeros(2), dcem.GradientDescent(0.4), num_iterations=30)
    assert right.advice == []


def test_the_std_of_a_start_of_its_own_is_named():
    far = dcem.diagnose(away_from(100.0), dcem.Gaussian(torch.zeros(2), torch.ones(2)), dcem.CEM())
    assert any("raise the std of init" in says for says in far.advice)


@pytest.mark.parametrize("at", [1, 3])
def test_an_error_of_the_objective_comes_out_as_it_was_raised(at):
    calls = []

    def objective(x):
        calls.append(x)
        if len(calls) == at:
            raise ValueError("a bad sensor") from KeyError("k")
        return x.square().sum(-1)

    with pytest.raises(ValueError, match="a bad sensor") as caught:
        dcem.diagnose(objective, torch.zeros(2))
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_error_of_a_backward_pass_is_no_missing_gradient():
    theta = torch.tensor([0.5, 1.0], requires_grad=True)

    def refuse(slope):
        raise RuntimeError("no gradient of mine")

    def objective(x):
        away = x - theta
        if away.requires_grad:
            away.register_hook(refuse)
        return away.square().sum(-1)

    with pytest.raises(RuntimeError, match="no gradient of mine"):
        dcem.diagnose(objective, torch.zeros(2), num_iterations=2)
