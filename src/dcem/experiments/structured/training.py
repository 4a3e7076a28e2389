"""Train every model with every seed."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dcem.energy import EnergyModel
from dcem.experiments.harness.run import Run
from dcem.experiments.harness.settings import choose_device
from dcem.experiments.harness.training import Best, Clock, Schedule, descend, training_loop
from dcem.experiments.structured.task import Split, Task
from dcem.gradients import Detach


class Trained(NamedTuple):
    """A model after training, and what came out."""

    model: Any
    metrics: dict[str, Any]
    records: list[dict[str, Any]]


def compare(task: Task, config: Any, run: Run, prefix: str = "") -> dict[str, list[Trained]]:
    """Train every model with every seed; each is a run in its own folder."""
    results: dict[str, list[Trained]] = {}
    for name in config.models or task.labels:
        for seed in range(config.seed, config.seed + config.num_seeds):
            with run.part(f"{prefix}{name}-{seed}", seed) as part:
                trained = train(task, config, part, name, seed)
                part.finish(**trained.metrics)
            shown = "  ".join(f"{k} {v:.4g}" for k, v in trained.metrics.items() if isinstance(v, float))
            run.say(f"{prefix}{name} seed {seed}: {shown}")
            results.setdefault(name, []).append(trained)
    return results


def train(task: Task, config: Any, run: Run, name: str, seed: int) -> Trained:
    """Train one model; checkpoints and metrics go to the run."""
    device = choose_device(config.device)
    torch.manual_seed(seed)
    model = task.build(name).to(device)
    epochs = config.feed_forward_epochs if name == "feed-forward" else config.num_epochs
    per_epoch = math.ceil(len(task.train.x) / config.batch_size)
    optimizer = torch.optim.AdamW(_groups(model, config.weight_decay), lr=config.lr)
    schedule = Schedule(optimizer, epochs * per_epoch)
    generator = torch.Generator(device).manual_seed(seed)
    best, clock = Best(), Clock()
    run.track(model=model, optimizer=optimizer, schedule=schedule, generator=generator, best=best, clock=clock)

    def update(step: int) -> float:
        batch = _batch(task.train, seed, step - 1, per_epoch, config.batch_size)
        return descend(optimizer, task.loss(name, model, batch, generator), config.grad_clip)

    def evaluate(step: int, loss: float, **_: float) -> None:
        metrics = task.evaluate(name, model, task.valid)
        run.log(step, loss=loss, **metrics)
        best.see(metrics[task.metric], model)

    training_loop(
        run, epochs * per_epoch, update, evaluate, schedule, clock=clock, eval_every=per_epoch * config.eval_every,
        at_start=False,
    )  # fmt: skip
    best.restore(model)
    parameters = sum(p.numel() for p in model.parameters())
    metrics = {**task.report(name, model), "seconds_per_epoch": clock.seconds / epochs, "parameters": parameters}
    return Trained(model, metrics, run.records())


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, step sizes and initial distributions do not, nor what an ICNN takes the softplus of."""
    named = list(model.named_parameters())
    exempt = {name for name, p in named if p.ndim < 2 or name.startswith(("solver_", "init_")) or ".free." in name}
    decays, others = ([p for name, p in named if (name in exempt) is so] for so in (False, True))
    return [{"params": decays, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _batch(split: Split, seed: int, update: int, per_epoch: int, size: int) -> Split:
    """The examples of an update: a function of the seed and the update's number alone."""
    epoch, i = divmod(update, per_epoch)
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    chosen = torch.randperm(len(split.x), generator=generator)[i * size : (i + 1) * size]
    return Split(split.x[chosen], split.y[chosen])


@torch.no_grad()
def predictions(model: Any, x: Tensor, iterations: list[int], chunk: int = 512) -> dict[int, Tensor]:
    """`ŷ` after each of the numbers of iterations; a model without iterations has one answer."""
    if not isinstance(model, EnergyModel):
        return dict.fromkeys(iterations, model(x))
    wanted = sorted(set(iterations))
    parts: dict[int, list[Tensor]] = {t: [] for t in wanted}
    generator = torch.Generator(x.device).manual_seed(0)
    for part in x.split(chunk):  # type: ignore[no-untyped-call]
        history = model.solve(
            part, num_iterations=wanted[-1], generator=generator, record=True, gradient=Detach()
        ).history
        dim = len(model.batch_shape(part))
        for t in wanted:
            mean = history[t - 1].distribution.mean
            parts[t].append(model.decode(mean.unsqueeze(dim)).squeeze(dim))
    return {t: torch.cat(of_t) for t, of_t in parts.items()}
