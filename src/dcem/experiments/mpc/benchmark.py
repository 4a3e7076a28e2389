"""The methods on the tasks: episodes and times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

import dcem
from dcem.control import MPC, Plan, tasks
from dcem.control.run import Episodes
from dcem.control.run import run as run_episodes
from dcem.control.systems import Pendulum
from dcem.embedding import MLPDecoder
from dcem.experiments.harness.training import descend
from dcem.experiments.mpc import methods
from dcem.experiments.mpc.settings import Config

LATENT = 4
"""Numbers in the latent of the learned decoder."""


class Job(NamedTuple):
    """A step of the run."""

    kind: str
    """`decoder` trains one, `time` measures all methods in turn, `idle` does nothing from all starts, `episodes` runs a
    method from all starts, unless another run has done so.
    """
    task: str
    method: str = ""


class Benchmark:
    """The methods on the tasks: what each kind of job does."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.decoder = MLPDecoder(LATENT, (tasks.HORIZONS["pendulum"], 1), (64, 64), bounds=(-2.0, 2.0))
        self.reused = config.reused()
        self.task: Callable[[str], tasks.Task] = cache(lambda name: tasks.load(name, config.length, config.threads))

    def methods(self, task: str) -> list[str]:
        """Those asked for that can be run on the task."""
        return self.config.methods_on(task)

    def jobs(self) -> list[Job]:
        """A task after the other, so that one that is complete can be read when a run ends early."""
        config = self.config
        jobs = [Job("decoder", "pendulum")] if "pendulum" in config.tasks and "learned" in config.methods else []
        for task in config.tasks:
            jobs += [Job("time", task), Job("idle", task)]
            jobs += [Job("episodes", task, method) for method in self.methods(task)]
        return jobs

    def do(self, job: Job) -> dict[str, float]:
        """What came of a job; random numbers depend on the job alone."""
        torch.manual_seed(self.config.seed)
        if job.kind == "decoder":
            return {"cost": self.train_decoder()}
        if job.kind == "time":
            return self.time(job.task)
        if found := self.reused.get(job.task, {}).get(job.method):
            returns, replaced = found["returns"], found["replaced"]
        else:
            episodes = self.episodes(job.task, job.method)
            assert episodes.error is None
            returns, replaced = episodes.returns.tolist(), episodes.num_replaced
        return {**{f"return_{i}": value for i, value in enumerate(returns)}, "replaced": float(replaced)}

    def controller(self, task: str, method: str) -> Any:
        return methods.controller(method, self.task(task), self.config.budget, self.decoder)

    def episodes(self, task: str, method: str, num: int | None = None, **options: Any) -> Episodes:
        """An episode from each of the starts, or from the first of them, all planned for at once; without a method
        nothing is done.
        """
        on, config = self.task(task), self.config
        envs = [tasks.environment(task, config.length) for _ in range(config.num_seeds if num is None else num)]
        policy = self.controller(task, method) if method else lambda state: state.new_zeros(len(state), on.num_actions)
        return run_episodes(policy, envs, state_of=on.state_of, seed=config.seed % 2**31, **options)

    def time(self, task: str) -> dict[str, float]:
        """Median milliseconds of a decision of each method, measured in turn, so that all see the same machine: of
        processor time, which does not count what else runs there.
        """
        on = self.task(task)
        decisions = {method: decider(self.controller(task, method)) for method in self.methods(task)}
        seconds: dict[str, list[float]] = {method: [] for method in decisions}
        start = run_episodes(lambda state: state.new_zeros(1, on.num_actions), on.env, state_of=on.state_of,
                                num_steps=1, seed=0, record=True).states[0]  # fmt: skip
        for number in range(-2, self.config.timing_rounds):
            for method, decide in decisions.items():
                started = time.process_time()
                decide(start)
                if number >= 0:  # after two rounds to warm up
                    seconds[method].append(time.process_time() - started)
        return {method: 1e3 * statistics.median(of) for method, of in seconds.items()}

    def train_decoder(self) -> float:
        """Learn to plan for the pendulum by the plans' cost alone; the mean cost of the last fifty updates."""
        system, mpc = Pendulum(), self.controller("pendulum", "learned")
        optimizer = torch.optim.Adam(mpc.parameters(), lr=2e-3)
        costs = []
        for _ in range(self.config.decoder_updates):
            states = system.sample_states(16)
            states[:, 2] *= system.max_speed
            cost = mpc(states, gradient=dcem.Unroll()).cost.mean()
            costs.append(descend(optimizer, cost, 1.0))
        return statistics.mean(costs[-50:])


def decider(policy: Any) -> Callable[[Tensor], Any]:
    """A function that makes the next decision, warm-started."""
    plan: Plan | None = None

    @torch.no_grad()
    def decide(state: Tensor) -> Any:
        nonlocal plan
        if not isinstance(policy, MPC):
            return policy(state)
        plan = policy(state, warm_start=plan)
        return plan.action

    return decide
