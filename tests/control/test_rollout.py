"""Rollouts: states of any structure, models that roll out by themselves, and functions that write where they should not."""

import dataclasses
import functools
import inspect
import math
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dcem
from dcem.control import MPC, rollout


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- what is no tensor in a state ------------------------------------------------------------------------------------


def test_a_number_that_changes_is_named_not_frozen():
    def counting(state, action):
        return {"x": state["x"] + state["t"] * action, "t": state["t"] + 1}

    with pytest.raises(
        ValueError, match=r"dynamics: expected a next state of the structure of the state, 0 at \['t'\], got 1"
    ):
        rollout(counting, {"x": torch.zeros(1), "t": 0}, torch.ones(4, 1))
    counted = rollout(counting, {"x": torch.zeros(1), "t": torch.zeros(1)}, torch.ones(4, 1))
    assert counted["x"].squeeze(-1).tolist() == [0, 0, 1, 3, 6]


def test_constants_are_carried():
    def scaled(state, action):
        return {**state, "x": state["x"] + state["gain"] * action}

    states = rollout(scaled, {"x": torch.zeros(1), "gain": 2.0, "name": "arm", "none": None}, torch.ones(3, 1))
    assert states["x"].squeeze(-1).tolist() == [0, 2, 4, 6]
    assert (states["gain"], states["name"], states["none"]) == (2.0, "arm", None)


@pytest.mark.parametrize(
    ("after", "found"),
    [
        (lambda x: {"x": x, "y": x}, r"a dict of \['x'\], got a dict of \['x'\], \['y'\]"),
        (lambda x: {}, r"a dict of \['x'\], got a dict of nothing"),
        (lambda x: {"x": x[..., :1]}, r"shape \(2, 3\) at \['x'\], got \(2, 1\)"),
        (lambda x: {"x": (x,)}, r"shape \(2, 3\) at \['x'\], got tuple"),
        (lambda x: [x], r"a dict of \['x'\], got a list of \[0\]"),
        (lambda x: None, r"a dict of \['x'\], got None"),
    ],
)
def test_states_of_another_structure_are_named(after, found):
    with pytest.raises(ValueError, match=f"dynamics: expected a next state of .*{found}"):
        rollout(lambda state, action: after(state["x"]), {"x": torch.zeros(2, 3)}, torch.zeros(2, 4, 1))


@dataclasses.dataclass(frozen=True)
class Rotor:
    angle: Tensor
    speed: Tensor
    energy: Tensor = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "energy", self.speed.square())


class Motor(Rotor):
    pass


@dataclasses.dataclass(slots=True)
class Slim:
    angle: Tensor
    speed: Tensor
    energy: Tensor = dataclasses.field(init=False)
    scale: dataclasses.InitVar[float] = 1.0

    def __post_init__(self, scale):
        self.energy = scale * self.speed.square()


@pytest.mark.parametrize("kind", [Rotor, Motor, Slim])
def test_dataclasses_may_compute_fields_of_their_own(kind):
    def dynamics(state, action):
        return kind(state.angle + state.speed, state.speed + action)

    start = kind(torch.zeros(2, 1), torch.ones(2, 1))
    states = rollout(dynamics, start, torch.ones(2, 3, 1))
    assert type(states) is kind
    assert states.energy.shape == (2, 4, 1)
    assert torch.equal(states.energy, states.speed.square())
    plan = MPC(dynamics, lambda s, u: (s.energy + u.square()).sum(-1), 3, 1, num_iterations=2)(
        start, generator=seeded()
    )
    assert torch.equal(plan.states.energy, plan.states.speed.square())


# --- models that roll out by themselves ------------------------------------------------------------------------------


class Whole:
    """A model that rolls out by itself, with a fault."""

    def __init__(self, fault=lambda states: states):
        self.fault, self.horizons = fault, []

    def __call__(self, state, action):
        return state + action

    def rollout(self, state, actions):
        self.horizons.append(actions.shape[-2])
        return self.fault(torch.cat([state.unsqueeze(-2), state.unsqueeze(-2) + actions.cumsum(-2)], -2))


