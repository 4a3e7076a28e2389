import torch
from torch import nn
from world_contract import ACTION, HIGH, LOW, OBSERVATION, WorldModelContract

from dcem.world import LatentModel


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
    assert ((small(terminates=True).continues(torch.rand(3, 16)) - 0.5).abs() < 0.5).all()
