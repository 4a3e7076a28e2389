"""Differentiate a plan over all actions through a learned world model: ``python benchmarks/plan_gradient.py``.

An RSSM of the paper's size is fitted to random play of cheetah.run. Plans (H = 12, 10 iterations, a tenth of the
candidates elite) are made from beliefs along that play, and the first action is differentiated with respect to the
parameters that a plan goes through:

- cosine and norm against the gradient of ``Unroll``, over several beliefs and temperatures;
- with 1000 candidates, the paper's number: peak memory, and processor time over that of a solve without gradient;
- the peak memory of eight plans at once.

Writes results/plan-gradient/results.json and table.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

import dcem
from allocator import keep_freed_memory
from dcem._tree import map_tensors
from dcem.control import MPC
from dcem.world import RSSM, RSSMBelief
from memory import PeakMemory

HORIZON, ITERATIONS, REPEAT, DECISIONS = 12, 10, 4, 250
OUT = Path(__file__).parents[1] / "results" / "plan-gradient"
RUNS = Path(__file__).parents[1] / "runs" / "plan-gradient"
PLANNED_THROUGH = ("embed", "cell", "prior_net", "reward_net")
# How a plan is differentiated, and how many candidates are evaluated at a time: None for all.
MODES: dict[str, tuple[dcem.GradientMode, int | None]] = {
    "Unroll()": (dcem.Unroll(), None),
    "Checkpoint()": (dcem.Checkpoint(), None),
    "Truncate(5)": (dcem.Truncate(5), None),
    "Prune(0.33)": (dcem.Prune(0.33), None),
    "Prune(0.2)": (dcem.Prune(0.2), None),
    "Prune(0.2), chunk_size=100": (dcem.Prune(0.2), 100),
    "Prune(0.2, unbiased=True)": (dcem.Prune(0.2, unbiased=True), None),
}
COMPARED = ["Truncate(5)", "Prune(0.33)", "Prune(0.2)", "Prune(0.2, unbiased=True)"]
AGREEMENTS = [
    *((200, temperature, 6, COMPARED) for temperature in (1.0, 0.3, 0.1)),
    *((1000, temperature, 2, ["Prune(0.33)", "Prune(0.2)"]) for temperature in (1.0, 0.1)),
]
"""Candidates, temperature, beliefs, modes."""
AT_ONCE, TOGETHER = 8, "Prune(0.2), chunk_size=100"


def random_play(episodes: int, seed: int) -> TensorDict:
    """Episodes of cheetah.run under random actions that last, ``(episodes, 250)``."""
    os.environ.setdefault("MUJOCO_GL", "disabled")
    from dm_control import suite

    env = suite.load("cheetah", "run", task_kwargs={"random": seed})
    generator = np.random.default_rng(seed)
    observations, actions, rewards = [], [], []
    for _ in range(episodes):
        step = env.reset()
        for t in range(DECISIONS):
            if t % 5 == 0:
                action = generator.uniform(-1, 1, 6)
            observations.append(np.concatenate([np.ravel(x) for x in step.observation.values()]))
            actions.append(action)
            reward = 0.0
            for _ in range(REPEAT):
                step = env.step(action)
                reward += step.reward
            rewards.append([reward])
    shape = (episodes, DECISIONS)
    tensors = [
        torch.tensor(np.array(x), dtype=torch.float32).reshape(*shape, -1) for x in (observations, actions, rewards)
    ]
    after = {"reward": tensors[2], "terminated": torch.zeros(*shape, 1, dtype=torch.bool)}
    return TensorDict({"observation": tensors[0], "action": tensors[1], "next": after}, shape)


def fitted(play: TensorDict, updates: int) -> RSSM:
    """The RSSM after so many updates with the paper's optimiser, on 30 sequences of 30 steps each; made once."""
    torch.manual_seed(0)
    model = RSSM(play["observation"].shape[-1], play["action"].shape[-1])
    path = RUNS / f"rssm-{updates}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-4)
    for update in range(updates):
        episode = torch.randint(play.batch_size[0], (30, 1))
        steps = torch.randint(DECISIONS - 29, (30, 1)) + torch.arange(30)
        losses = model.loss(play[episode, steps])
        loss = sum(value for name, value in losses.items() if name.startswith("loss_"))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1000.0)
        optimizer.step()
        if update % 25 == 0 or update == updates - 1:
            print(f"update {update}: " + ", ".join(f"{name} {value.item():.3f}" for name, value in losses.items()))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model


@torch.no_grad()
def beliefs(model: RSSM, play: TensorDict, num: int) -> list[RSSMBelief]:
    """What the model believes at ``num`` times of an episode."""
    belief, before, along = model.initial(), torch.zeros(model.action_size), []
    for step in play[0].unbind(0):
        belief = model.observe(belief, before, step["observation"])
        before = step["action"]
        along.append(belief)
    return [along[i] for i in torch.linspace(20, DECISIONS - 1, num).int().tolist()]


