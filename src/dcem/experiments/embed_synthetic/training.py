"""Learn a decoder for each size and seed, solve the test problems with every method."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import dcem
from dcem.embedding import LinearDecoder, MLPDecoder, decoder_step
from dcem.experiments.embed_synthetic import figures
from dcem.experiments.embed_synthetic.methods import LABELS, Part, search
from dcem.experiments.embed_synthetic.report import summary, table
from dcem.experiments.embed_synthetic.settings import BOX, LATENT_STD, Config
from dcem.experiments.embed_synthetic.task import Problems, test_problems
from dcem.experiments.harness.report import write_table
from dcem.experiments.harness.run import Run
from dcem.experiments.harness.settings import choose_device
from dcem.experiments.harness.training import Clock, Schedule, training_loop


def train(config: Config, size: int, seed: int, run: Run) -> tuple[MLPDecoder, Problems, float]:
    """Learn a decoder from values of the training problems; also returns these, and the seconds it took."""
    device = choose_device(config.device)
    problems = Problems.draw(config, config.num_train, size, torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    decoder = MLPDecoder(config.latent_size, size, config.hidden, bounds=(0, 1), activation=nn.SiLU).to(device)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=config.lr)
    schedule = Schedule(optimizer, config.num_updates)
    solver = dcem.CEM(config.num_samples, config.num_elites, dcem.LML(config.temperature), init_std=LATENT_STD)
    generator, spent = torch.Generator(device).manual_seed(seed), Clock()
    run.track(decoder=decoder, optimizer=optimizer, schedule=schedule, generator=generator, spent=spent)

    def update(step: int) -> float:
        chosen = torch.randperm(config.num_train, generator=torch.Generator().manual_seed(seed * 1_000_003 + step))
        batch = problems.some(chosen[: config.batch_size].to(device))
        init = torch.zeros(config.batch_size, config.latent_size, device=device)
        return decoder_step(
            batch, decoder, optimizer, init, solver,
            num_iterations=config.num_iterations, bounds=BOX, generator=generator,
        ).loss.item()  # fmt: skip

    training_loop(
        run, config.num_updates, update, lambda step, loss, **_: run.log(step, loss=loss), schedule, clock=spent,
        eval_every=config.checkpoint_every, at_start=False, description=f"N = {size}, seed {seed}",
    )  # fmt: skip
    return decoder, problems, spent.seconds


def part(config: Config, size: int, seed: int, run: Run) -> Part:
    """Train, then solve the test problems with all methods; a part that is complete is read and not made again."""
    decoder, known, seconds = train(config, size, seed, run)
    if run.finished:
        return Part(run.metrics["curves"], seconds, decoder)
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
    centre, drawn = torch.full((size,), 0.5), torch.Generator().manual_seed(seed)
    maps: dict[str, nn.Module] = {
        "random": LinearDecoder.random(config.latent_size, centre, 0.5, bounds=(0, 1), generator=drawn).to(device),
        "pca": LinearDecoder.principal_components(known.solution, config.latent_size, bounds=(0, 1)),
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


def main(config: Config, run: Run) -> dict[str, Any]:
    """Every size and seed; tables, figures; returns the metrics."""
    parts: dict[int, list[Part]] = {}
    for size in config.sizes:
        for seed in range(config.seed, config.seed + config.num_seeds):
            with run.part(f"{size}-{seed}", seed) as one:
                done = part(config, size, seed, one)
            parts.setdefault(size, []).append(done)
            ends = "  ".join(f"{name} {curve[-1][1]:.2g}" for name, curve in done.curves.items())
            run.say(f"N = {size}, seed {seed}: final cost {ends}")
    metrics = summary(config, parts)
    write_table(run, table(config, metrics))
    curves = {size: [one.curves for one in seeds] for size, seeds in parts.items()}
    run.figure("cost", figures.costs(curves, LABELS))
    run.figure("saved", figures.factors({size: of["vs_cem"] for size, of in metrics["sizes"].items()}))
    largest = config.sizes[-1]
    problems = test_problems(config, largest, config.seed)
    run.figure("latent", figures.latent(config, parts[largest][0].decoder, problems))
    run.finish(**metrics)
    return metrics
