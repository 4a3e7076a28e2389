"""The memory that the gradient modes promise, on the benchmark's rollout of a recurrent model."""

import pytest
import torch

import dcem
from gradient_modes import ACTION, HORIZON, Rollout, solve
from memory import PeakMemory


def peak(mode: dcem.GradientMode) -> int:
    noise = torch.randn(10, 100, HORIZON, ACTION, generator=torch.Generator().manual_seed(0))
    with PeakMemory() as memory:
        solve(Rollout(), mode, 0.3, noise)
    return memory.peak


@pytest.fixture(scope="module")
def unroll() -> int:
    return peak(dcem.Unroll())


@pytest.mark.parametrize(("mode", "share"), [(dcem.Checkpoint(), 0.15), (dcem.Prune(0.2), 0.3)], ids=repr)
def test_peak_memory_is_a_fraction_of_unrolling(mode, share, unroll):
    assert peak(mode) < share * unroll


def test_the_counter_counts():
    with PeakMemory() as memory:
        kept = torch.zeros(1000)
        for _ in range(5):
            kept + 1  # made and freed
    assert 8000 <= memory.peak < 9000
