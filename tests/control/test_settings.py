"""What a controller's attributes do when they are set, loaded or filled; warm starts as constants; checks at construction."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import dcem
from dcem.control import MPC, Compiled, closed_loop, rollout
from dcem.control.systems import Pendulum


def step(state, action):
    return state + 0.1 * action


def cost(state, action):
    return state.square().sum(-1) + 0.01 * action.square().sum(-1)


def controller(**options):
    settings = {"solver": dcem.CEM(32, 4), "num_iterations": 3, **options}
    return MPC(settings.pop("dynamics", step), settings.pop("cost", cost), settings.pop("horizon", 4),
               settings.pop("action_shape", 2), **settings)  # fmt: skip


def plan_of(mpc, state=None, **options):
    state = torch.tensor([[1.0, -1.0], [0.5, 2.0], [-2.0, 0.0]]) if state is None else state
    return mpc(state, generator=torch.Generator().manual_seed(0), **options)


# --- attributes ------------------------------------------------------------------------------------------------------

OTHERS = {
    "dynamics": lambda s, a: s + 0.2 * a,
    "cost": lambda s, a: (s - 1).square().sum(-1),
    "terminal_cost": lambda s: 5 * s.square().sum(-1),
    "constraint": lambda s: s[..., 0] - 0.5,
    "discount": 0.5,
    "continues": lambda s: torch.sigmoid(s[..., 0]),
    "proposals": lambda state, horizon, num: torch.full((3, num, horizon, 2), -0.7),
    "bounds": (-0.2, 0.2),
    "solver": dcem.CEM(32, 8, dcem.HardTopK()),
    "num_iterations": 1,
    "num_particles": 2,
    "noise": dcem.ColoredNoise(2.0, dim=-2),
    "answer": "best",
    "init_mean": 0.5,
    "init_std": 0.2,
    "action_rate_cost": 0.7,
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_setting_that_is_set_is_as_if_constructed(name):
    value = OTHERS[name]
    mpc, constructed = controller(), controller(**{name: value})
    before = plan_of(mpc)
    setattr(mpc, name, value)
    after, expected = plan_of(mpc), plan_of(constructed)
    assert torch.equal(after.actions, expected.actions)
    assert torch.equal(after.cost, expected.cost)
    assert not (torch.equal(after.actions, before.actions) and torch.equal(after.cost, before.cost)
                and after.states.shape == before.states.shape)  # fmt: skip


@pytest.mark.parametrize("how", ["filled", "loaded", "set", "copied", "functional"])
def test_weights_that_were_zero_at_construction_count_when_they_are_not(how):
    mpc, expected = controller(), plan_of(controller(action_rate_cost=3.0))
    if how == "filled":
        mpc.action_rate_cost.fill_(3.0)
    elif how == "loaded":
        mpc.load_state_dict(controller(action_rate_cost=3.0).state_dict())
    elif how == "set":
        mpc.action_rate_cost = torch.tensor(3.0)
    elif how == "copied":
        mpc.action_rate_cost.copy_(torch.tensor(3.0))
    if how == "functional":
        state = torch.tensor([[1.0, -1.0], [0.5, 2.0], [-2.0, 0.0]])
        plan = torch.func.functional_call(mpc, {"action_rate_cost": torch.tensor(3.0)}, (state,),
                                          {"generator": torch.Generator().manual_seed(0)})  # fmt: skip
    else:
        plan = plan_of(mpc)
    assert torch.equal(plan.actions, expected.actions)
    assert torch.equal(plan.cost, expected.cost)
    assert not torch.equal(plan.cost, plan_of(controller()).cost)


def test_a_learned_weight_that_is_zero_receives_its_gradient():
    mpc = controller(action_rate_cost=torch.nn.Parameter(torch.zeros(2)))
    plan_of(mpc).cost.sum().backward()
    assert (mpc.action_rate_cost.grad > 0).all()


@pytest.mark.parametrize("name", ["horizon", "action_shape", "latent_shape"])
def test_shapes_refuse_to_be_set(name):
    mpc = controller()
    with pytest.raises(AttributeError, match=f"{name}: expected to stay as constructed, .* needs another MPC"):
        setattr(mpc, name, 3)
    assert plan_of(mpc).actions.shape == (3, 4, 2)


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("dynamics", 3, TypeError, "dynamics: expected a callable, got 3"),
        ("gradient", "unroll", TypeError, r"gradient: expected a gradient mode such as dcem.Unroll\(\), got 'unroll'"),
        ("risk", 0.3, TypeError, "risk: expected a callable, got 0.3"),
        ("solver", "cem", TypeError, "solver: expected a dcem solver"),
        ("num_iterations", 0, ValueError, "num_iterations: expected at least 1"),
        ("num_particles", 1.5, TypeError, "num_particles: expected an int"),
        ("chunk_size", -1, ValueError, "chunk_size: expected at least 1"),
        ("constraint_weight", -1.0, ValueError, "constraint_weight: expected a finite number >= 0, got -1.0"),
        ("constraint_weight", math.nan, ValueError, "constraint_weight: expected a finite number >= 0, got nan"),
        ("action_rate_cost", -0.1, ValueError, "action_rate_cost: expected numbers >= 0 and finite, got -0.1"),
        ("action_rate_cost", math.inf, ValueError, "action_rate_cost: expected numbers >= 0 and finite, got inf"),
        ("action_rate_cost", torch.tensor([1.0, -1.0]), ValueError, "action_rate_cost: expected numbers >= 0"),
        ("action_rate_cost", torch.ones(3), ValueError, r"action_rate_cost: expected .* the action \(2,\), got \(3,\)"),
        ("init_std", -1.0, ValueError, "init_std: expected numbers >= 0"),
        ("init_std", torch.ones(3), ValueError, r"init_std: expected .* \(horizon, \*a\) \(4, 2\), got \(3,\)"),
        ("init_mean", None, TypeError, "init_mean: expected a number or a tensor, got None"),
        ("discount", 1.5, ValueError, r"discount: expected a number in \(0, 1\]"),
        ("answer", "median", ValueError, "answer: expected one of mean, best, last"),
        ("bounds", (1.0, -1.0), ValueError, "bounds: expected low <= high"),
        ("latent_bounds", (-1.0, 1.0), ValueError, "latent_bounds: expected None without a decoder"),
    ],
)
def test_bad_settings_are_refused_at_construction_and_afterwards(name, value, error, message):
    with pytest.raises(error, match=message):
        controller(**{name: value})
    mpc = controller()
    with pytest.raises(error, match=message):
        setattr(mpc, name, value)
    plan_of(mpc)


@pytest.mark.cpu
@pytest.mark.parametrize("integer", [np.int64, torch.tensor], ids=lambda i: i.__name__)
def test_counts_may_be_integers_of_any_library(integer):
    for name in ("horizon", "num_iterations", "num_particles", "num_proposals", "chunk_size"):
        options = {"proposals": lambda state, horizon, num: torch.zeros(3, num, horizon, 2)} if "prop" in name else {}
        mpc = controller(**{name: integer(2)}, **options)
        assert type(getattr(mpc, name)) is int
        assert plan_of(mpc).actions.isfinite().all()


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda dims: controller(state_dims=dims)(torch.zeros(3, 2)), TypeError, "state_dims: expected an int, got"),
        (lambda dims: rollout(torch.add, torch.zeros(2), torch.ones(3, 2), state_dims=dims), TypeError, "state_dims: "),
        (lambda dims: rollout(torch.add, torch.zeros(2), torch.ones(3, 2), action_dims=dims), TypeError, "action_dims"),
        (lambda dims: rollout(torch.add, torch.zeros(2), dims), TypeError, r"actions: expected a Tensor \(\*batch, H"),
        (lambda dims: rollout(dims, torch.zeros(2), torch.ones(3, 2)), TypeError, "dynamics: expected a callable, got"),
        (lambda dims: closed_loop(dims, torch.add, torch.zeros(2), 2), TypeError, "policy: expected a callable, got"),
        (lambda dims: closed_loop(abs, dims, torch.zeros(2), 2), TypeError, "plant: expected a callable, got"),
        (lambda dims: closed_loop(abs, torch.add, dims, 2), TypeError, r"state: expected a Tensor \(\*batch, s\)"),
    ],
)
def test_arguments_of_a_rollout_are_named(call, error, message):
    for given in (None, 0.5, "x"):
        with pytest.raises(error, match=f"^{message}"):
            call(given)


@pytest.mark.cpu
def test_numbers_of_axes_are_not_negative():
    with pytest.raises(ValueError, match="^state_dims: expected at least 0, got -1"):
        MPC(torch.add, lambda x, u: x.square(), 3, (), state_dims=-1)(torch.zeros(4))
    with pytest.raises(ValueError, match="^action_dims: expected at least 0, got -1"):
        rollout(torch.add, torch.zeros(2), torch.ones(3, 2), action_dims=-1)


def test_a_weight_that_was_filled_or_learned_below_zero_is_refused():
    mpc = controller(action_rate_cost=torch.nn.Parameter(torch.zeros(2)))
    with torch.no_grad():
        mpc.action_rate_cost.sub_(0.1)
    with pytest.raises(ValueError, match="action_rate_cost: expected numbers >= 0 and finite"):
        plan_of(mpc)


def test_decoders_are_replaced_by_decoders_of_the_same_shapes():
    spline = dcem.embedding.SplineDecoder(2, (4, 2))
    mpc = controller(decoder=torch.nn.Sequential(torch.nn.Unflatten(-2, (2, 1)), torch.nn.Flatten(-3, -2),
                                                 torch.nn.Upsample(scale_factor=1)), latent_shape=(2, 2))  # fmt: skip
    mpc.decoder = spline
    assert torch.equal(plan_of(mpc).actions, plan_of(controller(decoder=spline)).actions)
    with pytest.raises(ValueError, match=r"latent_shape: expected that of the decoder, \(3, 2\), got \(2, 2\)"):
        mpc.decoder = dcem.embedding.SplineDecoder(3, (4, 2))
    with pytest.raises(ValueError, match=r"decoder: expected one that gives \(horizon, \*a\) = \(4, 2\)"):
        mpc.decoder = dcem.embedding.SplineDecoder(2, (5, 2))
    with pytest.raises(ValueError, match="latent_shape: expected None without a decoder"):
        mpc.decoder = None


@pytest.mark.parametrize("shape", ["1", 1.0, (1, "2"), None])
def test_action_shapes_are_of_ints(shape):
    with pytest.raises(TypeError, match="action_shape: expected an int or a sequence of ints"):
        controller(action_shape=shape)


def test_a_space_says_its_shape():
    gymnasium = pytest.importorskip("gymnasium")
    with pytest.raises(
        TypeError, match=r"action_shape: expected an int or a sequence of ints, got Box.*; its shape is \(2,\)"
    ):
        controller(action_shape=gymnasium.spaces.Box(-1.0, 1.0, (2,)))


def test_systems_take_what_is_set():
    system, state, action = Pendulum(), torch.tensor([[0.0, 1.0, 0.5]]), torch.tensor([[3.0]])
    for name, value in {"dt": 0.1, "bounds": (-4.0, 4.0), "gravity": 5.0, "mass": 2.0, "length": 0.5, "damping": 0.1,
                        "constant_torque": 0.3, "max_speed": 0.1}.items():  # fmt: skip
        before = system(state, action)
        setattr(system, name, value)
        assert not torch.equal(system(state, action), before), name


def test_what_is_printed_tells_what_is_planned():
    text = repr(controller(bounds=(-1.0, 1.0)))
    for part in ("MPC(", "horizon=4", "action_shape=(2,)", "bounds=(-1.0, 1.0)", "solver=CEM(num_samples=32",
                 "num_iterations=3", "gradient=Unroll()", "dynamics=step", "cost=cost"):  # fmt: skip
        assert part in text
    assert len(text.splitlines()) < 20
    assert "num_particles=2" in repr(controller(num_particles=2))
    assert "Pendulum(" in repr(MPC(Pendulum(), Pendulum().cost, 3, 1))


# --- warm starts -----------------------------------------------------------------------------------------------------


class Learned(torch.nn.Module):
    latent_shape, event_shape = (3,), (4, 2)

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weight = torch.nn.Parameter(torch.randn(8, 3, generator=generator))
        self.back = torch.nn.Parameter(torch.randn(3, 8, generator=generator))

    def forward(self, z):
        return (z @ self.weight.T).unflatten(-1, (4, 2))

    def encode(self, actions):
        return actions.flatten(-2) @ self.back.T


@pytest.mark.parametrize("gradient", [dcem.Unroll(), dcem.Truncate(1), dcem.Implicit(), dcem.Checkpoint()], ids=str)
def test_a_learned_encoder_is_a_constant_of_the_warm_start(gradient):
    decoder = Learned()
    mpc = controller(decoder=decoder, gradient=gradient)
    plan = plan_of(mpc, warm_start=plan_of(mpc))
    plan.actions.square().sum().backward()
    assert decoder.back.grad is None
    assert decoder.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("decoder", [None, Learned()], ids=["actions", "decoder"])
def test_a_row_of_a_warm_start_that_is_not_finite_starts_afresh(decoder):
    options = {} if decoder is None else {"decoder": decoder}
    mpc = controller(action_rate_cost=1.0, **options)
    before = plan_of(mpc)
    actions = before.actions.detach().clone()
    actions[1, 2] = math.nan
    noise = torch.randn(3, 3, 32, *mpc.latent_shape, generator=torch.Generator().manual_seed(1))
    broken = plan_of(mpc, warm_start=dataclasses.replace(before, actions=actions), noise=noise)
    warm = plan_of(mpc, warm_start=before, noise=noise)
    fresh = plan_of(mpc, noise=noise)
    assert torch.equal(broken.actions[[0, 2]], warm.actions[[0, 2]])
    assert torch.equal(broken.actions[1], fresh.actions[1])
    assert torch.equal(broken.cost[1], fresh.cost[1])
    assert not torch.equal(warm.actions[1], fresh.actions[1])


def test_a_latent_that_is_not_finite_starts_afresh():
    mpc = MPC(step, cost, 4, 2, None, dcem.CEM(32, 4), decoder=lambda z: z.unflatten(-1, (4, 2)), latent_shape=8)
    before = plan_of(mpc)
    before.distribution.mean.data[0, 0] = math.inf
    assert plan_of(mpc, warm_start=before).actions.isfinite().all()


@pytest.mark.parametrize("reset", [True, False])
def test_single_problems_with_single_actions_may_be_reset(reset):
    mpc = MPC(lambda s, a: s + a, lambda s, a: (s - 2).square() + a.square(), 3, (), state_dims=0)
    noise = torch.randn(10, 100, 3, generator=torch.Generator().manual_seed(0))
    first = mpc(torch.tensor(0.5), noise=noise)
    again = mpc(torch.tensor(0.5), warm_start=first, reset=torch.tensor(reset), noise=noise)
    assert again.action.shape == ()
    assert torch.equal(again.actions, first.actions) is reset
    for answer in ("best", "last"):
        latent = MPC(lambda s, a: s + a, lambda s, a: (s - a).square(), 3, (), state_dims=0, answer=answer,
                     decoder=lambda z: z.unsqueeze(-1).expand(*z.shape, 3), latent_shape=())  # fmt: skip
        plan = latent(torch.tensor(0.5))
        assert latent(torch.tensor(0.5), warm_start=plan, reset=torch.tensor(reset)).action.shape == ()


# --- compiled rollouts -----------------------------------------------------------------------------------------------


def test_compiled_dynamics_have_limits_of_their_own(monkeypatch):
    """Recompilations of one controller's rollout must not use up those of the others."""
    calls = []

    def backend(graph, inputs):
        calls.append(len(graph.graph.nodes))
        return graph.forward

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda fn, **options: compile_(fn, backend=backend, **options))
    with torch._dynamo.config.patch(recompile_limit=3):
        for number in range(2):
            compiled = Compiled(lambda s, a, number=number: s + a * (number + 1.0))
            for horizon in (1, 2):
                states = compiled.rollout(torch.zeros(2, 1), torch.ones(2, horizon, 1))
                assert states[0, -1].item() == horizon * (number + 1.0)
    assert len(calls) == 4


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("dynamics", "imagine"),
        ("cost", "cost"),
        ("terminal_cost", "terminal_cost"),
        ("proposals", "propose"),
    ],
)
def test_a_world_model_in_the_place_of_its_method_is_refused(name, method):
    """Its call is its loss, which would fail in the first plan."""
    model = dcem.world.LatentModel(2, 2)
    with pytest.raises(TypeError, match=f"^{name}: expected world_model.{method}, got the model itself, LatentModel"):
        controller(**{name: model})


