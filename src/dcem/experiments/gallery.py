"""Each system of `dcem.control.systems` under model-predictive control, as a GIF: the pictures of the documentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

import dcem
from dcem import plotting
from dcem.control import MPC, systems
from dcem.experiments.run import Run
from dcem.experiments.training import choose_device, require

GROUPS: dict[str, dict[str, Any]] = {}


class Scene(NamedTuple):
    """A system, where it starts, how far the controller looks ahead, and for how long it acts."""

    system: Callable[[], systems.System]
    start: tuple[float, ...]
    horizon: int
    num_steps: int


SCENES = {
    "pendulum": Scene(systems.Pendulum, (-1.0, 0.0, 0.0), 25, 120),
    "cartpole": Scene(systems.Cartpole, (0.0, 0.0, -1.0, 0.0, 0.0), 20, 100),
    "acrobot": Scene(lambda: systems.Acrobot(max_torque=5.0, dt=0.1), (1.0, 0.0, 1.0, 0.0, 0.0, 0.0), 30, 120),
    "quadrotor": Scene(systems.Quadrotor, (-1.5, 1.0, 0.4, 0.9165, 0.0, -0.5, 0.0), 20, 80),
    "point-mass": Scene(systems.PointMass, (-2.0, 0.1, 0.0, 0.0), 25, 60),
}


@dataclass
class Config:
    """Settings of `dcem gallery`."""

    scenes: list[str] = field(default_factory=lambda: list(SCENES))
    num_samples: int = 300
    num_elites: int = 30
    num_iterations: int = 4
    seed: int = 0
    device: str = "cpu"
    threads: int = 1


def check(config: Config) -> None:
    """Refuse settings that cannot be run."""
    for key in ("num_samples", "num_elites", "num_iterations", "threads"):
        require(getattr(config, key) >= 1, key, "at least 1", getattr(config, key))
    require(config.num_elites <= config.num_samples, "num_elites", "at most num_samples", config.num_elites)
    require(bool(config.scenes) and set(config.scenes) <= set(SCENES), "scenes", ", ".join(SCENES), config.scenes)


def main(config: Config, run: Run) -> dict[str, float]:
    """Control each system and film it; returns the mean cost of a step, and of the last tenth of the steps."""
    device = choose_device(config.device)
    metrics: dict[str, float] = {}
    for name in config.scenes:
        scene = SCENES[name]
        system = scene.system().to(device)
        states, costs = controlled(system, scene, config, device)
        path = run.folder / f"{name}.gif"
        plotting.save_gif(path, plotting.frames(system, states.cpu()), 1 / system.dt)
        run.say(f"film {path}")
        last = costs[-max(1, len(costs) // 10) :]
        metrics |= {f"{name}_cost": float(costs.mean()), f"{name}_last_cost": float(last.mean())}
    run.log(0, **metrics)
    run.finish(**metrics)
    return metrics


@torch.no_grad()
def controlled(system: systems.System, scene: Scene, config: Config, device: torch.device) -> tuple[Tensor, Tensor]:
    """The states `(T + 1, *s)` of a closed loop, and what its steps cost, `(T,)`."""
    low, high = (float(bound) for bound in system.bounds)
    mpc = MPC(
        system,
        system.cost,
        scene.horizon,
        system.action_shape,
        system.bounds,
        dcem.CEM(config.num_samples, config.num_elites, dcem.HardTopK()),
        num_iterations=config.num_iterations,
        init_mean=(low + high) / 2,
        init_std=(high - low) / 3,
        noise=dcem.ColoredNoise(2.0, dim=-2),
        answer="best",
        constraint=getattr(system, "constraint", None),
    ).to(device)
    generator = torch.Generator(device).manual_seed(config.seed)
    states, costs, plan = [torch.tensor(scene.start, device=device)], [], None
    for _ in range(scene.num_steps):
        plan = mpc(states[-1], warm_start=plan, generator=generator)
        costs.append(system.cost(states[-1], plan.action))
        states.append(system(states[-1], plan.action))
    return torch.stack(states), torch.stack(costs)
