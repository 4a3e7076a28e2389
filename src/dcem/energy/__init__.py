"""Energy-based models: predictions that are the minimisers of learned functions."""

from dcem.energy.base import ConditionedEnergy, Energy
from dcem.energy.convolutional import ConvEnergy
from dcem.energy.feed_forward import FeedForwardEnergy
from dcem.energy.icnn import ICNN
from dcem.energy.likelihood import log_likelihood
from dcem.energy.losses import contrastive_loss, end_to_end_loss
from dcem.energy.mlp import MLPEnergy
from dcem.energy.model import EnergyModel
from dcem.energy.spen import SPEN

__all__ = [
    "ICNN",
    "SPEN",
    "ConditionedEnergy",
    "ConvEnergy",
    "Energy",
    "EnergyModel",
    "FeedForwardEnergy",
    "MLPEnergy",
    "contrastive_loss",
    "end_to_end_loss",
    "log_likelihood",
]
