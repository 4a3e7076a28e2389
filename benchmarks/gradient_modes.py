"""What each gradient mode costs and gives: ``python benchmarks/gradient_modes.py``.

A solve of 10 iterations with 1000 samples over the actions of a recurrent model's rollout. For each mode: cosine and
norm of the parameters' gradient against that of ``Unroll`` in problems whose models, targets and samples are drawn
anew; peak memory and processor time of one solve with its backward pass, as ratios to ``Unroll`` in the same run, in
which all modes take turns. Writes results/benchmarks/gradient_modes.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dcem
from allocator import keep_freed_memory
from dcem.plotting.intervals import interval
from memory import PeakMemory

HORIZON, ACTION, STATE = 12, 2, 64
OUT = Path(__file__).parents[1] / "results" / "benchmarks"
MODES: dict[str, dcem.GradientMode] = {
    "Unroll()": dcem.Unroll(),
    "Checkpoint()": dcem.Checkpoint(),
    "Truncate(3)": dcem.Truncate(3),
    "Truncate(1)": dcem.Truncate(1),
    "Prune(0.4)": dcem.Prune(0.4),
    "Prune(0.2)": dcem.Prune(0.2),
    "Prune(0.05)": dcem.Prune(0.05),
    "Prune(0.2, unbiased=True)": dcem.Prune(0.2, unbiased=True),
    "Prune(0.05, unbiased=True)": dcem.Prune(0.05, unbiased=True),
    "Implicit()": dcem.Implicit(),
    "Detach()": dcem.Detach(),
}


class Rollout(nn.Module):
    """A cost of action sequences under a GRU model: squared distance of the read-out from a target, and of actions.

    Model and target are drawn from the seed.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.cell = nn.GRUCell(ACTION, STATE)
        self.read = nn.Linear(STATE, 2)
        self.target = torch.empty(2).uniform_(-0.5, 0.5)

    def forward(self, actions: Tensor) -> Tensor:
        num = actions.shape[:-2].numel()
        state, cost = actions.new_zeros(num, STATE), actions.new_zeros(num)
        for action in actions.reshape(num, HORIZON, ACTION).unbind(1):
            state = self.cell(action, state)
            cost = cost + (self.read(state) - self.target).square().sum(-1) + 0.01 * action.square().sum(-1)
        return cost.reshape(actions.shape[:-2])


def solve(model: Rollout, mode: dcem.GradientMode, temperature: float, noise: Tensor) -> Tensor | None:
    """The gradient of a function of the answer, flat; None where the mode has none."""
    generator = torch.Generator().manual_seed(1)
    num_samples = noise.shape[1]
    solver = dcem.CEM(num_samples, num_samples // 10, dcem.LML(temperature))
    init = torch.zeros(HORIZON, ACTION)
    solution = dcem.minimize(model, init, solver, event_dims=2, noise=noise, gradient=mode, generator=generator)
    if not solution.x.requires_grad or solution.status == dcem.Status.NOT_STATIONARY:
        return None
    weighted = (solution.x * torch.linspace(-1, 1, HORIZON).unsqueeze(-1)).sum()
    gradients = torch.autograd.grad(weighted, list(model.parameters()), materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


def problem(seed: int) -> tuple[Rollout, Tensor]:
    """A model and the noise of a solve."""
    return Rollout(seed), torch.randn(10, 1000, HORIZON, ACTION, generator=torch.Generator().manual_seed(seed))


def compare(temperature: float, num_problems: int) -> dict[str, dict[str, list[float]]]:
    """Cosines and norms by mode, a number for each problem in which the mode has a gradient."""
    found: dict[str, dict[str, list[float]]] = {name: {"cosine": [], "norm": []} for name in MODES}
    for seed in range(num_problems):
        model, noise = problem(seed)
        full = solve(model, dcem.Unroll(), temperature, noise)
        assert full is not None
        for name, mode in MODES.items():
            gradient = full if name == "Unroll()" else solve(model, mode, temperature, noise)
            if gradient is not None:
                found[name]["cosine"].append(torch.nn.functional.cosine_similarity(gradient, full, dim=0).item())
                found[name]["norm"].append((gradient.norm() / full.norm()).item())
    return found


def costs(temperature: float, repeats: int) -> dict[str, dict[str, float]]:
    """Peak bytes and processor seconds of one problem's solve by mode; the least of the rounds."""
    model, noise = problem(0)
    peaks, seconds = {}, dict.fromkeys(MODES, math.inf)
    for name, mode in MODES.items():
        with PeakMemory() as memory:
            solve(model, mode, temperature, noise)
        peaks[name] = memory.peak
    for _ in range(repeats):
        for name, mode in MODES.items():
            start = time.process_time()
            solve(model, mode, temperature, noise)
            seconds[name] = min(seconds[name], time.process_time() - start)
    return {name: {"peak_bytes": peaks[name], "seconds": seconds[name]} for name in MODES}


def measure(temperature: float, num_problems: int, repeats: int) -> list[dict[str, Any]]:
    found, spent = compare(temperature, num_problems), costs(temperature, repeats)
    unroll = spent["Unroll()"]
    return [
        {
            "mode": name,
            **spent[name],
            "memory": spent[name]["peak_bytes"] / unroll["peak_bytes"],
            "time": spent[name]["seconds"] / unroll["seconds"],
            **found[name],
        }
        for name in MODES
    ]


def mean(values: list[float], digits: int) -> str:
    """With half the 95 % interval."""
    center, half = interval(values)
    return f"{center:.{digits}f} ± {half:.{digits}f}" if half > 0.5 * 10**-digits else f"{center:.{digits}f}"


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| mode | cosine | lowest | norm | gradients | peak memory | time |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cosines = row["cosine"]
        cells = ["", "", ""]
        if cosines:
            cells = [mean(cosines, 4), f"{min(cosines):.4f}", mean(row["norm"], 3)]
        lines.append(
            f"| `{row['mode']}` | {' | '.join(cells)} | {len(cosines)} | {row['memory']:.3f} | {row['time']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    results = {temperature: measure(temperature, options.problems, options.repeats) for temperature in (1.0, 0.1)}
    text = [
        f"Gradient modes on {options.problems} random problems: 10 iterations, 1000 samples, 100 elites, actions of a",
        "12-step GRU rollout. Cosine and norm against the full gradient: means and 95 % intervals over problems, and",
        "the lowest cosine; gradients: problems of which the mode has one (`Implicit` has none where the solve did not",
        "end in a minimum). Peak memory and processor time of one problem, as ratios to `Unroll` in the same run.",
        f"Made by `python benchmarks/gradient_modes.py` with torch {torch.__version__} on one thread.",
    ]
    for temperature, rows in results.items():
        text += ["", f"Temperature {temperature:g}:", "", table(rows)]
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "gradient_modes.md").write_text("\n".join(text) + "\n")
    rows_by_temperature = {str(t): rows for t, rows in results.items()}
    record = {"torch": torch.__version__, "threads": 1, "problems": options.problems, "rows": rows_by_temperature}
    (OUT / "gradient_modes.json").write_text(json.dumps(record, indent=1) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
