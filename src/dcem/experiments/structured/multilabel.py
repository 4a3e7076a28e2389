"""Predict fifty labels that go together: a few are drawn, the others follow from pairs of them by logic.

The examples are those of scikit-learn's `make_multilabel_classification`; the labels that follow make correlations that
each output would have to find for itself without an energy over all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dcem
from dcem import plotting
from dcem.energy import ICNN, SPEN, EnergyModel, end_to_end_loss
from dcem.experiments.harness.processes import shard
from dcem.experiments.harness.run import Run
from dcem.experiments.harness.settings import choose_device, count, setting, some_of
from dcem.experiments.structured import report, training
from dcem.experiments.structured.settings import StructuredSettings
from dcem.experiments.structured.task import Split, Task

LABELS = {
    "feed-forward": "feed-forward net",
    "spen-gd": "SPEN, unrolled gradient descent",
    "spen-dcem": "SPEN, DCEM",
    "spen-embedded": "SPEN, embedded DCEM",
    "icnn": "ICNN, implicit differentiation",
}
THRESHOLDS = torch.linspace(0.02, 0.98, 49)


@dataclass
class Config(StructuredSettings):
    """Settings of `dcem multilabel`."""

    models: list[str] = some_of([], list(LABELS), may_be_empty=True)
    """Which to compare; empty: all."""
    hidden: int = count(64)
    weight_decay: float = setting(3.0, at_least=0)
    feed_forward_epochs: int = count(100)
    latent: int = count(10)
    num_labels: int = count(50)
    num_drawn: int = setting(15, at_least=2, at_most="num_labels")
    """Labels that the examples are made from; the others follow from them."""
    num_features: int = count(60)
    length: int = count(200)
    """Counts in one input: the more, the less noise."""
    num_train: int = count(600)
    num_valid: int = count(300)
    num_test: int = count(1000)


class MultiLabel(Task):
    """The generated examples and the models."""

    labels = LABELS
    metric = "minus_f1"

    def __init__(self, config: Config) -> None:
        x, y = examples(config)
        device = choose_device(config.device)
        x, y = x.to(device), y.to(device)
        a, b = config.num_train, config.num_train + config.num_valid
        x = (x - x[:a].mean(0)) / x[:a].std(0).clamp(min=1e-3)
        self.train, self.valid, self.test = Split(x[:a], y[:a]), Split(x[a:b], y[a:b]), Split(x[b:], y[b:])
        self.config = config

    def build(self, name: str) -> nn.Module:
        config, width = self.config, self.config.hidden
        inputs, outputs = config.num_features, config.num_labels
        if name == "feed-forward":  # widened to the size of the energies
            wide = width * 3 // 2
            layers = [nn.Linear(inputs, wide), nn.SiLU(), nn.Linear(wide, wide), nn.SiLU(), nn.Linear(wide, outputs)]
            return nn.Sequential(*layers, nn.Sigmoid())
        common: dict[str, Any] = {"num_iterations": config.num_iterations, "shard": shard()}
        frequency = self.train.y.mean(0).clamp(0.02, 0.98)
        if name == "icnn":
            energy = ICNN(inputs, outputs, (width,), strong_convexity=1.0)
            common |= {"num_iterations": 60, "gradient": dcem.Implicit()}
            return EnergyModel(energy, outputs, dcem.GradientDescent(0.02, 0.9), init_mean=frequency, **common)
        spen = SPEN(inputs, outputs, (width, width), (width,), conditional=True, activation=nn.SiLU)
        cem = dcem.CEM(config.num_samples, config.num_elites, dcem.LML(config.temperature))
        if name == "spen-dcem":
            std = nn.Parameter((frequency * (1 - frequency)).sqrt())
            return EnergyModel(spen, outputs, cem, init_mean=frequency, init_std=std, **common)
        if name == "spen-embedded":
            decoder = nn.Sequential(nn.Linear(config.latent, width), nn.SiLU(), nn.Linear(width, outputs), nn.Sigmoid())
            return EnergyModel(spen, outputs, cem, decoder=decoder, latent_shape=config.latent, **common)
        steps = dcem.GradientDescent(nn.Parameter(torch.full((config.num_iterations,), 1.0)))
        return EnergyModel(spen, outputs, steps, decoder=nn.Sigmoid(), init_mean=frequency.logit(), **common)

    def loss(self, name: str, model: Any, batch: Split, generator: torch.Generator) -> Tensor:
        if name == "feed-forward":
            return F.binary_cross_entropy(model(batch.x), batch.y)
        if name in ("spen-gd", "spen-embedded"):
            return end_to_end_loss(model, batch.x, batch.y, F.binary_cross_entropy, generator=generator)
        return end_to_end_loss(model, batch.x, batch.y, generator=generator)

    def evaluate(self, name: str, model: Any, split: Split) -> dict[str, float]:
        iterations = getattr(model, "num_iterations", 1)
        scores = training.predictions(model, split.x, [iterations])[iterations]
        micro = f1(scores, split.y)["micro"].max()
        return {"minus_f1": -float(micro), "mse": float((scores - split.y).square().mean())}

    def report(self, name: str, model: Any) -> dict[str, Any]:
        trained = getattr(model, "num_iterations", 1)
        iterations = sorted({*self.config.test_iterations, trained})
        found = training.predictions(model, self.test.x, iterations)
        on_valid = f1(training.predictions(model, self.valid.x, [trained])[trained], self.valid.y)
        at = {kind: int(values.argmax()) for kind, values in on_valid.items()}
        scores = {t: f1(y, self.test.y) for t, y in found.items()}
        metrics: dict[str, Any] = {f"f1_{kind}": float(scores[trained][kind][i]) for kind, i in at.items()}
        metrics["mse"] = float((found[trained] - self.test.y).square().mean())
        errors = {str(t): 1 - float(of_t["micro"][at["micro"]]) for t, of_t in scores.items()}
        return {**metrics, "error_by_iterations": {} if name == "feed-forward" else errors}


def examples(config: Config) -> tuple[Tensor, Tensor]:
    """Inputs `(n, num_features)` and labels `(n, num_labels)`, the same for every run."""
    from sklearn.datasets import make_multilabel_classification  # type: ignore[import-untyped,unused-ignore]

    x, drawn = make_multilabel_classification(
        n_samples=config.num_train + config.num_valid + config.num_test,
        n_features=config.num_features,
        n_classes=config.num_drawn,
        n_labels=4,
        length=config.length,
        random_state=0,
    )
    labels = [torch.as_tensor(drawn).bool()]
    generator = torch.Generator().manual_seed(0)
    for i in range(config.num_labels - config.num_drawn):
        a, b = labels[0][:, torch.randperm(config.num_drawn, generator=generator)[:2]].unbind(-1)
        labels.append((a & b, a | b, a ^ b)[i % 3].unsqueeze(-1))
    return torch.as_tensor(x).float(), torch.cat(labels, -1).float()


def f1(scores: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Micro and macro F1 at every threshold of `THRESHOLDS`; a label that nobody has or predicts counts as 0."""
    chosen = (scores.unsqueeze(0) > THRESHOLDS.to(scores).view(-1, 1, 1)).float()
    right, all_chosen, all_true = (chosen * y).sum(1), chosen.sum(1), y.sum(0)
    micro = 2 * right.sum(-1) / (all_chosen.sum(-1) + all_true.sum()).clamp(min=1)
    macro = (2 * right / (all_chosen + all_true).clamp(min=1)).mean(-1)
    return {"micro": micro, "macro": macro}


def main(config: Config, run: Run) -> dict[str, Any]:
    """Train all models, compare, draw; returns the metrics of every seed."""
    task = MultiLabel(config)
    results = training.compare(task, config, run)
    correlations = torch.corrcoef(task.train.y.T).nan_to_num()
    run.figure("correlations", plotting.correlations(correlations.cpu(), "label", "correlation of labels"))
    report.draw_iterations(run, results, LABELS, "error_by_iterations", "1 - micro F1 on the test set", config)
    columns = {
        "f1_micro": ("micro F1", ".4f"),
        "f1_macro": ("macro F1", ".4f"),
        "mse": ("test MSE", ".4f"),
        "seconds_per_epoch": ("CPU s / epoch", ".2f"),
        "parameters": ("parameters", ".0f"),
    }
    strongest = (correlations - torch.eye(len(correlations), device=correlations.device)).abs().amax(-1).mean()
    note = (
        f"{config.num_labels} labels, the strongest correlation of each with another {strongest:.2f} on average; "
        f"{config.num_train} examples to learn from, {config.num_valid} to choose weights and thresholds by, "
        f"{config.num_test} tested."
    )
    return report.finish(run, results, report.table(results, LABELS, columns), note)
