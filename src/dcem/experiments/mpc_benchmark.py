"""Closed-loop control with true models: returns and time a decision of our controllers and of others' planners."""

from __future__ import annotations

import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor, nn

import dcem
from dcem import plotting
from dcem.control import MPC, Plan
from dcem.control.run import Episodes
from dcem.control.run import run as run_episodes
from dcem.control.systems import Pendulum
from dcem.embedding import MLPDecoder
from dcem.experiments import mpc_methods, mpc_tasks
from dcem.experiments.mpc_methods import Budget
from dcem.experiments.run import Run
from dcem.experiments.training import require
from dcem.plotting.figures import _student

GROUPS: dict[str, dict[str, Any]] = {}
LATENT = 4
"""Numbers in the latent of the learned decoder."""


@dataclass
class Config:
    """Settings of `dcem mpc`."""

    tasks: list[str] = field(default_factory=lambda: list(mpc_tasks.LABELS))
    methods: list[str] = field(default_factory=lambda: list(mpc_methods.LABELS))
    num_samples: int = 48
    num_elites: int = 6
    num_iterations: int = 3
    length: float = 1.0
    """Of the episodes, as a share of the tasks' `SECONDS`."""
    decoder_updates: int = 300
    timing_rounds: int = 10
    videos: bool = False
    """Film an episode of each task; those of dm_control need a graphics backend (`MUJOCO_GL`)."""
    num_seeds: int = 3
    seed: int = 0
    device: str = "cpu"
    threads: int = 1


class Job(NamedTuple):
    """A step of the run."""

    kind: str
    """`decoder` trains one, `episode` runs one, `time` measures all methods in turn."""
    task: str
    method: str = ""
    seed: int = 0


def check(config: Config) -> None:
    """Refuse settings that cannot be run."""
    for key in ("num_samples", "num_iterations", "decoder_updates", "timing_rounds", "num_seeds", "threads"):
        require(getattr(config, key) >= 1, key, "at least 1", getattr(config, key))
    require(2 <= config.num_elites <= config.num_samples, "num_elites", "2 to num_samples", config.num_elites)
    require(0 < config.length <= 1, "length", "a share in (0, 1]", config.length)
    require(config.device == "cpu", "device", "cpu, where the simulators run", config.device)
    for key, known in (("tasks", mpc_tasks.LABELS), ("methods", mpc_methods.LABELS)):
        names = getattr(config, key)
        require(bool(names) and set(names) <= set(known), key, f"some of {', '.join(known)}", ", ".join(names))
    for package in ("gymnasium", "dm_control"):
        installed = importlib.util.find_spec(package) is not None
        require(installed, "tasks", "their packages, pip install 'dcem[control]'", f"no {package}")


