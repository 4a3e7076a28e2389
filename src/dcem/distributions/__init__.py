"""What is sampled: distributions and their noise."""

import torch

from dcem.distributions.base import Distribution
from dcem.distributions.gaussian import FullGaussian, Gaussian
from dcem.distributions.noise import ColoredNoise, WhiteNoise

__all__ = ["ColoredNoise", "Distribution", "FullGaussian", "Gaussian", "WhiteNoise"]

torch.serialization.add_safe_globals([Gaussian, FullGaussian])  # plain data, for torch.load(weights_only=True)
