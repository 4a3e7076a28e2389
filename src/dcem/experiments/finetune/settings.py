"""Settings of `dcem finetune`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import dcem
from dcem.experiments.finetune.hyperparameters import PPO, SAC
from dcem.experiments.finetune.task import TASKS, WRONG, Task
from dcem.experiments.harness.training import require

METHODS = {
    "oracle": "controller, true model and cost",
    "untuned": "controller, untuned",
    "ppo": "PPO through the controller",
    "sac": "SAC through the controller",
    "ppo-likelihood": "PPO through the controller, with the likelihood",
    "ppo-network": "PPO, network from scratch",
    "sac-network": "SAC, network from scratch",
}
GRADIENTS: dict[str, Callable[[], Any]] = {
    "unroll": dcem.Unroll, "checkpoint": dcem.Checkpoint, "truncate": lambda: dcem.Truncate(1), "prune": dcem.Prune,
}  # fmt: skip
GROUPS: dict[str, dict[str, Any]] = {}


@dataclass
class Config:
    """Settings of `dcem finetune`."""

    tasks: list[str] = field(default_factory=lambda: [*TASKS])
    wrong: list[str] = field(default_factory=lambda: [*WRONG])
    """What the controller is wrong about: its `model`, or its `cost`."""
    methods: list[str] = field(default_factory=lambda: [*METHODS])
    num_samples: int = 48
    """Candidates of the controllers' searches."""
    num_elites: int = 5
    gradient: str = "unroll"
    """How plans are differentiated: unroll, checkpoint, truncate (the last iteration), prune."""
    likelihood: float = 10.0
    """Weight of the model's likelihood in `ppo-likelihood`."""
    ppo: PPO = field(default_factory=lambda: PPO(num_steps=8000))
    sac: SAC = field(default_factory=lambda: SAC(num_steps=2000))
    ppo_network: PPO = field(
        default_factory=lambda: PPO(
            num_steps=320_000, num_envs=16, num_epochs=10, batch_size=400, lr=1e-3, critic_lr=1e-3, critic_epochs=0,
            gae_lambda=0.95, discount=0.95, clip=0.2, target_kl=1.0, max_grad_norm=0.5, eval_every=16_000,
        )
    )  # fmt: skip
    sac_network: SAC = field(
        default_factory=lambda: SAC(
            num_steps=20_000, warm_up=1000, steps_per_update=2, batch_size=256, lr=1e-3, tau=0.01, eval_every=1000
        )
    )
    episode: int = 0
    """Steps of an episode; 0: as the task has it."""
    num_judged: int = 32
    """Episodes of an evaluation, from the same states for all."""
    num_seeds: int = 5
    seed: int = 0
    device: str = "cpu"
    """The tensors are small: only cpu."""
    threads: int = 1


def check(config: Config) -> None:
    """Refuse settings that cannot be run."""
    choices: dict[str, list[str]] = {"tasks": [*TASKS], "wrong": [*WRONG], "methods": [*METHODS]}
    for key, known in choices.items():
        unknown = [name for name in getattr(config, key) if name not in known]
        require(bool(getattr(config, key)) and not unknown, key, f"some of {', '.join(known)}", getattr(config, key))
    require(config.gradient in GRADIENTS, "gradient", f"one of {', '.join(GRADIENTS)}", config.gradient)
    for key in ("num_samples", "num_judged", "num_seeds", "threads"):
        require(getattr(config, key) >= 1, key, "at least 1", getattr(config, key))
    require(1 <= config.num_elites <= config.num_samples, "num_elites", "1 to num_samples", config.num_elites)
    require(config.likelihood >= 0, "likelihood", "at least 0", config.likelihood)
    require(config.episode >= 0, "episode", "at least 0", config.episode)
    for name in ("ppo", "sac", "ppo_network", "sac_network"):
        settings = getattr(config, name)
        for setting, value in dataclasses.asdict(settings).items():
            may_be_0 = setting in ("critic_epochs", "warm_up", "entropy")
            expected = "at least 0" if may_be_0 else "a positive number"
            require(value >= 0 if may_be_0 else value > 0, f"{name}.{setting}", expected, value)
        if isinstance(settings, PPO):
            frames = settings.num_envs * min(task_of(config, task).num_steps for task in config.tasks)
            require(settings.batch_size <= frames, f"{name}.batch_size", f"at most {frames}", settings.batch_size)
    require(config.device == "cpu", "device", "cpu", config.device)


def task_of(config: Config, name: str) -> Task:
    """The task of that name, with the episodes that the settings ask for."""
    return dataclasses.replace(TASKS[name], num_steps=config.episode) if config.episode else TASKS[name]