def test_a_learned_distribution_to_start_from_is_the_controllers() -> None:
    def make(mean: torch.Tensor) -> MPC:
        init = dcem.Gaussian(mean, torch.ones(4, 1), event_dims=2)
        return MPC(torch.add, lambda x, u: x.square().sum(-1), 4, 1, None, dcem.CEM(20, 5), num_iterations=1, init=init)

    learned, other = make(torch.nn.Parameter(torch.full((4, 1), 0.3))), make(torch.zeros(4, 1))
    assert [name for name, _ in learned.named_parameters()] == ["init_mean"]
    other.load_state_dict(learned.state_dict())
    noise = torch.randn(1, 20, 4, 1)
    assert torch.equal(*(mpc(torch.ones(1), noise=noise).actions for mpc in (learned, other)))
    (slope,) = torch.autograd.grad(learned(torch.ones(1), noise=noise).actions.sum(), learned.init_mean)
    assert slope.abs().sum() > 0
    learned.double()
    assert learned.init.mean.dtype == torch.float64
    learned.init = None
    assert learned.init is None
    assert learned.init_std is None
    assert not list(learned.parameters())
    learned.init_std = 0.5
    with pytest.raises(ValueError, match="init: expected None, or init_mean and init_std left alone"):
        learned.init = dcem.Gaussian(torch.zeros(4, 1), 1.0, event_dims=2)


def test_no_distribution_in_the_place_of_none_leaves_mean_and_std() -> None:
    mpc = MPC(torch.add, lambda x, u: x.square().sum(-1), 4, 1, init_mean=0.3, init_std=2.0)
    mpc.init = None
    assert mpc.init_mean == pytest.approx(0.3)
    assert mpc.init_std == 2.0
