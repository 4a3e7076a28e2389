"""Learn a decoder for each size and seed; choose every method's settings, and solve the test problems with it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

import dcem
from dcem.embedding import LinearDecoder, MLPDecoder, decoder_step
from dcem.experiments.embed_synthetic import figures
from dcem.experiments.embed_synthetic.counting import Counted, Outcome, expected_evaluations
from dcem.experiments.embed_synthetic.landscape import minima_along, minima_reached
from dcem.experiments.embed_synthetic.methods import CANDIDATES, cosine_decoder, evolution, restarted_descent, search
from dcem.experiments.embed_synthetic.report import Part, Settings, curves, plain, solved, summary, table
from dcem.experiments.embed_synthetic.settings import BOX, LATENT_STD, TEST_SEED, VALID_SEED, Config
from dcem.experiments.embed_synthetic.task import Problems
from dcem.experiments.harness.plain import to_json
from dcem.experiments.harness.report import write_table
from dcem.experiments.harness.run import Run
from dcem.experiments.harness.settings import choose_device
from dcem.experiments.harness.training import Clock, Schedule, training_loop


def problems_of(config: Config, num: int, size: int, seed: int) -> Problems:
    """Problems of a seed, on the device of the run."""
    return Problems.draw(num, size, torch.Generator().manual_seed(seed), choose_device(config.device))


def train(config: Config, size: int, seed: int, run: Run) -> tuple[MLPDecoder, Problems, float]:
    """Learn a decoder from values of the training problems; also returns these, and the seconds it took."""
    device = choose_device(config.device)
    problems = problems_of(config, config.num_train, size, seed)
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


def solvers(
    config: Config, size: int, seed: int, known: Problems, decoder: MLPDecoder
) -> dict[str, Callable[..., Outcome]]:
    """Every method as a function of counted problems, a generator and its settings; CMA-ES only with its package."""
    device, solutions = known.own.device, known.solution[: config.num_solutions]

    def random(num: int) -> LinearDecoder:
        centre, drawn = torch.full((size,), 0.5), torch.Generator().manual_seed(seed)
        return LinearDecoder.random(num, centre, 0.2, bounds=(0, 1), generator=drawn)

    def components(num: int) -> LinearDecoder:
        return LinearDecoder.principal_components(solutions, num, bounds=(0, 1))

    def over(make: Callable[[int], LinearDecoder]) -> Callable[..., Outcome]:
        def solve(counted: Counted, generator: torch.Generator, latent_size: int, **settings: Any) -> Outcome:
            num = min(latent_size, size)
            return search(counted, generator, make(num).to(device), latent_size=num, **settings)

        return solve

    methods: dict[str, Callable[..., Outcome]] = {
        "cem": search, "icem": search, "cma": evolution, "adam": restarted_descent, "random": over(random),
        "cosine": over(lambda num: cosine_decoder(num, size)), "pca": over(components),
        "learned": partial(search, decoder=decoder, latent_size=config.latent_size),
    }  # fmt: skip
    return {name: solve for name, solve in methods.items() if name != "cma" or find_spec("cma") is not None}


def choose(config: Config, size: int, seed: int, methods: dict[str, Callable[..., Outcome]]) -> dict[str, Settings]:
    """Of every method the settings that solve the validation problems with the fewest evaluations.

    Where none solves any, those that end lowest.
    """
    problems = problems_of(config, config.num_valid, size, VALID_SEED + seed)

    def judged(name: str, settings: Settings) -> tuple[float, float]:
        generator = torch.Generator(problems.own.device).manual_seed(seed)
        outcome = methods[name](Counted(problems, config.budget, config.target), generator, **settings)
        return expected_evaluations(outcome.solved, config.budget), float(outcome.costs[:, -1].log().mean())

    return {name: min(CANDIDATES[name], key=partial(judged, name)) for name in methods}


def part(config: Config, size: int, seed: int, run: Run, chosen: dict[str, Settings] | None) -> Part:
    """Train, then solve the test problems with all methods; a part that is complete is read and not made again."""
    decoder, known, seconds = train(config, size, seed, run)
    if run.finished:
        metrics = run.metrics
        return Part(metrics["chosen"], metrics["outcomes"], seconds, decoder)
    methods = solvers(config, size, seed, known, decoder)
    chosen = choose(config, size, seed, methods) if chosen is None else chosen
    test = problems_of(config, config.num_test, size, TEST_SEED + seed)
    outcomes = {}
    for name, solve in methods.items():
        generator = torch.Generator(test.own.device).manual_seed(seed)
        outcomes[name] = plain(solve(Counted(test, config.budget, config.target), generator, **chosen[name]))
    run.finish(chosen=chosen, outcomes=outcomes, training_seconds=seconds)
    return Part(chosen, outcomes, seconds, decoder)


def main(config: Config, run: Run) -> dict[str, Any]:
    """Every size and seed; tables, figures; returns the metrics."""
    parts: dict[int, list[Part]] = {}
    for size in config.sizes:
        for seed in range(config.seed, config.seed + config.num_seeds):
            before = parts.setdefault(size, [])
            with run.part(f"{size}-{seed}", seed) as one:
                before.append(part(config, size, seed, one, before[0].chosen if before else None))
            evaluations = "  ".join(
                f"{name} {expected_evaluations(solved(of), config.budget):.4g}"
                for name, of in before[-1].outcomes.items()
            )
            run.say(f"N = {size}, seed {seed}: evaluations a problem solved: {evaluations}")
    landscapes = {size: landscape(config, size) for size in config.sizes}
    metrics = summary(config, parts, landscapes)
    write_table(run, table(config, metrics))
    courses = curves(parts)
    text = to_json(courses, separators=(",", ":")) + "\n"
    (run.folder / "curves.json").write_text(text, encoding="utf-8")
    run.figure("cost", figures.courses(courses))
    run.figure("evaluations", figures.evaluations(metrics))
    shown = config.sizes[len(config.sizes) // 2]
    problem = problems_of(config, config.num_test, shown, TEST_SEED + config.seed)
    run.figure("latent", figures.latent(config, parts[shown][0].decoder, problem, parts[shown][0].chosen))
    run.finish(**metrics)
    return metrics


def landscape(config: Config, size: int) -> dict[str, float]:
    """How many minima there are, and where gradient descent from random starts ends, on a few test problems."""
    problems = problems_of(config, min(4, config.num_test), size, TEST_SEED + config.seed)
    generator = torch.Generator(problems.own.device).manual_seed(config.seed)
    own, reached = minima_reached(problems, generator, config.target, config.num_starts)
    return {"minima_along": float(minima_along(problems).float().mean()), "minima_of_their_own": own, "solved": reached}
