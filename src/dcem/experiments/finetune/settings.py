"""Settings of `dcem finetune`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import dcem
from dcem.experiments.finetune.hyperparameters import PPO, SAC
from dcem.experiments.finetune.task import TASKS, WRONG, Task
from dcem.experiments.harness.settings import Settings, count, require, setting, some_of

METHODS = {
    "oracle": "controller, true model and cost",
    "untuned": "controller, untuned",
    "ppo": "PPO through the controller",
    "sac": "SAC through the controller",
    "ppo-likelihood": "PPO through the controller, with the likelihood",
    "sac-likelihood": "SAC through the controller, with the likelihood",
    "ppo-network": "PPO, network from scratch",
    "sac-network": "SAC, network from scratch",
}
GRADIENTS: dict[str, Callable[[], Any]] = {
    "unroll": dcem.Unroll, "checkpoint": dcem.Checkpoint, "truncate": lambda: dcem.Truncate(1), "prune": dcem.Prune,
}  # fmt: skip
JUDGES_SEED = 1_000_000


@dataclass
class Config(Settings):
    """Settings of `dcem finetune`."""

    seed: int = setting(0, at_least=0, below=JUDGES_SEED)
    tasks: list[str] = some_of([*TASKS], [*TASKS])
    wrong: list[str] = some_of([*WRONG], [*WRONG], may_be_empty=True)
    """What the controller is wrong about: its `model`, or its `cost`."""
    methods: list[str] = some_of([*METHODS], [*METHODS])
    num_samples: int = count(48)
    """Candidates of the controllers' searches."""
    num_elites: int = setting(5, at_least=1, at_most="num_samples")
    gradient: str = setting("unroll", among=tuple(GRADIENTS))
    """How plans are differentiated: unroll, checkpoint, truncate (the last iteration), prune."""
    likelihood: float = setting(10.0, at_least=0)
    """Weight of the likelihood, of transitions and rewards, in `ppo-likelihood` and `sac-likelihood`."""
    ppo: PPO = field(default_factory=lambda: PPO(num_steps=12_800))
    sac: SAC = field(
        default_factory=lambda: SAC(
            num_steps=4000, critic_first=0.2, steps_per_update=2.0, batch_size=256, lr=5e-3, critic_lr=1e-3
        )
    )
    ppo_network: PPO = field(
        default_factory=lambda: PPO(
            num_steps=320_000, num_envs=16, num_epochs=10, batch_size=400, lr=1e-3, critic_lr=1e-3, critic_epochs=0,
            gae_lambda=0.95, discount=0.95, clip=0.2, target_kl=1.0, max_grad_norm=0.5, eval_every=16_000,
        )
    )  # fmt: skip
    sac_network: SAC = field(
        default_factory=lambda: SAC(
            num_steps=20_000, warm_up=1000, steps_per_update=2.0, batch_size=256, lr=1e-3, tau=0.01, eval_every=1000
        )
    )
    episode: int = setting(0, at_least=0)
    """Steps of an episode; 0: as the task has it."""
    num_judged: int = count(32)
    """Episodes of an evaluation, from the same states for all."""
    num_seeds: int = count(5)
    device: str = setting("cpu", among=("cpu",))
    """The tensors are small: only cpu."""

    def check(self) -> None:
        super().check()
        expected = f"one that runs with wrong=[{','.join(self.wrong)}]"
        require(bool(self.plan()), "methods", expected, self.methods)
        shortest = min(self.task(task).num_steps for task in self.tasks)
        uses = {"ppo": {"ppo", "ppo-likelihood"}, "ppo_network": {"ppo-network"}}
        for name in (of for of, methods in uses.items() if methods & set(self.methods)):
            settings = getattr(self, name)
            frames = settings.num_envs * shortest
            most = f"at most {frames}, the steps of an iteration"
            require(settings.batch_size <= frames, f"{name}.batch_size", most, settings.batch_size)
        uses = {"sac": {"sac", "sac-likelihood"}, "sac_network": {"sac-network"}}
        for name in (of for of, methods in uses.items() if methods & set(self.methods)):
            settings = getattr(self, name)
            length, size = settings.slice_length, settings.batch_size
            require(length <= shortest, f"{name}.slice_length", f"at most {shortest}, the steps of an episode", length)
            whole = f"a multiple of {name}.slice_length={length}"
            require(size % length == 0, f"{name}.batch_size", whole, size)

    def plan(self) -> list[tuple[str, str, str | None, str]]:
        """What is run: where its records belong, the task, what is wrong, the method. Networks are wrong about
        nothing.
        """
        runs: list[tuple[str, str, str | None, str]] = []
        for task in self.tasks:
            apart = [method for method in self.methods if method == "oracle" or method.endswith("network")]
            tuned = [method for method in self.methods if method not in apart]
            runs += [(task, task, None, method) for method in apart]
            for wrong in self.wrong:
                runs += [(f"{task}-{wrong}", task, wrong, method) for method in tuned]
        return runs

    def task(self, name: str) -> Task:
        """The task of that name, with the episodes that the settings ask for."""
        return dataclasses.replace(TASKS[name], num_steps=self.episode) if self.episode else TASKS[name]
