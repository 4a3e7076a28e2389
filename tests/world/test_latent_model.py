import pytest
import torch
from torch import nn
from world_contract import ACTION, HIGH, LOW, OBSERVATION, WorldModelContract, make_sequences

import dcem
from dcem.control import MPC
from dcem.world import LatentModel
from dcem.world.two_hot import TwoHot, symexp, symlog


def small(**options) -> LatentModel:
    """With rewards and values that are not all zero, as they are at the start."""
    model = LatentModel(OBSERVATION, ACTION, (LOW, HIGH), latent_size=16, group_size=4, hidden=32, **options)
    for head in (model.reward, *model.values):
        nn.init.normal_(head[-1].weight, std=0.1)
    return model


class TestLatentModel(WorldModelContract):
    planned_through = ("encoder", "dynamics", "reward")
    falling = ("loss_consistency", "loss_reward", "loss_value")  # the policy's is minus the value of a changing goal

    def make(self) -> LatentModel:
        return small()


class TestWithEnds(WorldModelContract):
    planned_through = ("encoder", "dynamics", "reward")
    falling = ("loss_consistency", "loss_reward", "loss_value")  # the policy's is minus the value of a changing goal

    def make(self) -> LatentModel:
        return small(terminates=True)


def test_only_a_model_of_episodes_that_end_says_whether_they_go_on():
    assert not hasattr(small(), "continues")
    assert getattr(small(), "continues", None) is None
    with pytest.raises(AttributeError, match="continues: expected a model built with terminates=True"):
        _ = small().continues
    with pytest.raises(AttributeError, match="'LatentModel' object has no attribute 'continuing'"):
        _ = small().continuing
    assert ((small(terminates=True).continues(torch.rand(3, 16)) - 0.5).abs() < 0.5).all()


def test_of_no_environments_nothing_is_asked():
    model = small(terminates=True)
    belief = model.observe(model.initial((0,)), torch.zeros(0, ACTION), torch.zeros(0, OBSERVATION))
    assert model.imagine(belief, torch.zeros(0, ACTION)).shape == belief.shape == (0, 16)
    assert model.propose(belief, 3, 2).shape == (0, 2, 3, ACTION)


@pytest.mark.parametrize("where", ["class", "object"])
def test_the_policy_of_ones_own_is_learned_and_planned_with(where):
    def act(model, belief):
        return model.own(belief).tanh()

    model = small()
    if where == "class":
        model.__class__ = type("Own", (LatentModel,), {"act": act})
    else:
        model.act = lambda belief: act(model, belief)
    model.own = nn.Linear(16, ACTION)
    belief = torch.rand(3, 16)
    expected = model.own(belief).tanh()
    torch.testing.assert_close(model.propose(belief, 1, 2)[:, 0, 0], expected)
    torch.testing.assert_close(model.terminal_cost(belief), -model.value(belief, expected))
    model.loss(make_sequences())["loss_policy"].backward()
    assert (model.own.weight.grad != 0).any()


class Space:
    low, high = [-1.0] * ACTION, [2.0] * ACTION


def test_bounds_are_given_as_to_a_controller():
    assert LatentModel(OBSERVATION, ACTION, Space()).high.tolist() == [2.0] * ACTION
    for bounds, error, message in (
        (1.0, TypeError, "bounds: expected a pair"),
        (([0.0] * (ACTION + 1), 1.0), ValueError, r"bounds\[0\]: expected a shape that broadcasts to the event"),
        ((None, 1.0), ValueError, "bounds: expected finite low < high"),
        ((0.0, 0.0), ValueError, "bounds: expected finite low < high"),
    ):
        with pytest.raises(error, match=message):
            LatentModel(OBSERVATION, ACTION, bounds)


def test_actions_that_the_policy_could_not_propose_are_refused_where_it_learns_of_them() -> None:
    """Bounds of 1 left at their default where the environment's are 2: all proposals would be half of what is allowed."""
    model = LatentModel(OBSERVATION, ACTION, latent_size=16, group_size=4, hidden=32)
    sequences = make_sequences()
    full = sequences["action"].sign()
    sequences["action"] = 1.0005 * full  # what float16 or another's clipping leaves
    assert model.loss(sequences)["loss_policy"].isfinite()
    sequences["action"] = 2.0 * full
    with pytest.raises(
        ValueError, match=r"action: expected numbers inside the model's bounds, -1 to 1, got .* -2 to 2"
    ):
        model.loss(sequences)


