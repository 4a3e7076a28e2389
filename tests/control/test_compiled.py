"""Dynamics compiled into one rollout: the same plans, and what they refuse."""

import copy
import functools

import pytest
import torch
from torch import nn

import dcem
from dcem.control import MPC, Compiled, rollout

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*isinstance.*Leaf.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),  # of the tracer itself
]


def double_integrator(state, action):
    position, speed = state.unbind(-1)
    return torch.stack([position + 0.2 * speed, speed + 0.2 * action[..., 0]], -1)


def quadratic(state, action):
    return state.square().sum(-1) + 0.1 * action.square().sum(-1)


def states(*batch):
    return torch.randn(*batch, 2, generator=torch.Generator().manual_seed(0))


class Strength(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(0.8))

    def forward(self, state, action):
        return double_integrator(state, action * self.value)


def test_compiled_dynamics_plan_the_same(monkeypatch, backend):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))

    def dynamics(state, action):
        return {"x": strength(state["x"], action)}

    def cost(state, action):
        return quadratic(state["x"], action)

    strength, results = Strength(), []
    for f in (dynamics, dcem.control.Compiled(dynamics)):
        mpc = MPC(f, cost, 2, 1, None, dcem.CEM(16, 4), num_iterations=1)
        plan = mpc({"x": states(2)}, generator=torch.Generator().manual_seed(0))
        results.append((plan.actions, plan.states, *torch.autograd.grad(plan.action.sum(), strength.value)))
    torch.testing.assert_close(results[0], results[1])


def test_compiled_dynamics_copy_step_and_refuse():
    compiled = dcem.control.Compiled(Strength())
    assert [name for name, _ in compiled.named_parameters()] == ["dynamics.value"]
    compiled._compiled = len  # a compiled function belongs to its own module: copies make their own
    assert copy.deepcopy(compiled)._compiled is None
    action = torch.ones(2, 1)
    torch.testing.assert_close(compiled(states(2), action), double_integrator(states(2), 0.8 * action))
    with pytest.raises(ValueError, match="dynamics: expected steps to compile"):
        dcem.control.Compiled(compiled)
    with pytest.raises(TypeError, match="dynamics: expected a callable"):
        dcem.control.Compiled(3)


class Clock(nn.Module):
    def forward(self, x, u, t=0):
        return x + u + t


@pytest.mark.parametrize("wrap", [lambda f: torch.compile(f, backend="eager"), Compiled], ids=["compile", "Compiled"])
def test_what_is_wrapped_to_be_compiled_is_told_what_it_wants(wrap):
    clock = wrap(Clock())
    with torch._dynamo.config.patch(disable=True):
        assert rollout(clock, torch.zeros(1), torch.zeros(4, 1)).flatten().tolist() == [0, 0, 1, 3, 6]
        plan = MPC(clock, lambda x, u: x.square().sum(-1), 2, 1)(torch.zeros(1), sent=torch.zeros(3, 1))
    assert plan.states[0].item() == -6


def test_dynamics_that_draw_by_a_generator_are_not_compiled():
    with pytest.raises(ValueError, match="^dynamics: expected none with a keyword generator"):
        Compiled(lambda x, u, generator=None: x + torch.rand(x.shape, generator=generator))