def square(state, action):
    return state.square().sum(-1)


@pytest.mark.parametrize(
    "fault", [lambda s: s[..., 1:, :], lambda s: s[..., :0, :], lambda s: (s,), lambda s: s[:1], lambda s: s[..., 0]]
)
def test_a_rollout_that_is_not_one_is_named(fault):
    for plan in (
        lambda model: MPC(model, square, 4, 1)(torch.ones(2, 1), generator=seeded()),
        lambda model: rollout(model, torch.ones(2, 1), torch.ones(2, 4, 1)),
    ):
        with pytest.raises(ValueError, match=r"dynamics: expected its rollout to return x_0 \.\.\. x_H, states of"):
            plan(Whole(fault))


@pytest.mark.parametrize("horizon", [1, 3])
def test_a_rollout_is_asked_for_the_whole_horizon_alone(horizon):
    model = Whole()
    plan = MPC(model, square, horizon, 1)(torch.ones(2, 1), generator=seeded())
    assert set(model.horizons) == {horizon}
    by_steps = MPC(lambda s, u: s + u, square, horizon, 1)(torch.ones(2, 1), generator=seeded())
    torch.testing.assert_close(plan.actions, by_steps.actions)
    assert rollout(model, torch.ones(2, 1), torch.ones(2, 0, 1)).tolist() == [[[1.0]], [[1.0]]]
    assert set(model.horizons) == {horizon}


def net():
    torch.manual_seed(0)
    data = dcem.world.transitions(torch.add, torch.randn(5, 1), torch.randn(5, 3, 1))
    return dcem.world.DynamicsNet(4, data)


def one_more(module, given, result):
    return result + 1.0


def hooked():
    model = net()
    model.register_forward_hook(one_more)
    return model


def with_a_forward_of_its_own():
    model = net()
    model.forward = lambda state, action: type(model).forward(model, state, action) + 1.0
    return model


def of_a_subclass(kind):
    class Residual(kind):
        def forward(self, state, action):
            return super().forward(state, action) + 1.0

    model = net()
    model.__class__ = Residual
    return model


def mixed_in():
    class Residual:
        def forward(self, state, action):
            return super().forward(state, action) + 1.0

    model = net()
    model.__class__ = type("Mixed", (Residual, dcem.world.DynamicsNet), {})
    return model


class WholeAndMore(Whole):
    def __call__(self, state, action):
        return super().__call__(state, action) + 1.0


class Wrapper(torch.nn.Module):
    """Adds to what it wraps, and hands on the rest."""

    def __init__(self):
        super().__init__()
        self.inside = net()

    def __getattr__(self, name):
        return super().__getattr__(name) if name == "inside" else getattr(self.inside, name)

    def forward(self, state, action):
        return self.inside(state, action) + 1.0


CHANGED = {
    "hook": hooked,
    "instance": with_a_forward_of_its_own,
    "subclass": lambda: of_a_subclass(dcem.world.DynamicsNet),
    "of a subclass": lambda: of_a_subclass(type("Plain", (dcem.world.DynamicsNet,), {})),
    "mixin": mixed_in,
    "plain": WholeAndMore,
    "wrapper": Wrapper,
}


@pytest.mark.parametrize("make", CHANGED.values(), ids=CHANGED)
def test_the_step_that_was_changed_is_what_is_planned_with(make):
    """A `rollout` that was written before knows nothing of it."""
    model = make()
    plan = MPC(model, square, 4, 1, solver=dcem.CEM(8, 3), num_iterations=2)(torch.zeros(2, 1), generator=seeded())
    states = [torch.zeros(2, 1)]
    for action in plan.actions.unbind(1):
        states.append(model(states[-1], action))
    assert (states[1] - (net()(states[0], plan.action) if make is not WholeAndMore else plan.action) > 0.99).all()
    torch.testing.assert_close(plan.states, torch.stack(states, 1))
    if isinstance(model, dcem.world.DynamicsNet):
        torch.testing.assert_close(model.rollout(states[0], plan.actions), plan.states)


