"""How time and memory of a solve grow: ``python benchmarks/scaling.py``.

One solve with its backward pass through an energy of a small network. One quantity at a time is doubled from a base;
the exponent is the slope of a line through the logarithms, 1 where the cost is proportional. Then the same solve by one
and by two processes that share its samples, with a network that costs much more than sampling and refitting. Writes
results/benchmarks/scaling.{json,md} and communication.md, and the picture in docs/assets.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dcem
from allocator import keep_freed_memory
from memory import PeakMemory

OUT = Path(__file__).parents[1] / "results" / "benchmarks"
ASSETS = Path(__file__).parents[1] / "docs" / "assets"
BASE = {"samples": 256, "iterations": 4, "dimensions": 8, "batch": 8}
FACTORS = (1, 2, 4, 8, 16)
MODES = {"Unroll()": dcem.Unroll(), "Checkpoint()": dcem.Checkpoint()}


class Energy(nn.Module):
    """A positive function of the candidates, by a network of two hidden layers."""

    def __init__(self, dimensions: int, hidden: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Linear(dimensions, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 8)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).square().sum(-1) + 0.1 * x.square().sum(-1)


def solve(
    energy: Energy, size: dict[str, int], gradient: dcem.GradientMode, shard: Any = None
) -> tuple[Tensor, list[Tensor]]:
    """The answer, and the gradient of the network's parameters."""
    solution = dcem.minimize(
        energy, torch.zeros(size["batch"], size["dimensions"]), dcem.CEM(size["samples"], size["samples"] // 10),
        num_iterations=size["iterations"], gradient=gradient, generator=torch.Generator().manual_seed(0), shard=shard,
    )  # fmt: skip
    return solution.x, list(torch.autograd.grad(solution.x.square().sum(), list(energy.parameters())))


def seconds(call: Any, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def slope(sizes: list[int], costs: list[float]) -> float:
    """The exponent of a power law through ``costs`` against ``sizes``."""
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    pairs = list(zip(x, y, strict=True))
    return sum((a - mean_x) * (b - mean_y) for a, b in pairs) / sum((a - mean_x) ** 2 for a, _ in pairs)


def curves(repeats: int) -> list[dict[str, Any]]:
    """For each quantity and gradient mode: sizes, seconds, bytes, and their exponents."""
    rows = []
    for name in BASE:
        for mode, gradient in MODES.items():
            sizes, times, peaks = [], [], []
            for factor in FACTORS:
                size = BASE | {name: BASE[name] * factor}
                energy = Energy(size["dimensions"], 32)
                solve(energy, size, gradient)
                times.append(seconds(lambda e=energy, s=size, g=gradient: solve(e, s, g), repeats))
                with PeakMemory() as memory:
                    solve(energy, size, gradient)
                sizes.append(size[name])
                peaks.append(memory.peak)
            half = len(FACTORS) // 2  # what is small is all overhead
            rows.append(
                {"of": name, "mode": mode, "sizes": sizes, "seconds": times, "bytes": peaks,
                 "time_exponent": slope(sizes[half:], times[half:]),
                 "memory_exponent": slope(sizes[half:], [float(peak) for peak in peaks[half:]])}
            )  # fmt: skip
            print(
                {key: value for key, value in rows[-1].items() if key.endswith(("of", "mode", "exponent"))}, flush=True
            )
    return rows


COSTLY = {"samples": 4096, "iterations": 3, "dimensions": 16, "batch": 1}


def worker(rank: int, folder: str, repeats: int) -> None:
    """Of two processes: time a solve of each alone, one after the other, and of both together."""
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    energy, shard = Energy(COSTLY["dimensions"], 1024), dcem.distributed.Samples()
    alone, together = [], []
    for _ in range(repeats + 1):
        if rank == 0:
            alone.append(seconds(lambda: solve(energy, COSTLY, dcem.Unroll()), 1))
        torch.distributed.barrier()
        together.append(seconds(lambda: solve(energy, COSTLY, dcem.Unroll(), shard), 1))
        torch.distributed.barrier()
    if rank == 0:
        x, gradients = solve(energy, COSTLY, dcem.Unroll())
    shared_x, shared = solve(energy, COSTLY, dcem.Unroll(), shard)
    if rank == 0:
        away = max(float((a - b).norm() / a.norm()) for a, b in zip(gradients, shared, strict=True))
        found = {
            "one_s": min(alone[1:]),
            "two_s": min(together[1:]),
            "answer_difference": float((x - shared_x).detach().abs().max()),
        }
        Path(folder, "found.json").write_text(json.dumps(found | {"gradient_difference": away}))
    torch.distributed.destroy_process_group()


def processes(repeats: int) -> dict[str, Any]:
    """Seconds of a costly solve by one process and by two, and the efficiency of the two."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(worker, (folder, repeats), nprocs=2)
        found: dict[str, Any] = json.loads(Path(folder, "found.json").read_text())
    return found | {"efficiency": found["one_s"] / (2 * found["two_s"]), "size": COSTLY}


LINKS = {  # seconds before the first byte arrives, and bytes a second
    "10 Gbit Ethernet": (30e-6, 1.25e9), "InfiniBand NDR": (5e-6, 5e10), "NVLink 4": (5e-6, 4.5e11),
}  # fmt: skip
RANKS = (8, 64, 1000)
LARGE = {"samples": 64_000, "iterations": 10, "dimensions": 24, "parameters": 1_000_000}


def own_seconds() -> float:
    """Of drawing, selecting and refitting, which every process does for all samples: a number of a sample."""
    n, d = LARGE["samples"], LARGE["dimensions"]
    solver, init = dcem.CEM(n, n // 10), torch.zeros(d)

    def alone() -> None:
        with torch.no_grad():
            dcem.minimize(lambda x: x[..., 0], init, solver, num_iterations=2)

    return seconds(alone, 5) / (2 * n * d)


def communication(ranks: int, link: str) -> float:
    """Seconds that the exchanges of one large solve with its gradient take, by a tree of processes: in each iteration
    the values, and in the backward pass the slopes at the samples; once the gradient of the parameters.
    """
    latency, speed = LINKS[link]
    depth = math.ceil(math.log2(ranks))
    n, d, t = LARGE["samples"], LARGE["dimensions"], LARGE["iterations"]
    each = 2 * depth * latency + 4 * n * (1 + d) / speed
    return t * each + 2 * (depth * latency + 4 * LARGE["parameters"] / speed)


def communications(own: float) -> str:
    """What a sample has to cost for the processes to be busy with samples half of the time."""
    size = f"{LARGE['samples']:,} samples of {LARGE['dimensions']} numbers, {LARGE['iterations']} iterations, "
    lines = [
        f"Computed, not measured: {size}{LARGE['parameters']:,} parameters. Drawing, selecting and refitting takes "
        f"{1e9 * own:.1f} ns a number here, measured on one processor core.",
        "",
        "| processes | link | exchanges of a solve, ms | a sample has to cost, on GPUs | on these CPUs |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    num = LARGE["samples"] * LARGE["iterations"]
    for link in LINKS:
        for ranks in RANKS:
            took = communication(ranks, link)
            pays = [ranks * (took + extra) / num for extra in (0.0, own * num * LARGE["dimensions"])]
            costs = " | ".join(f"{1e6 * cost:.{0 if cost > 1e-5 else 2}f} µs" for cost in pays)
            lines.append(f"| {ranks} | {link} | {1e3 * took:.2g} | {costs} |")
    return "\n".join(lines)


def table(record: dict[str, Any]) -> str:
    """The exponents, and what two processes gain."""
    base = ", ".join(f"{value} {name}" for name, value in BASE.items())
    lines = [
        f"A solve with its backward pass, from {base}; exponents over the last two doublings; made by "
        f"`{record['command']}`, torch {record['torch']}, one thread.",
        "",
        "| grows | mode | time, ms | exponent | peak memory, MB | exponent |",
        "| --- | --- | --- | ---: | --- | ---: |",
    ]
    for row in record["rows"]:
        sizes = f"{row['of']} {row['sizes'][0]} to {row['sizes'][-1]} | {row['mode']}"
        times = f"{1e3 * row['seconds'][0]:.1f} to {1e3 * row['seconds'][-1]:.1f} | {row['time_exponent']:.2f}"
        peaks = f"{row['bytes'][0] / 1e6:.2f} to {row['bytes'][-1] / 1e6:.2f} | {row['memory_exponent']:.2f}"
        lines.append(f"| {sizes} | {times} | {peaks} |")
    two = record["processes"]
    lines += [
        "",
        f"Two processes that share the {COSTLY['samples']} samples of one costly solve: {1e3 * two['two_s']:.0f} ms "
        f"for {1e3 * two['one_s']:.0f} ms, an efficiency of {100 * two['efficiency']:.0f} %; their gradient differs by "
        f"{two['gradient_difference']:.0e} of its norm.",
    ]
    return "\n".join(lines)


def draw(record: dict[str, Any]) -> None:
    """Time and memory against each quantity, in doublings."""
    from matplotlib.figure import Figure

    from dcem.plotting.figures import COLOURS

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for panel, key, label, unit in ((0, "seconds", "time", 1e3), (1, "bytes", "peak memory", 1e-6)):
        ax = axes[panel]
        for i, row in enumerate(record["rows"]):
            style = "-" if row["mode"] == "Unroll()" else "--"
            factors = [size / row["sizes"][0] for size in row["sizes"]]
            name = f"{row['of']}, {row['mode']}" if panel == 1 else None
            ax.plot(factors, [unit * y for y in row[key]], style, color=COLOURS[i // 2], marker=".", label=name)
        ax.set(
            xscale="log", yscale="log", xlabel="times its base size", ylabel=f"{label} ({'ms' if panel == 0 else 'MB'})"
        )
        ax.set_xticks(FACTORS, [str(factor) for factor in FACTORS], minor=False)
        ticks = [
            tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if ax.get_ylim()[0] <= tick <= ax.get_ylim()[1]
        ]
        ax.set_yticks(ticks, [str(tick) for tick in ticks])
        ax.minorticks_off()
    axes[1].legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(ASSETS / "scaling.png", dpi=150, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    keep_freed_memory()
    record: dict[str, Any] = {"command": "python benchmarks/scaling.py", "torch": torch.__version__, "base": BASE}
    record["processes"] = processes(repeats)
    print(record["processes"], flush=True)
    record["own_seconds"] = own_seconds()
    record["rows"] = curves(repeats)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "scaling.json").write_text(json.dumps(record, indent=1) + "\n")
    (OUT / "scaling.md").write_text(table(record) + "\n")
    (OUT / "communication.md").write_text(communications(record["own_seconds"]) + "\n")
    draw(record)


if __name__ == "__main__":
    main()
