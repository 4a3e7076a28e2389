"""What all tests share."""

import contextlib
import sys

import pytest
import torch

# dm_control logs by absl, whose handler closes its stream when Hydra sets up logging, unless that is the process's own:
# pytest's capture would be closed, and every test after it fail.
with contextlib.suppress(ImportError):
    from absl import logging as absl_logging

    absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device there is."""
    return torch.device(request.param)


@pytest.fixture
def generator() -> torch.Generator:
    """A generator that is the same in each test."""
    return torch.Generator().manual_seed(0)
