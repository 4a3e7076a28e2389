"""The doctor names what is wrong, and nothing where nothing is."""

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


@pytest.mark.parametrize(
    ("solver", "iterations", "says"),
    [
        (dcem.CEM(200, 20, dcem.LML(0.1), init_std=0.05), 8, "init_std: the answer lies"),
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
