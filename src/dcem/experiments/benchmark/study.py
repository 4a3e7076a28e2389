"""Every planner on every task, a job a step, then the table and the figure."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dcem.experiments import ConfigError
from dcem.experiments.benchmark import planners, tasks
from dcem.experiments.benchmark.playing import Planning, Task, idle, learn, play
from dcem.experiments.benchmark.report import Job, Scores, draw, table
from dcem.experiments.benchmark.settings import LEARNED, Config
from dcem.experiments.harness.report import write_table
from dcem.experiments.harness.run import Run
from dcem.experiments.mpc import methods

STARTS_SEED = 1_000_000
"""Problems are those of this seed and the run's together; models are fitted to data of others."""


class Benchmark:
    """What each kind of job does."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.task = cache(lambda name: tasks.load(name, config))
        named = [name for name in config.planners if methods.is_installed(name)]
        self.planners = [*([config.planner] if config.planner else []), *named]  # yours first: it may be new

    def jobs(self) -> list[Job]:
        """All of them, a task after the other."""
        found = []
        for task in self.config.tasks:
            found.append(Job("scale", task))
            found += [Job("play", task, planner) for planner in self.planners]
            if self.config.learn and task in LEARNED:
                found += [Job("learn", task, planner) for planner in self.planners]
        return found

    def starts(self, task: Task) -> Tensor:
        """The same for all planners."""
        generator = torch.Generator().manual_seed(STARTS_SEED + self.config.seed)
        return task.starts(self.config.num_problems, generator)

    def rehearse(self) -> None:
        """Let your planner make a decision in each task before anything is played: what fails is told at once."""
        yours = self.config.planner
        for name in self.config.tasks if yours else ():
            task = self.task(name)
            starts = self.starts(task)
            with _named(yours, name), torch.no_grad():
                model = copy.deepcopy(task.model)
                Planning(planners.find(yours), task, model, len(starts), self.config.budget).solve(starts)

    def do(self, job: Job) -> dict[str, float]:
        """What came of a job; random numbers depend on the job alone. Nothing, of a planner without a gradient that
        was to be learned through.
        """
        with _named(job.planner, job.task):
            return self._done(job)

    def _done(self, job: Job) -> dict[str, float]:
        config, task = self.config, self.task(job.task)
        torch.manual_seed(config.seed)
        starts = self.starts(task)
        if job.kind == "scale":
            return _listed(zero=idle(task, starts), one=task.reference(starts))
        make, model = planners.find(job.planner), task.model
        if job.kind == "learn":
            learned = learn(make, task, config.num_updates, config.budget, config.seed)
            if learned is None:
                return {}
            model = learned
        costs, milliseconds = play(make, task, model, starts, config.budget)
        return {**_listed(cost=costs), "milliseconds": milliseconds}


@contextmanager
def _named(planner: str, task: str) -> Iterator[None]:
    """Errors say of which planner they are, in which task."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{error} ({planner or 'the reference'} on {task})") from error.__cause__


@contextmanager
def _to_correct(run: Run, planner: str) -> Iterator[None]:
    """Errors of your planner say how the run goes on with it once it is corrected."""
    try:
        yield
    except ConfigError as error:
        if not planner:
            raise
        command = f"dcem benchmark resume={shlex.quote(str(run.folder))}"
        raise ConfigError(f"{error}; once it is corrected, go on with {command}") from error.__cause__


def _listed(**of: Tensor) -> dict[str, float]:
    """Numbers by name and place, as a line of metrics has them."""
    return {f"{name}_{i}": value for name, values in of.items() for i, value in enumerate(values.tolist())}


def main(config: Config, run: Run) -> dict[str, Any]:
    """Every planner on every task, then the table and the figure; returns scores by planner and task."""
    benchmark = Benchmark(config)
    for name in config.planners:
        if not methods.is_installed(name):
            run.say(f"{planners.LABELS[name]} is left out: {methods.RIVALS[name]} is not installed")
    run.track()
    if not run.records():
        with _to_correct(run, config.planner):
            benchmark.rehearse()
    jobs = benchmark.jobs()
    run.verbose = False
    for step in run.steps(len(jobs), 1, "jobs"):
        job = jobs[step - 1]
        with _to_correct(run, job.planner if job.planner == config.planner else ""):
            found = benchmark.do(job)
        run.log(step, **found)
    scores = Scores.of(jobs, run.records(), config.num_problems)
    write_table(run, table(scores, config))
    run.figure("scores", draw(scores))
    metrics = scores.plain()
    run.finish(**metrics)
    return metrics
