"""Two versions of the library side by side: solves and plans, new over old, in processor time.

Run ``python benchmarks/versions.py OLD NEW``, each the `src` folder of a checkout with its kernels built. They take
turns; the smallest time of each counts. It prints a table.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

ROUNDS, SECONDS = 2, 1.0


def best(function: Callable[[], object]) -> float:
    """The least milliseconds of a call."""
    function()
    least, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.process_time_ns()
        function()
        least = min(least, time.process_time_ns() - start)
    return least / 1e6


def measure() -> dict[str, float]:
    """Each case in the version that is on the path."""
    import torch

    import dcem
    from dcem.control import MPC
    from dcem.control.systems import Pendulum

    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = {}
    layers = [torch.nn.Linear(4, 64), torch.nn.Softplus(), torch.nn.Linear(64, 64), torch.nn.Softplus()]
    energy = torch.nn.Sequential(*layers, torch.nn.Linear(64, 1))
    modes = [dcem.Detach(), dcem.Unroll(), dcem.Checkpoint(), dcem.Truncate(2), dcem.Prune(0.2)]
    for batch in (1, 16):
        for mode in modes:

            def solve(batch: int = batch, mode: dcem.GradientMode = mode) -> None:
                solution = dcem.minimize(
                    lambda x: energy(x).squeeze(-1) + x.square().sum(-1), torch.zeros(batch, 4), dcem.CEM(100, 10),
                    num_iterations=10, gradient=mode,
                )  # fmt: skip
                if solution.x.requires_grad:
                    torch.autograd.grad(solution.x.sum(), list(energy.parameters()))

            found[f"energy, {mode}, batch {batch}"] = best(solve)
    system = Pendulum()
    solvers = {
        "CEM 100 x 5": (dcem.CEM(100, 10, dcem.HardTopK()), 5),
        "DCEM 100 x 5": (dcem.CEM(100, 10), 5),
        "MPPI 500 x 1": (dcem.MPPI(500, 1.0), 1),
    }
    for num_envs in (1, 16, 64):
        state = torch.zeros(num_envs, 3)
        state[:, 0] = 1
        for name, (solver, num_iterations) in solvers.items():
            mpc = MPC(system, system.cost, 10, 1, system.bounds, solver, num_iterations=num_iterations)
            with torch.no_grad():
                found[f"plan, {name}, {num_envs} environments"] = best(functools.partial(mpc, state))
    return found


def main(old: str, new: str) -> None:
    """Measure both in turns, and print the table."""
    times: dict[str, list[dict[str, float]]] = {old: [], new: []}
    for _ in range(ROUNDS):
        for path, of_path in times.items():
            said = subprocess.run(
                [sys.executable, "-W", "ignore", __file__],
                env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            of_path.append(json.loads(said.stdout.splitlines()[-1]))
    print("| case | old, ms | new, ms | new / old |\n| --- | ---: | ---: | ---: |")
    for case in times[old][0]:
        before, now = (min(found[case] for found in times[path]) for path in (old, new))
        print(f"| {case} | {before:.2f} | {now:.2f} | {now / before:.2f} |")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if len(sys.argv) == 3:
        main(sys.argv[1], sys.argv[2])
    else:
        print(json.dumps(measure()))