def both():
    return type("Both", (WholeAndMore,), {"rollout": Whole.rollout})()


def on_the_instance():
    model = WholeAndMore()
    model.rollout = lambda state, actions: Whole.rollout(model, state, actions)
    return model


def without_a_step():
    """A hook, such as a profiler's, changes nothing of it."""
    model = type("Simulator", (torch.nn.Module,), {"rollout": Whole.rollout})()
    model.fault, model.horizons = (lambda states: states), []
    model.register_forward_hook(one_more)
    return model


@pytest.mark.parametrize("make", [both, on_the_instance, without_a_step])
def test_a_rollout_that_is_as_new_as_the_step_is_asked(make):
    model = make()
    rollout(model, torch.zeros(2, 1), torch.ones(2, 4, 1))
    assert model.horizons == [4]


# --- dynamics that draw ----------------------------------------------------------------------------------------------

scale = torch.tensor(0.3, requires_grad=True)


def drift(state, action, generator=None):
    return state + action + scale * torch.randn(state.shape, generator=generator)


def timed(state, action, *, t, generator=None):
    return drift(state, action, generator) + 0.1 * t


class Drift(torch.nn.Module):
    def forward(self, state, action, generator=None):
        return drift(state, action, generator)


class WholeDrift(Drift):
    def rollout(self, state, actions, *, generator=None):
        return rollout(lambda x, u: drift(x, u, generator), state, actions)


DRAWN = {
    "plain": {},
    "chunks": {"chunk_size": 3},
    "ends": {"continues": lambda x: (x[..., 0] < 1.0).float()},
    "particles": {"num_particles": 3},
    "checkpoint": {"gradient": dcem.Checkpoint()},
    "checkpoint of chunks": {"gradient": dcem.Checkpoint(), "chunk_size": 3},
    "checkpoint and ends": {"gradient": dcem.Checkpoint(), "continues": lambda x: (x[..., 0] < 1.0).float()},
    "best": {"answer": "best"},
}


DRIFTS = {"function": drift, "timed": timed, "module": Drift(), "method": Drift().forward, "whole": WholeDrift()}


@pytest.mark.parametrize("dynamics", DRIFTS.values(), ids=DRIFTS)
@pytest.mark.parametrize("options", DRAWN.values(), ids=DRAWN)
def test_a_plan_by_random_dynamics_is_replayed_from_its_generator(dynamics, options):
    """And has the gradient of one that keeps all iterations, where each is made again."""
    results, solver = [], dcem.CEM(8, 3, dcem.LML(0.3))
    for mode in (options.get("gradient"), options.get("gradient"), dcem.Unroll()):
        torch.rand(3)  # torch's own draws are elsewhere each time
        before = torch.get_rng_state()
        mpc = MPC(dynamics, square, 4, 1, solver=solver, num_iterations=3, **{**options, "gradient": mode})
        plan = mpc(torch.zeros(2, 1), sent=None if "num_particles" in options else torch.ones(2, 2, 1),
                   generator=seeded())  # fmt: skip
        slopes = torch.autograd.grad(plan.cost.sum(), scale)
        results.append((plan.actions, plan.states, *slopes))
        assert torch.equal(torch.get_rng_state(), before)
    for result in results[1:]:
        torch.testing.assert_close(results[0], result)


def test_dynamics_that_have_a_generator_of_their_own_keep_it_where_none_is_given():
    given = []

    def own(state, action, generator="own"):
        given.append(generator)
        return state + action

    mpc = MPC(own, square, 2, 1, num_iterations=1)
    mpc(torch.zeros(1))
    assert set(given) == {"own"}
    given.clear()
    mpc(torch.zeros(1), generator=(generator := seeded()))
    assert all(one is generator for one in given)


