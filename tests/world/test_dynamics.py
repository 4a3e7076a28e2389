"""Networks that are fitted to transitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dcem.world import DynamicsNet, Transitions, transitions


def explored(plant, states: Tensor, dtype: torch.dtype) -> Transitions:
    actions = torch.randn(len(states), 6, 2, dtype=dtype)
    actions[..., 1] = 0.1  # an input that nothing moves
    return transitions(plant, states.to(dtype), actions)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_that_do_not_vary_are_on_their_own_scale(dtype: torch.dtype) -> None:
    """A goal, a clock and an unused action: of equal numbers, too, the computed deviation is seldom exactly 0."""

    def plant(state: Tensor, action: Tensor) -> Tensor:
        goal, clock, place = state.unbind(-1)
        return torch.stack([goal, clock + 0.1, place + action[..., 0]], -1)

    torch.manual_seed(0)
    start = torch.stack([torch.full((5,), 0.1), torch.rand(5), torch.randn(5)], -1)
    data = explored(plant, start, dtype)
    net = DynamicsNet(8, data).to(dtype)
    inputs = torch.cat([data.state, data.action], -1)
    assert (net.input_scale == 1).tolist() == [True, False, False, False, True]
    assert (net.change_scale == 1).tolist() == [True, True, False]
    torch.testing.assert_close(net.input_scale[1:4], inputs.std(0)[1:4])
    errors = net.squared_errors(data)
    assert (errors < 1e3).all()
    errors.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def test_small_numbers_that_vary_keep_their_scale() -> None:
    torch.manual_seed(0)
    data = explored(lambda state, action: state + 1e-20 * action[..., :1], 1e-20 * torch.randn(5, 1), torch.float32)
    net = DynamicsNet(8, data)
    assert net.input_scale[0] < 1e-19
    assert net.change_scale[0] < 1e-19
    assert net(data.state, data.action).isfinite().all()


def test_a_single_transition_is_enough() -> None:
    data = Transitions(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5]]), torch.tensor([[1.5, 2.0]]))
    net = DynamicsNet(4, data)
    net.squared_errors(data).sum().backward()
    assert net.inner.weight.grad.isfinite().all()
    assert (net.change_scale == 1).all()


@pytest.mark.parametrize("name", ["inner", "outer"])
def test_a_layer_of_another_class_counts(name: str) -> None:
    """Its weights are there, and do not say what it does."""

    class Adapter(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1.0

    torch.manual_seed(0)
    data = Transitions(torch.randn(9, 3), torch.randn(9, 2), torch.randn(9, 3))
    net, state, actions = DynamicsNet(8, data), torch.randn(4, 3), torch.randn(4, 5, 2)
    handle = getattr(net, name).register_forward_hook(lambda layer, given, result: result + 1.0)
    expected, step = net.rollout(state, actions), net(state, actions[:, 0])
    handle.remove()
    assert (net.rollout(state, actions) - expected).abs().max() > 0.1
    getattr(net, name).__class__ = Adapter
    torch.testing.assert_close(net.rollout(state, actions), expected)
    torch.testing.assert_close(net(state, actions[:, 0]), step)


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*")
def test_weights_that_a_hook_makes_are_trained() -> None:
    torch.manual_seed(0)
    data = Transitions(torch.randn(9, 3), torch.randn(9, 2), torch.randn(9, 3))
    net = DynamicsNet(8, data)
    state, actions = torch.randn(4, 3), torch.randn(4, 5, 2)
    expected = net.rollout(state, actions)
    for layer in (net.inner, net.outer):
        handle = layer.register_forward_hook(lambda layer, given, result: result)
        torch.testing.assert_close(net.rollout(state, actions), expected)
        handle.remove()
    for layer in (net.inner, net.outer):
        torch.nn.utils.spectral_norm(layer)
    net.squared_errors(data).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (
            Transitions(torch.zeros(40, 100, 3), torch.zeros(40, 100, 1), torch.zeros(40, 100, 3)),
            ValueError,
            r"data.state: expected \(n, s\), got \(40, 100, 3\); .*flatten\(0, 1\)",
        ),
        (Transitions(torch.zeros(9), torch.zeros(9, 1), torch.zeros(9)), ValueError, r"data.state: .*, got \(9,\)$"),
        (
            Transitions(torch.zeros(9, 3), np.zeros((9, 1)), torch.zeros(9, 3)),
            TypeError,
            r"data.action: expected a Tensor \(n, a\), got ndarray; make a Tensor of an array",
        ),
        (
            (torch.zeros(9, 3), torch.zeros(9, 1), torch.zeros(9, 3)),
            TypeError,
            r"data: expected Transitions\(state, action, after\), got a tuple of a Tensor",
        ),
        (
            Transitions(torch.zeros(9, 3), torch.zeros(8, 1), torch.zeros(9, 3)),
            ValueError,
            "data.action: expected one for each of the 9 states, got 8",
        ),
        (
            Transitions(torch.zeros(9, 3), torch.zeros(9, 1), torch.zeros(1, 3)),
            ValueError,
            r"data.after: expected the shape of data.state, \(9, 3\), got \(1, 3\)",
        ),
        (
            Transitions(torch.zeros(0, 3), torch.zeros(0, 1), torch.zeros(0, 3)),
            ValueError,
            "data: expected at least one",
        ),
    ],
)
def test_data_of_another_form_are_refused(data, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        DynamicsNet(4, data)
    net = DynamicsNet(4, Transitions(torch.randn(9, 3), torch.randn(9, 1), torch.randn(9, 3)))
    with pytest.raises(error, match=says):
        net.squared_errors(data)


@pytest.mark.parametrize("has_hook", [False, True])
def test_states_and_actions_of_other_sizes_are_refused(has_hook: bool) -> None:
    """Three states of four numbers are as many numbers as four states of three."""
    net = DynamicsNet(4, Transitions(torch.randn(9, 3), torch.randn(9, 1), torch.randn(9, 3)))
    if has_hook:
        net.inner.register_forward_hook(lambda layer, given, result: result)
    with pytest.raises(ValueError, match=r"state: expected \(\*batch, 3\), got \(3, 4\)"):
        net(torch.zeros(3, 4), torch.zeros(4, 1))
    with pytest.raises(
        ValueError, match=r"action: expected \(\*batch, 1\) with the state's batch \(5,\), got \(5, 2\)"
    ):
        net(torch.zeros(5, 3), torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"action: expected .* batch \(5,\), got \(1, 1\)"):
        net(torch.zeros(5, 3), torch.zeros(1, 1))
    with pytest.raises(ValueError, match=r"actions: expected \(\*batch, H, 1\) .* batch \(5,\), got \(5, 1\)"):
        net.rollout(torch.zeros(5, 3), torch.zeros(5, 1))
    with pytest.raises(TypeError, match=r"state: expected a Tensor \(\*batch, 3\), got ndarray"):
        net(np.zeros((5, 3)), torch.zeros(5, 1))
    assert net(torch.zeros(3), torch.zeros(1)).shape == (3,)
    assert net.rollout(torch.zeros(2, 5, 3), torch.zeros(2, 5, 2, 1)).shape == (2, 5, 3, 3)


@pytest.mark.parametrize(("batch", "horizon"), [((2,), 0), ((0,), 3), ((2, 0), 0), ((), 0), ((), 2)])
@pytest.mark.parametrize("has_hook", [False, True])
def test_nothing_to_follow_is_followed(batch: tuple[int, ...], horizon: int, has_hook: bool) -> None:
    data = explored(lambda state, action: state + action[..., :1], torch.randn(5, 1), torch.float32)
    net = DynamicsNet(8, data)
    if has_hook:
        net.inner.register_forward_hook(lambda *_: None)
    state = torch.randn(*batch, 1)
    states = net.rollout(state, torch.randn(*batch, horizon, 2))
    assert states.shape == (*batch, horizon + 1, 1)
    assert states[..., 0, :].equal(state)
    assert net(state, torch.randn(*batch, 2)).shape == (*batch, 1)


def test_transitions_are_of_a_batch_of_sequences() -> None:
    with pytest.raises(ValueError, match=r"states: expected \(m, s\), got \(3,\)"):
        transitions(torch.add, torch.zeros(3), torch.zeros(4, 3))
    with pytest.raises(TypeError, match="states: expected a Tensor"):
        transitions(torch.add, np.zeros((2, 3)), torch.zeros(2, 4, 3))


def test_states_far_from_zero_are_learned_as_those_about_zero() -> None:
    """A position in metres from somewhere else: only the changes count."""

    def error(offset: float) -> float:
        torch.manual_seed(0)

        def plant(state: Tensor, action: Tensor) -> Tensor:
            place, speed = state[..., :1], state[..., 1:]
            pull = torch.sin(30 * (place - offset))
            return torch.cat([place + 0.02 * speed, speed - 0.1 * pull + 0.1 * action[..., :1]], -1)

        start = torch.cat([offset + 0.1 * torch.randn(64, 1), torch.randn(64, 1)], -1)
        data = explored(plant, start, torch.float64)
        net = DynamicsNet(16, data)
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(60):
            loss = net.squared_errors(data).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    assert error(50.0) == pytest.approx(error(0.0), rel=1e-3)


def test_the_layers_have_the_precision_of_the_data() -> None:
    data = explored(lambda state, action: state + action[..., :1], torch.randn(5, 1), torch.float64)
    assert DynamicsNet(8, data)(data.state, data.action).dtype == torch.float64


def test_under_autocast_the_change_alone_is_in_half_precision() -> None:
    """A state of which the last digits are lost at each step goes elsewhere."""
    data = explored(lambda state, action: state + 0.01 * action[..., :1], 100 + torch.randn(5, 1), torch.float32)
    net = DynamicsNet(8, data)
    actions = torch.randn(5, 20, 2)
    exact = net.rollout(data.state[:5], actions)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net.rollout(data.state[:5], actions)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.02 * (exact - data.state[:5, None]).abs().max() + 1e-4


def test_data_that_are_not_finite_or_no_floating_point_numbers_are_refused() -> None:
    numbers, whole = torch.zeros(3, 1), torch.zeros(3, 1, dtype=torch.int64)
    lost = torch.tensor([[0.0], [torch.nan], [1.0]])
    with pytest.raises(
        ValueError, match="^data.after: expected finite floating-point numbers, got 1 of 3 that are not"
    ):
        DynamicsNet(4, Transitions(numbers, numbers, lost))
    with pytest.raises(ValueError, match="^data.state: expected finite floating-point numbers, got torch.int64"):
        DynamicsNet(4, Transitions(whole, numbers, whole))


def test_errors_are_differentiated_where_nothing_can_be_looked_at() -> None:
    data = explored(lambda state, action: state + 0.1 * action[..., :1], torch.randn(5, 1), torch.float32)
    net = DynamicsNet(8, data)
    expected = net.squared_errors(data)
    compiled = torch.compile(net.squared_errors, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(data), expected)
    twice = Transitions(*(torch.stack([part, part]) for part in data))
    both = torch.func.vmap(lambda *parts: net.squared_errors(Transitions(*parts)))(*twice)
    torch.testing.assert_close(both, expected.expand(2, -1))
    nowhere = Transitions(*(part.to("meta") for part in data))
    assert DynamicsNet(8, nowhere).to("meta").squared_errors(nowhere).shape == (1,)


def test_a_net_that_was_saved_before_its_inputs_were_centred_is_that_net() -> None:
    data = explored(lambda state, action: state + 0.1 * action[..., :1], torch.randn(5, 1), torch.float32)
    net = DynamicsNet(8, data)
    old = {name: value for name, value in net.state_dict().items() if name != "input_mean"}
    net.load_state_dict(old)
    assert net.input_mean.equal(torch.zeros(3))
