"""What each gradient mode costs and gives: ``python benchmarks/gradient_modes.py``.

A solve of 10 iterations with 1000 samples over the actions of a recurrent model's rollout. For each mode: cosine and
norm of the parameters' gradient against that of ``Unroll``, peak memory and time of one solve with its backward pass,
as ratios to ``Unroll`` in the same run. Writes results/benchmarks/gradient_modes.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import dcem
from allocator import keep_freed_memory
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
    """A cost of action sequences under a GRU model: squared distance of the read-out from a target, and of actions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = nn.GRUCell(ACTION, STATE)
        self.read = nn.Linear(STATE, 2)

    def forward(self, actions: Tensor) -> Tensor:
        num = actions.shape[:-2].numel()
        state, cost = actions.new_zeros(num, STATE), actions.new_zeros(num)
        target = actions.new_tensor([0.3, -0.3])
        for action in actions.reshape(num, HORIZON, ACTION).unbind(1):
            state = self.cell(action, state)
            cost = cost + (self.read(state) - target).square().sum(-1) + 0.01 * action.square().sum(-1)
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


def seconds(call: object, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()  # type: ignore[operator]
        times.append(time.perf_counter() - start)
    return min(times)


def measure(temperature: float, repeats: int) -> list[dict[str, float | str]]:
    model = Rollout()
    noise = torch.randn(10, 1000, HORIZON, ACTION, generator=torch.Generator().manual_seed(0))
    rows: list[dict[str, float | str]] = []
    full = solve(model, dcem.Unroll(), temperature, noise)
    assert full is not None
    for name, mode in MODES.items():
        gradient = solve(model, mode, temperature, noise)
        with PeakMemory() as memory:
            solve(model, mode, temperature, noise)
        row: dict[str, float | str] = {"mode": name, "peak_bytes": memory.peak}
        row["seconds"] = seconds(lambda mode=mode: solve(model, mode, temperature, noise), repeats)
        if gradient is not None:
            row["cosine"] = torch.nn.functional.cosine_similarity(gradient, full, dim=0).item()
            row["norm"] = (gradient.norm() / full.norm()).item()
        rows.append(row)
    for row in rows:
        row["memory"] = row["peak_bytes"] / rows[0]["peak_bytes"]  # type: ignore[operator]
        row["time"] = row["seconds"] / rows[0]["seconds"]  # type: ignore[operator]
    return rows


def table(rows: list[dict[str, float | str]]) -> str:
    lines = ["| mode | cosine | norm | peak memory | time |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        none = "not stationary" if row["mode"] == "Implicit()" else "none"
        gradient = f"{row['cosine']:.4f} | {row['norm']:.3f}" if "cosine" in row else f"{none} | "
        lines.append(f"| `{row['mode']}` | {gradient} | {row['memory']:.3f} | {row['time']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    keep_freed_memory()
    torch.set_num_threads(2)
    results = {temperature: measure(temperature, repeats) for temperature in (1.0, 0.1)}
    text = [
        "Gradient modes on one problem: 10 iterations, 1000 samples, 100 elites, actions of a 12-step GRU rollout.",
        "Cosine and norm against the full gradient; peak memory and time as ratios to `Unroll` in the same run.",
        f"Made by `python benchmarks/gradient_modes.py` with torch {torch.__version__} on the CPU.",
    ]
    for temperature, rows in results.items():
        text += ["", f"Temperature {temperature:g}:", "", table(rows)]
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "gradient_modes.md").write_text("\n".join(text) + "\n")
    record = {"torch": torch.__version__, "threads": 2, "rows": {str(t): rows for t, rows in results.items()}}
    (OUT / "gradient_modes.json").write_text(json.dumps(record, indent=1) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
