"""What SAC's values say about a controller's model before the policy follows them: mean and spread over data sets.

The controller of `dcem finetune`, wrong about its model or its cost, explores; its episodes are divided into data sets.
From each, action values are learned by SAC's rule, while the controller stays as it is. Printed: the gradient of their
mean in the logarithms of what is wrong, at the actions that the controller would draw, its mean over the data sets by
its spread, and in how many it points up. `--unscaled`: the value networks see observations as they come.

    python benchmarks/value_gradient.py --updates 1500
    python benchmarks/value_gradient.py --updates 1500 --candidates 192 --elites 20
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.func import functional_call, stack_module_state
from torchrl.envs import ExplorationType, set_exploration_type

from dcem.experiments.finetune.learner import ActionValue
from dcem.experiments.finetune.settings import GRADIENTS
from dcem.experiments.finetune.task import TASKS, WRONG, Task, controller, make_env
from dcem.rl import Actor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=[*TASKS], default="cartpole")
    parser.add_argument("--wrong", choices=[*WRONG], default="model")
    parser.add_argument("--gradient", choices=[*GRADIENTS], default="truncate", help="how plans are differentiated")
    parser.add_argument("--candidates", type=int, default=48)
    parser.add_argument("--elites", type=int, default=5)
    parser.add_argument("--sets", type=int, default=20, help="of data")
    parser.add_argument("--episodes", type=int, default=20, help="of each")
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--tau", type=float, default=0.05, help="by which the target networks follow")
    parser.add_argument("--discount", type=float, default=0.97)
    parser.add_argument("--td-lambda", type=float, default=0.0)
    parser.add_argument("--slice", type=int, default=1, help="steps that are replayed together")
    parser.add_argument("--unscaled", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    task = TASKS[args.task]
    mpc = controller(task, args.wrong, GRADIENTS[args.gradient](), args.candidates, args.elites)
    actor = Actor(mpc, std=task.std, seed=args.seed)
    env = make_env(task, args.sets * args.episodes, args.seed, actor.make_tensordict_primer())
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        data = env.rollout(task.num_steps, actor, break_when_any_done=False)
    print(f"return {data['next', 'reward'].sum((1, 2)).mean():.1f}", flush=True)
    data = data.reshape(args.sets, args.episodes, task.num_steps)
    values = Values(task, actor, args)
    for _ in range(args.updates):
        values.update(data)
    names = task.physics if args.wrong == "model" else [f"weight {i}" for i in range(len(task.weights))]
    report(list(names), torch.stack([gradient(actor, values, data, i) for i in range(args.sets)]))


class Values:
    """Two action values and their targets for each data set, all learned at once."""

    def __init__(self, task: Task, actor: Actor, args: argparse.Namespace) -> None:
        self.args, self.scale, self.distribution = args, task.reward_scale, actor.planner.distribution
        units = tuple(1.0 for _ in task.units) if args.unscaled else task.units
        nets = [ActionValue(dataclasses.replace(task, units=units)) for _ in range(2 * args.sets)]
        self.net = nets[0]
        parameters, self.buffers = stack_module_state(nets)
        self.parameters = {name: x.detach().requires_grad_() for name, x in parameters.items()}
        self.targets = {name: x.detach().clone() for name, x in parameters.items()}
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr=args.lr)

    def __call__(self, parameters: dict[str, Tensor], observation: Tensor, action: Tensor) -> Tensor:
        """Of each data set's steps `(sets, B)`: `(2, sets, B)`."""

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, a: Tensor) -> Tensor:
            value: Tensor = functional_call(self.net, (parameters, buffers), (x, a))
            return value.squeeze(-1)

        twice = (torch.cat([x, x]) for x in (observation, action))
        found: Tensor = torch.vmap(one)(parameters, self.buffers, *twice)
        return found.reshape(2, len(observation), -1)

    def update(self, data: TensorDictBase) -> None:
        """By slices from each data set; the last step of an episode, of which no next action is stored, is left out."""
        args, length = self.args, self.args.slice
        num_sets, num_episodes, num_steps = data.shape
        size = num_sets, args.batch // length, 1
        sets = torch.arange(num_sets)[:, None, None]
        episodes = torch.randint(num_episodes, size)
        steps = torch.randint(num_steps - length, size) + torch.arange(length)

        def drawn(x: Tensor, later: int = 0) -> Tensor:
            return x[sets, episodes, steps + later]

        with torch.no_grad():
            planned, std = drawn(data["loc"], 1).flatten(1, 2), drawn(data["scale"], 1).flatten(1, 2)
            action = self.distribution(planned, std).sample()
            value = self(self.targets, drawn(data["next", "observation"]).flatten(1, 2), action).amin(0)
            value = value.reshape(*size[:2], length)
            reward = self.scale * drawn(data["next", "reward"]).squeeze(-1)
            returns, target = [], value[..., -1]
            for k in reversed(range(length)):
                target = args.td_lambda * target + (1 - args.td_lambda) * value[..., k] if k < length - 1 else target
                target = reward[..., k] + args.discount * target
                returns.append(target)
            aims = torch.stack(returns[::-1], -1).flatten(1)
        state, action = drawn(data["observation"]).flatten(1, 2), drawn(data["action"]).flatten(1, 2)
        loss = (self(self.parameters, state, action) - aims).square().mean(-1).sum()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        with torch.no_grad():
            for name, x in self.targets.items():
                x.lerp_(self.parameters[name], args.tau)


def gradient(actor: Actor, values: Values, data: TensorDictBase, which: int) -> Tensor:
    """Of the mean value of what the controller would do, in the logarithms of what is wrong: as SAC's policy loss."""
    mpc: Any = actor.controller.mpc
    log = mpc.dynamics.log if mpc.dynamics.log.requires_grad else mpc.cost.log
    parameters = {name: x.detach() for name, x in values.parameters.items()}
    found, num_sets, of = torch.zeros_like(log), len(data), data[which].reshape(-1)
    for part in of.split(500):
        observation, action = part["observation"], actor.get_dist(part).rsample()
        every = (x.expand(num_sets, *x.shape) for x in (observation, action))  # the values of each set, of which one
        value = values(parameters, *every).amin(0)[which].sum()
        found += torch.autograd.grad(value, log)[0] / len(of)
    return found


def report(names: list[str], gradients: Tensor) -> None:
    for name, of in zip(names, gradients.unbind(-1), strict=True):
        mean, std = of.mean().item(), of.std().item()
        print(
            f"{name}: {mean:.4f} ± {std / len(of) ** 0.5:.4f}, by the spread {mean / std:.1f}, "
            f"up in {(of > 0).sum().item()} of {len(of)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
