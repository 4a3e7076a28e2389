"""Maps with two answers: `y² = x`, and a spiral of two arms. The mean of the answers is no answer.

A net trained by squared errors predicts that mean, and so does an energy that is trained through its prediction. An
energy trained by likelihood, or by telling targets from what DCEM finds, has a valley on each branch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import dcem
from dcem import plotting
from dcem.energy import ICNN, SPEN, EnergyModel, FeedForwardEnergy, contrastive_loss, end_to_end_loss, log_likelihood
from dcem.experiments.harness.processes import shard
from dcem.experiments.harness.run import Run
from dcem.experiments.harness.settings import choose_device, count, setting, some_of
from dcem.experiments.structured import report, training
from dcem.experiments.structured.settings import StructuredSettings
from dcem.experiments.structured.task import Split, Task

BOX = 1.5
"""Densities are over `[-1.5, 1.5]` in each direction."""
CROSS = torch.tensor([(-0.08, 0.0), (0.08, 0.0), (math.nan, math.nan), (0.0, -0.08), (0.0, 0.08)])
"""Marks an answer of the spiral in a figure."""
INVERSE_TEMPERATURES = torch.logspace(-2, 4, 49)
LABELS = {
    "feed-forward": "feed-forward net, squared error",
    "spen-gd": "SPEN, unrolled gradient descent, squared error",
    "spen-dcem": "SPEN, DCEM, squared error",
    "spen-embedded": "SPEN, embedded DCEM, squared error",
    "icnn": "ICNN, implicit differentiation, squared error",
    "contrastive-gd": "SPEN, InfoNCE, negatives of gradient descent",
    "contrastive-dcem": "SPEN, InfoNCE, negatives of DCEM",
    "likelihood": "SPEN, likelihood by quadrature",
}
ITERATIONS = 20
"""Of every search in the tables and pictures, however many there were in training."""
BY_DENSITY = ("contrastive-gd", "contrastive-dcem", "likelihood")


@dataclass
class Config(StructuredSettings):
    """Settings of `dcem set-valued`."""

    models: list[str] = some_of([], list(LABELS), may_be_empty=True)
    """Which to compare; empty: all."""
    curves: list[str] = some_of(["root", "spiral"], ["root", "spiral"])
    hidden: int = count(32)
    num_epochs: int = count(35)
    noise: float = setting(0.08, above=0, at_most=0.1)
    num_train: int = count(1000)
    num_valid: int = count(500)
    num_test: int = count(1000)
    num_negatives: int = count(64)


def branches(curve: str, x: Tensor) -> Tensor:
    """The two answers `(n, 2, d)` to each input `(n, 1)`; inputs are `x` of `[0, 1]` on the scale of `[-2, 2]`."""
    x = (x + 2) / 4
    if curve == "root":
        one = x.sqrt()
    else:
        radius, angle = 0.2 + 0.8 * x, 2 * math.pi * x
        one = torch.cat([radius * angle.cos(), radius * angle.sin()], -1)
    return torch.stack([one, -one], 1)


class SetValued(Task):
    """One of the curves, and the models."""

    labels = LABELS
    metric = "valid_loss"

    def __init__(self, config: Config, curve: str) -> None:
        self.config, self.curve, self.size = config, curve, 1 if curve == "root" else 2
        generator = torch.Generator().manual_seed(0)
        device = choose_device(config.device)

        def split(n: int) -> Split:
            x = 4 * torch.rand(n, 1, generator=generator) - 2
            which = torch.randint(2, (n, 1, 1), generator=generator).expand(n, 1, self.size)
            y = branches(curve, x).gather(1, which)[:, 0]
            y = y + config.noise * torch.randn(n, self.size, generator=generator)
            return Split(x.to(device), y.clamp(-BOX, BOX).to(device))

        self.train, self.valid, self.test = (split(n) for n in (config.num_train, config.num_valid, config.num_test))

    def build(self, name: str) -> nn.Module:
        config, width = self.config, self.config.hidden
        if name == "feed-forward":  # deeper, to the size of the energies
            layers = [nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)]
            return nn.Sequential(*layers, nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, self.size))
        common: dict[str, Any] = {"num_iterations": config.num_iterations}
        if not name.startswith("contrastive"):  # whose negatives are the samples of all problems
            common["shard"] = shard()
        if name == "icnn":
            energy = ICNN(1, self.size, (width, width), strong_convexity=1.0)
            common |= {"num_iterations": 20, "gradient": dcem.Implicit()}
            return EnergyModel(energy, self.size, dcem.GradientDescent(0.1, 0.8), **common)
        spen = SPEN(1, self.size, (width, width), (width, width), conditional=True, activation=nn.SiLU)
        if name in ("spen-gd", "contrastive-gd"):
            rate = torch.full((config.num_iterations,), 0.1)
            steps = nn.Parameter(rate) if name == "spen-gd" else rate
            return EnergyModel(spen, self.size, dcem.GradientDescent(steps), init_std=0.8, **common)
        cem = dcem.CEM(config.num_samples, config.num_elites, dcem.LML(config.temperature), init_std=0.8)
        if name == "spen-embedded":
            decoder = nn.Sequential(nn.Linear(2, width), nn.SiLU(), nn.Linear(width, self.size))
            return EnergyModel(spen, self.size, cem, decoder=decoder, latent_shape=2, **common)
        return EnergyModel(spen, self.size, cem, **common)

    def loss(self, name: str, model: Any, batch: Split, generator: torch.Generator) -> Tensor:
        if name == "feed-forward":
            return (model(batch.x) - batch.y).square().mean()
        if name == "likelihood":
            points = 128 if self.size == 1 else 32
            return -log_likelihood(model.energy, *batch, low=-BOX, high=BOX, num_points=points).mean()
        if name.startswith("contrastive"):
            options: dict[str, Any] = {"num_negatives": self.config.num_negatives, "generator": generator}
            options |= {"correction": True} if name == "contrastive-dcem" else {"num_starts": 16}
            return contrastive_loss(model, *batch, **options)
        return end_to_end_loss(model, *batch, generator=generator)

    def log_density(self, model: Any, split: Split, scale: float, fine: bool = False) -> Tensor:
        """`log p(y|x)` `(n,)` over the box; `scale` is the inverse temperature."""
        points = (2 if fine else 1) * (128 if self.size == 1 else 32)
        box: dict[str, Any] = {"low": -BOX, "high": BOX, "num_points": points, "inverse_temperature": scale}
        parts = zip(split.x.split(64), split.y.split(64), strict=True)  # type: ignore[no-untyped-call]
        return torch.cat([log_likelihood(energy_of(model), x, y, **box) for x, y in parts])

    @torch.no_grad()
    def scale(self, model: Any) -> float:
        """What makes the validation set most likely: an end-to-end loss leaves the energy's scale open."""
        few = Split(self.valid.x[:128], self.valid.y[:128])
        nll = [-self.log_density(model, few, float(beta)).mean() for beta in INVERSE_TEMPERATURES[::4]]
        middle = 4 * int(torch.stack(nll).argmin())
        near = INVERSE_TEMPERATURES[max(0, middle - 3) : middle + 4]
        nll = [-self.log_density(model, few, float(beta)).mean() for beta in near]
        return float(near[int(torch.stack(nll).argmin())])

    def predictions(self, name: str, model: Any, x: Tensor, iterations: list[int]) -> dict[int, Tensor]:
        """Those of energies trained by density come from a hard DCEM: it settles for one of the answers."""
        if name not in BY_DENSITY:
            return training.predictions(model, x, iterations)
        hard = dcem.CEM(self.config.num_samples, self.config.num_elites, dcem.LML(0.1), init_std=0.8)
        searched = EnergyModel(model.energy, self.size, hard)
        return training.predictions(searched, x, iterations)

    def distance(self, x: Tensor, y: Tensor) -> float:
        """Root mean square distance of predictions to the nearest answer."""
        squares = (branches(self.curve, x) - y.unsqueeze(1)).square().sum(-1).amin(1)
        return float(squares.mean().sqrt())

    @torch.no_grad()
    def evaluate(self, name: str, model: Any, split: Split) -> dict[str, float]:
        """The validation loss: negative log-likelihood or squared error, whichever the model is trained by."""
        if name in BY_DENSITY:
            few = Split(split.x[:256], split.y[:256])
            return {"valid_loss": -float(self.log_density(model, few, 1.0).mean())}
        trained = getattr(model, "num_iterations", 1)
        prediction = training.predictions(model, split.x, [trained])[trained]
        return {"valid_loss": float((prediction - split.y).square().mean())}

    @torch.no_grad()
    def report(self, name: str, model: Any) -> dict[str, Any]:
        trained = None if name in BY_DENSITY else getattr(model, "num_iterations", None)
        wanted = {*self.config.test_iterations, ITERATIONS} | ({trained} if trained else set())
        found = self.predictions(name, model, self.test.x, sorted(wanted))
        distances = {t: self.distance(self.test.x, y) for t, y in found.items()}
        scale = self.scale(model)
        return {
            "nll": -float(self.log_density(model, self.test, scale, fine=True).mean()),
            "distance": distances[ITERATIONS],
            "distance_trained": distances[trained] if trained else None,
            "mse": float((found[ITERATIONS] - self.test.y).square().mean()),
            "scale": scale,
            "distance_by_iterations": {} if name == "feed-forward" else {str(t): d for t, d in distances.items()},
        }

    @torch.no_grad()
    def panel(self, name: str, model: Any, scale: float) -> plotting.Panel:
        """The density that the model stands for: over `(x, y)`, or for the spiral over `y` at one `x`."""
        device = self.test.x.device
        axis = torch.linspace(-BOX, BOX, 121, device=device)
        if self.size == 1:
            x = torch.linspace(-2, 2, 81, device=device)
            grid = torch.cartesian_prod(x, axis)
            split, shape = Split(grid[:, :1], grid[:, 1:]), (81, 121)
            marks = branches(self.curve, x.unsqueeze(-1))[..., 0]
            shown = (x + 2) / 4
            lines = [torch.stack([shown, marks[:, i]], -1) for i in range(2)]
            some = torch.linspace(-1.95, 1.95, 25, device=device).unsqueeze(-1)
        else:
            grid = torch.cartesian_prod(axis, axis)
            split, shape = Split(axis.new_full((len(grid), 1), 0.8), grid), (121, 121)
            x = shown = axis
            some = axis.new_full((1, 1), 0.8)
            lines = list(CROSS.to(device) + branches(self.curve, some).transpose(0, 1))
        y = self.predictions(name, model, some, [ITERATIONS])[ITERATIONS]
        points = torch.cat([(some + 2) / 4, y], -1) if self.size == 1 else y
        inputs = x.unsqueeze(-1) if self.size == 1 else split.x[:1]
        candidates = axis.view(1, -1, 1).expand(len(x), -1, 1) if self.size == 1 else grid.unsqueeze(0)
        density = -scale * energy_of(model)(inputs, candidates)
        width = float(axis[1] - axis[0]) ** self.size
        density = density - density.logsumexp(-1, keepdim=True) - math.log(width)
        return plotting.Panel(LABELS[name], shown, axis, density.reshape(shape).exp(), lines, points)


