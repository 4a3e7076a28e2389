"""Learn a decoder for each size and seed, solve the test problems with every method."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

import dcem
from dcem.embedding import MLPDecoder, decoder_step
from dcem.experiments.embed_synthetic import figures
from dcem.experiments.embed_synthetic.methods import LABELS, Part, principal_components, random_embedding, search
from dcem.experiments.embed_synthetic.report import summary, table
from dcem.experiments.embed_synthetic.settings import BOX, LATENT_STD, Config
from dcem.experiments.embed_synthetic.task import Problems, test_problems
from dcem.experiments.harness.run import SUMMARY, Run
from dcem.experiments.harness.training import Schedule, choose_device


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


def main(config: Config, run: Run) -> dict[str, Any]:
    """Every size and seed; tables, figures; returns the metrics."""
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
