"""Decisions a second on the pendulum, ours beside TorchRL and pytorch-mppi: ``python benchmarks/control.py``.

All plan with the same model and cost (``dcem.control.systems.Pendulum``), a horizon of 20 and 2500 trajectories a
decision: 5 iterations of 500, or, where pytorch-mppi is the rival, one of 2500, the only number it knows. There ours is
asked, like it, for actions alone (``evaluate=False``). They are called in turn in one process, at 1, 16 and 64
environments; pytorch-mppi takes one environment at a time and is called as often. Writes
results/benchmarks/control.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import dcem
from allocator import keep_freed_memory
from dcem.control import MPC, Compiled
from dcem.control.systems import Pendulum
from dcem.control.tasks import Task, load
from dcem.experiments.harness.settings import Search
from dcem.experiments.mpc.methods import LABELS, controller
from overhead import alternate

OUT = Path(__file__).parents[1] / "results" / "benchmarks" / "control.json"
FIVE, ONE = Search(500, 50, 5), Search(2500, 250, 1)
PAIRS = [("cem", "torchrl-cem", FIVE), ("mppi", "torchrl-mppi", FIVE), ("mppi", "pytorch-mppi", ONE)]


def decision(
    method: str, task: Task, budget: Search, state: Tensor, options: dict[str, bool] | None = None
) -> Callable[[], object]:
    """One decision for each of the states."""
    policy = controller(method, task, budget, None)
    if method == "pytorch-mppi":
        return lambda: [policy(one) for one in state.split(1)]

    def decide() -> object:
        with torch.no_grad():
            return policy(state, **(options or {}))

    return decide


def measure(num_envs: int, seconds: float) -> list[dict[str, float | str | int]]:
    """Each of ours, as it comes and with compiled dynamics, and its rival, in turn."""
    task = load("pendulum", 10.0, 1)
    compiled = dataclasses.replace(task, model=Compiled(task.model))
    state = task.model.sample_states(num_envs, generator=torch.Generator().manual_seed(0))
    rows: list[dict[str, float | str | int]] = []
    for ours, theirs, budget in PAIRS:
        options = {"evaluate": False} if theirs == "pytorch-mppi" else {}
        calls = {
            "ours": decision(ours, task, budget, state, options),
            "compiled": decision(ours, compiled, budget, state, options),
            "theirs": decision(theirs, task, budget, state),
        }
        alternate(calls, 2)
        first = sum(sum(times) for times in alternate(calls, 1).values())
        repeats = max(5, round(seconds / first))
        ms = {name: 1e3 * statistics.median(values) for name, values in alternate(calls, repeats).items()}
        rows.append(
            {
                "environments": num_envs,
                "ours": LABELS[ours],
                "theirs": LABELS[theirs],
                "samples": budget.num_samples,
                "iterations": budget.num_iterations,
                "ours_ms": ms["ours"],
                "compiled_ms": ms["compiled"],
                "theirs_ms": ms["theirs"],
                "ratio": ms["theirs"] / ms["ours"],
                "compiled_ratio": ms["theirs"] / ms["compiled"],
            }
        )
        print({key: round(value, 2) if isinstance(value, float) else value for key, value in rows[-1].items()})
    return rows


def scaling(seconds: float) -> dict[str, dict[str, float]]:
    """What 64 environments cost in one batch, over one of them."""
    system = Pendulum()
    solver = dcem.CEM(500, 50, dcem.HardTopK(), init_std=1.0)
    states = {num: system.sample_states(num, generator=torch.Generator().manual_seed(0)) for num in (1, 64)}
    result = {}
    for name, model in {"eager": system, "compiled": Compiled(system)}.items():
        mpc = MPC(model, system.cost, 20, 1, system.bounds, solver, num_iterations=5, gradient=dcem.Detach())
        calls = {str(num): (lambda mpc=mpc, state=state: mpc(state)) for num, state in states.items()}
        alternate(calls, 3)
        first = sum(sum(times) for times in alternate(calls, 1).values())
        times = alternate(calls, max(5, round(seconds / first)))
        one, many = (1e3 * statistics.median(times[num]) for num in ("1", "64"))
        result[name] = {"one_ms": one, "sixty_four_ms": many, "ratio": many / one}
    return result


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="to measure each pair for")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    record = {
        "command": f"python benchmarks/control.py --seconds {arguments.seconds:g} --threads {arguments.threads}",
        "torch": torch.__version__,
        "threads": arguments.threads,
        "scaling": scaling(arguments.seconds),
        "rows": [row for num_envs in (1, 16, 64) for row in measure(num_envs, arguments.seconds)],
    }
    print(record["scaling"])
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
