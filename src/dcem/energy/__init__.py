"""Energy-based models: predictions that are the minimisers of learned functions."""

from dcem.energy.functions import MLPEnergy
from dcem.energy.model import EnergyModel

__all__ = ["EnergyModel", "MLPEnergy"]
