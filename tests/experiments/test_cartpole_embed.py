"""The cartpole's embedded control space: the command end to end, resuming, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dcem.experiments import ConfigError
from dcem.experiments.cartpole_embed import task, training
from dcem.experiments.cartpole_embed.settings import Config, Search
from dcem.experiments.cartpole_embed.task import (
    EXPERT,
    NUM_VALIDATION,
    VALIDATION_SEED,
    build,
    embedded,
    evaluate,
    validation_states,
)
from dcem.experiments.harness.command import main
from dcem.experiments.harness.reading import checkpoint_of

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


def test_without_temperature_only_the_decoder_is_differentiated(tmp_path: Path) -> None:
    metrics = run(tmp_path / "run", "temperature=0")
    assert metrics["cost_hard"] == metrics["cost_soft"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_elites": 200}, "num_elites: expected 0 < num_elites <= num_samples=100, got 200"),
        ({"answer": "last"}, "answer: expected one of mean, best; got last"),
        ({"seed": 20}, "seed: expected none of a set of validation or test; got 20"),
        ({"device": "gpu"}, "device: expected auto, or a device of torch; got gpu"),
    ],
)
def test_refuses_what_makes_no_sense(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Config(**change).check()


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
    from dcem.experiments.cartpole_embed import evaluation, study

    small = Search(8, 2, 3)
    for module in (evaluation, study):
        monkeypatch.setattr(module, "EXPERT", small.but(init_std=50.0))
    monkeypatch.setattr(evaluation, "DIVISIONS", {24: ((8, 2, 3),)})
    monkeypatch.setattr(evaluation, "STDS", (20.0, 100.0))
    monkeypatch.setattr(evaluation, "SEARCHES", (small, small.but(answer="best")))
    monkeypatch.setattr(study, "ITERATIONS_SHOWN", (0, 2))

    def fewer(num: int = NUM_VALIDATION, seed: int = VALIDATION_SEED) -> torch.Tensor:
        return validation_states(num // 25 if num >= 100 else num, seed)

    monkeypatch.setattr(task, "validation_states", fewer)
    run(tmp_path / "runs" / "0")
    shutil.copytree(tmp_path / "runs" / "0", tmp_path / "runs" / "1")
    run(tmp_path / "runs" / "fewer", "num_iterations=1", "answer=best", "temperature=0", "sees_state=true")
    capsys.readouterr()
    arguments = [f"runs={tmp_path}/runs", "num_test=3", f"hydra.run.dir={tmp_path}/study"]
    assert main(["cartpole-embed-study", *arguments]) == 0
    table = (tmp_path / "study" / "table.md").read_text()
    assert "| 2 | no | 1 | 8 × 2, 2 elites, mean | 2 of 2 | 0.001 | 2 | " in table
    assert "| 2 | yes | 0 | 8 × 1, 2 elites, best | 2 of 2 | 0.001 | 1 | " in table
    assert "settings tried, 14 in all" in table
    assert table.count("| iCEM | 8 × 3, 2 elites, best, std ") == 1
    assert "| decoder-16 | 8 × 3, 2 elites, best | 24 | " in table
    assert "| decoder-8 | 8 × 3, 2 elites, mean | 24 | " in table
    for figure in ("convergence", "latent-space", "samples-forces", "samples-pole"):
        assert (tmp_path / "study" / f"{figure}.png").stat().st_size > 1000
    found = json.loads((tmp_path / "study" / "summary.json").read_text())["metrics"]
    for row in found["rows"]:  # the mean as answer, whatever the training had: compared with the paper's factors
        assert (row["cost_mean"] == row["cost_hard"]) is (row["answer"] == "mean")
    searches = found["searches"]
    for method, tried in evaluation.rivals(24).items():  # each at its best on the validation states
        lowest = min(evaluation.mean_cost(rival.controller(), validation_states(4)) for rival in tried)
        assert [s["validation"] for s in searches if s["over"] == method] == [pytest.approx(lowest)]
    mean, best = (s["test"] for s in searches if s["over"] == "decoder-16")
    assert best <= mean
    files = ",".join(f"{tmp_path}/study/decoder-{budget}.pt" for budget in (16, 8))
    again = ["cartpole-embed-evaluate", f"decoders=[{files}]", "num_test=3", f"hydra.run.dir={tmp_path}/again"]
    assert main(again) == 0
    assert json.loads((tmp_path / "again" / "summary.json").read_text())["metrics"]["searches"] == searches
    capsys.readouterr()
    torch.save({"other": torch.zeros(2, 2)}, tmp_path / "other.pt")
    for path, says in (
        ("none.pt", "files of dcem cartpole-embed-study"),
        ("other.pt", "weights of a cartpole's decoder"),
    ):
        assert main(["cartpole-embed-evaluate", f"decoders=[{tmp_path}/{path}]"]) == 2
        assert f"decoders: expected {says}; got {tmp_path}/{path}" in capsys.readouterr().err
    older = tmp_path / "older" / "run"
    shutil.copytree(tmp_path / "runs" / "0", older)
    checkpoint = checkpoint_of(older)
    del checkpoint["tracked"]["best"]
    torch.save(checkpoint, older / "checkpoint.pt")
    assert main(["cartpole-embed-study", f"runs={older.parent}", f"hydra.run.dir={tmp_path}/refused"]) == 2
    assert f"runs: expected runs that keep the weights of their best evaluation; got {older}" in capsys.readouterr().err
    assert main(["cartpole-embed-study", f"runs={tmp_path}/none"]) == 2
    assert "runs: expected a folder of run folders" in capsys.readouterr().err


def test_a_decoder_may_see_the_state() -> None:
    """Then it plans in each state what it would there alone; without, in all the same for a latent."""
    states = validation_states(3).double()  # in single precision a batch differs from one by what a processor rounds
    for sees_state in (False, True):
        torch.manual_seed(0)
        decoder = build(Config(latent=2, hidden=[8], sees_state=sees_state)).double()
        controller = embedded(decoder, Search(8, 2, 2))
        noise = torch.randn(2, 1, 8, 2, dtype=torch.float64).expand(2, 3, 8, 2)
        together = controller(states, noise=noise)
        alone = torch.stack([controller(state, noise=noise[:, 0]).actions for state in states])
        torch.testing.assert_close(together.actions, alone)
        z = torch.zeros(3, 1, 2, dtype=torch.float64)
        forces = decoder(z, state=states.unsqueeze(1)) if sees_state else decoder(z)
        assert forces.shape == (3, 1, 20, 1)
        assert torch.equal(forces[0], forces[1]) is not sees_state


def test_the_weights_of_the_best_evaluation_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    costs = iter([3.0, -1.0, 2.0, 0.0])

    def evaluate(decoder: torch.nn.Module, config: Config, states: torch.Tensor) -> dict[str, float]:
        weights.append(decoder.state_dict()["layers.0.weight"].clone())
        return {"cost_soft": 0.0, "cost_hard": next(costs)}

    weights: list[torch.Tensor] = []
    monkeypatch.setattr(training, "evaluate", evaluate)
    run(tmp_path / "run")
    assert torch.equal(weights[3], weights[1])
    assert not torch.equal(weights[2], weights[1])
    kept = checkpoint_of(tmp_path / "run")["tracked"]["best"]["weights"]["layers.0.weight"]
    assert torch.equal(kept, weights[1])