# --- memory that is written to ---------------------------------------------------------------------------------------


def fills_its_state(state, action):
    state += action
    return state


def fills_a_copy_by_numpy(state, action):
    array = state.numpy()
    array += action.numpy()
    return torch.from_numpy(array)


def fills_an_action(state, action):
    action.clamp_(-0.1, 0.1)
    return state + action


class Fills:
    """One tensor for all states; or one array, of which each state is another tensor; or two in turn."""

    def __init__(self, how):
        self.how, self.calls, self.buffers = how, 0, None

    def __call__(self, state, action):
        if self.buffers is None or self.buffers[0].shape != state.shape:
            self.buffers = [torch.zeros_like(state, memory_format=torch.contiguous_format) for _ in range(2)]
        self.calls += self.how == "two in turn"
        buffer = self.buffers[self.calls % 2]
        if self.how == "array":
            np.add(state.numpy(), action.numpy(), out=buffer.numpy())
            return torch.from_numpy(buffer.numpy())
        return buffer.copy_(state + action)


FILLING = [fills_its_state, fills_a_copy_by_numpy, fills_an_action, *map(Fills, ("tensor", "array", "two in turn"))]


@pytest.mark.cpu
@pytest.mark.parametrize("dynamics", FILLING, ids=lambda f: getattr(f, "how", None) or f.__name__)
def test_dynamics_that_fill_memory_again_are_named(dynamics):
    state = torch.ones(2, 1)
    message = "dynamics: expected a new tensor for each state"
    mpc = MPC(dynamics, square, 4, 1, gradient=dcem.Detach(), num_iterations=2)
    with torch.no_grad():
        with pytest.raises(ValueError, match=message):
            mpc(state, generator=seeded())
        assert (state == 1).all()  # the caller's
        with pytest.raises(ValueError, match=message):
            rollout(dynamics, state, torch.ones(2, 4, 1))


def test_a_container_may_be_filled_in_and_given_back():
    def dynamics(state, action):
        state["x"] = state["x"] + action
        return state

    state = {"x": torch.zeros(2, 1)}
    assert rollout(dynamics, state, torch.ones(2, 3, 1))["x"][0, :, 0].tolist() == [0, 1, 2, 3]
    assert (state["x"] == 0).all()

    def adds(state, action):
        state["y"] = action
        return state

    with pytest.raises(ValueError, match=r"dynamics: expected a next state of the structure of the state"):
        rollout(adds, state, torch.ones(2, 3, 1))


def test_states_that_stay_may_be_given_back_as_they_are():
    states = rollout(lambda s, u: (s[0] + u, s[1], s[2].view_as(s[2])), (torch.zeros(1), torch.ones(2), torch.ones(3)),
                     torch.ones(3, 1))  # fmt: skip
    assert states[0].squeeze(-1).tolist() == [0, 1, 2, 3]
    with torch.inference_mode():
        assert rollout(lambda s, u: s + u, torch.zeros(1), torch.ones(3, 1)).squeeze(-1).tolist() == [0, 1, 2, 3]


def writes(first, *others):
    first += 1.0
    return first.sum(-1) * 0.0


@pytest.mark.parametrize("name", ["cost", "terminal_cost", "constraint", "continues", "decoder"])
def test_costs_that_write_to_states_are_named(name):
    functions = {"dynamics": lambda s, u: s + u, "cost": square, name: writes}
    if name == "decoder":
        functions |= {"decoder": lambda z: z.mul_(2.0).unsqueeze(-1), "latent_shape": 4}
    mpc = MPC(functions.pop("dynamics"), functions.pop("cost"), 4, 1, gradient=dcem.Detach(), **functions)
    with pytest.raises(ValueError, match=f"{name}: expected to leave .* as they are, got them changed in place"):
        mpc(torch.ones(2, 1), generator=seeded())


