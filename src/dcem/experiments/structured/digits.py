"""Complete handwritten digits: from the left half of an 8x8 image to the right half.

Thirty-two outputs that depend on one another, the data bundled with scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import dcem
from dcem import plotting
from dcem.energy import ICNN, SPEN, ConvEnergy, EnergyModel, end_to_end_loss
from dcem.experiments.harness.processes import shard
from dcem.experiments.harness.run import Run
from dcem.experiments.harness.settings import choose_device, count, positive, require, setting, some_of
from dcem.experiments.structured import report, training
from dcem.experiments.structured.settings import StructuredSettings
from dcem.experiments.structured.task import Split, Task

SHAPE = (1, 8, 4)
LABELS = {
    "feed-forward": "feed-forward net",
    "spen-gd": "SPEN, unrolled gradient descent",
    "spen-dcem": "SPEN, DCEM",
    "spen-embedded": "SPEN, embedded DCEM",
    "conv-gd": "convolutional energy, unrolled gradient descent",
    "icnn": "ICNN, implicit differentiation",
}


@dataclass
class Config(StructuredSettings):
    """Settings of `dcem digits`."""

    models: list[str] = some_of([], list(LABELS), may_be_empty=True)
    """Which to compare; empty: all."""
    hidden: int = count(128)
    num_epochs: int = count(40)
    lr: float = positive(1e-2)
    weight_decay: float = setting(0.3, at_least=0)
    latent: int = count(16)
    """Numbers in the latent of embedded DCEM."""
    num_train: int = count(1200)
    num_valid: int = count(200)
    num_test: int = count(397)

    def check(self) -> None:
        super().check()
        most = 1797 - self.num_valid - self.num_test
        require(self.num_train <= most, "num_train", f"at most {most}", self.num_train)


class Digits(Task):
    """The fixed split of the digits, and the models."""

    labels = LABELS
    metric = "mse"

    def __init__(self, config: Config) -> None:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped,unused-ignore]

        images = torch.as_tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 16
        images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
        images = images.to(choose_device(config.device))
        x, y = images[..., :4].contiguous(), images[..., 4:].contiguous()
        ends = (config.num_train, config.num_train + config.num_valid)
        self.train = Split(x[: ends[0]], y[: ends[0]])
        self.valid = Split(x[ends[0] : ends[1]], y[ends[0] : ends[1]])
        self.test = Split(x[ends[1] :][: config.num_test], y[ends[1] :][: config.num_test])
        self.config = config

    def build(self, name: str) -> nn.Module:
        config, width = self.config, self.config.hidden
        if name == "feed-forward":  # widened to the size of the energies
            wide = width * 5 // 4
            layers = [nn.Flatten(), nn.Linear(32, wide), nn.SiLU(), nn.Linear(wide, wide), nn.SiLU()]
            return nn.Sequential(*layers, nn.Linear(wide, 32), nn.Sigmoid(), nn.Unflatten(-1, SHAPE))
        common: dict[str, Any] = {"num_iterations": config.num_iterations, "feature_dims": 3, "shard": shard()}
        mean = self.train.y.mean(0)
        if name == "icnn":
            energy = ICNN(SHAPE, SHAPE, (width,), strong_convexity=1.0)
            common |= {"num_iterations": 60, "gradient": dcem.Implicit(), "init_mean": mean}
            return EnergyModel(energy, SHAPE, dcem.GradientDescent(0.02, 0.9), **common)
        if name == "conv-gd":
            conv = ConvEnergy(SHAPE, SHAPE, axis=2, channels=(16, 32, 64), hidden=(), activation=nn.SiLU)
            steps = nn.Parameter(torch.full((config.num_iterations,), 0.3))
            return EnergyModel(conv, SHAPE, dcem.GradientDescent(steps), init_mean=mean, **common)
        spen = SPEN(SHAPE, SHAPE, (width, width), (width // 2,), conditional=True, activation=nn.SiLU)
        cem = dcem.CEM(config.num_samples, config.num_elites, dcem.LML(config.temperature))
        if name == "spen-dcem":
            std = nn.Parameter(self.train.y.std(0) + 0.05)
            return EnergyModel(spen, SHAPE, cem, init_mean=mean, init_std=std, **common)
        if name == "spen-embedded":
            decoder = Decoder(config.latent, width // 2)
            return EnergyModel(spen, SHAPE, cem, decoder=decoder, latent_shape=config.latent, **common)
        steps = nn.Parameter(torch.full((config.num_iterations,), 1.0))
        logits = mean.clamp(0.02, 0.98).logit()  # the search is over logits, so that the answer is in (0, 1)
        return EnergyModel(spen, SHAPE, dcem.GradientDescent(steps), decoder=nn.Sigmoid(), init_mean=logits, **common)

    def loss(self, name: str, model: Any, batch: Split, generator: torch.Generator) -> Tensor:
        if name == "feed-forward":
            return (model(batch.x) - batch.y).square().mean()
        return end_to_end_loss(model, batch.x, batch.y, generator=generator)

    def evaluate(self, name: str, model: Any, split: Split) -> dict[str, float]:
        iterations = getattr(model, "num_iterations", 1)
        prediction = training.predictions(model, split.x, [iterations])[iterations]
        return {"mse": float((prediction - split.y).square().mean())}

    def report(self, name: str, model: Any) -> dict[str, Any]:
        trained = getattr(model, "num_iterations", 1)
        iterations = sorted({*self.config.test_iterations, trained, *([3 * trained] if name == "icnn" else [])})
        found = training.predictions(model, self.test.x, iterations)
        errors = {t: float((y - self.test.y).square().mean()) for t, y in found.items()}
        return {
            "mse": errors[trained],
            "mse_2x": errors.get(2 * trained) if name != "feed-forward" else None,
            "mse_by_iterations": {str(t): error for t, error in errors.items()} if name != "feed-forward" else {},
        }


class Decoder(nn.Module):
    """From a latent to the right half of a digit."""

    def __init__(self, latent: int, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(latent, width), nn.SiLU(), nn.Linear(width, 32), nn.Sigmoid())

    def forward(self, z: Tensor) -> Tensor:
        """`(*batch, N, latent)` to `(*batch, N, 1, 8, 4)`."""
        return self.net(z).unflatten(-1, SHAPE)


def main(config: Config, run: Run) -> dict[str, Any]:
    """Train all models, compare, draw; returns the metrics of every seed."""
    task = Digits(config)
    results = training.compare(task, config, run)
    x, y = task.test.x[:10], task.test.y[:10]
    rows = {"truth": torch.cat([x, y], -1)}
    for name, seeds in results.items():
        trained = getattr(seeds[0].model, "num_iterations", 1)
        rows[LABELS[name]] = torch.cat([x, training.predictions(seeds[0].model, x, [trained])[trained]], -1)
    run.figure("completed", plotting.image_rows({k: v[:, 0].cpu() for k, v in rows.items()}, given_columns=4))
    report.draw_iterations(run, results, LABELS, "mse_by_iterations", "test mean squared error", config)
    columns = {
        "mse": ("test MSE", ".4f"),
        "mse_2x": ("at twice the iterations", ".4f"),
        "seconds_per_epoch": ("CPU s / epoch", ".2f"),
        "parameters": ("parameters", ".0f"),
    }
    sizes = [len(split.x) for split in (task.train, task.valid, task.test)]
    note = f"{sizes[0]} digits to learn from, {sizes[1]} to choose weights by, {sizes[2]} tested."
    return report.finish(run, results, report.table(results, LABELS, columns), note)
