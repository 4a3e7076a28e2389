"""A small controller, a model that remembers, and environments that say what they were given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import dcem
from dcem.control import MPC
from dcem.control.systems import Pendulum
from dcem.world import WorldModel


class Filter(WorldModel):
    """Believes in a running mean of what it sees, and in the sum of the actions since the start."""

    def __init__(self) -> None:
        super().__init__(3, 1)
        self.rate = nn.Parameter(torch.tensor(0.5))
        self.goal = nn.Parameter(torch.tensor(1.0))

    def initial(self, batch_shape: tuple[int, ...] = ()) -> dict[str, Tensor]:
        return {"mean": self.rate.new_full((*batch_shape, 3), 7.0), "sum": self.rate.new_zeros(*batch_shape, 1)}

    def observe(self, belief: dict[str, Tensor], action: Tensor, observation: Tensor) -> dict[str, Tensor]:
        mean = belief["mean"] + self.rate * (observation - belief["mean"])
        return {"mean": mean, "sum": belief["sum"] + action}

    def imagine(self, belief: dict[str, Tensor], action: Tensor) -> dict[str, Tensor]:
        return {"mean": belief["mean"] + 0.1 * action, "sum": belief["sum"] + action}

    def cost(self, belief: dict[str, Tensor], action: Tensor) -> Tensor:
        off = belief["mean"][..., 1:2] - self.goal
        return (off.square() + 0.1 * belief["sum"].square() + 0.1 * action.square()).sum(-1)

    def loss(self, sequences: object) -> dict[str, Tensor]:
        return {"loss_goal": self.goal.square(), "goal": self.goal.detach()}


def pendulum_mpc(mass: float | Tensor = 1.3, **options: object) -> MPC:
    model = Pendulum(mass=mass)
    settings = {"solver": dcem.CEM(12, 3, dcem.LML(0.1)), "num_iterations": 2, "init_std": 1.0, **options}
    return MPC(model, model.cost, 5, 1, model.bounds, **settings)


def filter_mpc(model: Filter, **options: object) -> MPC:
    settings = {"solver": dcem.CEM(12, 3, dcem.LML(0.1)), "num_iterations": 2, **options}
    return MPC(model.imagine, model.cost, 4, 1, (-2.0, 2.0), **settings)


def pendulum_env() -> object:
    from torchrl.envs import GymEnv

    return GymEnv("Pendulum-v1")


def short_pendulum_env() -> object:
    """Its episodes end after five steps."""
    from torchrl.envs import GymEnv, StepCounter, TransformedEnv

    return TransformedEnv(GymEnv("Pendulum-v1"), StepCounter(max_steps=5))


def exact_pendulum_env() -> object:
    """In float64: what depends on the batch that a step is computed in is far below what a test looks at."""
    from torchrl.envs import DTypeCastTransform

    exact = DTypeCastTransform(torch.float32, torch.float64, in_keys=["observation"], in_keys_inv=["action"])
    return short_pendulum_env().append_transform(exact)  # type: ignore[attr-defined]


@torch.no_grad()
def collected(
    actor: object, frames: int = 24, make: Callable[[], object] = short_pendulum_env, num: int = 2, **options: object
) -> Any:
    """Steps of an actor, `(num, frames / num)`, as a collector makes them that carries what it remembers."""
    from torchrl.collectors import Collector
    from torchrl.envs import SerialEnv

    collector = Collector(
        SerialEnv(num, make), actor, frames_per_batch=frames, total_frames=frames,
        auto_register_policy_transforms=True, **options,
    )  # fmt: skip
    collector.set_seed(0)
    (data,) = list(collector)
    collector.shutdown()
    return data
