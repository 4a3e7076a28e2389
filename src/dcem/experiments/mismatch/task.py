"""The plant of the experiment on objective mismatch, what is known of it, and the states to choose and test by."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dcem.control.systems import Pendulum
from dcem.experiments.harness.settings import choose_device
from dcem.experiments.mismatch.settings import DATA_SEED, TEST_SEED, VALID_SEED, Config
from dcem.world import Transitions, transitions

DT = 0.1
"""Seconds a step: two of Gymnasium's."""
TASK_DIMS = 3
"""Numbers of the state that matter: `(cos θ, sin θ, θ̇)`."""


class Plant(nn.Module):
    """The pendulum, observed along with numbers that have dynamics of their own and cost nothing.

    State: `(cos θ, sin θ, θ̇)`, then `num_distractors` numbers: points that go round circles, 0.3 to 1.2 rad a step.
    """

    turn: Tensor

    def __init__(self, num_distractors: int = 0) -> None:
        super().__init__()
        self.pendulum = Pendulum(dt=DT)
        self.bounds, self.num_states = self.pendulum.bounds, TASK_DIMS + num_distractors
        angles = torch.linspace(0.3, 1.2, num_distractors // 2).tolist()
        turns = [torch.tensor([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]]) for a in angles]
        self.register_buffer("turn", torch.zeros(num_distractors, num_distractors))
        for i, turn in enumerate(turns):
            self.turn[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = turn

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """The next state."""
        return torch.cat([self.pendulum(state[..., :TASK_DIMS], action), state[..., TASK_DIMS:] @ self.turn], -1)

    def cost(self, state: Tensor, action: Tensor) -> Tensor:
        """Gymnasium's, of the pendulum alone."""
        return self.pendulum.cost(state[..., :TASK_DIMS], action)

    def sample_states(self, num: int, generator: torch.Generator) -> Tensor:
        """Initial states: any angle, the pendulum all but at rest; the points anywhere on their circles."""
        device = generator.device
        pendulum = self.pendulum.sample_states(num, generator=generator, device=device)
        shape = (num, (self.num_states - TASK_DIMS) // 2)
        phase = 2 * math.pi * torch.rand(shape, generator=generator, device=device)
        return torch.cat([pendulum, torch.stack([phase.cos(), phase.sin()], -1).flatten(1)], -1)


@torch.no_grad()
def explored(plant: Plant, num_episodes: int, length: int, generator: torch.Generator) -> Transitions:
    """What random actions show of the plant."""
    low, high = plant.bounds
    actions = low + (high - low) * torch.rand(num_episodes, length, 1, generator=generator, device=generator.device)
    return transitions(plant, plant.sample_states(num_episodes, generator), actions)


class Task(NamedTuple):
    """A plant, what is known of it, and the states that controllers are chosen and tested by."""

    plant: Plant
    train: Transitions
    valid: Transitions
    test: Transitions
    valid_states: Tensor
    test_states: Tensor


def make_task(config: Config, num_distractors: int = 0) -> Task:
    """Plant, data and states."""
    device = choose_device(config.device)
    plant = Plant(num_distractors).to(device)
    seeds = (DATA_SEED + config.seed, VALID_SEED + config.seed, TEST_SEED + config.seed)
    size = (config.num_episodes, config.episode_length)
    train, valid, test = (explored(plant, *size, torch.Generator(device).manual_seed(seed)) for seed in seeds)
    valid_states = plant.sample_states(config.num_valid, torch.Generator(device).manual_seed(VALID_SEED))
    test_states = plant.sample_states(config.num_test, torch.Generator(device).manual_seed(TEST_SEED))
    return Task(plant, train, valid, test, valid_states, test_states)