class Benchmark:
    """The methods on the tasks: what each kind of job does."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.budget = Budget(config.num_samples, config.num_elites, config.num_iterations)
        self.decoder = MLPDecoder(LATENT, (mpc_tasks.HORIZONS["pendulum"], 1), (64, 64), bounds=(-2.0, 2.0))
        self.task: Callable[[str], mpc_tasks.Task] = cache(
            lambda name: mpc_tasks.load(name, config.length, config.threads)
        )

    def methods(self, task: str) -> list[str]:
        """Those asked for that can be run on the task."""
        able = [m for m in self.config.methods if mpc_methods.is_installed(m)]
        return [m for m in able if m != "learned" or task == "pendulum"]

    def jobs(self) -> list[Job]:
        """In an order in which whatever ends early has seen every method equally often."""
        config = self.config
        jobs = [Job("decoder", "pendulum")] if "pendulum" in config.tasks and "learned" in config.methods else []
        jobs += [Job("time", task) for task in config.tasks]
        for seed in range(config.seed, config.seed + config.num_seeds):
            jobs += [Job("episode", task, method, seed) for task in config.tasks for method in self.methods(task)]
        return jobs

    def do(self, job: Job) -> dict[str, float]:
        """What came of a job; random numbers depend on the job alone."""
        torch.manual_seed(job.seed)
        if job.kind == "decoder":
            return {"cost": self.train_decoder()}
        if job.kind == "time":
            return self.time(job.task)
        episode = self.episode(job.task, job.method, job.seed)
        assert episode.error is None
        return {"return": float(episode.returns), "replaced": float(episode.num_replaced)}

    def controller(self, task: str, method: str) -> Any:
        return mpc_methods.controller(method, self.task(task), self.budget, self.decoder)

    def episode(self, task: str, method: str, seed: int, **options: Any) -> Episodes:
        """One episode."""
        on = self.task(task)
        return run_episodes(self.controller(task, method), on.env, state_of=on.state_of, seed=seed, **options)

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
            optimizer.zero_grad()
            cost.backward()
            nn.utils.clip_grad_norm_(mpc.parameters(), 1.0)
            optimizer.step()
            costs.append(cost.item())
        return statistics.mean(costs[-50:])


def main(config: Config, run: Run) -> dict[str, Any]:
    """Every method on every task with every seed, a job a step, then the table and the figures."""
    benchmark = Benchmark(config)
    for method in config.methods:
        if not mpc_methods.is_installed(method):
            run.say(f"{mpc_methods.LABELS[method]} is left out: {mpc_methods.RIVALS[method]} is not installed")
    run.track(decoder=benchmark.decoder)
    jobs = benchmark.jobs()
    run.verbose = False
    for step in run.steps(len(jobs), 1, "jobs"):
        job = jobs[step - 1]
        result = benchmark.do(job)
        run.log(step, **result)
        shown = "  ".join(f"{key} {value:.4g}" for key, value in result.items())
        run.say(f"{' '.join(str(part) for part in job)}: {shown}")
    results = collect(benchmark, jobs, run.records())
    text = table(results)
    (run.folder / "table.md").write_text(f"`{run.command}`\n\n{text}", encoding="utf-8")
    run.say("\n" + text)
    run.figure("returns", bars(results, "returns", "return of an episode"))
    run.figure("milliseconds", bars(results, "milliseconds", "CPU milliseconds a decision"))
    if config.videos:
        film(benchmark, run)
    summary: dict[str, Any] = run.finish(**results)["metrics"]
    return summary


Results = dict[str, dict[str, dict[str, Any]]]
"""By task and method: `returns`, `milliseconds`, `replaced`."""


def collect(benchmark: Benchmark, jobs: Sequence[Job], records: Sequence[Mapping[str, float]]) -> Results:
    """What the jobs logged, by task and method."""
    results: Results = {
        task: {method: {"returns": [], "replaced": 0} for method in benchmark.methods(task)}
        for task in benchmark.config.tasks
    }
    for record in records:
        job = jobs[int(record["step"]) - 1]
        of_task = results.get(job.task, {})
        if job.kind == "time":
            for method, of_method in of_task.items():
                of_method["milliseconds"] = record[method]
        elif job.kind == "episode":
            of_task[job.method]["returns"].append(record["return"])
            of_task[job.method]["replaced"] += int(record["replaced"])
    return results


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % confidence interval; NaN of one value."""
    if len(values) < 2:
        return statistics.mean(values), math.nan
    return statistics.mean(values), _student(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def table(results: Results) -> str:
    """Markdown; a difference to CEM is taken start by start, since starts differ more than methods do."""
    lines = ["| task | method | return | difference to CEM's | CPU ms a decision | times DCEM's |"]
    lines.append("|---|---|---:|---:|---:|---:|")
    for task, methods in results.items():
        reference = methods.get("dcem", {}).get("milliseconds", math.nan)
        for method, of_method in methods.items():
            cells = [mpc_tasks.LABELS[task], mpc_methods.LABELS[method], _plus_minus(of_method["returns"])]
            cem = methods.get("cem", of_method)["returns"]
            difference = _plus_minus([one - other for one, other in zip(of_method["returns"], cem, strict=True)])
            cells.append("" if cem is of_method["returns"] else difference)
            ms = of_method["milliseconds"]
            lines.append("| " + " | ".join([*cells, f"{ms:.1f}", f"{ms / reference:.2f}"]) + " |")
    return "\n".join(lines) + "\n"


def _plus_minus(values: Sequence[float]) -> str:
    mean, half = interval(values)
    return f"{mean:.1f}" + ("" if math.isnan(half) else f" ± {half:.1f}")


def bars(results: Results, key: str, xlabel: str) -> Figure:
    """A panel a task, a bar a method: the mean, its 95 % interval and the seeds as dots; a single number is written."""
    names = [method for method in mpc_methods.LABELS if any(method in of_task for of_task in results.values())]
    figure = Figure(figsize=(2.4 + 2.3 * len(results), 1.4 + 0.3 * len(names)), layout="constrained", dpi=150)
    axes = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for axis, (task, of_task) in zip(axes, results.items(), strict=True):
        for place, method in enumerate(names):
            if method not in of_task:
                continue
            value = of_task[method][key]
            seeds = value if isinstance(value, list) else [value]
            mean, half = interval(seeds)
            axis.barh(place, mean, color=plotting.COLOURS[1 if method in mpc_methods.RIVALS else 0], alpha=0.75)
            if isinstance(value, float):
                axis.annotate(f" {value:.1f}", (value, place), va="center", fontsize="small")
            elif len(seeds) > 1:
                axis.errorbar(mean, place, xerr=half, color="black", capsize=2, linewidth=1)
                axis.plot(seeds, [place] * len(seeds), ".", color="0.25", markersize=4)
        axis.margins(x=0.25 if key == "milliseconds" else 0.05)
        axis.set_title(mpc_tasks.LABELS[task], fontsize="medium")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(names)), [mpc_methods.LABELS[name] for name in names])
    axes[0].invert_yaxis()
    handles = [
        Patch(color=plotting.COLOURS[i], alpha=0.75, label=of) for i, of in enumerate(("dcem", "other packages"))
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize="small")
    figure.supxlabel(xlabel, fontsize="medium")
    return figure


def film(benchmark: Benchmark, run: Run) -> None:
    """An episode of each task under iCEM, as `<task>.gif`."""
    for task in benchmark.config.tasks:
        path = run.folder / f"{task}.gif"
        torch.manual_seed(run.seed)
        if task == "pendulum":
            states = benchmark.episode(task, "icem", run.seed, record=True).states[:, 0]
            system = Pendulum()
            plotting.save_gif(path, plotting.frames(system, states), 1 / system.dt)
        else:
            benchmark.episode(task, "icem", run.seed, video=path)
        run.say(f"video {path}")


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
