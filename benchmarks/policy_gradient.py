"""What a policy gradient through plans says, beside finite differences of returns: bias and variance of estimators.

The controller of `dcem finetune`, wrong about its model or its cost, explores. Printed: the derivative of its mean
return in the logarithms of what is wrong, by finite differences with common random numbers; then estimates of it by
`sum_t A_t grad log pi(a_t)` with advantages of several kinds, standard errors, and the signal-to-noise ratio that the
episodes of an iteration of 1600 steps have. With `--clip`, what PPO's clipped loss leaves of it after a first update.

    python benchmarks/policy_gradient.py --std 1.0 --episodes 150 --seed 11
    python benchmarks/policy_gradient.py --task cartpole --gradient truncate --episodes 150
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import ExplorationType, set_exploration_type

from dcem.experiments.finetune.settings import GRADIENTS
from dcem.experiments.finetune.task import TASKS, WRONG, Task, controller, make_env
from dcem.rl import Actor

SHIFT = 0.05
ITERATION = 1600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=[*TASKS], default="pendulum")
    parser.add_argument("--wrong", choices=[*WRONG], default="model")
    parser.add_argument("--gradient", choices=[*GRADIENTS], default="unroll", help="how plans are differentiated")
    parser.add_argument("--std", type=float, help="of the exploration; by default the task's")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--differences", action="store_true", help="finite differences, too")
    parser.add_argument("--clip", type=float, default=0.0, help="of the ratio, after a shift of all parameters")
    args = parser.parse_args()
    task = TASKS[args.task]
    shaped = {f"weight_{i}": weight for i, weight in enumerate(task.shaped)}
    start = task.believed if args.wrong == "model" else shaped

    def explore(believed: dict[str, float]) -> tuple[Actor, TensorDictBase]:
        return explored(task, believed, args)

    actor, data = explore(start)
    returns = data["next", "reward"].sum((1, 2))
    print(f"return {returns.mean():.0f}")
    bound = 0.995 * float(task.plant().bounds[1])
    print(f"planned actions within 0.5 % of a bound: {(data['loc'].abs() > bound).float().mean():.0%}")
    for name, value in start.items() if args.differences else ():
        sides = (explore({**start, name: value * math.exp(shift)})[1] for shift in (SHIFT, -SHIFT))
        up, down = (side["next", "reward"].sum((1, 2)) for side in sides)
        report(f"finite difference, {name}", task, (up - down) / (2 * SHIFT))
        report(f"to above alone, {name}", task, (up - returns) / SHIFT)
        report(f"to below alone, {name}", task, (returns - down) / SHIFT)

    reward = data["next", "reward"].squeeze(-1)
    features = {"pendulum": of_pendulum, "cartpole": of_cartpole}[args.task]
    now, then = features(data["observation"]), features(data["next", "observation"])
    if args.clip:
        weights = temporal_difference(now, then, reward, 0.97)
        advantage = to_go(reward + 0.97 * (then @ weights) - now @ weights, 0.97 * 0.9)
        after_updates(actor, data, (advantage - advantage.mean()) / advantage.std(), args.clip)
        return
    score = scores(actor, data)
    for discount in (0.95, 0.97, 0.99):
        weights = temporal_difference(now, then, reward, discount)
        error = reward + discount * (then @ weights) - now @ weights
        for trace in (0.0, 0.5, 0.9, 0.95):
            name = f"GAE, discount {discount}, lambda {trace}"
            estimate(name, start, task, score, to_go(error, discount * trace))
    undiscounted = to_go(reward, 1.0)
    estimate("undiscounted return to go, baseline", start, task, score, undiscounted - baseline(now, undiscounted))


def explored(task: Task, believed: dict[str, float], args: argparse.Namespace) -> tuple[Actor, TensorDictBase]:
    """Episodes with exploration; initial states and draws depend on the seed alone."""
    mpc = controller(task, args.wrong, GRADIENTS[args.gradient](), 48, 5)
    with torch.no_grad():
        learned(mpc).log.copy_(torch.tensor([*believed.values()]).log())
    actor = Actor(mpc, std=args.std or task.std)
    env = make_env(task, args.episodes, args.seed, actor.make_tensordict_primer())
    env.set_seed(args.seed)
    torch.manual_seed(args.seed)
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        return actor, env.rollout(task.num_steps, actor, break_when_any_done=False)


def learned(mpc: Any) -> Any:
    """The model or the cost, whichever trains."""
    return mpc.dynamics if mpc.dynamics.log.requires_grad else mpc.cost


def scores(actor: Actor, data: TensorDictBase) -> Tensor:
    """The gradient of each action's log-probability in the parameters, `(episodes, steps, p)`."""
    model = learned(actor.controller.mpc)
    believed = model.log.detach().reshape(-1, 1, 1)
    del model.log
    found = []
    for part in data.reshape(-1).split(400):
        model.log = believed.expand(-1, len(part), 1).clone().requires_grad_()  # of each step its own
        (gradient,) = torch.autograd.grad(actor.get_dist(part).log_prob(part["action"]).sum(), model.log)
        found.append(gradient.squeeze(-1).T)
    return torch.cat(found).reshape(*data.shape, -1)


