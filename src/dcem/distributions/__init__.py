"""What is sampled: distributions and their noise."""

import torch

from dcem.distributions.base import Distribution
from dcem.distributions.categorical import Categorical
from dcem.distributions.gaussian import FullGaussian, Gaussian
from dcem.distributions.mixture import Mixture
from dcem.distributions.noise import ColoredNoise, WhiteNoise
from dcem.distributions.product import Product
from dcem.distributions.shifted import Shifted

__all__ = [
    "Categorical",
    "ColoredNoise",
    "Distribution",
    "FullGaussian",
    "Gaussian",
    "Mixture",
    "Product",
    "Shifted",
    "WhiteNoise",
]

# Plain data, for torch.load(weights_only=True).
torch.serialization.add_safe_globals([Categorical, FullGaussian, Gaussian, Mixture, Product, Shifted])
