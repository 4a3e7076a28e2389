"""What the library costs on a GPU, beside what it cannot do without: ``python benchmarks/gpu.py``.

Projections beside `torch.softmax`, a solve beside the evaluations of its energy, plans through an RSSM of the paper's
size and through the pendulum. Each is called as it comes (`eager`), and recorded as a whole in a CUDA graph and
replayed (`graph`); `compiled` are the graphs of models that `torch.compile` made, `captured` are solvers of
`dcem.capture`. Calls that are compared take turns; what is quoted is the fastest. Writes results/benchmarks/gpu.json;
`benchmarks/tables.py` makes the table.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dcem
from dcem.control import MPC
from dcem.control.systems import Pendulum
from dcem.energy import EnergyModel, MLPEnergy
from dcem.projections.functional import constrained_softmax, constrained_sparsemax, lml
from dcem.world import RSSM

OUT = Path(__file__).parents[1] / "results" / "benchmarks" / "gpu.json"
PLANS = (("high", 1), ("bfloat16", 64), ("bfloat16", 1), ("high", 64))
PARTS = ["projections", "solves", "latent_plans", "path_integral"]
Call = Callable[[], object]


def recorded(call: Call, copies: int = 1) -> Call:
    """`call`, recorded so many times in one CUDA graph, and replayed; on one stream, as autograd wants it."""
    for _ in range(3):
        call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        kept = [call() for _ in range(copies)]
    graph.replay()

    def replay(kept: object = kept) -> None:
        graph.replay()

    return replay


def fastest(calls: dict[str, Call], seconds: float = 0.5, rounds: int = 10) -> dict[str, float]:
    """Milliseconds of each call, which take turns; of a recorded one, of all that it holds."""
    for call in calls.values():
        call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for call in calls.values():
        call()
    torch.cuda.synchronize()
    once = time.perf_counter() - start
    repeats = max(1, min(200, int(seconds / rounds / once)))
    found = dict.fromkeys(calls, math.inf)
    for _ in range(rounds):
        for name, call in calls.items():
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            for _ in range(repeats):
                call()
            after.record()
            after.synchronize()
            found[name] = min(found[name], before.elapsed_time(after) / repeats)
    return found


def projections() -> list[dict[str, Any]]:
    rows = []
    for batch, n, k in ((1024, 1000, 100), (65536, 128, 16), (64, 10000, 1000)):
        x = torch.randn(batch, n, device="cuda", requires_grad=True)
        g = torch.randn(batch, n, device="cuda")
        functions: dict[str, Callable[[Tensor], Tensor]] = {
            "softmax": lambda x: x.softmax(-1),
            "lml": lambda x: lml(x, k),  # noqa: B023
            "constrained_softmax": lambda x: constrained_softmax(x, k),  # noqa: B023
            "constrained_sparsemax": lambda x: constrained_sparsemax(x, k),  # noqa: B023
        }

        def forward(fn: Callable[[Tensor], Tensor]) -> object:
            with torch.no_grad():
                return fn(x)  # noqa: B023

        def both(fn: Callable[[Tensor], Tensor]) -> object:
            return torch.autograd.grad(fn(x), x, g)  # noqa: B023

        for mode, of in (("forward", forward), ("forward and backward", both)):
            calls: dict[str, Call] = {name: (lambda fn=fn, of=of: of(fn)) for name, fn in functions.items()}
            eager = fastest(calls)
            graph = fastest({name: recorded(call, 10) for name, call in calls.items()})
            for name in functions:
                row = {"batch": batch, "n": n, "k": k, "mode": mode, "name": name}
                row |= {"eager_us": 1e3 * eager[name], "graph_us": 1e2 * graph[name]}
                rows.append(row | {"ratio": graph[name] / graph["softmax"]})
                print({key: round(v, 2) if isinstance(v, float) else v for key, v in rows[-1].items()}, flush=True)
    return rows


def solves() -> list[dict[str, Any]]:
    rows = []
    for batch in (1, 64, 1024):
        energy = MLPEnergy(1, 1).cuda()
        parameters = list(energy.parameters())
        model = EnergyModel(energy, 1, dcem.CEM(100, 10, dcem.LML(1.0)), num_iterations=10, init_std=7.0).cuda()
        x = torch.rand(batch, 1, device="cuda") * 2 * math.pi
        target = x * x.sin()
        candidates = [torch.randn(batch, 100, 1, device="cuda").requires_grad_() for _ in range(10)]

        def update() -> object:
            return torch.autograd.grad(torch.nn.functional.mse_loss(model(x), target), parameters)  # noqa: B023

        def bare() -> object:
            total = torch.stack([energy(x, y).sum() for y in candidates]).sum()  # noqa: B023
            return torch.autograd.grad(total, [*parameters, *candidates])  # noqa: B023

        def search() -> object:
            with torch.no_grad():
                return model(x)  # noqa: B023

        def bare_search() -> object:
            with torch.no_grad():
                return [energy(x, y) for y in candidates]  # noqa: B023

        for mode, ours, theirs in (("with gradient", update, bare), ("without", search, bare_search)):
            row: dict[str, Any] = {"batch": batch, "mode": mode}
            eager, graph = fastest({"ours": ours, "bare": theirs}), {"bare": recorded(theirs), "ours": recorded(ours)}
            row |= {"checked_ms": eager["ours"], "bare_ms": eager["bare"]}
            with dcem.unchecked():
                row["eager_ms"] = fastest({"ours": ours, "bare": theirs})["ours"]
                times = fastest(graph | {"unchecked": recorded(ours)})
            row |= {"checked_graph_ms": times["ours"], "graph_ms": times["unchecked"], "bare_graph_ms": times["bare"]}
            rows.append(
                row | {"ratio": row["eager_ms"] / row["bare_ms"], "graph_ratio": times["unchecked"] / times["bare"]}
            )
            print({key: round(v, 3) if isinstance(v, float) else v for key, v in rows[-1].items()}, flush=True)
    return rows


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """One step, compiled: the loop over the horizon stays as it is."""
    return torch.compile(function, dynamic=False)


def plan_calls(mpc: MPC, state: Any, **options: Any) -> Call:
    def plan() -> object:
        with torch.no_grad():
            return mpc(state, **options).actions

    return plan


def latent_plans() -> list[dict[str, Any]]:
    """1000 candidates, 10 iterations, 12 steps ahead through an RSSM of the paper's size."""
    rows = []
    for precision, batch in PLANS:
        torch._dynamo.reset()
        torch.set_float32_matmul_precision("high" if precision == "bfloat16" else precision)
        model, solver = RSSM(17, 6).cuda().eval(), dcem.CEM(1000, 100, dcem.LML(1.0))
        action, seen = torch.zeros(batch, 6, device="cuda"), torch.randn(batch, 17, device="cuda")
        with torch.no_grad():
            belief = model.observe(model.initial((batch,)), action, seen)

        def controller(imagine: Any, cost: Any, solver: dcem.Solver) -> MPC:
            return MPC(imagine, cost, 12, 6, (-1, 1), solver, num_iterations=10).cuda()

        sides = {
            "eager": controller(model.imagine, model.cost, solver),
            "compiled": controller(compiled(model.imagine), compiled(model.cost), solver),
            "captured": controller(model.imagine, model.cost, dcem.capture(solver)),
        }
        row: dict[str, Any] = {"precision": precision, "batch": batch}
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False):
            calls = {name: plan_calls(mpc, belief, evaluate=False) for name, mpc in sides.items()}
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                torch.cuda.synchronize()
                row[f"{name}_first_s"] = time.perf_counter() - start
            times = fastest(calls, 0.3, 3)
            times |= fastest({f"{name}_graph": recorded(call) for name, call in calls.items()}, 0.5, 5)
        row |= {f"{name}_ms": ms for name, ms in times.items()}
        rows.append(row | {"plans_per_second": 1e3 * batch / min(times.values())})
        print({key: round(v, 3) if isinstance(v, float) else v for key, v in rows[-1].items()}, flush=True)
    torch.set_float32_matmul_precision("highest")
    return rows


