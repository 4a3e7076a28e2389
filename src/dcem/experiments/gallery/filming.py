"""Control a system and film it."""

from __future__ import annotations

import torch
from torch import Tensor

import dcem
from dcem import plotting
from dcem.control import MPC, Plan, closed_loop, systems
from dcem.experiments.gallery.settings import SCENES, Config, Scene
from dcem.experiments.harness.run import Run
from dcem.experiments.harness.settings import choose_device


def main(config: Config, run: Run) -> dict[str, float]:
    """Control each system and film it; returns the mean cost of a step, and of the last tenth of the steps."""
    device = choose_device(config.device)
    run.track()
    run.verbose = False
    for step in run.steps(len(config.scenes), 1, "films"):
        name = config.scenes[step - 1]
        scene = SCENES[name]
        system = scene.system().to(device)
        states, costs = controlled(system, scene, config, device)
        path = run.folder / f"{name}.gif"
        plotting.save_gif(path, plotting.frames(system, states.cpu()), 1 / system.dt)
        run.say(f"film {path}")
        last = costs[-max(1, len(costs) // 10) :]
        run.log(step, **{f"{name}_cost": float(costs.mean()), f"{name}_last_cost": float(last.mean())})
    metrics = {key: value for line in run.records() for key, value in line.items() if key != "step"}
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
    plan: Plan | None = None

    def act(state: Tensor) -> Tensor:
        nonlocal plan
        plan = mpc(state, warm_start=plan, generator=generator)
        return plan.action.unsqueeze(-2)

    states, actions = closed_loop(act, system, torch.tensor(scene.start, device=device), scene.num_steps)
    return states, system.cost(states[:-1], actions)
