"""Fine-tune a controller that is wrong about its plant or its task by reinforcement learning through its plans.

A controller plans with a model whose mass, length and damping are off by 30 to 50 %, or with a cost that somebody made
by hand and that is not the task's. PPO and SAC, TorchRL's, train the model or the cost through the plan, from the
return alone. Beside it: the controller as it was, the one with the true model and the task's cost, and TorchRL's PPO
and SAC with a network from scratch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import dcem
from dcem.experiments import finetune_figures
from dcem.experiments.finetune_learn import PPO, SAC, Learner, network, ppo, sac
from dcem.experiments.finetune_task import TASKS, WRONG, Task, controller
from dcem.experiments.run import SUMMARY, Run
from dcem.experiments.training import require
from dcem.rl import Actor

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


def main(config: Config, run: Run) -> dict[str, Any]:
    """Run all methods and seeds, compare, draw; returns the metrics."""
    records: dict[str, dict[str, list[list[dict[str, Any]]]]] = {}
    for name, task, wrong, method in plan(config):
        for seed in range(config.seed, config.seed + config.num_seeds):
            folder = run.folder / f"{name}-{method}-{seed}"
            if not (run.resume and (folder / SUMMARY).exists()):
                with Run(
                    folder, run.config, seed=seed, device=run.device, command=run.command, resume=run.resume
                ) as part:
                    part.verbose = False
                    learn(config, task, wrong, method, part)
                    part.finish(**part.records()[-1])
            lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
            records.setdefault(name, {}).setdefault(method, []).append([json.loads(line) for line in lines])
            last = records[name][method][-1][-1]
            run.say(f"{name} {method} seed {seed}: return {last['return']:.1f} after {last['step']} steps")
    metrics = finetune_figures.metrics(records)
    text = finetune_figures.table(records, metrics, METHODS)
    (run.folder / "table.md").write_text(f"`{run.command}`\n\n{text}", "utf-8")
    run.say(text)
    for title, figure in finetune_figures.figures(records, METHODS).items():
        run.figure(title, figure)
    run.finish(**metrics)
    return metrics


def task_of(config: Config, name: str) -> Task:
    """The task of that name, with the episodes that the settings ask for."""
    return dataclasses.replace(TASKS[name], num_steps=config.episode) if config.episode else TASKS[name]


def plan(config: Config) -> list[tuple[str, str, str | None, str]]:
    """What is run: where its records belong, the task, what is wrong, the method. Networks are wrong about nothing."""
    runs: list[tuple[str, str, str | None, str]] = []
    for task in config.tasks:
        apart = [method for method in config.methods if method == "oracle" or method.endswith("network")]
        tuned = [method for method in config.methods if method not in apart]
        runs += [(task, task, None, method) for method in apart]
        for wrong in config.wrong:
            fits = [method for method in tuned if wrong == "model" or method != "ppo-likelihood"]
            runs += [(f"{task}-{wrong}", task, wrong, method) for method in fits]
    return runs


def learn(config: Config, task_name: str, wrong: str | None, method: str, run: Run) -> None:
    """One method with one seed; evaluations go to the run."""
    task = task_of(config, task_name)
    algorithm, _, variant = method.partition("-")
    if variant == "network":
        settings: Any = config.ppo_network if algorithm == "ppo" else config.sac_network
        policy = network(task, algorithm)
    else:
        settings = {"ppo": config.ppo, "sac": config.sac}.get(algorithm)
        mpc = controller(task, wrong, GRADIENTS[config.gradient](), config.num_samples, config.num_elites)
        policy = Actor(mpc, std=task.std, seed=run.seed)
    learner = Learner(task, policy, run.seed, config.num_judged)
    if algorithm == "ppo":
        ppo(learner, settings, run, config.likelihood if variant == "likelihood" else 0.0)
    elif algorithm == "sac":
        sac(learner, settings, run)
    else:
        run.track()
        run.log(0, **learner.evaluate(), **learner.parameters())
        run.checkpoint()
