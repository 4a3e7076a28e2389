"""What a learned embedding saves: a family of objectives on `[0, 1]^N` whose solutions lie near a surface.

Each problem is a wave to be found, `x*(c)` plus something of its own; the two numbers of `c` are hidden, only the
objective is seen. Full-space CEM and iCEM search all `N` numbers. The embeddings search `latent_size`: a random one,
the principal components of the true solutions, and a decoder learned with `dcem.embedding.decoder_step`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

import dcem
from dcem.embedding import MLPDecoder, decoder_step, embed
from dcem.experiments import ConfigError
from dcem.experiments.run import SUMMARY, Run
from dcem.experiments.training import Schedule, choose_device, require

GROUPS: dict[str, dict[str, Any]] = {}
LABELS = {
    "cem": "full-space CEM",
    "icem": "full-space iCEM",
    "random": "random embedding",
    "pca": "principal components",
    "learned": "learned embedding",
}
BOX = (-1.0, 1.0)
"""Of the latent; searches start at its centre with a standard deviation of `LATENT_STD`."""
LATENT_STD = 0.5


@dataclass
class Search:
    """A cross-entropy search with a hard selection."""

    num_samples: int
    num_elites: int
    num_iterations: int


@dataclass
class Config:
    """Settings of `dcem embed-synthetic`."""

    sizes: list[int] = field(default_factory=lambda: [10, 30, 100, 300, 1000])
    """`N`."""
    ripple: float = 0.02
    """Height of the ripples that make the objective non-convex."""
    wavelength: float = 0.5
    """Of the ripples."""
    coupling: float = 1.0
    """Weight of the differences between neighbours' errors."""
    own: float = 0.01
    """Standard deviation of what a solution has of its own, off the surface."""
    num_train: int = 256
    num_test: int = 8
    latent_size: int = 4
    hidden: list[int] = field(default_factory=lambda: [64, 64])
    num_updates: int = 500
    batch_size: int = 16
    lr: float = 1e-2
    num_samples: int = 50
    """Of the solves in training; likewise below."""
    num_elites: int = 5
    num_iterations: int = 5
    temperature: float = 1.0
    full: Search = field(default_factory=lambda: Search(1000, 100, 100))
    full_std: float = 0.3
    icem: Search = field(default_factory=lambda: Search(300, 20, 100))
    latent: Search = field(default_factory=lambda: Search(50, 5, 20))
    checkpoint_every: int = 100
    num_seeds: int = 3
    seed: int = 0
    device: str = "cpu"
    threads: int = 1


def check(config: Config) -> None:
    """Refuse settings that cannot be run."""
    counts = ("num_train", "num_test", "latent_size", "num_updates", "batch_size", "num_samples", "num_iterations")
    for key in (*counts, "checkpoint_every", "num_seeds", "threads"):
        require(getattr(config, key) >= 1, key, "at least 1", getattr(config, key))
    sizes = config.sizes
    require(bool(sizes) and min(sizes) >= 2 and sorted(set(sizes)) == sizes, "sizes", "rising, at least 2", sizes)
    require(config.latent_size <= config.num_train, "latent_size", "at most num_train", config.latent_size)
    require(config.batch_size <= config.num_train, "batch_size", "at most num_train", config.batch_size)
    require(bool(config.hidden) and min(config.hidden) >= 1, "hidden", "positive widths", config.hidden)
    for key in ("wavelength", "lr", "temperature", "full_std"):
        require(getattr(config, key) > 0, key, "a positive number", getattr(config, key))
    for key in ("ripple", "coupling", "own"):
        require(getattr(config, key) >= 0, key, "at least 0", getattr(config, key))
    for key, search in (("", config), ("full.", config.full), ("icem.", config.icem), ("latent.", config.latent)):
        require(search.num_iterations >= 1, f"{key}num_iterations", "at least 1", search.num_iterations)
        try:
            dcem.CEM(search.num_samples, search.num_elites)
        except ValueError as error:
            raise ConfigError(f"{key}{error}") from None