def after_updates(actor: Actor, data: TensorDictBase, advantage: Tensor, clip: float) -> None:
    """The gradient of PPO's loss with and without its clip, on the same steps, where both logarithms have moved."""
    model = learned(actor.controller.mpc)
    steps, believed = data.reshape(-1), model.log.detach().clone()
    for shift in (0.0, 0.03, 0.1, -0.03):
        with torch.no_grad():
            model.log.copy_(believed + shift)
        clipped, unclipped, outside = torch.zeros_like(believed), torch.zeros_like(believed), 0.0
        for part, a in zip(steps.split(400), advantage.reshape(-1).split(400), strict=True):
            ratio = (actor.get_dist(part).log_prob(part["action"]) - part["action_log_prob"]).exp()
            free, cut = ratio * a, torch.min(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a)
            unclipped += torch.autograd.grad(free.sum(), model.log, retain_graph=True)[0] / len(steps)
            clipped += torch.autograd.grad(cut.sum(), model.log)[0] / len(steps)
            outside += ((ratio - 1).abs() > clip).sum().item() / len(steps)
        values = [[round(v, 3) for v in gradient.tolist()] for gradient in (unclipped, clipped)]
        print(f"after {shift:+.2f}: {values[0]}, clipped {values[1]}, of steps outside {outside:.1%}", flush=True)


def of_cartpole(observation: Tensor) -> Tensor:
    """All products of up to three of a cartpole's numbers, in units of their size."""
    x = torch.cat([torch.ones_like(observation[..., :1]), observation / observation.new([2, 4, 1, 1, 8])], -1)
    each = torch.combinations(torch.arange(x.shape[-1]), 3, with_replacement=True)
    return x[..., each].prod(-1)


def of_pendulum(observation: Tensor) -> Tensor:
    """Of a pendulum's state, in which values are linear to a few per cent."""
    cos, sin, speed = observation.unbind(-1)
    v, angle, energy = speed / 8, torch.atan2(sin, cos), speed.square() / 30 + cos
    return torch.stack(
        [
            torch.ones_like(cos), cos, sin, v, cos * cos, sin * cos, v * v, cos * v, sin * v, sin * v * cos,
            energy * energy, v**3, v**4, cos * v * v, angle.abs(), angle * v, torch.exp(-5 * (1 - cos) - 10 * v * v),
        ],
        -1,
    )  # fmt: skip


def temporal_difference(now: Tensor, then: Tensor, reward: Tensor, discount: float) -> Tensor:
    """The weights of the values, by least-squares temporal differences."""
    x, y = now.flatten(0, 1), then.flatten(0, 1)
    return torch.linalg.solve(x.T @ (x - discount * y) + 1e-3 * torch.eye(x.shape[1]), x.T @ reward.flatten())


def baseline(now: Tensor, target: Tensor) -> Tensor:
    """Regression on state and time, fitted to the other half of the episodes."""
    time = torch.linspace(0, 1, now.shape[1])[:, None].expand_as(now[..., :1])
    x, found = torch.cat([now, now * time, now * time * time], -1), torch.zeros_like(target)
    for rows in (slice(0, None, 2), slice(1, None, 2)):
        others = slice(1 - (rows.start or 0), None, 2)
        a, y = x[others].flatten(0, 1), target[others].flatten()
        found[rows] = x[rows] @ torch.linalg.solve(a.T @ a + 1e-6 * len(a) * torch.eye(a.shape[1]), a.T @ y)
    return found


def to_go(each: Tensor, discount: float) -> Tensor:
    """`sum_k discount^k each[t + k]` along the steps."""
    found, following = torch.zeros_like(each), torch.zeros_like(each[:, 0])
    for t in reversed(range(each.shape[1])):
        found[:, t] = following = each[:, t] + discount * following
    return found


def estimate(name: str, start: dict[str, float], task: Task, score: Tensor, advantage: Tensor) -> None:
    each = (score * advantage.unsqueeze(-1)).sum(1)
    for parameter, values in zip(start, each.unbind(-1), strict=True):
        report(f"{name}, {parameter}", task, values)


def report(name: str, task: Task, values: Tensor) -> None:
    num = ITERATION // task.num_steps
    mean, std = values.mean().item(), values.std().item()
    print(
        f"{name}: {mean:.1f} ± {std / len(values) ** 0.5:.1f}, of {num} episodes {mean / std * num**0.5:.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
