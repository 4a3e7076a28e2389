"""Learned values against those of a solved Markov reward process."""

import torch
from markov_reward import ACTION, STATES, draw_sequences, learned_values, values
from world_contract import total

from dcem.world import LatentModel


def test_a_latent_model_learns_the_values_of_a_solved_process() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = LatentModel(STATES, ACTION, latent_size=16, group_size=4, hidden=32, discount=0.5, target_rate=0.2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        total(model.loss(draw_sequences(64, 2, generator))).backward()
        optimizer.step()
        model.update_target()
    torch.testing.assert_close(learned_values(model), values(0.5), rtol=0, atol=0.1)