class Problem:
    """Plans of one size and temperature, and their gradients."""

    def __init__(self, model: RSSM, num_samples: int, temperature: float) -> None:
        self.model, self.num_samples, self.temperature = model, num_samples, temperature
        self.parameters = [p for name, p in model.named_parameters() if name.startswith(PLANNED_THROUGH)]

    def plan(self, belief: RSSMBelief, gradient: dcem.GradientMode, chunk_size: int | None) -> Tensor:
        """A weighted sum of the first action's numbers."""
        solver = dcem.CEM(self.num_samples, self.num_samples // 10, dcem.LML(self.temperature))
        mpc = MPC(
            self.model.imagine, self.model.cost, HORIZON, self.model.action_size, (-1.0, 1.0), solver,
            num_iterations=ITERATIONS, gradient=gradient, chunk_size=chunk_size,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        action: Tensor = mpc(map_tensors(Tensor.clone, belief), generator=generator).action
        return (action * torch.randn(action.shape, generator=torch.Generator().manual_seed(1))).sum()

    def gradient(self, belief: RSSMBelief, gradient: dcem.GradientMode, chunk_size: int | None) -> Tensor:
        """Of that sum, with respect to the parameters that a plan goes through, flat."""
        value = self.plan(belief, gradient, chunk_size)
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, self.parameters)])

    def solve(self, belief: RSSMBelief) -> None:
        """The same plan without any gradient."""
        with torch.no_grad():
            self.plan(belief, dcem.Detach(), None)


def seconds(call: Any, repeats: int) -> float:
    """Processor time: the machine may have other things to do."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def agreement(problem: Problem, starts: list[RSSMBelief], names: list[str]) -> dict[str, dict[str, float]]:
    """Cosine and norm against ``Unroll``, over the beliefs."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for belief in starts:
        full = problem.gradient(belief, dcem.Unroll(), None)
        for name in names:
            gradient = problem.gradient(belief, *MODES[name])
            cosine = torch.nn.functional.cosine_similarity(gradient, full, dim=0).item()
            found[name].append((cosine, (gradient.norm() / full.norm()).item()))
    rows = {}
    for name, pairs in found.items():
        cosines, norms = zip(*pairs, strict=True)
        rows[name] = {
            "cosine": statistics.fmean(cosines),
            "lowest_cosine": min(cosines),
            "norm": statistics.fmean(norms),
        }
        print(problem.num_samples, problem.temperature, name, rows[name], flush=True)
    return rows


def price(problem: Problem, belief: RSSMBelief, name: str, repeats: int) -> dict[str, float]:
    """Peak memory, processor time, and its ratio to a solve without gradient just before."""
    forward = seconds(lambda: problem.solve(belief), repeats)
    call = (lambda: problem.gradient(belief, *MODES[name])) if name in MODES else (lambda: problem.solve(belief))
    taken = seconds(call, repeats)
    with PeakMemory() as memory:
        call()
    row = {"seconds": taken, "forward_seconds": forward, "time": taken / forward, "peak_bytes": memory.peak}
    print(problem.num_samples, problem.temperature, name, row, flush=True)
    return row


def at_once(problem: Problem, starts: list[RSSMBelief], name: str) -> float:
    """Peak memory of plans from several beliefs in one batch."""
    batch = RSSMBelief(*(torch.stack(parts) for parts in zip(*starts, strict=True)))
    with PeakMemory() as memory:
        problem.gradient(batch, *MODES[name])
    return memory.peak


def table(results: dict[str, Any]) -> str:
    lines = []
    for setting, agreed in results["agreement"].items():
        lines += ["", f"{setting}:", "", "| gradient | cosine | lowest | norm |", "| --- | --- | --- | --- |"]
        for name, row in agreed.items():
            lines.append(f"| `{name}` | {row['cosine']:.4f} | {row['lowest_cosine']:.4f} | {row['norm']:.3f} |")
    lines += ["", "1000 candidates, one plan:", "", "| gradient | peak memory | time |", "| --- | --- | --- |"]
    for name, row in results["price"].items():
        code = name if name == "no gradient" else f"`{name}`"
        lines.append(f"| {code} | {row['peak_bytes'] / 1e9:.2f} GB | {row['time']:.2f} |")
    for name, peak in results["at_once"].items():
        lines += ["", f"{AT_ONCE} plans at once with `{name}`: {peak / 1e9:.2f} GB."]
    return "\n".join(lines)


def started(updates: int) -> dict[str, Any]:
    """The results of a run of these settings that was cut short, or none yet."""
    fresh: dict[str, Any] = {"torch": torch.__version__, "updates": updates, "agreement": {}, "price": {}}
    path = OUT / "results.json"
    before = json.loads(path.read_text()) if path.exists() else fresh
    return (
        before if "at_once" not in before and all(before[key] == fresh[key] for key in ("torch", "updates")) else fresh
    )


def keep(results: dict[str, Any]) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    play = random_play(5, seed=0)
    model = fitted(play, args.updates)
    starts = beliefs(model, play, AT_ONCE)
    results = started(args.updates)
    for num_samples, temperature, num, names in AGREEMENTS:
        setting = f"{num_samples} candidates, temperature {temperature:g}, {num} beliefs"
        if setting not in results["agreement"]:
            problem = Problem(model, num_samples, temperature)
            results["agreement"][setting] = agreement(problem, starts[-num:], names)
            keep(results)
    problem = Problem(model, 1000, 0.1)
    for name in ["no gradient", *(name for name in MODES if "unbiased" not in name)]:
        if name not in results["price"]:
            results["price"][name] = price(problem, starts[-1], name, args.repeats)
            keep(results)
    results["at_once"] = {TOGETHER: at_once(problem, starts, TOGETHER)}
    keep(results)
    (OUT / "table.md").write_text(table(results).lstrip() + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
