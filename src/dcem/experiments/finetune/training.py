"""Run every method with every seed on every task."""

from __future__ import annotations

from typing import Any

from dcem.experiments.finetune import figures
from dcem.experiments.finetune.algorithms import ppo, sac
from dcem.experiments.finetune.learner import Learner, network
from dcem.experiments.finetune.settings import GRADIENTS, METHODS, Config
from dcem.experiments.finetune.task import controller
from dcem.experiments.harness.report import write_table
from dcem.experiments.harness.run import Run
from dcem.rl import Actor


def main(config: Config, run: Run) -> dict[str, Any]:
    """Run all methods and seeds, compare, draw; returns the metrics."""
    records: dict[str, dict[str, list[list[dict[str, Any]]]]] = {}
    for name, task, wrong, method in config.plan():
        for seed in range(config.seed, config.seed + config.num_seeds):
            with run.part(f"{name}-{method}-{seed}", seed) as part:
                if not part.finished:
                    learn(config, task, wrong, method, part)
                    part.finish(**part.records()[-1])
                lines = part.records()
            records.setdefault(name, {}).setdefault(method, []).append(lines)
            run.say(f"{name} {method} seed {seed}: return {lines[-1]['return']:.1f} after {lines[-1]['step']} steps")
    metrics = figures.metrics(records)
    write_table(run, figures.table(records, metrics, METHODS))
    for title, figure in figures.draw(records, METHODS).items():
        run.figure(title, figure)
    run.finish(**metrics)
    return metrics


def learn(config: Config, task_name: str, wrong: str | None, method: str, run: Run) -> None:
    """One method with one seed; evaluations go to the run."""
    task = config.task(task_name)
    algorithm, _, variant = method.partition("-")
    if variant == "network":
        settings: Any = config.ppo_network if algorithm == "ppo" else config.sac_network
        policy = network(task, algorithm)
    else:
        settings = {"ppo": config.ppo, "sac": config.sac}.get(algorithm)
        mpc = controller(task, wrong, GRADIENTS[config.gradient](), config.num_samples, config.num_elites)
        policy = Actor(mpc, std=task.std, seed=run.seed)
    learner = Learner(task, policy, run.seed, config.num_judged)
    likelihood = config.likelihood if variant == "likelihood" else 0.0
    if algorithm == "ppo":
        ppo(learner, settings, run, likelihood)
    elif algorithm == "sac":
        sac(learner, settings, run, likelihood)
    else:
        run.track()
        run.log(0, **learner.evaluate(), **learner.parameters())
        run.checkpoint()