@dataclass(frozen=True)
class Problems:
    """Objectives `(n, N, size) -> (n, N)` of one family, with their solutions."""

    config: Config
    hidden: Tensor
    """`c`, `(n, 2)`: what nobody is told."""
    solution: Tensor
    """`(n, size)`, of value 0."""

    @classmethod
    def draw(cls, config: Config, num: int, size: int, generator: torch.Generator) -> Problems:
        """A wave of hidden frequency and phase, and slow wiggles of the problem's own."""
        c = torch.rand(num, 2, generator=generator)
        t = torch.linspace(0, 1, size)
        wave = 0.5 + 0.35 * (2 * math.pi * ((0.5 + c[:, :1]) * t + 0.6 * c[:, 1:])).sin()
        order = torch.arange(1, 9).unsqueeze(-1)
        own = torch.randn(num, 8, generator=generator) / 2 @ (math.pi * order * t).cos()  # of variance 1
        device = choose_device(config.device)
        return cls(config, c.to(device), (wave + config.own * own).clamp(0, 1).to(device))

    def some(self, chosen: Tensor) -> Problems:
        """A batch."""
        return Problems(self.config, self.hidden[chosen], self.solution[chosen])

    def __call__(self, x: Tensor) -> Tensor:
        """Mean squared distance, with ripples on it and neighbours coupled."""
        config, error = self.config, x - self.solution.unsqueeze(1)
        ripples = config.ripple * (1 - (2 * math.pi / config.wavelength * error).cos())
        return (error.square() + ripples).mean(-1) + config.coupling * error.diff(dim=-1).square().mean(-1)


Curve = list[list[float]]
"""Pairs of evaluations a problem so far, and the cost reached, a mean over problems."""


@torch.no_grad()
def search(
    problems: Problems,
    solver: dcem.CEM,
    settings: Search,
    generator: torch.Generator,
    decoder: Callable[[Tensor], Tensor] | None = None,
    noise: dcem.ColoredNoise | None = None,
) -> tuple[Curve, Tensor]:
    """Solve all problems, over the latent if there is a decoder: the course of the cost, and the answers found."""
    num, size = problems.solution.shape
    objective: Callable[[Tensor], Tensor] = problems if decoder is None else embed(problems, decoder)
    latent = problems.config.latent_size
    like = problems.solution
    init = like.new_full((num, size), 0.5) if decoder is None else like.new_zeros(num, latent)
    curve: Curve = []

    def note(iteration: dcem.Iteration) -> None:
        evaluations = (curve[-1][0] if curve else 0) + iteration.values.shape[-1]
        cost = objective(iteration.distribution.mean.unsqueeze(1)).mean()
        curve.append([evaluations, float(cost)])

    solution = dcem.minimize(
        objective,
        init,
        solver,
        num_iterations=settings.num_iterations,
        bounds=(0, 1) if decoder is None else BOX,
        generator=generator,
        noise=noise,
        callback=note,
    )
    return curve, solution.x


