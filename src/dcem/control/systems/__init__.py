"""Systems to control, differentiable in state, action and physical parameters."""

from dcem.control.systems.acrobot import Acrobot
from dcem.control.systems.base import System
from dcem.control.systems.cartpole import Cartpole
from dcem.control.systems.pendulum import Pendulum
from dcem.control.systems.point_mass import PointMass
from dcem.control.systems.quadrotor import Quadrotor

__all__ = ["Acrobot", "Cartpole", "Pendulum", "PointMass", "Quadrotor", "System"]
