"""The cartpole's embedded control space: the command end to end, resuming, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dcem.experiments.cartpole_embed import training
from dcem.experiments.cartpole_embed.settings import Config, Search
from dcem.experiments.cartpole_embed.task import EXPERT, build, embedded, evaluate, validation_states
from dcem.experiments.harness.command import main
from dcem.experiments.harness.run import Run

# hydra 1.3 and tensorboard 2.21 on newer Pythons
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:hydra.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*"),
]

TINY = ["latent=2", "hidden=[8]", "num_samples=8", "num_elites=2", "num_iterations=2", "batch_size=2"]
TINY += ["num_updates=2", "eval_every=1", "checkpoint_every=1"]


@pytest.fixture(autouse=True)
def _small_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """An expert and validation states that take no time."""
    monkeypatch.setattr(training, "EXPERT", EXPERT.but(num_samples=8, num_elites=2, num_iterations=2))
    monkeypatch.setattr(training, "validation_states", lambda num=2, seed=20: validation_states(num, seed))


def run(folder: Path, *overrides: str) -> dict[str, float]:
    assert main(["cartpole-embed", *TINY, *overrides, f"hydra.run.dir={folder}"]) == 0
    metrics: dict[str, float] = json.loads((folder / "summary.json").read_text())["metrics"]
    return metrics


def test_trains_and_reports_both_selections(tmp_path: Path) -> None:
    metrics = run(tmp_path / "run")
    assert metrics["factor_hard"] == pytest.approx(metrics["cost_hard"] / metrics["cost_expert"])
    assert metrics["cost_hard"] != metrics["cost_soft"]
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [0, 1, 2]
    assert records[0]["cost_soft"] != records[-1]["cost_soft"]
    assert (tmp_path / "run" / "convergence.png").stat().st_size > 1000


def test_without_temperature_only_the_decoder_is_differentiated(tmp_path: Path) -> None:
    metrics = run(tmp_path / "run", "temperature=0")
    assert metrics["cost_hard"] == metrics["cost_soft"]


def test_a_stopped_run_ends_as_one_in_a_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole")
    steps = Run.steps

    def stop_after_one(self: Run, *arguments: object) -> object:
        for step in steps(self, *arguments):
            yield step
            if step == 1:
                self.step = 1
                self.checkpoint()
                raise KeyboardInterrupt

    monkeypatch.setattr(Run, "steps", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts")
    monkeypatch.setattr(Run, "steps", steps)
    assert main(["cartpole-embed", f"resume={tmp_path / 'parts'}"]) == 0
    assert json.loads((tmp_path / "parts" / "summary.json").read_text())["metrics"] == whole
    weights = [torch.load(tmp_path / f / "checkpoint.pt")["tracked"]["decoder"] for f in ("whole", "parts")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("latent=0", "latent: expected at least 1; got 0"),
        ("temperature=-1", "temperature: expected at least 0; got -1.0"),
        ("num_elites=200", "num_elites: expected 0 < num_elites <= num_samples=100, got 200"),
        ("answer=last", "answer: expected one of mean, best; got last"),
        ("precision=half", "precision: expected one of bfloat16, float32; got half"),
        ("lr=0", "lr: expected a positive number; got 0.0"),
        ("hidden=[]", "hidden: expected numbers, at least 1; got []"),
    ],
)
def test_refuses_settings_in_one_line(override: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cartpole-embed", override]) == 2
    assert says in capsys.readouterr().err


def test_evaluations_repeat_and_leave_the_global_generator_alone() -> None:
    config = Config(latent=2, hidden=[8], num_samples=8, num_elites=2, num_iterations=2)
    decoder, states = build(config), validation_states(3)
    first, after = evaluate(decoder, config, states), torch.get_rng_state()
    assert evaluate(decoder, config, states) == first
    assert torch.equal(torch.get_rng_state(), after)


def test_a_decoder_learns_through_the_search() -> None:
    """The gradient of the cost reached has a part that goes through the search, at a temperature above 0 only."""
    decoder, states = build(Config(latent=2, hidden=[8])), validation_states(3)

    def gradient(temperature: float) -> torch.Tensor:
        controller = embedded(decoder, Search(8, 2, 2, temperature=temperature))
        plan = controller(states, generator=torch.Generator().manual_seed(0))
        return torch.autograd.grad(plan.cost.sum(), plan.solution.x, allow_unused=True)[0]

    assert gradient(1.0).abs().sum() > 0
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient(0.0)


def test_a_study_compares_seeds_with_the_expert(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dcem.experiments.cartpole_embed import study

    small = Search(8, 2, 3)
    monkeypatch.setattr(study, "EXPERT", small.but(init_std=50.0))
    monkeypatch.setattr(study, "FULL_SEARCHES", (small.but(init_std=50.0),))
    monkeypatch.setattr(study, "DEPLOYED", small)
    monkeypatch.setattr(study, "ITERATIONS_SHOWN", (0, 2))
    monkeypatch.setattr(study, "SEARCHES", (small, small.but(answer="best")))
    for seed in (0, 1):
        run(tmp_path / "runs" / f"{seed}", f"seed={seed}")
    run(tmp_path / "runs" / "fewer", "num_iterations=1", "answer=best", "temperature=0")
    capsys.readouterr()
    arguments = [f"runs={tmp_path}/runs", "num_test=3", f"hydra.run.dir={tmp_path}/study"]
    assert main(["cartpole-embed-study", *arguments]) == 0
    table = (tmp_path / "study" / "table.md").read_text()
    assert "| 2 | 1 | 8 × 2, 2 elites, mean | 2 of 2 | 2 | " in table
    assert "| 2 | 0 | 8 × 1, 2 elites, best | 2 of 2 | 1 | " in table
    assert "| decoder-16 | 8 × 3, 2 elites, best | 24 | " in table
    assert "| decoder-8 | 8 × 3, 2 elites, mean | 24 | " in table
    for figure in ("convergence", "latent-space", "samples-forces", "samples-pole"):
        assert (tmp_path / "study" / f"{figure}.png").stat().st_size > 1000
    searches = json.loads((tmp_path / "study" / "summary.json").read_text())["metrics"]["searches"]
    mean, best = (s["test"] for s in searches if s["over"] == "decoder-16")
    assert best <= mean
    assert main(["cartpole-embed-study", f"runs={tmp_path}/none"]) == 2
    assert "runs: expected a folder of run folders" in capsys.readouterr().err