def test_plans_share_no_memory_with_what_a_model_fills_again():
    whole, decoded = torch.zeros(0), torch.zeros(0)

    class Model(Whole):
        def rollout(self, state, actions):
            nonlocal whole
            states = super().rollout(state, actions)
            whole = whole.resize_(states.shape).copy_(states)
            return whole

    def decoder(z):
        nonlocal decoded
        decoded = decoded.resize_(*z.shape, 1).copy_(z.unsqueeze(-1))
        return decoded

    mpc = MPC(Model(), square, 4, 1, decoder=decoder, latent_shape=4, gradient=dcem.Detach(), num_iterations=2)
    first = mpc(torch.ones(2, 1), generator=seeded())
    kept = first.states.clone(), first.actions.clone()
    mpc(-torch.ones(2, 1), generator=seeded(1))
    assert torch.equal(first.states, kept[0])
    assert torch.equal(first.actions, kept[1])


# --- what fails -------------------------------------------------------------------------------------------------------


def diverges_beyond(limit, ignored=False):
    """Beyond the limit a state is NaN; with ``ignored`` in a part that no cost looks at."""

    def dynamics(state, action):
        lost = torch.where(action.abs() > limit, torch.nan, 0.0)
        return torch.cat([state[..., :1] + action + (0.0 if ignored else lost), state[..., 1:] + lost], -1)

    return dynamics


def ahead(state, action):
    return (state[..., 0] - 3.0).square() + 0.0 * action[..., 0] - action[..., 0]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("horizon", [1, 3])
def test_a_candidate_whose_last_state_diverges_is_not_chosen(whole, ignored, horizon):
    dynamics = diverges_beyond(0.5, ignored)
    if whole:
        step = dynamics
        dynamics = Whole()
        dynamics.rollout = lambda state, actions: rollout(step, state, actions)
    mpc = MPC(
        dynamics,
        ahead,
        horizon,
        1,
        None,
        dcem.CEM(200, 10, dcem.HardTopK(), init_std=0.5),
        num_iterations=4 + 2 * (horizon == 3),
    )
    plan = mpc(torch.zeros(3, 2), generator=seeded())
    assert (plan.status == dcem.Status.OK).all()
    assert plan.states.isfinite().all()
    assert plan.actions.abs().max() <= 0.5
    assert plan.actions[:, -1].min() > 0.3  # as far as it may


def test_a_plan_that_cannot_be_followed_says_so():
    """Candidates left and right of an obstacle are fine, and their mean is not."""

    def dynamics(state, action):
        return state + torch.where(action.abs() < 0.2, torch.nan, action)

    mpc = MPC(dynamics, lambda s, u: (u.abs() - 1).square().sum(-1), 2, 1, None,
              dcem.CEM(200, 100, dcem.LML(1.0), init_std=1.0), num_iterations=1)  # fmt: skip
    plan = mpc(torch.zeros(2, 1), generator=seeded())
    assert plan.cost.isnan().all()
    assert (plan.status == dcem.Status.NONFINITE).all()
    best = MPC(dynamics, lambda s, u: (u.abs() - 1).square().sum(-1), 2, 1, None,
               dcem.CEM(200, 100, dcem.LML(1.0), init_std=1.0), num_iterations=1, answer="best")  # fmt: skip
    plan = best(torch.zeros(2, 1), generator=seeded())
    assert plan.cost.isfinite().all()
    assert (plan.status == dcem.Status.OK).all()


def test_what_diverges_after_the_end_of_an_episode_has_not_failed():
    def dynamics(state, action):
        alive = state[..., 1:] * (state[..., :1] < 2)
        return torch.cat([torch.where(alive == 0, torch.inf, state[..., :1] + action), alive], -1)

    options = {"num_iterations": 2, "init_mean": 1.0, "init_std": 0.01, "gradient": dcem.Detach()}
    plan = MPC(dynamics, ahead, 5, 1, continues=lambda s: s[..., 1], **options)(
        torch.tensor([0.0, 1.0]), generator=seeded()
    )
    assert plan.status == dcem.Status.OK
    assert plan.cost.isfinite()
    assert plan.states[-1].isinf().any()
    assert MPC(dynamics, ahead, 5, 1, **options)(torch.tensor([0.0, 1.0])).status == dcem.Status.NONFINITE


