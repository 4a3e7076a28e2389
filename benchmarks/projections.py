"""Time of the projections against softmax and entmax, side by side.

Run ``python benchmarks/projections.py``; it prints a table and writes ``results/benchmarks/projections.json``.
Standardised normal scores, float32, temperature 1. The contenders take turns, so that a busy
machine slows all of them; the smallest time of each counts, and the ratios are to softmax in the same mode.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import entmax
import torch
from torch import Tensor

from dcem.projections import constrained_softmax, constrained_sparsemax, lml

SIZES = [(1, 100, 10), (64, 100, 10), (64, 1000, 100), (1024, 1000, 100)]
OUTPUT = Path(__file__).parent.parent / "results" / "benchmarks" / "projections.json"
Projection = Callable[[Tensor], Tensor]


def contenders(k: int) -> dict[str, Projection]:
    """What is timed, by name."""
    return {
        "softmax": lambda x: torch.softmax(x, -1),
        "lml": lambda x: lml(x, k),
        "constrained_softmax": lambda x: constrained_softmax(x, k),
        "constrained_sparsemax": lambda x: constrained_sparsemax(x, k),
        "entmax.budget_bisect": lambda x: entmax.budget_bisect(x, k),
    }


def smallest_times(functions: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Seconds of one call of each, in turns of a few calls."""
    best = dict.fromkeys(functions, float("inf"))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, function in functions.items():
            function()
            calls = 10 if best[name] > 1e-3 else 100
            for _ in range(calls):
                start = time.perf_counter()
                function()
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def measure(batch: int, n: int, k: int, compiled: bool, seconds: float) -> list[dict[str, object]]:
    """One row of the table for each contender."""
    x = torch.randn(batch, n, generator=torch.Generator().manual_seed(0))
    x = (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True)
    leaf, upstream = x.clone().requires_grad_(), torch.randn(batch, n)
    functions = contenders(k)
    if compiled:
        torch._dynamo.reset()
        del functions["entmax.budget_bisect"]  # not meant to be compiled
        functions = {name: torch.compile(f, fullgraph=True, dynamic=False) for name, f in functions.items()}
    forward = smallest_times({name: lambda f=f: f(x) for name, f in functions.items()}, seconds)
    both = smallest_times(
        {name: lambda f=f: torch.autograd.grad(f(leaf), leaf, upstream) for name, f in functions.items()}, seconds
    )
    return [
        {
            "batch": batch, "n": n, "k": k, "mode": "compiled" if compiled else "eager", "name": name,
            "forward_us": round(forward[name] * 1e6, 1),
            "forward_ratio": round(forward[name] / forward["softmax"], 2),
            "forward_backward_us": round(both[name] * 1e6, 1),
            "forward_backward_ratio": round(both[name] / both["softmax"], 2),
        }
        for name in functions
    ]  # fmt: skip


def main() -> None:
    """Measure everything, print it and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each size, mode and direction")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--threads", type=int, default=2, help="1 where the machine is shared: threads wait long")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for compiled in (False, True):
        for size in SIZES:
            for row in measure(*size, compiled, options.seconds):
                rows.append(row)
                print(
                    f"{row['mode']:8} {size!s:17} {row['name']:22} "
                    f"forward {row['forward_us']:9} us {row['forward_ratio']:7}x   "
                    f"forward+backward {row['forward_backward_us']:9} us {row['forward_backward_ratio']:7}x"
                )
    report = {
        "command": " ".join(["python", "benchmarks/projections.py", *sys.argv[1:]]),
        "torch": torch.__version__, "threads": options.threads,
        "processor": platform.processor() or platform.machine(), "rows": rows,
    }  # fmt: skip
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
