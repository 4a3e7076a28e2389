"""Every method on every task with every seed."""

from __future__ import annotations

from typing import Any

from dcem.experiments.harness.report import write_table
from dcem.experiments.harness.run import Run
from dcem.experiments.mpc import methods
from dcem.experiments.mpc.benchmark import Benchmark
from dcem.experiments.mpc.figures import bars, film
from dcem.experiments.mpc.report import NOTE, collect, table
from dcem.experiments.mpc.settings import Config


def main(config: Config, run: Run) -> dict[str, Any]:
    """Every method on every task with every seed, a job a step, then the table and the figures."""
    benchmark = Benchmark(config)
    for method in config.methods:
        if not methods.is_installed(method):
            run.say(f"{methods.LABELS[method]} is left out: {methods.RIVALS[method]} is not installed")
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
    write_table(run, table(results) + NOTE)
    run.figure("returns", bars(results, "returns", "return of an episode"))
    run.figure("milliseconds", bars(results, "milliseconds", "CPU milliseconds a decision"))
    if config.videos:
        film(benchmark, run)
    summary: dict[str, Any] = run.finish(**results)["metrics"]
    return summary
