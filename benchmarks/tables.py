"""Markdown tables of the committed results, for the documentation: ``python benchmarks/tables.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

OUT = Path(__file__).parents[1] / "results" / "benchmarks"


def projections(record: dict[str, Any]) -> str:
    lines = [
        f"Time of one call as a ratio to `torch.softmax` in the same mode and run; made by `{record['command']}`, "
        f"torch {record['torch']}, {record['threads']} threads.",
        "",
        "| rows, n, k | mode | projection | forward | forward + backward |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in record["rows"]:
        if row["name"] != "softmax":
            size = f"{row['batch']}, {row['n']}, {row['k']}"
            ratios = f"{row['forward_ratio']:.1f} | {row['forward_backward_ratio']:.1f}"
            lines.append(f"| {size} | {row['mode']} | {row['name']} | {ratios} |")
    return "\n".join(lines)


def overhead(record: dict[str, Any]) -> str:
    lines = [
        "One update of the 1-D energy regression over the bare cost of evaluating its energy forward and backward on "
        "as many samples; by hand: the same loop of bare operations, without checks, records or choices; made by "
        f"`{record['command']}`, torch {record['torch']}.",
        "",
        "| allocator | batch | update | bare | ratio | by hand | ratio without gradient | by hand |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in ("default allocator", "allocator that keeps freed memory"):
        for row in record[name]:
            times = f"{row['update_ms']:.1f} ms | {row['bare_ms']:.1f} ms"
            names = ("overhead", "overhead_by_hand", "overhead_without_gradient", "overhead_by_hand_without_gradient")
            ratios = " | ".join(f"{row[key]:.2f}" for key in names)
            lines.append(f"| {name} | {row['batch']} | {times} | {ratios} |")
    return "\n".join(lines)


def control(record: dict[str, Any]) -> str:
    lines = [
        f"Time of one decision for all environments; made by `{record['command']}`, torch {record['torch']}.",
        "",
        "| environments | samples x iterations | ours | rival | ours, ms | compiled, ms | rival, ms | rival / ours "
        "| rival / compiled |",
        "| ---: | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in record["rows"]:
        names = f"{row['samples']} x {row['iterations']} | {row['ours']} | {row['theirs']}"
        times = f"{row['ours_ms']:.1f} | {row['compiled_ms']:.1f} | {row['theirs_ms']:.1f}"
        lines.append(
            f"| {row['environments']} | {names} | {times} | {row['ratio']:.1f} | {row['compiled_ratio']:.1f} |"
        )
    lines += ["", "One batch of 64 environments over one environment, CEM:", ""]
    lines += ["| rollout | one | 64 | ratio |", "| --- | ---: | ---: | ---: |"]
    for name, row in record["scaling"].items():
        lines.append(f"| {name} | {row['one_ms']:.1f} ms | {row['sixty_four_ms']:.1f} ms | {row['ratio']:.1f} |")
    return "\n".join(lines)


def gpu(record: dict[str, Any]) -> str:
    made_on = record["made_on"]
    lines = [
        f"Made by `{record['command']}`. *Graph* is a call that was recorded in a CUDA graph and is replayed, *eager* "
        "one as it comes.",
        "",
        f"Projections ({made_on['projections']}):",
        "",
        "| rows, n, k | mode | projection | graph, µs | over softmax | eager, µs |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    for row in record["projections"]:
        size, times = f"{row['batch']}, {row['n']}, {row['k']}", f"{row['graph_us']:.1f} | {row['ratio']:.2f}"
        lines.append(f"| {size} | {row['mode']} | {row['name']} | {times} | {row['eager_us']:.0f} |")
    lines += [
        "",
        "A solve of the 1-D energy regression (10 iterations, 100 samples) over the evaluations of its energy "
        f"({made_on['solves']}):",
        "",
    ]
    lines += ["| problems | mode | graph, ms | over energy | checked, ms | eager, ms | over energy | checked, ms |"]
    lines += ["| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for row in record["solves"]:
        graph = f"{row['graph_ms']:.2f} | {row['graph_ratio']:.2f} | {row['checked_graph_ms']:.2f}"
        eager = f"{row['eager_ms']:.1f} | {row['ratio']:.2f} | {row['checked_ms']:.1f}"
        lines.append(f"| {row['batch']} | {row['mode']} | {graph} | {eager} |")
    lines += [
        "",
        "Plans of 1000 candidates, 10 iterations and 12 steps through an RSSM of the paper's size "
        f"({made_on['latent_plans']}):",
        "",
        "| precision of products | plans | eager, ms | graph, ms | graph of a compiled model, ms | captured, ms | "
        "graph of a captured solver, ms | plans a second |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    names = ("eager_ms", "eager_graph_ms", "compiled_graph_ms", "captured_ms", "captured_graph_ms")
    for row in record["latent_plans"]:
        times = " | ".join(f"{row[name]:.1f}" for name in names)
        lines.append(f"| {row['precision']} | {row['batch']} | {times} | {row['plans_per_second']:.0f} |")
    lines += ["", f"MPPI of 1024 candidates over 100 steps of the pendulum ({made_on['path_integral']}):", ""]
    lines += ["| plans | eager, ms | graph, ms | graph of a compiled model, ms |", "| ---: | ---: | ---: | ---: |"]
    for row in record["path_integral"]:
        times = " | ".join(f"{row[k]:.2f}" for k in ("eager_ms", "eager_graph_ms", "compiled_graph_ms"))
        lines.append(f"| {row['batch']} | {times} |")
    return "\n".join(lines)


def main() -> None:
    for name, table in (("projections", projections), ("overhead", overhead), ("control", control), ("gpu", gpu)):
        record = json.loads((OUT / f"{name}.json").read_text())
        (OUT / f"{name}.md").write_text(table(record) + "\n")


if __name__ == "__main__":
    main()
