"""What the experiments on structured outputs share: training, evaluation and the comparison of models over seeds."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from dcem import plotting
from dcem.energy import EnergyModel
from dcem.experiments.run import Run
from dcem.experiments.training import Schedule, choose_device, require
from dcem.gradients import Detach


@dataclass
class Config:
    """Settings that the experiments on structured outputs share."""

    models: list[str] = field(default_factory=list)
    """Which to compare; empty: all."""
    num_epochs: int = 40
    feed_forward_epochs: int = 200
    """The feed-forward net is cheap, so it may learn until it overfits."""
    batch_size: int = 64
    lr: float = 5e-3
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    eval_every: int = 5
    """Epochs between evaluations; the weights that are best on the validation set are kept."""
    num_iterations: int = 5
    """Inner iterations in training."""
    test_iterations: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5, 6, 8, 10, 15, 20])
    num_samples: int = 50
    """Of DCEM."""
    num_elites: int = 5
    temperature: float = 1.0
    num_seeds: int = 3
    seed: int = 0
    device: str = "cpu"
    threads: int = 1


class Split(NamedTuple):
    """Inputs and targets."""

    x: Tensor
    y: Tensor


class Task(ABC):
    """Data, models and metrics of one experiment.

    Attributes:
        train: What is learned from.
        valid: What weights, thresholds and temperatures are chosen by.
        test: What is reported.
        labels: The models by name, and what they are called in tables.
        metric: The validation metric that chooses the weights: lower is better.
    """

    train: Split
    valid: Split
    test: Split
    labels: Mapping[str, str]
    metric: str

    @abstractmethod
    def build(self, name: str) -> nn.Module:
        """A fresh model."""

    @abstractmethod
    def loss(self, name: str, model: Any, batch: Split, generator: torch.Generator) -> Tensor:
        """The loss of an update."""

    @abstractmethod
    def evaluate(self, name: str, model: Any, split: Split) -> dict[str, float]:
        """Metrics during training, `metric` among them."""

    @abstractmethod
    def report(self, name: str, model: Any) -> dict[str, Any]:
        """Metrics of the trained model on the test set."""


class Trained(NamedTuple):
    """A model after training, and what came out."""

    model: Any
    metrics: dict[str, Any]
    records: list[dict[str, Any]]


class _Best:
    """The weights that were best so far, for checkpoints."""

    def __init__(self) -> None:
        self.value, self.weights = math.inf, dict[str, Tensor]()

    def see(self, value: float, model: nn.Module) -> None:
        if value < self.value:
            self.value = value
            self.weights = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.weights = state["value"], state["weights"]


class _Clock:
    """Processor seconds spent in updates, those before a resume included."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.seconds = state["seconds"]


def check(config: Any, labels: Mapping[str, str]) -> None:
    """Refuse settings that cannot be run."""
    counts = ("num_epochs", "feed_forward_epochs", "batch_size", "eval_every", "num_iterations", "num_samples")
    for key in (*counts, "num_seeds", "threads"):
        require(getattr(config, key) >= 1, key, "at least 1", getattr(config, key))
    require(config.weight_decay >= 0, "weight_decay", "at least 0", config.weight_decay)
    for key in ("lr", "grad_clip", "temperature"):
        require(getattr(config, key) > 0, key, "a positive number", getattr(config, key))
    require(1 <= config.num_elites <= config.num_samples, "num_elites", "1 to num_samples", config.num_elites)
    iterations = config.test_iterations
    require(bool(iterations) and min(iterations) >= 1, "test_iterations", "numbers of at least 1", iterations)
    unknown = [name for name in config.models if name not in labels]
    require(not unknown, "models", f"some of {', '.join(labels)}", ", ".join(unknown))


def compare(task: Task, config: Any, run: Run, prefix: str = "") -> dict[str, list[Trained]]:
    """Train every model with every seed; each is a run in its own folder."""
    plain: Any = OmegaConf.to_container(OmegaConf.structured(config))
    results: dict[str, list[Trained]] = {}
    for name in config.models or task.labels:
        for seed in range(config.seed, config.seed + config.num_seeds):
            folder = run.folder / f"{prefix}{name}-{seed}"
            with Run(folder, plain, seed=seed, device=run.device, command=run.command, resume=run.resume) as part:
                part.verbose = False
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
    total = epochs * per_epoch
    optimizer = torch.optim.AdamW(_groups(model, config.weight_decay), lr=config.lr)
    schedule = Schedule(optimizer, "cosine", total, 0)
    generator = torch.Generator(device).manual_seed(seed)
    best, clock = _Best(), _Clock()
    run.track(model=model, optimizer=optimizer, schedule=schedule, generator=generator, best=best, clock=clock)
    every = per_epoch * config.eval_every
    for step in run.steps(total, every):
        started = time.process_time()
        batch = _batch(task.train, seed, step - 1, per_epoch, config.batch_size)
        loss = task.loss(name, model, batch, generator)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        schedule.step()
        clock.seconds += time.process_time() - started
        if step % every == 0 or step == total:
            metrics = task.evaluate(name, model, task.valid)
            run.log(step, loss=loss.item(), **metrics)
            best.see(metrics[task.metric], model)
    if best.weights:
        model.load_state_dict(best.weights)
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
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
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


def table(
    results: Mapping[str, list[Trained]], labels: Mapping[str, str], columns: Mapping[str, tuple[str, str]]
) -> str:
    """A markdown table: mean ± standard deviation over seeds of the metrics that `columns` names and formats."""
    lines = ["| model | " + " | ".join(title for title, _ in columns.values()) + " |"]
    lines.append("|---|" + "---:|" * len(columns))
    for name, seeds in results.items():
        cells = []
        for key, (_, form) in columns.items():
            values = [float(trained.metrics[key]) for trained in seeds if trained.metrics.get(key) is not None]
            if not values:
                cells.append("")
                continue
            mean = sum(values) / len(values)
            spread = math.sqrt(sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1))
            cells.append(f"{mean:{form}}" + (f" ± {spread:{form}}" if len(values) > 1 and spread > 0 else ""))
        lines.append(f"| {labels[name]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def finish(run: Run, results: Mapping[str, list[Trained]], text: str, note: str) -> dict[str, Any]:
    """Write the table and the summary; returns the metrics."""
    (run.folder / "table.md").write_text(f"`{run.command}`\n\n{note}\n\n{text}", encoding="utf-8")
    run.say("\n" + text)
    metrics = {name: [trained.metrics for trained in seeds] for name, seeds in results.items()}
    run.finish(**metrics)
    return metrics


def draw_iterations(
    run: Run,
    results: Mapping[str, list[Trained]],
    labels: Mapping[str, str],
    key: str,
    ylabel: str,
    config: Any,
    name: str = "iterations",
) -> None:
    """A figure of a metric by the number of inner iterations at test time, where models have such."""
    by_model = {}
    for model, seeds in results.items():
        errors = [trained.metrics[key] for trained in seeds]
        trained_at = getattr(seeds[0].model, "num_iterations", config.num_iterations)
        label = labels[model] + (f" (trained with {trained_at})" if trained_at != config.num_iterations else "")
        if all(errors):
            by_model[label] = [{t: of_seed[str(t)] for t in config.test_iterations} for of_seed in errors]
    if by_model:
        run.figure(name, plotting.error_by_iterations(by_model, config.num_iterations, ylabel))
