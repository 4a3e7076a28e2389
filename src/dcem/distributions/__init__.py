"""What is sampled: distributions and their noise."""

from dcem.distributions.base import Distribution
from dcem.distributions.gaussian import FullGaussian, Gaussian
from dcem.distributions.noise import ColoredNoise, WhiteNoise

__all__ = ["ColoredNoise", "Distribution", "FullGaussian", "Gaussian", "WhiteNoise"]