def test_an_end_is_not_left_out_in_silence() -> None:
    """Without the successor the last step, the only one that can be an end, is not learned from."""
    sequences = make_sequences()
    del sequences["next", "observation"]
    sequences["next", "terminated"][:] = 0
    ended = sequences.clone()
    ended["next", "terminated"][0, -1] = True
    for model, data in ((small(terminates=True), sequences), (small(), ended)):
        with pytest.raises(ValueError, match=r'expected the key \("next", "observation"\) where episodes end'):
            model.loss(data)
    assert small().loss(sequences)["loss_value"].isfinite()


def test_the_default_precision_is_the_models() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        model = small()
        assert (
            model.observe(model.initial((2,)), torch.zeros(2, ACTION), torch.zeros(2, OBSERVATION)).dtype
            == torch.float64
        )
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_policy_driven_far_out_of_the_bounds_comes_back() -> None:
    """There tanh is flat: without a pull of its own it would stay, whatever the values say."""
    torch.manual_seed(0)
    model = LatentModel(observation_size=3, action_size=2, latent_size=16, hidden=16)
    last = model.policy[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([30.0, -30.0]))
    model._policy_loss(torch.rand(8, 16)).mean().backward()
    assert last.bias.grad is not None
    assert (last.bias.grad * last.bias > 0).all()


def test_no_number_has_no_place_between_the_bins() -> None:
    """NaN as an index is out of range: on a GPU that ends the process."""
    numbers = TwoHot()
    target = torch.tensor([2.0, torch.nan, -torch.inf, torch.inf, 0.0])
    encoded = numbers.encode(target)
    assert encoded.isnan().any(-1).tolist() == [False, True, False, False, False]
    assert encoded[2, 0] == encoded[3, -1] == 1
    assert numbers.loss(torch.zeros(5, 101), target).isnan().tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("num_bins", [2, 3, 100, 101])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_even_logits_stand_for_nothing_and_have_a_gradient(num_bins: int, dtype: torch.dtype) -> None:
    logits = torch.full((3, num_bins), 0.7, dtype=dtype, requires_grad=True)
    decoded = TwoHot(num_bins).decode(logits)
    assert torch.equal(decoded, torch.zeros(3, dtype=dtype))
    (slope,) = torch.autograd.grad(decoded.sum(), logits)
    torch.testing.assert_close(slope[0], torch.linspace(-10, 10, num_bins).to(dtype) / num_bins)


def test_the_logarithmic_scale_has_the_slope_of_one_at_0() -> None:
    for fn in (symlog, symexp):
        x = torch.tensor([0.0, -0.0, 1.5, -1.5], dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(fn(x).sum(), x)
        assert slope[:2].tolist() == [1.0, 1.0]
        assert torch.autograd.gradcheck(fn, x[2:])


def test_a_model_that_has_learned_nothing_does_not_plan_by_rounding() -> None:
    torch.manual_seed(0)
    model = LatentModel(OBSERVATION, ACTION, (LOW, HIGH), latent_size=16, group_size=4, hidden=16, terminates=True)
    mpc = MPC(
        model.imagine, model.cost, 3, ACTION, (LOW, HIGH), dcem.CEM(16, 4, dcem.LML(1.0)), num_iterations=2,
        terminal_cost=model.terminal_cost, continues=model.continues,
    )  # fmt: skip
    plan = mpc(model.encode(torch.randn(4, OBSERVATION)))
    assert torch.equal(plan.cost, torch.zeros(4))
    plan.action.sum().backward()
    assert all(p.grad is None or bool((p.grad.abs() < 1e3).all()) for p in model.parameters())


def test_whole_numbers_are_numbers() -> None:
    x = torch.tensor([-3, 0, 5])
    assert torch.equal(TwoHot().encode(x), TwoHot().encode(x.float()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_encoded_and_decoded_in_single(dtype: torch.dtype) -> None:
    numbers, x = TwoHot().to(dtype), torch.tensor([-3.0, 0.0, 5.5, 37.0], dtype=dtype)
    torch.testing.assert_close(numbers.encode(x), TwoHot().encode(x.float()))
    logits = 20 * TwoHot().encode(x.float())
    decoded = numbers.decode(logits.to(dtype))
    assert decoded.dtype == dtype
    torch.testing.assert_close(decoded, TwoHot().decode(logits.to(dtype).float()).to(dtype))
    assert numbers.loss(logits.to(dtype), x).dtype == torch.float32