def random_embedding(config: Config, size: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """A random linear map, clipped to the box (REMBO: Wang et al., IJCAI 2013), with the spread of the solutions."""
    matrix = torch.randn(config.latent_size, size, generator=generator) * (0.5 / math.sqrt(config.latent_size))
    matrix = matrix.to(choose_device(config.device))
    return lambda z: (0.5 + z @ matrix).clamp(0, 1)


def principal_components(config: Config, solutions: Tensor) -> Callable[[Tensor], Tensor]:
    """The linear map that fits given solutions best; the box is two standard deviations wide on either side."""
    mean = solutions.mean(0)
    _, scale, directions = torch.linalg.svd(solutions - mean, full_matrices=False)
    kept = min(config.latent_size, len(scale))
    matrix = solutions.new_zeros(config.latent_size, solutions.shape[1])
    matrix[:kept] = 2 * scale[:kept, None] / math.sqrt(len(solutions) - 1 or 1) * directions[:kept]
    return lambda z: (mean + z @ matrix).clamp(0, 1)


class _Spent:
    """Processor seconds spent in updates, those before a resume included."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.seconds = state["seconds"]


def train(config: Config, size: int, seed: int, run: Run) -> tuple[MLPDecoder, Problems, float]:
    """Learn a decoder from values of the training problems; also returns these, and the seconds it took."""
    device = choose_device(config.device)
    problems = Problems.draw(config, config.num_train, size, torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    decoder = MLPDecoder(config.latent_size, size, config.hidden, bounds=(0, 1), activation=nn.SiLU).to(device)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=config.lr)
    schedule = Schedule(optimizer, "cosine", config.num_updates, 0)
    solver = dcem.CEM(config.num_samples, config.num_elites, dcem.LML(config.temperature), init_std=LATENT_STD)
    generator, spent = torch.Generator(device).manual_seed(seed), _Spent()
    run.track(decoder=decoder, optimizer=optimizer, schedule=schedule, generator=generator, spent=spent)
    for step in run.steps(config.num_updates, config.checkpoint_every, f"N = {size}, seed {seed}"):
        started = time.process_time()
        chosen = torch.randperm(config.num_train, generator=torch.Generator().manual_seed(seed * 1_000_003 + step))
        result = decoder_step(
            problems.some(chosen[: config.batch_size].to(device)),
            decoder,
            optimizer,
            torch.zeros(config.batch_size, config.latent_size, device=device),
            solver,
            num_iterations=config.num_iterations,
            bounds=BOX,
            generator=generator,
        )
        schedule.step()
        spent.seconds += time.process_time() - started
        if step % config.checkpoint_every == 0 or step == config.num_updates:
            run.log(step, loss=result.loss.item())
    return decoder, problems, spent.seconds


class Part(NamedTuple):
    """One size and seed: the course of every method on the same test problems, and what the figures need."""

    curves: dict[str, Curve]
    seconds: float
    decoder: MLPDecoder


def part(config: Config, size: int, seed: int, run: Run) -> Part:
    """Train, then solve the test problems with all methods; a part that is complete is read and not made again."""
    decoder, known, seconds = train(config, size, seed, run)
    path = run.folder / SUMMARY
    if path.exists():
        return Part(json.loads(path.read_text("utf-8"))["metrics"]["curves"], seconds, decoder)
    test, device = test_problems(config, size, seed), choose_device(config.device)
    generator = torch.Generator(device).manual_seed(seed)
    full, icem, latent = (
        dcem.CEM(s.num_samples, s.num_elites, dcem.HardTopK(), init_std=std, keep_elites=keep)
        for s, std, keep in (
            (config.full, config.full_std, 0.0),
            (config.icem, config.full_std, 0.3),
            (config.latent, LATENT_STD, 0.0),
        )
    )
    maps: dict[str, Callable[[Tensor], Tensor]] = {
        "random": random_embedding(config, size, torch.Generator().manual_seed(seed)),
        "pca": principal_components(config, known.solution),
        "learned": decoder,
    }
    curves = {
        "cem": search(test, full, config.full, generator)[0],
        "icem": search(test, icem, config.icem, generator, noise=dcem.ColoredNoise(2.0))[0],
    }
    for name, decoding in maps.items():
        curves[name] = search(test, latent, config.latent, generator, decoding)[0]
    run.finish(curves=curves, training_seconds=seconds)
    return Part(curves, seconds, decoder)


def test_problems(config: Config, size: int, seed: int) -> Problems:
    """Problems that no decoder has seen."""
    return Problems.draw(config, config.num_test, size, torch.Generator().manual_seed(1_000_000 + seed))


def needed(curve: Curve, cost: float) -> float | None:
    """Evaluations until the cost is reached, if it is."""
    return next((evaluations for evaluations, reached in curve if reached <= cost), None)


def saved(curves: dict[str, Curve], rival: str) -> dict[str, float | None]:
    """What the learned embedding saves: evaluations of the rival over its own until both reach the same cost.

    Once at the rival's final cost, which it counts as having reached when within 1 % (or one in a million); once at the
    learned embedding's own final cost within 5 %: a lower bound, with the rival's whole budget, if the rival never
    gets there.
    """
    theirs, ours = curves[rival], curves["learned"]
    target, own = max(1.01 * theirs[-1][1], 1e-6), 1.05 * ours[-1][1]
    until, mine, alone = needed(theirs, target), needed(ours, target), needed(ours, own)
    assert until is not None
    assert alone is not None
    there = needed(theirs, own)
    return {
        "rival_evaluations": until,
        "evaluations": mine,
        "factor": None if mine is None else until / mine,
        "rival_evaluations_at_own_cost": there or theirs[-1][0],
        "evaluations_at_own_cost": alone,
        "factor_at_own_cost": (there or theirs[-1][0]) / alone,
        "rival_gets_there": float(there is not None),
    }


def main(config: Config, run: Run) -> dict[str, Any]:
    """Every size and seed; tables, figures; returns the metrics."""
    from dcem.experiments import embed_synthetic_figures as figures

    plain: Any = OmegaConf.to_container(OmegaConf.structured(config))
    parts: dict[int, list[Part]] = {}
    for size in config.sizes:
        for seed in range(config.seed, config.seed + config.num_seeds):
            folder = run.folder / f"{size}-{seed}"
            with Run(folder, plain, seed=seed, device=run.device, command=run.command, resume=run.resume) as one:
                one.verbose = False
                done = part(config, size, seed, one)
            parts.setdefault(size, []).append(done)
            ends = "  ".join(f"{name} {curve[-1][1]:.2g}" for name, curve in done.curves.items())
            run.say(f"N = {size}, seed {seed}: final cost {ends}")
    metrics = summary(config, parts)
    text = table(config, metrics)
    (run.folder / "table.md").write_text(f"`{run.command}`\n\n{text}", encoding="utf-8")
    run.say("\n" + text)
    curves = {size: [one.curves for one in seeds] for size, seeds in parts.items()}
    run.figure("cost", figures.costs(curves, LABELS))
    run.figure("saved", figures.factors({size: of["vs_cem"] for size, of in metrics["sizes"].items()}))
    largest = config.sizes[-1]
    problems = test_problems(config, largest, config.seed)
    run.figure("latent", figures.latent(config, parts[largest][0].decoder, problems))
    run.finish(**metrics)
    return metrics


def summary(config: Config, parts: dict[int, list[Part]]) -> dict[str, Any]:
    """Plain numbers, a list over seeds each."""
    per_update = config.batch_size * (config.num_samples * config.num_iterations + 1)
    sizes = {
        size: {
            "final_cost": {name: [one.curves[name][-1][1] for one in seeds] for name in LABELS},
            "evaluations": {name: seeds[0].curves[name][-1][0] for name in LABELS},
            "vs_cem": [saved(one.curves, "cem") for one in seeds],
            "vs_icem": [saved(one.curves, "icem") for one in seeds],
            "training_seconds": [one.seconds for one in seeds],
        }
        for size, seeds in parts.items()
    }
    return {"training_evaluations": config.num_updates * per_update, "sizes": sizes}


def table(config: Config, metrics: dict[str, Any]) -> str:
    """Markdown: final costs, then what was saved and what the training cost."""
    cost = "| N | " + " | ".join(LABELS.values()) + " |\n|---:|" + "---:|" * len(LABELS) + "\n"
    gain = (
        "| N | evaluations to CEM's final cost, learned | CEM | factor | CEM to learned's final cost, factor | iCEM's "
        "final cost, factor | training, s | paid back after, problems |\n|---:|" + "---:|" * 7 + "\n"
    )
    for size, of in metrics["sizes"].items():
        cost += f"| {size} | " + " | ".join(_mean(values, ".2e") for values in of["final_cost"].values()) + " |\n"
        cem, icem = of["vs_cem"], of["vs_icem"]
        reached = all(s["rival_gets_there"] for s in cem)
        cells = [
            _mean([s["evaluations"] for s in cem], ".0f"),
            _mean([s["rival_evaluations"] for s in cem], ".0f"),
            _mean([s["factor"] for s in cem], ".0f"),
            ("" if reached else "> ") + _mean([s["factor_at_own_cost"] for s in cem], ".0f"),
            _mean([s["factor"] for s in icem], ".1f"),
            _mean(of["training_seconds"], ".0f"),
            ("" if reached else "< ") + _mean([_paid_back(metrics["training_evaluations"], s) for s in cem], ".0f"),
        ]
        gain += f"| {size} | " + " | ".join(cells) + " |\n"
    budget = metrics["sizes"][config.sizes[0]]["evaluations"]
    note = (
        f"Means over {config.num_seeds} seeds (± standard deviation); costs are means over {config.num_test} unseen "
        f"problems. Evaluations of the objective: CEM {budget['cem']:,}, iCEM {budget['icem']:,}, embeddings "
        f"{budget['learned']:,} a problem; training {metrics['training_evaluations']:,}, each with a gradient. A dash: "
        "not every seed reaches that cost. Seconds are of the processor. The training is paid back when CEM would have "
        "made as many evaluations more to reach the learned embedding's final cost; `>`, `<`: CEM does not get there.\n"
    )
    return f"{note}\n**Final cost**\n\n{cost}\n**Evaluations saved by the learned embedding**\n\n{gain}"


def _paid_back(training: int, saving: dict[str, Any]) -> float | None:
    """After how many problems, solved to the learned embedding's final cost, the training's evaluations are saved."""
    each = saving["rival_evaluations_at_own_cost"] - saving["evaluations_at_own_cost"]
    return math.ceil(training / each) if each > 0 else None


def _mean(values: list[Any], form: str) -> str:
    if any(value is None for value in values):
        return "–"
    tensor = torch.tensor(values, dtype=torch.float64)
    spread = float(tensor.std()) if len(values) > 1 else 0.0
    return f"{float(tensor.mean()):{form}}" + (f" ± {spread:{form}}" if spread > 0 else "")
