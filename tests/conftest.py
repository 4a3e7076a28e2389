"""What all tests share."""

import contextlib
import os
import sys
from functools import cache
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

# dm_control logs by absl, whose handler closes its stream when Hydra sets up logging, unless that is the process's own:
# pytest's capture would be closed, and every test after it fail.
with contextlib.suppress(ImportError):
    from absl import logging as absl_logging

    absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__

# What the tests make is made on this device, those of the GPU on a GPU: `make gpu`.
DEVICE = os.environ.get("DCEM_TEST_DEVICE", "cpu")


@cache
def _set_up() -> None:
    import torch
    from hypothesis import HealthCheck, settings

    # The same examples in every run, and no clock: neither a deadline nor "too slow".
    settings.register_profile(
        "dcem", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("dcem")
    if DEVICE == "cpu":
        return

    global _Generator  # where pickle finds it

    class _Generator(torch.Generator):
        """One that is of that device where it is not said of which; those that torch makes for itself stay on the CPU."""

        def __new__(cls, device: torch.device | str | None = None) -> "_Generator":
            ours = not sys._getframe(1).f_globals["__name__"].startswith("torch")
            return super().__new__(cls, device if device is not None else DEVICE if ours else "cpu")

    torch.set_default_device(DEVICE)
    torch.Generator = _Generator  # type: ignore[misc]


def pytest_collectstart() -> None:
    """Before the first test is imported; the process that hands the tests out to others collects none."""
    _set_up()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Two processes that share the tests have to name them alike."""
    assert " at 0x" not in item.nodeid, f"{item.nodeid}: expected ids without addresses"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Some of what is tested is of the CPU."""
    if DEVICE != "cpu" and item.get_closest_marker("cpu"):
        pytest.skip("on the CPU alone: an error that takes a look at values, NumPy, or the numbers of a seed")


@pytest.fixture
def backend() -> str:
    """What `torch.compile` does with the graphs it captures: run them. Inductor's code for all of them takes minutes."""
    return os.environ.get("DCEM_TEST_BACKEND", "aot_eager_default_partitioner")


@pytest.fixture
def generator() -> "torch.Generator":
    """A generator that is the same in each test."""
    import torch

    return torch.Generator().manual_seed(0)