def test_numbers_that_are_infinite_from_the_start_may_stay_so():
    mpc = MPC(lambda s, u: torch.cat([s[..., :1] + u, s[..., 1:]], -1), ahead, 3, 1)
    plan = mpc(torch.tensor([0.0, math.inf]), generator=seeded())
    assert plan.status == dcem.Status.OK


@pytest.mark.parametrize("risk", [dcem.control.Mean(), dcem.control.WorstCase(), dcem.control.CVaR(0.3)])
def test_a_candidate_fails_with_any_of_its_particles(risk):
    limits = torch.tensor([0.4, 9.0, 9.0]).reshape(3, 1, 1, 1)
    mpc = MPC(diverges_beyond(limits), ahead, 2, 1, None, dcem.CEM(200, 10, dcem.HardTopK(), init_std=0.5),
              num_particles=3, risk=risk)  # fmt: skip
    plan = mpc(torch.zeros(2, 2), generator=seeded())
    assert (plan.status == dcem.Status.OK).all()
    assert plan.actions.abs().max() <= 0.4


def test_integer_costs_are_reported_as_what_they_are():
    for name in ("cost", "terminal_cost"):
        functions = {"cost": square, name: lambda s, *u: s.long().sum(-1)}
        with pytest.raises(TypeError, match=f"^{name}: expected floating-point values, got torch.int64"):
            MPC(lambda s, u: s + u, functions.pop("cost"), 3, 1, **functions)(torch.zeros(1))


def test_cvar_counts_whole_particles():
    from fractions import Fraction

    costs = torch.arange(100.0)
    for particles in range(1, 101):
        for percent in range(1, 101):
            count = math.ceil(Fraction(percent, 100) * particles)
            if count == math.ceil(percent / 100 * particles) and (particles + percent) % 20:
                continue  # 119 pairs are where the floating-point product is off, the others a sample
            worst = (particles - 1 + particles - count) / 2
            assert dcem.control.CVaR(percent / 100)(costs[:particles]).item() == pytest.approx(worst)


@pytest.mark.cpu
def test_a_simulator_in_numpy_is_told_where_it_belongs():
    says = r"dynamics: expected a next state of .*, got ndarray; make a Tensor .*; a simulator in NumPy .*PoolRollout"
    with pytest.raises(ValueError, match=says):
        rollout(lambda x, u: x.numpy() + u.numpy(), torch.zeros(1), torch.ones(3, 1))
    with pytest.raises(
        TypeError, match=r"state: expected a tensor .*, got a dict of an ndarray of shape \(1,\); make a T"
    ):
        rollout(torch.add, {"x": np.zeros(1)}, torch.ones(3, 1))


class Summed(nn.Module):
    """With a rollout of its own step."""

    def forward(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return x + u

    @torch.jit.export
    def rollout(self, x: torch.Tensor, us: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.unsqueeze(-2), x.unsqueeze(-2) + us.cumsum(-2)], -2)


class Pushed(Summed):
    def forward(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return x + u + 10.0


class Holder(nn.Module):
    """Its rollout is a module."""

    def __init__(self) -> None:
        super().__init__()
        self.rollout = OfHolder()

    def forward(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        raise AssertionError("expected to be asked for the whole sequence")


class OfHolder(nn.Module):
    def forward(self, x: torch.Tensor, us: torch.Tensor) -> torch.Tensor:
        return Summed().rollout(x, us)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: torch.compile(net, backend="eager"), torch.jit.script])
@pytest.mark.parametrize(("kind", "push"), [(Summed, 0.0), (Pushed, 10.0)])
def test_wrapped_dynamics_are_followed_by_their_step(wrap, kind, push) -> None:
    states = rollout(wrap(kind()), torch.zeros(2, 1), torch.ones(2, 3, 1))
    torch.testing.assert_close(states[0, :, 0], (1 + push) * torch.arange(4.0))


