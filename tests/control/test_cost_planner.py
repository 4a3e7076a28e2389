"""A planner with the interface of stable-worldmodel's solvers, for a stand-in of its models and policy."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

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
