"""Plant, data, and the states that models are chosen and tested by."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dcem.experiments.harness.training import choose_device
from dcem.experiments.mismatch.settings import Config
from dcem.experiments.mismatch.task import Plant, Transitions, transitions

DATA_SEED, VALID_SEED, TEST_SEED = 1_000, 2_000, 3_000
"""The states that models are chosen and tested by are those of every run; the data are the seed's own."""


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
    train, valid, test = (transitions(plant, *size, torch.Generator(device).manual_seed(seed)) for seed in seeds)
    valid_states = plant.sample_states(config.num_valid, torch.Generator(device).manual_seed(VALID_SEED))
    test_states = plant.sample_states(config.num_test, torch.Generator(device).manual_seed(TEST_SEED))
    return Task(plant, train, valid, test, valid_states, test_states)
