"""How much of a PPO step through an embedded controller is signal: do two halves of its episodes agree?

The controller of a `dcem planet` checkpoint explores. The gradient of PPO's surrogate at ratio 1 in its decoder is
taken with advantages of several kinds, on either half of the episodes with values that the other half has taught.
Printed: the share of the variance of returns that the values explain in the half that they have not seen; the cosine
between the halves' gradients (0: noise, 1: all signal), and the least and most that quarters of the episodes have.

    python benchmarks/tuning_gradient.py results/planet/cheetah-embed-3.pt --std 0.1
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.objectives.value.functional import generalized_advantage_estimate

from dcem.experiments.planet.controllers import load
from dcem.experiments.planet.suite import Suite
from dcem.experiments.planet.tuning import Tuner

DISCOUNTS, WEIGHTS = (0.98, 0.95, 0.9), (0.0, 0.5, 0.95)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--std", type=float, default=0.1, help="of the exploration")
    parser.add_argument("--episodes", type=int, default=48, help="a multiple of 16")
    args = parser.parse_args()

    torch.manual_seed(0)
    controller, _ = load(args.checkpoint)
    controller.config.tuning.std = args.std
    controller.config.tuning.parts = ["decoder"]
    tuner = Tuner(controller.config, controller)
    suite = Suite(controller.config.task, 16, controller.config.episode_steps)
    data = torch.cat([tuner.collect(suite, 700_000 + i) for i in range(args.episodes // 16)])
    reward = data["next", "reward"] / (1 - controller.config.tuning.discount)
    returns = reward.sum((1, 2))
    print(f"{len(returns)} episodes: mean return {returns.mean():.0f} ± {returns.std() / len(returns) ** 0.5:.0f}")

    kinds = advantages(tuner, data, reward)
    quarters = gradients(tuner, data, torch.stack(list(kinds.values())))
    for name, of_quarter in zip(kinds, quarters, strict=True):
        halves = cosine(of_quarter[0] + of_quarter[2], of_quarter[1] + of_quarter[3])
        pairs = [cosine(a, b) for a, b in combinations(of_quarter, 2)]
        print(f"{name}: {halves:+.2f}, quarters {min(pairs):+.2f} to {max(pairs):+.2f}")


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a, b, dim=0).item()


def advantages(tuner: Tuner, data: TensorDictBase, reward: Tensor) -> dict[str, Tensor]:
    """By name, `(E, T)`, of zero mean and unit variance; episodes of even and odd number have each other's values."""
    with torch.no_grad():
        now, then = (tuner.model.encode(x) for x in (data["observation"], data["next", "observation"]))
    done, never = data["next", "done"], torch.zeros_like(data["next", "done"])
    kinds = {}
    for discount in DISCOUNTS:
        scaled, values = (1 - discount) * reward, torch.zeros_like(reward)
        next_values = values
        nets = [value_net(now.shape[-1]) for _ in range(2)]
        optimizers = [torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=1e-3) for net in nets]
        for _ in range(6):  # the targets depend on the values
            _, targets = generalized_advantage_estimate(discount, 0.9, values, next_values, scaled, done, never)
            for half, (net, optimizer) in enumerate(zip(nets, optimizers, strict=True)):
                x, y = now[half::2].flatten(0, 1), targets[half::2].flatten(0, 1)
                for _ in range(150):
                    drawn = torch.randint(len(x), (256,))
                    optimizer.zero_grad()
                    (net(x[drawn]) - y[drawn]).square().mean().backward()
                    optimizer.step()
            values, next_values = (by_halves(nets, x, swapped=False) for x in (now, then))
        values, next_values = (by_halves(nets, x, swapped=True) for x in (now, then))
        early = slice(None), slice(None, -100)  # after which enough follows
        _, seen = generalized_advantage_estimate(discount, 1.0, values, next_values, scaled, done, never)
        explained = 1 - (seen - values)[early].var() / seen[early].var()
        print(f"discount {discount}: {explained:.0%} of the returns' variance explained")
        for weight in WEIGHTS:
            advantage, _ = generalized_advantage_estimate(discount, weight, values, next_values, scaled, done, never)
            kinds[f"discount {discount}, lambda {weight}"] = (advantage - advantage.mean()) / advantage.std()
    return {name: advantage.squeeze(-1) for name, advantage in kinds.items()}


def value_net(size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(size, 256), nn.LayerNorm(256), nn.SiLU(), nn.Linear(256, 256), nn.LayerNorm(256), nn.SiLU(),
        nn.Linear(256, 1),
    )  # fmt: skip


@torch.no_grad()
def by_halves(nets: list[nn.Sequential], x: Tensor, *, swapped: bool) -> Tensor:
    """Values of the even episodes by the first net and of the odd ones by the second, or `swapped`."""
    values = torch.empty(*x.shape[:-1], 1)
    for half, net in enumerate(nets):
        chosen = slice(1 - half if swapped else half, None, 2)
        values[chosen] = net(x[chosen])
    return values


def gradients(tuner: Tuner, data: TensorDictBase, kinds: Tensor) -> Tensor:
    """For each kind of advantage `(K, E, T)`, each quarter of the episodes and each number tuned, `(K, 4, P)`."""
    found = torch.zeros(len(kinds), 4, sum(part.numel() for part in tuner.tuned))
    for number, episode in enumerate(data):
        log_prob = tuner.actor.get_dist(episode.select("observation")).log_prob(episode["action"])
        for kind, advantage in enumerate(kinds[:, number]):
            surrogate = (advantage * log_prob).mean()
            parts = torch.autograd.grad(surrogate, tuner.tuned, retain_graph=kind + 1 < len(kinds))
            found[kind, number % 4] += torch.cat([part.flatten() for part in parts])
    return found


if __name__ == "__main__":
    main()
