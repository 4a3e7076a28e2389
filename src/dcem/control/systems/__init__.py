"""Systems to control, differentiable in state, action and physical parameters."""

from dcem.control.systems.base import System
from dcem.control.systems.cartpole import Cartpole
from dcem.control.systems.pendulum import Pendulum

__all__ = ["Cartpole", "Pendulum", "System"]
