"""What all tests share."""

import pytest
import torch

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device there is."""
    return torch.device(request.param)


@pytest.fixture
def generator() -> torch.Generator:
    """A generator that is the same in each test."""
    return torch.Generator().manual_seed(0)