def path_integral() -> list[dict[str, Any]]:
    """MPPI of 1024 samples over 100 steps of the pendulum."""
    rows = []
    system = Pendulum()
    for batch in (1, 64):
        state = system.sample_states(batch, device=torch.device("cuda"))
        solver = dcem.MPPI(1024, 1.0)
        sides = {
            "eager": MPC(system, system.cost, 100, 1, system.bounds, solver, num_iterations=1).cuda(),
            "compiled": MPC(
                compiled(system), compiled(system.cost), 100, 1, system.bounds, solver, num_iterations=1
            ).cuda(),
        }
        calls = {name: plan_calls(mpc, state, evaluate=False) for name, mpc in sides.items()}
        for call in calls.values():
            call()
        times = fastest(calls, 0.3, 3)
        graphs = fastest({f"{name}_graph": recorded(call) for name, call in calls.items()})
        rows.append({"batch": batch, **{f"{name}_ms": ms for name, ms in (times | graphs).items()}})
        print({key: round(v, 3) if isinstance(v, float) else v for key, v in rows[-1].items()}, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, action="append", help="of all; may be given more than once")
    parts = parser.parse_args().part or PARTS
    if not torch.cuda.is_available():
        print(f"gpu: expected a CUDA device, and a torch built for it; got torch {torch.__version__}", file=sys.stderr)
        sys.exit(2)
    torch.cuda.set_stream(torch.cuda.Stream())  # the default one cannot be recorded
    record: dict[str, Any] = {"made_on": {}} | (json.loads(OUT.read_text()) if OUT.exists() else {})
    record["command"] = "python benchmarks/gpu.py"
    for part in parts:
        start = time.perf_counter()
        record[part] = globals()[part]()
        record["made_on"][part] = f"one {torch.cuda.get_device_name()}, torch {torch.__version__}"
        print(f"{part}: {time.perf_counter() - start:.0f} s", flush=True)
        OUT.parent.mkdir(parents=True, exist_ok=True)
        OUT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
