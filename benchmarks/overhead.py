"""What the solver adds to the cost of the objective: ``python benchmarks/overhead.py``.

One update of the 1-D energy regression (MLP energy 3 x 128, DCEM with 10 iterations, 100 samples, 10 elites: predict,
loss, backward) over the bare cost of evaluating that energy forward and backward, with respect to its parameters and
the candidates, on as many samples in as many calls; and the same update by a loop written by hand out of the four
operations that it cannot do without (draw, move, evaluate, refit by our operator), with no check, record or choice:
what is left of the overhead then is that of PyTorch's calls. All are measured side by side, alternating, in one run.

It is measured twice: as it comes, and with an allocator that keeps freed memory. glibc gives freed memory back to the
system and faults it in again where the pattern of allocations happens to leave it at the end of the heap, which adds
milliseconds to one side or the other. Writes results/benchmarks/overhead.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import dcem
from allocator import KEEP
from dcem.energy import EnergyModel, MLPEnergy

OUT = Path(__file__).parents[1] / "results" / "benchmarks" / "overhead.json"
ITERATIONS, SAMPLES = 10, 100


def alternate(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, one after the other so that a busy moment meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def measure(batch: int, repeats: int) -> dict[str, float]:
    torch.manual_seed(0)
    energy = MLPEnergy(1, 1)
    parameters = list(energy.parameters())
    model = EnergyModel(energy, 1, dcem.CEM(SAMPLES, 10, dcem.LML(1.0)), num_iterations=ITERATIONS, init_std=7.0)
    x = torch.rand(batch, 1) * 2 * math.pi
    target = x * x.sin()
    candidates = [torch.randn(batch, SAMPLES, 1).requires_grad_() for _ in range(ITERATIONS)]

    def update() -> None:
        torch.autograd.grad(torch.nn.functional.mse_loss(model(x), target), parameters)

    def bare() -> None:
        total = torch.stack([energy(x, y).sum() for y in candidates]).sum()
        torch.autograd.grad(total, [*parameters, *candidates])

    def by_hand() -> torch.Tensor:
        mean, std = torch.zeros(batch, 1), torch.full((batch, 1), 7.0)
        for _ in range(ITERATIONS):
            noise = torch.randn(batch, SAMPLES, 1)
            y = torch.addcmul(mean.unsqueeze(-2), std.unsqueeze(-2), noise)
            _, mean, std, _, _ = torch.ops.dcem.refit(energy(x, y), y, 10, 1.0, True, 1e-6, math.inf)
        return mean

    def hand_update() -> None:
        torch.autograd.grad(torch.nn.functional.mse_loss(by_hand(), target), parameters)

    def hand_search() -> None:
        with torch.no_grad():
            by_hand()

    def search() -> None:
        with torch.no_grad():
            model(x)

    def bare_search() -> None:
        with torch.no_grad():
            for y in candidates:
                energy(x, y)

    calls = {"update": update, "hand_update": hand_update, "bare": bare}
    calls |= {"search": search, "hand_search": hand_search, "bare_search": bare_search}
    alternate(calls, 5)
    times = alternate(calls, repeats)
    best = {name: min(values) for name, values in times.items()}
    return {
        "batch": batch,
        **{f"{name}_ms": 1e3 * seconds for name, seconds in best.items()},
        "overhead": best["update"] / best["bare"],
        "overhead_of_medians": statistics.median(times["update"]) / statistics.median(times["bare"]),
        "overhead_by_hand": best["hand_update"] / best["bare"],
        "overhead_without_gradient": best["search"] / best["bare_search"],
        "overhead_by_hand_without_gradient": best["hand_search"] / best["bare_search"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows-only", action="store_true", help="print the rows as JSON, without a second process")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.rows_only:
        print(json.dumps([measure(batch, arguments.repeats) for batch in (1, 16)]))
        return
    command = ["benchmarks/overhead.py", "--repeats", str(arguments.repeats), "--threads", str(arguments.threads)]
    record: dict[str, object] = {
        "command": " ".join(["python", *command]),
        "torch": torch.__version__,
        "compiled_kernels": dcem.kernels.cpu.library is not None,
    }
    for name, extra in (("default allocator", {}), ("allocator that keeps freed memory", KEEP)):
        child = subprocess.run(
            [sys.executable, __file__, *command[1:], "--rows-only"],
            env={**os.environ, **extra}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        record[name] = rows = json.loads(child.stdout)
        for row in rows:
            print(name, {key: round(value, 3) for key, value in row.items()})
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
