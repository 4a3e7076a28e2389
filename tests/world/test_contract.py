"""The contract holds for the smallest model that one would write, and turns down one that breaks it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from world_contract import ACTION, OBSERVATION, WorldModelContract, make_sequences

from dcem.world import WorldModel


class Linear(WorldModel):
    """The state is what is seen, moves linearly and costs a learned quadratic."""

    def __init__(self) -> None:
        super().__init__(OBSERVATION, ACTION)
        self.dynamics = nn.Linear(OBSERVATION + ACTION, OBSERVATION)
        self.scale = nn.Parameter(torch.rand(OBSERVATION + ACTION))

    def initial(self, batch_shape: tuple[int, ...] = ()) -> Tensor:
        return self.scale.new_zeros(*batch_shape, OBSERVATION)

    def observe(self, belief: Tensor, action: Tensor, observation: Tensor) -> Tensor:
        self.check(belief, action, observation)
        return observation.to(belief)

    def imagine(self, belief: Tensor, action: Tensor) -> Tensor:
        self.check(belief, action)
        return self.dynamics(torch.cat([belief, action], -1))

    def cost(self, belief: Tensor, action: Tensor) -> Tensor:
        self.check(belief, action)
        return (self.scale * torch.cat([belief, action], -1).square()).sum(-1)

    def loss(self, sequences: Any) -> dict[str, Tensor]:
        observation, action, reward, _, _ = self.read(sequences)
        error = (self.imagine(observation, action)[:, :-1] - observation[:, 1:]).square().mean()
        losses = {"loss_dynamics": error, "loss_reward": (self.cost(observation, action) + reward).square().mean()}
        return {**losses, "error": error.detach()}


class TestLinear(WorldModelContract):
    planned_through = ("dynamics", "scale")

    def make(self) -> WorldModel:
        return Linear()


class Mixing(Linear):
    def imagine(self, belief: Tensor, action: Tensor) -> Tensor:
        return super().imagine(belief, action) + belief.flatten(0, -2).mean(0)


class Forgetful(Linear):
    def imagine(self, belief: Tensor, action: Tensor) -> Tensor:
        return super().imagine(belief, action).detach()


class Attached(Linear):
    def loss(self, sequences: Any) -> dict[str, Tensor]:
        losses = super().loss(sequences)
        return {**losses, "error": losses["loss_dynamics"]}


@pytest.mark.parametrize(
    ("model", "test"),
    [
        (Mixing, "test_mates_in_a_batch_do_not_matter"),
        (Forgetful, "test_gradients_reach_the_parameters_through_imagination"),
        (Attached, "test_losses_are_scalars_and_the_rest_is_detached"),
    ],
)
def test_the_contract_finds(model: type[Linear], test: str) -> None:
    class Contract(TestLinear):
        def make(self) -> WorldModel:
            return model()

    with pytest.raises((AssertionError, RuntimeError)):
        getattr(Contract(), test)()


def test_sizes_are_checked() -> None:
    class Sized(Linear):
        def __init__(self, observation_size: int, action_size: int) -> None:
            WorldModel.__init__(self, observation_size, action_size)

    with pytest.raises(ValueError, match="observation_size: expected at least 1, got 0"):
        Sized(0, 1)
    with pytest.raises(TypeError, match="action_size: expected an int"):
        Sized(1, 1.5)


def test_a_model_without_parameters_reads_sequences() -> None:
    """One that somebody wrote down, instead of learning it."""

    class Known(Linear):
        def __init__(self) -> None:
            WorldModel.__init__(self, OBSERVATION, ACTION)

    model, sequences = Known(), make_sequences(dtype=torch.float64)
    assert model.read(sequences).reward.dtype == torch.float64
    model.register_buffer("steps", torch.tensor(0))
    model.register_buffer("mass", torch.tensor(1.0))
    assert model.read(sequences).reward.dtype == torch.float32


def test_rewards_without_a_last_axis_are_taken() -> None:
    torch.manual_seed(0)
    model, sequences = Linear(), make_sequences()
    flat = sequences.clone()
    for key in ("reward", "terminated"):
        flat["next", key] = flat["next", key].squeeze(-1)
    for name, value in model.loss(sequences).items():
        assert torch.equal(value, model.loss(flat)[name])