def test_a_rollout_that_is_a_module_is_asked() -> None:
    states = rollout(Holder(), torch.zeros(2, 1), torch.ones(2, 3, 1))
    torch.testing.assert_close(states[0, :, 0], torch.arange(4.0))


def test_a_generator_that_was_bound_stays() -> None:
    mine, other = torch.Generator(), torch.Generator()

    def noisy(x, u, generator=None):
        return x + u + torch.randn(x.shape, generator=generator)

    mpc = MPC(functools.partial(noisy, generator=mine), lambda x, u: x.square().sum(-1), 2, 1)
    mpc(torch.zeros(1), generator=other.manual_seed(0))
    assert not torch.equal(mine.get_state(), torch.Generator().get_state())


def drawn_without_default(x, u, generator):
    return x + torch.rand(x.shape, generator=generator)


class Drawing(torch.nn.Module):
    def forward(self, x, u, generator):
        return drawn_without_default(x, u, generator)


@pytest.mark.parametrize("dynamics", [drawn_without_default, Drawing()])
def test_dynamics_that_want_a_generator_get_none_where_there_is_none(dynamics):
    def seeded():
        torch.manual_seed(0)
        return rollout(dynamics, torch.zeros(1), torch.zeros(3, 1))

    assert torch.equal(seeded(), seeded())
    MPC(dynamics, lambda x, u: x.square().sum(-1), 3, 1)(torch.zeros(1))


def test_a_generator_of_their_own_is_kept_where_there_is_no_other():
    def drawn(x, u, generator=torch.Generator().manual_seed(1)):  # noqa: B008
        assert generator is not None
        return x + torch.rand(x.shape, generator=generator)

    expected = torch.rand(3, generator=torch.Generator().manual_seed(1)).cumsum(0)
    torch.testing.assert_close(rollout(drawn, torch.zeros(1), torch.zeros(3, 1))[1:, 0], expected)


def test_dims_of_another_structure_are_named():
    state = {"a": torch.zeros(2, 1)}
    for dims in ({"b": 1}, {"a": 1, "b": 1}, (1,), {"a": (1, 2)}):
        with pytest.raises(ValueError, match="^state_dims: expected an int, or ints in the structure of the state"):
            rollout(lambda x, u: x, state, torch.zeros(2, 3, 1), state_dims=dims)


def test_what_rolls_out_need_not_be_called():
    class Simulator:
        def rollout(self, state, actions):
            return torch.cat([state.unsqueeze(-2), state.unsqueeze(-2) + actions.cumsum(-2)], -2)

    assert rollout(Simulator(), torch.zeros(1), torch.ones(3, 1)).flatten().tolist() == [0.0, 1.0, 2.0, 3.0]


class Shown(dict):
    """Its items are its attributes."""

    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        self.__dict__ = self


def test_a_dict_that_shows_its_items_elsewhere_is_a_plain_one():
    """There they would be those of the first state."""
    states = rollout(lambda x, u: Shown(place=x["place"] + u), Shown(place=torch.zeros(1)), torch.ones(3, 1))
    assert type(states) is dict
    assert states["place"].flatten().tolist() == [0, 1, 2, 3]


def test_dynamics_that_answer_every_name_are_called():
    anything = Mock(side_effect=lambda x, u: x + u)
    assert rollout(anything, torch.zeros(1), torch.ones(3, 1)).flatten().tolist() == [0, 1, 2, 3]


def test_a_signature_that_is_another_ones():
    def inner(x, u):
        return x + u

    def outer(x, u, generator=None):
        return inner(x, u)

    outer.__signature__ = inspect.signature(inner)
    assert rollout(outer, torch.zeros(1), torch.ones(2, 1)).flatten().tolist() == [0, 1, 2]
