"""Plans and solutions as data: detached, moved, copied, saved, shown."""

import copy
import io

import pytest
import torch

import dcem
from dcem._tree import leaves
from dcem.control import MPC

THETA = torch.tensor(0.8, requires_grad=True)


def controller(**options):
    return MPC(lambda s, u: s + THETA * u, lambda s, u: s.square().sum(-1) + 0.1 * u.square().sum(-1), 4, 2,
               (-1.0, 1.0), dcem.CEM(32, 4), num_iterations=2, **options)  # fmt: skip


def seeded():
    return torch.Generator().manual_seed(0)


def results():
    yield controller()(torch.ones(3, 2), generator=seeded(), record=True)
    yield controller()({"x": torch.ones(3, 2)}["x"], generator=seeded())
    yield dcem.minimize(lambda x: (x - THETA).square().sum(-1), torch.zeros(3, 2), record=True, generator=seeded())
    full = dcem.FullGaussian(torch.zeros(2), torch.eye(2))
    yield dcem.minimize(lambda x: (x - THETA).square().sum(-1), full, generator=seeded())


def saved(result):
    file = io.BytesIO()
    torch.save(result, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.cpu
@pytest.mark.parametrize("how", [copy.deepcopy, saved, lambda r: r.detach(), lambda r: r.to("cpu")])
def test_copies_hold_the_same_numbers(how):
    for result in results():
        assert any(leaf.requires_grad for leaf in leaves(result))
        other = how(result)
        assert type(other) is type(result)
        assert len(leaves(other)) == len(leaves(result))
        for mine, others in zip(leaves(result), leaves(other), strict=True):
            torch.testing.assert_close(mine, others, rtol=0, atol=0, equal_nan=True)  # no gradient norm was asked for


def test_what_is_detached_or_copied_has_no_graph():
    for result in results():
        for other in (result.detach(), copy.deepcopy(result), saved(result)):
            assert all(leaf.grad_fn is None for leaf in leaves(other))


def test_conversion_is_of_floating_point_numbers():
    plan = controller()(torch.ones(3, 2), generator=seeded())
    for other in (plan.to(torch.float64), plan.to("cpu", torch.float64), plan.to(dtype=torch.float64)):
        assert other.actions.dtype == other.distribution.mean.dtype == other.solution.x.dtype == torch.float64
        assert other.status.dtype == plan.status.dtype
    assert plan.to("meta").actions.is_meta
    other.actions.sum().backward()
    assert THETA.grad.isfinite()
    THETA.grad = None


@pytest.mark.parametrize("what", ["plan", "warm_start", "as_dict"])
def test_a_closed_loop_goes_on_from_a_checkpoint(what):
    mpc = controller(action_rate_cost=1.0)
    plan = mpc(torch.ones(3, 2), generator=seeded())
    before = {"plan": plan, "warm_start": plan.warm_start, "as_dict": plan.warm_start._asdict()}[what]
    after = saved({"controller": mpc.state_dict(), "plan": before})["plan"]
    after = dcem.control.WarmStart(**after) if what == "as_dict" else after
    state = plan.states[:, 1].detach()
    expected = mpc(state, warm_start=plan, generator=seeded())
    assert torch.equal(mpc(state, warm_start=after, generator=seeded()).actions, expected.actions)


@pytest.mark.cpu
def test_what_is_shown_tells_how_it_went():
    plan, _, solution, _ = results()
    assert repr(plan).startswith("Plan(actions=<(3, 4, 2), float32: ")
    assert "cost=<(3,), float32: " in repr(plan)
    assert repr(plan).endswith("status: 3 OK)")
    assert "best_value=<(3,), float32: " in repr(solution)
    assert "history='10 iterations'" in repr(solution)
    failed = dcem.minimize(
        lambda x: x.sum(-1) * torch.tensor([[1.0], [torch.nan]]), torch.zeros(2, 1), generator=seeded()
    )
    assert repr(failed).endswith("status: 1 OK, 1 NONFINITE)")
    for shape, code, way in (((1,), 1, "OK"), ((1, 1), torch.nan, "NONFINITE")):
        alone = dcem.minimize(lambda x, code=code: code * x.sum(-1), torch.zeros(shape), generator=seeded())
        assert repr(alone).endswith(f", status: {way})")
    assert max(map(len, repr(plan).splitlines())) < 200
    assert repr(plan.to("meta")).endswith("status: not known)")


def test_a_plan_of_beliefs_is_read_as_data(tmp_path):
    """With `weights_only=True`, which runs nothing."""
    world = dcem.world.RSSM(3, 1, deterministic_size=8, stochastic_size=2, hidden_sizes=(8,))
    plan = dcem.control.MPC(world.imagine, world.cost, 3, 1, (-1.0, 1.0), num_iterations=1)(world.initial((2,)))
    torch.save(plan, tmp_path / "plan.pt")
    read = torch.load(tmp_path / "plan.pt", weights_only=True)
    assert torch.equal(read.actions, plan.actions)
    assert torch.equal(read.states.deterministic, plan.states.deterministic)