def energy_of(model: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """The energy that the model's density is made of: of a net the squared distance from its prediction, a Gaussian."""
    energy: Callable[[Tensor, Tensor], Tensor] = (
        model.energy if isinstance(model, EnergyModel) else FeedForwardEnergy(model)
    )
    return energy


def main(config: Config, run: Run) -> dict[str, Any]:
    """Train all models on each curve, compare, draw; returns the metrics of every seed."""
    everything: dict[str, list[training.Trained]] = {}
    labels: dict[str, str] = {}
    text = ""
    for curve in config.curves:
        task = SetValued(config, curve)
        results = training.compare(task, config, run, f"{curve}-")
        axes = ("x", "y") if curve == "root" else ("first number of y, at x = 0.7", "second number of y")
        panels = [task.panel(name, seeds[0].model, seeds[0].metrics["scale"]) for name, seeds in results.items()]
        run.figure(f"densities-{curve}", plotting.densities(panels, *axes))
        key, what = "distance_by_iterations", f"distance to the nearest answer ({curve})"
        report.draw_iterations(run, results, LABELS, key, what, config, f"iterations-{curve}")
        title = "y² = x" if curve == "root" else "two-armed spiral"
        text += f"**{title}**\n\n" + report.table(results, LABELS, COLUMNS) + "\n"
        for name, seeds in results.items():
            everything[f"{curve}-{name}"], labels[f"{curve}-{name}"] = seeds, LABELS[name]
    note = (
        f"{config.num_train} examples with noise of {config.noise} to learn from. The negative log-likelihood (nats; "
        "lower is better) is of the density over the box, its scale fitted on the validation set; that of the uniform "
        "density is log 3 = 1.099 and log 9 = 2.197. The distance is the root mean square distance of the prediction "
        f"to the nearest answer. Every search has {ITERATIONS} iterations; beside it the distance after as many as in "
        "training."
    )
    return report.finish(run, everything, text, note)


COLUMNS = {
    "nll": ("negative log-likelihood", ".3f"),
    "distance": ("distance to nearest answer", ".3f"),
    "distance_trained": ("as trained", ".3f"),
    "mse": ("test MSE", ".3f"),
    "seconds_per_epoch": ("CPU s / epoch", ".2f"),
    "parameters": ("parameters", ".0f"),
}
