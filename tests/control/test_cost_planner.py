"""A planner with the interface of stable-worldmodel's solvers, for a stand-in of its models and policy."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, MultiDiscrete

import dcem
from dcem.control import CostPlanner


class Goal:
    """A model of stable-worldmodel: a point moves by its actions; costs are distances from the goal at the end."""

    def __init__(self) -> None:
        self.seen: list[dict[str, tuple[int, ...]]] = []

    def get_cost(self, info, actions):
        self.seen.append({key: tuple(value.shape) for key, value in info.items() if hasattr(value, "shape")})
        end = info["position"] + actions.unflatten(-1, (-1, 2)).sum((-3, -2))
        return (end - torch.as_tensor(info["goal"])).square().sum(-1)


def planner(**options) -> CostPlanner:
    made = CostPlanner(Goal(), num_iterations=15, generator=torch.Generator().manual_seed(0), **options)
    made.configure(action_space=Box(-1, 1, (3, 2)), n_envs=3, config=SimpleNamespace(horizon=4, action_block=2))
    return made


INFO = {
    "position": torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, -1.0]]), "goal": np.full((3, 2), 2.0, np.float32), "id": "x",
}  # fmt: skip


@pytest.mark.parametrize("solver", [None, dcem.CEM(200, 20, dcem.HardTopK()), dcem.MPPI(200, 0.1)])
def test_each_environment_has_its_own_plan(solver):
    made = planner(solver=solver)
    assert (made.n_envs, made.horizon, made.action_dim) == (3, 4, 4)
    found = made.solve(INFO)
    assert found["actions"].shape == (3, 4, 4)
    num = made.solver.num_samples
    assert made.model.seen[0] == {"position": (3, num, 2), "goal": (3, num, 2)}
    end = INFO["position"] + found["actions"].unflatten(-1, (2, 2)).sum((1, 2))
    torch.testing.assert_close((end - 2).square().sum(-1), found["costs"])
    assert found["costs"].max() < 0.05
    alone = CostPlanner(made.model, solver, num_iterations=15, generator=torch.Generator().manual_seed(0))
    alone.configure(action_space=Box(-1, 1, (3, 2)), n_envs=3, config=SimpleNamespace(horizon=4, action_block=2))
    assert torch.equal(alone(INFO)["actions"], found["actions"])  # a call is a solve


def test_it_goes_on_from_what_is_left_of_the_last_plan():
    made = planner(solver=dcem.CEM(50, 5, init_std=1e-3))
    first = torch.full((3, 2, 4), 0.25)
    found = made.solve(INFO, init_action=first)["actions"]
    assert (found[:, :2] - first).abs().max() < 0.1
    assert found[:, 2:].abs().max() < 0.1


def test_bounds_of_the_model_hold():
    actions = planner(bounds=(-0.1, 0.2)).solve(INFO)["actions"]
    assert actions.min() >= -0.1
    assert 0.19 < actions.max() <= 0.2


def test_mistakes_are_named():
    with pytest.raises(TypeError, match="model: expected a method get_cost"):
        CostPlanner(lambda info, actions: 0)
    with pytest.raises(RuntimeError, match="solve: expected configure"):
        CostPlanner(Goal()).solve(INFO)
    with pytest.raises(ValueError, match="init_action: expected"):
        planner().solve(INFO, init_action=torch.zeros(3, 5, 4))
    made = planner()
    made.model.get_cost = lambda info, actions: actions.sum((1, 2, 3))
    with pytest.raises(ValueError, match="objective: expected values"):
        made.solve(INFO)


def test_the_mean_is_an_answer_too_and_is_differentiable():
    weight = torch.nn.Parameter(torch.tensor(1.0))

    class Scaled(Goal):
        def get_cost(self, info, actions):
            return super().get_cost({**info, "goal": weight * torch.as_tensor(info["goal"])}, actions)

    def made(**options):
        found = CostPlanner(
            Scaled(), dcem.CEM(60, 6, dcem.LML(0.1)), generator=torch.Generator().manual_seed(0), num_iterations=8,
            **options,
        )  # fmt: skip
        found.configure(action_space=Box(-1, 1, (3, 2)), n_envs=3, config=SimpleNamespace(horizon=4, action_block=1))
        return found

    soft = made(answer="mean", gradient=dcem.Unroll()).solve(INFO)
    assert not made().solve(INFO)["actions"].requires_grad
    end = INFO["position"] + soft["actions"].sum(1)
    torch.testing.assert_close((end - weight * 2).square().sum(-1), soft["costs"])
    (slope,) = torch.autograd.grad(end.sum(), weight)
    assert float(slope) == pytest.approx(2.0 * 6, rel=0.1)  # the ends are where the goals are
    assert made(answer="mean").solve(INFO)["actions"].equal(soft["actions"])
    with pytest.raises(ValueError, match="answer: expected best or mean, got 'worst'"):
        made(answer="worst")
    with pytest.raises(ValueError, match="gradient: expected Detach"):
        made(gradient=dcem.Unroll())


def test_the_noise_is_that_of_the_source():
    seen = []

    def noise(shape, **kind):
        seen.append(shape)
        return torch.ones(shape)

    made = planner(solver=dcem.CEM(7, 2, dcem.HardTopK()), noise=noise)
    assert made.solve(INFO)["actions"].eq(1.0).all()
    assert seen[0] == (3, 7, 4, 4)


@pytest.mark.parametrize(
    ("space", "n_envs", "config", "error", "says"),
    [
        (
            Box(-1, 1, (2,)),
            1,
            {},
            ValueError,
            r"action_space: expected that of a vectorised .* n_envs = 1 .*, got \(2,\)",
        ),
        (Box(-1, 1, (2,)), 2, {}, ValueError, r"action_space: .* at least one axis of actions, got \(2,\)"),
        (Box(-1, 1, (3, 2)), 5, {}, ValueError, r"action_space: .* n_envs = 5 .*, got \(3, 2\)"),
        (MultiDiscrete([3, 3]), 2, {}, TypeError, r"action_space: expected a Box .*, got MultiDiscrete\(\[3 3\]\)"),
        (None, 2, {}, TypeError, "action_space: expected a Box .*, got None"),
        (Box(-1, 1, (3, 2)), 0, {}, ValueError, "n_envs: expected at least 1, got 0"),
        (Box(-1, 1, (3, 2)), 3, {"horizon": 0}, ValueError, "config.horizon: expected at least 1, got 0"),
        (Box(-1, 1, (3, 2)), 3, {"action_block": 1.5}, TypeError, "config.action_block: expected an int, got 1.5"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(space, n_envs, config, error, says):
    """The first is a plain environment's space in place of the vectorised one's."""
    made = planner()
    given = SimpleNamespace(**({"horizon": 4, "action_block": 1} | config))
    with pytest.raises(error, match=says):
        made.configure(action_space=space, n_envs=n_envs, config=given)
    assert (made.n_envs, made.horizon, made.action_dim) == (3, 4, 4)


def test_a_config_is_an_object():
    space = Box(-1, 1, (3, 2))
    with pytest.raises(TypeError, match=r"config: expected an object with horizon .*, got \{'horizon': 4\}.*Namespace"):
        planner().configure(action_space=space, n_envs=3, config={"horizon": 4})
    with pytest.raises(TypeError, match="config: expected an object .* without action_block as an attribute$"):
        planner().configure(action_space=space, n_envs=3, config=SimpleNamespace(horizon=4))


def test_a_plan_goes_on_from_an_array_too():
    first = np.random.default_rng(0).uniform(-1, 1, (3, 2, 4))
    found = planner().solve(INFO, init_action=first)["actions"]
    assert found.equal(planner().solve(INFO, init_action=torch.tensor(first))["actions"])
    with pytest.raises(ValueError, match=r"init_action: expected .* of \(3, 4, 4\), got \(3, 4, 2\)"):
        planner().solve(INFO, np.zeros((3, 4, 2)))
    with pytest.raises(TypeError, match="init_action: expected a Tensor or an array .*, got 'zeros'"):
        planner().solve(INFO, "zeros")


def test_the_action_space_says_how_many_numbers_and_limits_none():
    """As the guide says."""
    assert planner().solve({**INFO, "goal": np.full((3, 2), 40.0, np.float32)})["actions"].max() > 1


def test_it_plans_where_the_tensors_of_the_environments_are():
    """The meta device stands for any other than the CPU."""
    made = CostPlanner(Goal(), num_iterations=2)
    made.configure(action_space=Box(-1, 1, (3, 2)), n_envs=3, config=SimpleNamespace(horizon=4, action_block=2))
    info = {"id": "x", "position": torch.zeros(3, 2, device="meta"), "goal": torch.zeros(3, 2, device="meta")}
    assert made.solve(info)["actions"].device.type == "meta"
    assert made.solve(info, init_action=np.zeros((3, 1, 4)))["actions"].device.type == "meta"


def test_an_environment_that_is_lost_leaves_the_gradient_of_the_others_alone():
    class Weighed:
        weight = torch.tensor(1.0, requires_grad=True)

        def get_cost(self, info, actions):
            return self.weight * (actions.sum(-2) - info["goal"]).square().sum(-1)

    def slope(other):
        model = Weighed()
        made = CostPlanner(
            model, dcem.CEM(50, 5, dcem.LML(1.0)), answer="mean", gradient=dcem.Unroll(),
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        made.configure(action_space=Box(-1, 1, (2, 2)), n_envs=2, config=SimpleNamespace(horizon=4, action_block=1))
        found = made.solve({"goal": torch.tensor([[1.0, 1.0], [other, 1.0]])})
        assert found["status"].tolist() == [0, 0 if other == other else 2]
        return torch.autograd.grad(found["actions"][0].sum() + found["costs"][0], model.weight)[0]

    torch.testing.assert_close(slope(torch.nan), slope(0.5))


def test_arrays_of_any_strides_and_byte_order_are_plans():
    made = planner(solver=dcem.CEM(50, 5, init_std=1e-3))
    first = np.arange(24, dtype=np.float64).reshape(3, 2, 4) / 100
    expected = planner(solver=dcem.CEM(50, 5, init_std=1e-3)).solve(INFO, init_action=first)["actions"]
    for same in (first[:, ::-1].copy()[:, ::-1], first.astype(">f4")):
        made = planner(solver=dcem.CEM(50, 5, init_std=1e-3))
        torch.testing.assert_close(made.solve(INFO, init_action=same)["actions"], expected)
    with pytest.raises(TypeError, match="^init_action: expected numbers"):
        planner().solve(INFO, init_action=np.full((3, 2, 4), "x"))


def test_what_is_nested_in_the_info_has_no_axis_of_environments():
    class Gained:
        weight = torch.tensor(1.0, requires_grad=True)

        def get_cost(self, info, actions):
            far = (actions.sum(-2) * self.weight - info["goal"]).square().sum(-1)
            return far * info["params"]["gain"]

    made = CostPlanner(Gained(), dcem.CEM(50, 5), answer="mean", gradient=dcem.Unroll())
    made.configure(action_space=Box(-1, 1, (2, 2)), n_envs=2, config=SimpleNamespace(horizon=4, action_block=1))
    goal = torch.tensor([[1.0, 1.0], [torch.nan, 1.0]])
    found = made.solve({"goal": goal, "params": {"gain": torch.tensor(2.0)}})
    assert found["status"].tolist() == [0, 2]
