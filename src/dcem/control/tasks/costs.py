"""Rewards of dm_control's tasks as costs of states and actions, and what leads to them where they are flat."""

from __future__ import annotations

import torch
from torch import Tensor


def near(distance: Tensor, radius: float, margin: float) -> Tensor:
    """1 within `radius`, then the bell that has come down to 0.1 at `margin` beyond it, as dm_control's `tolerance`."""
    beyond = (distance.abs() - radius).clamp(min=0) / margin
    return torch.exp(-2.302585 * beyond.square())


def effort(action: Tensor) -> Tensor:
    """dm_control's price of control, from 1 for none to 0.8 for all."""
    return (4 + (1 - action.square()).mean(-1)) / 5


def cartpole_cost(state: Tensor, action: Tensor) -> Tensor:
    """The task's own reward, which is smooth: position, angle (upright at 0), their speeds."""
    position, angle, _, spin = state.unbind(-1)
    centred = (1 + near(position, 0.0, 2.0)) / 2
    slow = (1 + near(spin, 0.0, 5.0)) / 2
    return -(1 + angle.cos()) / 2 * centred * slow * effort(action)


def acrobot_distance(state: Tensor) -> Tensor:
    """From the tip to the target, straight above; both angles are 0 there."""
    upper, lower = state[..., 0], state[..., 0] + state[..., 1]
    return torch.hypot(upper.sin() + lower.sin(), upper.cos() + lower.cos() - 2)


def acrobot_cost(state: Tensor, action: Tensor) -> Tensor:
    """The task's reward is flat farther than 1 m from the target, so the distance is added; and some for speed, which
    the reward leaves free.
    """
    distance = acrobot_distance(state)
    return distance / 4 - near(distance, 0.2, 1.0) + 0.001 * state[..., 2:].square().sum(-1)


def reacher_distance(state: Tensor) -> Tensor:
    """From the finger to the target, whose place is the last two numbers of a state."""
    arm, hand = state[..., 0], state[..., 0] + state[..., 1]
    x, y = 0.12 * (arm.cos() + hand.cos()), 0.12 * (arm.sin() + hand.sin())
    return torch.hypot(x - state[..., 4], y - state[..., 5])


def reacher_cost(state: Tensor, action: Tensor) -> Tensor:
    """The task's reward is 1 within 2 cm of the target and else 0: the distance leads there, a bell holds it."""
    distance = reacher_distance(state)
    return 5 * distance - near(distance, 0.01, 0.02) + 0.001 * state[..., 2:4].square().sum(-1)


def point_mass_distance(state: Tensor) -> Tensor:
    """From the mass to the target, the origin."""
    return torch.hypot(state[..., 0], state[..., 1])


def point_mass_cost(state: Tensor, action: Tensor) -> Tensor:
    """The task's reward is flat farther than 3 cm from the target, so the distance is added."""
    distance = point_mass_distance(state)
    return 5 * distance - near(distance, 0.015, 0.015) * effort(action)


def cheetah_cost(state: Tensor, action: Tensor) -> Tensor:
    """The task's reward is its speed, up to 10 m/s; backwards it costs, where the reward is flat."""
    return -(state[..., -3] / 10).clamp(max=1)


def walker_cost(state: Tensor, action: Tensor) -> Tensor:
    """The task's own reward: a torso that is high, upright and moves at 1 m/s or more; backwards it costs."""
    height, tilt, speed = 1.3 + state[..., 0], state[..., 2], state[..., -3]
    stands = (3 * near((1.2 - height).clamp(min=0), 0.0, 0.6) + (1 + tilt.cos()) / 2) / 4
    return -stands * (5 * speed.clamp(max=1) + 1) / 6


COSTS = {
    "cartpole": cartpole_cost,
    "acrobot": acrobot_cost,
    "acrobot-hanging": acrobot_cost,
    "reacher": reacher_cost,
    "point-mass": point_mass_cost,
    "cheetah": cheetah_cost,
    "walker": walker_cost,
}
